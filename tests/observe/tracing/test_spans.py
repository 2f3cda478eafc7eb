"""Who asks for spans, and how that is refused where it cannot be."""

from __future__ import annotations

import os

import pytest
from msgspec.structs import replace

from metta.sweep.clock import SystemClock
from metta.sweep.errors import ConfigError, MissingExtraError
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.observe.tracing.spans import NO_TRACING, check_tracing, open_tracing, wanted_exporters
from metta.sweep.testing.sweeps import sweep_created

ENDPOINT, TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
EXPORTER, DISABLED = "OTEL_TRACES_EXPORTER", "OTEL_SDK_DISABLED"
PROTOCOL, TRACES_PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"
URL = "http://localhost:4318"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without what whoever runs the tests has asked for."""
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        ({}, []),
        ({"OTEL_SERVICE_NAME": "mine"}, []),
        ({ENDPOINT: URL}, ["otlp_proto_http"]),
        ({ENDPOINT: ""}, []),
        ({TRACES_ENDPOINT: f"{URL}/v1/traces"}, ["otlp_proto_http"]),
        ({ENDPOINT: URL, EXPORTER: "none"}, []),
        ({EXPORTER: "otlp"}, ["otlp_proto_http"]),
        ({EXPORTER: "console, otlp"}, ["console", "otlp_proto_http"]),
        ({EXPORTER: "otlp,console,otlp"}, ["otlp_proto_http", "console"]),
        ({EXPORTER: "zipkin"}, ["zipkin"]),
        ({EXPORTER: "otlp", PROTOCOL: "grpc"}, ["otlp_proto_grpc"]),
        ({EXPORTER: "otlp", PROTOCOL: "grpc", TRACES_PROTOCOL: "http/protobuf"}, ["otlp_proto_http"]),
        # What speaks gRPC takes names without a scheme.
        ({ENDPOINT: "collector:4317", PROTOCOL: "grpc"}, ["otlp_proto_grpc"]),
    ],
)
def test_an_exporter_or_an_endpoint_asks_for_spans(said: dict[str, str], wanted: list[str]) -> None:
    assert wanted_exporters(said) == wanted


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({EXPORTER: "consle"}, "OTEL_TRACES_EXPORTER: there is no exporter 'consle'; did you mean 'console'"),
        ({ENDPOINT: "localhost:4318"}, f"{ENDPOINT}: expected a URL such as .*, got 'localhost:4318'"),
        ({TRACES_ENDPOINT: "http://:4318"}, TRACES_ENDPOINT),
        ({ENDPOINT: "http://[half"}, ENDPOINT),
        ({ENDPOINT: "http://host:many"}, ENDPOINT),
        ({ENDPOINT: URL, PROTOCOL: "http/json"}, f"{PROTOCOL}: .*'http/json'.*known: grpc, http/protobuf"),
        ({EXPORTER: "otlp", "OTEL_TRACES_SAMPLER": "sometimes"}, "OTEL_.*sometimes"),
        ({EXPORTER: "otlp", "OTEL_EXPORTER_OTLP_TIMEOUT": "soon"}, "OTEL_.*soon"),
        ({EXPORTER: "otlp", "OTEL_EXPORTER_OTLP_COMPRESSION": "much"}, "OTEL_.*much"),
        ({EXPORTER: "console", "OTEL_BSP_MAX_QUEUE_SIZE": "-1"}, "OTEL_"),
        ({EXPORTER: "console", "OTEL_SPAN_EVENT_COUNT_LIMIT": "few"}, "OTEL_.*few"),
    ],
)
def test_what_cannot_be_is_refused(environment: pytest.MonkeyPatch, said: dict[str, str], words: str) -> None:
    for name, value in said.items():
        environment.setenv(name, value)
    with pytest.raises(ConfigError, match=words):
        check_tracing()
    environment.setenv(DISABLED, "True")
    check_tracing()


def test_an_exporter_that_is_not_installed_is_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(EXPORTER, "otlp")
    environment.setenv(PROTOCOL, "grpc")
    with pytest.raises(MissingExtraError, match='pip install "opentelemetry-exporter-otlp-proto-grpc"'):
        check_tracing()


def test_without_being_asked_there_is_nothing(environment: pytest.MonkeyPatch) -> None:
    sweep = fold(EMPTY, [replace(sweep_created(), seq=1)]).sweep
    assert open_tracing(sweep, SystemClock()) is NO_TRACING
    environment.setenv(EXPORTER, "console")
    environment.setenv(DISABLED, "true")
    assert open_tracing(sweep, SystemClock()) is NO_TRACING
    with NO_TRACING.span("step") as span:
        NO_TRACING.happened([])
        span.set(events=1)
        span.note("something")
        span.fail("not at all")
        span.end()
        assert (span.traceparent, NO_TRACING.begin("job", traceparent="00-1-2-01").traceparent) == (None, None)
