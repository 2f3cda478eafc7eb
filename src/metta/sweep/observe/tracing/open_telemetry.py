"""Spans by OpenTelemetry. Imported only where somebody asks for them.

What is under way is not shown until something has come of it: a controller looks around twice a second, and at every
report of a metric, which nobody wants to see. So a span gets its identity, and goes to OpenTelemetry, when it is known
to matter.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from importlib.metadata import version
from types import TracebackType

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from metta.sweep.model.events import Event
from metta.sweep.observe.tracing.spans import TRACEPARENT_VARIABLE, Attribute, Span, Tracing
from metta.sweep.observe.tracing.traced import TracedDispatcher, TracedOptimizer
from metta.sweep.observe.wording import level_of
from metta.sweep.protocols import Clock, Dispatcher, Optimizer

#: What takes so long is shown even if nothing came of it.
_LONG_S = 0.05
#: At the end, wait no longer than this for the last spans to be taken.
_CLOSE_S = 3.0

_propagator = TraceContextTextMapPropagator()


class OpenTelemetryTracing(Tracing):
    """See `Tracing`. Spans that follow each other are made in one thread.

    Args:
        provider: Where spans go.
        clock: The time.
        sweep_id: Told with each span: a provider of somebody else's knows nothing of the sweep.
        shut_down: Sends what is left; None where that is somebody else's business.
    """

    def __init__(
        self,
        provider: trace.TracerProvider,
        clock: Clock,
        sweep_id: str,
        shut_down: Callable[[], object] | None = None,
    ) -> None:
        self.clock = clock
        self.tracer = provider.get_tracer("metta.sweep", version("metta-sweep"))
        self.under_way: _Span | None = None
        self._sweep_id = sweep_id
        self._shut_down = shut_down
        #: To what the sweep is part of: a span of the program around it, or the one that its environment names. No more
        #: than a link: a sweep of days is no single trace.
        self.around = _links()

    def span(self, name: str, **attributes: Attribute) -> Span:
        """See `Tracing.span`."""
        return _Span(self, name, self.under_way, self._said(attributes), None)

    def begin(self, name: str, *, traceparent: str | None = None, **attributes: Attribute) -> Span:
        """See `Tracing.begin`."""
        parent = None if traceparent is not None else self.under_way
        begun = _Span(self, name, parent, self._said(attributes), traceparent)
        begun.keep()
        return begun

    def happened(self, events: Iterable[Event]) -> None:
        """See `Tracing.happened`."""
        if self.under_way is not None and any(level_of(event) > logging.DEBUG for event in events):
            self.under_way.keep()

    def optimizer(self, optimizer: Optimizer) -> Optimizer:
        """See `Tracing.optimizer`."""
        return TracedOptimizer(optimizer, self)

    def dispatcher(self, dispatcher: Dispatcher) -> Dispatcher:
        """See `Tracing.dispatcher`."""
        return TracedDispatcher(dispatcher, self)

    def close(self) -> None:
        """See `Tracing.close`."""
        if self._shut_down is not None:
            # OpenTelemetry would wait for half a minute.
            closing = threading.Thread(target=self._shut_down, daemon=True)
            closing.start()
            closing.join(_CLOSE_S)

    def _said(self, attributes: dict[str, Attribute]) -> dict[str, Attribute]:
        return {"metta.sweep_id": self._sweep_id, **_named(attributes)}


class _Span(Span):
    """Held back until something has come of it, or of what it is part of."""

    def __init__(
        self,
        tracing: OpenTelemetryTracing,
        name: str,
        parent: _Span | None,
        attributes: dict[str, Attribute],
        traceparent: str | None,
    ) -> None:
        self._tracing = tracing
        self._name = name
        self._parent = parent
        self._attributes = attributes
        self._traceparent = traceparent
        self._began = tracing.clock.now()
        self._began_monotonic = tracing.clock.monotonic()
        self._ended: float | None = None
        self._failure: str | None = None
        self._held_back: list[_Span] = []
        self._kept: trace.Span | None = None

    @property
    def traceparent(self) -> str | None:
        """See `Span.traceparent`."""
        carrier: dict[str, str] = {}
        _propagator.inject(carrier, self._context())
        return carrier.get("traceparent")

    def set(self, **attributes: Attribute) -> None:
        """See `Span.set`."""
        self._attributes |= _named(attributes)
        if self._kept is not None:
            self._kept.set_attributes(_named(attributes))

    def note(self, what: str, /, **attributes: Attribute) -> None:
        """See `Span.note`."""
        self._context()
        assert self._kept is not None
        self._kept.add_event(what, _named(attributes), _nanoseconds(self._tracing.clock.now()))

    def fail(self, reason: str) -> None:
        """See `Span.fail`."""
        self._failure = reason
        self.keep()
        assert self._kept is not None
        self._kept.set_status(trace.StatusCode.ERROR, reason)

    def end(self) -> None:
        """See `Span.end`."""
        seconds = self._tracing.clock.monotonic() - self._began_monotonic
        self._ended = self._began + seconds
        if self._kept is not None:
            self._kept.end(_nanoseconds(self._ended))
        elif self._parent is None:
            if seconds >= _LONG_S:
                self.keep()
        elif self._parent._kept is not None:
            self.keep()
        else:
            self._parent._held_back.append(self)

    def keep(self) -> None:
        """Hand it to OpenTelemetry, and what it is part of, and what had ended in it."""
        if self._kept is not None:
            return
        is_root = self._parent is None and self._traceparent is None
        self._kept = self._tracing.tracer.start_span(
            self._name,
            self._parent_context(),
            attributes=self._attributes,
            links=self._tracing.around if is_root else None,
            start_time=_nanoseconds(self._began),
            record_exception=False,
            set_status_on_exception=False,
        )
        for span in self._held_back:
            span.keep()
        self._held_back.clear()
        if self._ended is not None:
            self._kept.end(_nanoseconds(self._ended))

    def __enter__(self) -> Span:
        self._tracing.under_way = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(f"{type(error).__name__}: {error}")
        self._tracing.under_way = self._parent
        self.end()

    def _context(self) -> Context:
        self.keep()
        assert self._kept is not None
        return trace.set_span_in_context(self._kept, Context())

    def _parent_context(self) -> Context:
        if self._parent is not None:
            return self._parent._context()
        return _context_of(self._traceparent)


def _named(attributes: dict[str, Attribute]) -> dict[str, Attribute]:
    return {f"metta.{name}": value for name, value in attributes.items()}


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _context_of(traceparent: str | None) -> Context:
    return _propagator.extract({} if traceparent is None else {"traceparent": traceparent}, Context())


def _links() -> list[trace.Link]:
    here = trace.get_current_span().get_span_context()
    if not here.is_valid:
        around = _context_of(os.environ.get(TRACEPARENT_VARIABLE))
        here = trace.get_current_span(around).get_span_context()
    return [trace.Link(here)] if here.is_valid else []
