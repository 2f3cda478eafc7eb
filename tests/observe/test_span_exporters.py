"""Where spans go: names, resources, and what becomes of complaints."""

from __future__ import annotations

import logging

import pytest
from msgspec.structs import replace

from metta.sweep.model.state import EMPTY, fold
from metta.sweep.observe.span_exporters import provider_for
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
    provider = provider_for(SWEPT, ["console"])
    attributes = provider.resource.attributes
    provider.shutdown()
    assert attributes["service.name"] == name
    assert (attributes["metta.sweep_id"], attributes["metta.sweep_name"]) == (SWEEP, "demo")
    assert attributes.get("team") == ("vision" if name == "theirs" else None)


def test_what_others_export_may_still_be_complained_about(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metta.sweep.observe.span_exporters._told_once._is_told", False)  # by another test
    provider_for(SWEPT, ["otlp_proto_http"]).shutdown()
    logging.getLogger("opentelemetry.exporter.otlp.proto.http.metric_exporter").warning("metrics are lost")
    ours = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    for _ in range(3):
        ours.warning("spans are lost")
    assert [record.getMessage() for record in caplog.records] == [
        "metrics are lost",
        "spans cannot be exported; the sweep goes on all the same, and this is told once: spans are lost",
    ]
