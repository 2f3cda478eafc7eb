"""Where spans go: the exporters that OpenTelemetry's environment variables name, whoever provides them."""

from __future__ import annotations

import logging
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points

from metta.sweep.errors import ConfigError, MissingExtraError, did_you_mean
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Clock

try:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter

    from metta.sweep.observe.tracing.open_telemetry import OpenTelemetryTracing
except ImportError as error:
    raise MissingExtraError(
        'the environment asks for OpenTelemetry spans (OTEL_*), which needs: pip install "metta-sweep[tracing]"; '
        "or ask for none with OTEL_TRACES_EXPORTER=none"
    ) from error

logger = logging.getLogger(__name__)

#: The entry points under which packages register exporters, and those of them that the extra brings along.
_GROUP, _OURS = "opentelemetry_traces_exporter", {"console", "otlp_proto_http"}
#: Tells of full queues and of exporters that raise.
_BATCHING_LOGGER = "opentelemetry.sdk._shared_internal"


def exporting(sweep: SweepMetadata, clock: Clock, names: Sequence[str]) -> OpenTelemetryTracing:
    """Tracing by these exporters; errors as `open_tracing`."""
    exporters = [_exporter(name) for name in names]
    provider = _provider(exporters, _resource(sweep))
    # Only the loggers of these exporters, and only meanwhile: others may be at work in the program around.
    modules = {kind.__module__ for exporter in exporters for kind in type(exporter).__mro__} | {_BATCHING_LOGGER}
    loggers = [logging.getLogger(module) for module in sorted(modules)]
    told_once = _ToldOnce()
    for each in loggers:
        each.addFilter(told_once)

    def shut_down() -> None:
        provider.shutdown()
        for each in loggers:
            each.removeFilter(told_once)

    return OpenTelemetryTracing(provider, clock, sweep.sweep_id, shut_down)


def _resource(sweep: SweepMetadata) -> Resource:
    resource = Resource.create(
        {
            "metta.sweep_id": sweep.sweep_id,
            "metta.sweep_name": sweep.config.name,
            "host.name": socket.gethostname(),
            "process.pid": os.getpid(),
        }
    )
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "metta-sweep"}))
    return resource


def check_exporters(names: Sequence[str]) -> None:
    """See `check_tracing`: make them, and listen to what OpenTelemetry says of the variables."""
    with _complaints() as said:
        _provider([_exporter(name) for name in names], Resource.create()).shutdown()
    if said:
        raise _refused(said[0])


def _provider(exporters: Sequence[SpanExporter], resource: Resource) -> TracerProvider:
    try:
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        for exporter in exporters:
            provider.add_span_processor(BatchSpanProcessor(exporter))
    except Exception as error:
        raise _refused(error) from error
    return provider


def _exporter(name: str) -> SpanExporter:
    if name == "console":
        # Standard output is for results.
        return ConsoleSpanExporter(out=sys.stderr, formatter=lambda span: span.to_json(indent=None) + "\n")
    point = _entry_point(name)
    try:
        exporter: SpanExporter = point.load()()
    except ImportError as error:
        raise _missing(name) from error
    except Exception as error:
        raise _refused(error) from error
    return exporter


def _entry_point(name: str) -> EntryPoint:
    known = {point.name: point for point in entry_points(group=_GROUP)}
    if name in known:
        return known[name]
    if name in _OURS or name.startswith("otlp_proto_"):
        raise _missing(name)
    names = did_you_mean(name, {*known, "otlp", "console", "none"})
    raise ConfigError(f"OTEL_TRACES_EXPORTER: there is no exporter {name!r}; {names}")


def _missing(name: str) -> MissingExtraError:
    package = "metta-sweep[tracing]" if name in _OURS else f"opentelemetry-exporter-{name.replace('_', '-')}"
    return MissingExtraError(
        f'the environment asks for OpenTelemetry spans by {name}, which needs: pip install "{package}"; '
        "or ask for none with OTEL_TRACES_EXPORTER=none"
    )


def _refused(problem: Exception | str) -> ConfigError:
    said = " ".join(f"{problem}".split())
    return ConfigError(f"OpenTelemetry does not take what the environment says (OTEL_*): {said}")


class _ToldOnce(logging.Filter):
    """Lets a sweep go on in peace while the collector is away: OpenTelemetry tells of each attempt."""

    def __init__(self) -> None:
        super().__init__()
        self._is_told = False

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING and not self._is_told:
            self._is_told = True
            logger.warning(
                "spans cannot be exported; the sweep goes on all the same, and this is told once: %.300s",
                record.getMessage(),
            )
        return False


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What OpenTelemetry would log as warnings meanwhile, instead."""

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    said: list[str] = []
    root = logging.getLogger("opentelemetry")
    before, listener = root.propagate, Listener(logging.WARNING)
    root.propagate = False
    root.addHandler(listener)
    try:
        yield said
    finally:
        root.removeHandler(listener)
        root.propagate = before
