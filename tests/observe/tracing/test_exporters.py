"""Where spans go: names, resources, and what becomes of complaints."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing

import pytest
from msgspec.structs import replace
from opentelemetry.sdk.trace import Tracer

from metta.sweep.clock import SystemClock
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.observe.tracing.exporters import exporting
from metta.sweep.observe.tracing.open_telemetry import OpenTelemetryTracing
from metta.sweep.testing.sweeps import SWEEP, sweep_created

SWEPT = fold(EMPTY, [replace(sweep_created(), seq=1)]).sweep


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({}, "metta-sweep"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=theirs,team=vision"}, "theirs"),
    ],
)
def test_the_service_is_called_as_the_user_says(
    said: dict[str, str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in said.items():
        monkeypatch.setenv(variable, value)
    with closing(exporting(SWEPT, SystemClock(), ["console"])) as tracing:
        assert isinstance(tracing.tracer, Tracer)
        attributes = tracing.tracer.resource.attributes
    assert attributes["service.name"] == name
    assert (attributes["metta.sweep_id"], attributes["metta.sweep_name"]) == (SWEEP, "demo")
    assert attributes.get("team") == ("vision" if name == "theirs" else None)


OURS = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


@pytest.fixture
def tracing() -> Iterator[OpenTelemetryTracing]:
    with closing(exporting(SWEPT, SystemClock(), ["otlp_proto_http"])) as tracing:
        yield tracing


def test_what_others_export_may_still_be_complained_about(
    caplog: pytest.LogCaptureFixture, tracing: OpenTelemetryTracing
) -> None:
    logging.getLogger("opentelemetry.exporter.otlp.proto.http.metric_exporter").warning("metrics are lost")
    for _ in range(3):
        logging.getLogger(OURS).warning("spans are lost")
    assert [record.getMessage() for record in caplog.records] == [
        "metrics are lost",
        "spans cannot be exported; the sweep goes on all the same, and this is told once: spans are lost",
    ]


def test_after_the_sweep_complaints_are_those_of_the_program_around(
    caplog: pytest.LogCaptureFixture, tracing: OpenTelemetryTracing
) -> None:
    logging.getLogger(OURS).warning("spans are lost")
    tracing.close()
    logging.getLogger(OURS).warning("spans of the program are lost")
    with closing(exporting(SWEPT, SystemClock(), ["otlp_proto_http"])):
        logging.getLogger(OURS).warning("spans are lost again")
    said = [record.getMessage().rpartition(": ")[2] for record in caplog.records]
    assert said == ["spans are lost", "spans of the program are lost", "spans are lost again"]
