"""Where the time of a sweep goes, as spans for tracing tools: a seam that costs nothing unless somebody asks for it.

Spans are asked for by OpenTelemetry's own environment variables, or by a program around the sweep that has set up a
tracer provider. Only then is anything of OpenTelemetry imported (`open_telemetry.py`, `exporters.py`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import TypeAlias
from urllib.parse import urlsplit

from metta.sweep.errors import ConfigError, did_you_mean
from metta.sweep.model.events import Event
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Clock, Dispatcher, Optimizer

#: How a parent span in another process is named in an environment, as W3C Trace Context writes it.
TRACEPARENT_VARIABLE = "TRACEPARENT"

_DISABLED_VARIABLE, _EXPORTER_VARIABLE = "OTEL_SDK_DISABLED", "OTEL_TRACES_EXPORTER"
#: Of each kind the one that is for spans alone comes first.
_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
#: Names under which packages register what speaks these protocols. JSON over HTTP no package speaks.
_PROTOCOLS = {"http/protobuf": "otlp_proto_http", "grpc": "otlp_proto_grpc"}

Attribute: TypeAlias = str | int | float


class Span:
    """A stretch of work. This one is nobody's: what is said of it is forgotten.

    Attributes are told under their names with `metta.` before them.
    """

    @property
    def traceparent(self) -> str | None:
        """What makes spans of other processes its children; None where nobody traces."""
        return None

    def set(self, **attributes: Attribute) -> None:
        """Say more of it."""

    def note(self, what: str, /, **attributes: Attribute) -> None:
        """Something happened in it, just now."""

    def fail(self, reason: str) -> None:
        """It went wrong."""

    def end(self) -> None:
        """It is over; for those that are not used by `with`."""

    def __enter__(self) -> Span:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


NO_SPAN = Span()


class Tracing:
    """Makes the spans of a process that works for a sweep. This one makes none."""

    def span(self, name: str, **attributes: Attribute) -> Span:
        """Work that is done here and now, between the beginning and the end of a `with`: part of what is under way."""
        return NO_SPAN

    def begin(self, name: str, *, traceparent: str | None = None, **attributes: Attribute) -> Span:
        """Work that goes on beside other work until it is told to `end`.

        It is a child of the span that `traceparent` names, or else of what is under way here.
        """
        return NO_SPAN

    def happened(self, events: Iterable[Event]) -> None:
        """This came of what is under way, which makes it worth being shown.

        Without it, or where it is only what goes on inside of jobs, what is under way is shown if it takes long.
        """

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """The same optimizer, with a span for all that it is asked."""
        return optimizer

    def dispatcher(self, dispatcher: Dispatcher) -> Dispatcher:
        """The same dispatcher, with spans for all that it is asked."""
        return dispatcher

    def close(self) -> None:
        """Send what is still to be sent, for a moment: who listens may be away."""


NO_TRACING = Tracing()


def open_tracing(sweep: SweepMetadata, clock: Clock) -> Tracing:
    """The tracing that is asked for, or none; to be closed.

    Raises:
        ConfigError: the variables say what cannot be.
        MissingExtraError: what they ask for is not installed.
    """
    if _is_disabled():
        return NO_TRACING
    if _has_provider():
        from opentelemetry import trace

        from metta.sweep.observe.tracing.open_telemetry import OpenTelemetryTracing

        return OpenTelemetryTracing(trace.get_tracer_provider(), clock, sweep.sweep_id)
    if names := wanted_exporters(os.environ):
        from metta.sweep.observe.tracing.exporters import exporting

        return exporting(sweep, clock, names)
    return NO_TRACING


def check_tracing() -> None:
    """Refuse what the variables ask for where it cannot be; errors as `open_tracing`."""
    if not _is_disabled() and not _has_provider() and (names := wanted_exporters(os.environ)):
        from metta.sweep.observe.tracing.exporters import check_exporters

        check_exporters(names)


def wanted_exporters(environment: Mapping[str, str]) -> list[str]:
    """The exporters that the variables ask for, by the names under which packages register them; may be none.

    An endpoint alone asks for OTLP. By OpenTelemetry's own rules nothing at all does so, too; but few who run a sweep
    have a collector.

    Raises:
        ConfigError: there is no such protocol, or the endpoint is no URL.
    """
    variable, endpoint = _first_set(environment, _ENDPOINT_VARIABLES)
    names = environment.get(_EXPORTER_VARIABLE, "").strip() or ("otlp" if endpoint else "none")
    asked = dict.fromkeys(name.strip() for name in names.split(",") if name.strip() not in {"none", ""})
    wanted = [_otlp_exporter(environment) if name == "otlp" else name for name in asked]
    if endpoint and _PROTOCOLS["http/protobuf"] in wanted:
        _check_endpoint(variable, endpoint)
    return wanted


def _otlp_exporter(environment: Mapping[str, str]) -> str:
    variable, protocol = _first_set(environment, _PROTOCOL_VARIABLES)
    if protocol and protocol not in _PROTOCOLS:
        raise ConfigError(f"{variable}: there is no protocol {protocol!r} here; {did_you_mean(protocol, _PROTOCOLS)}")
    return _PROTOCOLS[protocol or "http/protobuf"]


def _check_endpoint(variable: str, endpoint: str) -> None:
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise ConfigError(f"{variable}: expected a URL such as http://localhost:4318, got {endpoint!r}")


def _first_set(environment: Mapping[str, str], variables: tuple[str, ...]) -> tuple[str, str]:
    found = ((variable, environment.get(variable, "").strip()) for variable in variables)
    return next((pair for pair in found if pair[1]), (variables[-1], ""))


def _is_disabled() -> bool:
    return os.environ.get(_DISABLED_VARIABLE, "").strip().lower() == "true"


def _has_provider() -> bool:
    """Whether the program around the sweep has set up tracing; it must have imported OpenTelemetry for that."""
    if "opentelemetry.trace" not in sys.modules:
        return False
    from opentelemetry import trace

    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)
