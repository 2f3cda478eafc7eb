"""Spans that stay in this process, to be looked at."""

from __future__ import annotations

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from metta.sweep.observe.tracing.open_telemetry import OpenTelemetryTracing
from metta.sweep.testing import ManualClock

#: A span of somebody else's.
OUTSIDE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Traced:
    """A tracing in manual time, and what came out of it."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.clock = ManualClock()
        self.tracing = OpenTelemetryTracing(self.provider, self.clock, "sw33p", self.provider.shutdown)

    @property
    def spans(self) -> dict[str, ReadableSpan]:
        """By their names."""
        ended = self.exporter.get_finished_spans()
        found = {span.name: span for span in ended}
        assert len(found) == len(ended)
        return found

    def parent_of(self, name: str) -> str | None:
        parent = self.spans[name].parent
        if parent is None:
            return None
        [found] = [known for known, span in self.spans.items() if span.context.span_id == parent.span_id]
        return found
