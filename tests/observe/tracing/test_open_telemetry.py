"""Spans by OpenTelemetry, in a process that looks at them itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from metta.sweep.model import events as ev
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.observe.tracing.open_telemetry import OpenTelemetryTracing
from metta.sweep.testing.sweeps import START, SWEEP
from observe.tracing.in_memory import OUTSIDE, Traced

#: What goes on inside of a job, and what was decided.
REPORT, REQUEUED = ev.MetricsReported(metrics={"loss": 0.5}), ev.RunRequeued(reason="its wait is over")


def event(body: Body) -> Event:
    return new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id="7kq", job_id="7kq.train.1")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    monkeypatch.delenv("TRACEPARENT", raising=False)
    traced = Traced()
    yield traced
    traced.tracing.close()


def test_what_nothing_comes_of_is_not_shown(traced: Traced) -> None:
    with traced.tracing.span("step"):
        with traced.tracing.span("read"):
            traced.clock.advance(0.01)
        with traced.tracing.span("decide"):
            traced.clock.advance(0.01)
        traced.tracing.happened([])
        traced.tracing.happened([event(REPORT)])
    assert traced.spans == {}


def test_what_something_comes_of_is_shown_from_its_beginning(traced: Traced) -> None:
    begun = traced.clock.now()
    with traced.tracing.span("step"):
        traced.clock.advance(1.0)
        with traced.tracing.span("read") as read, traced.tracing.span("within"):
            read.set(events=3)
            traced.clock.advance(2.0)
        assert traced.spans == {}
        traced.tracing.happened([event(REPORT), event(REQUEUED)])
        with traced.tracing.span("decide"):
            traced.clock.advance(4.0)
    times = {
        name: (round((span.start_time or 0) / 1e9 - begun, 3), round((span.end_time or 0) / 1e9 - begun, 3))
        for name, span in traced.spans.items()
    }
    assert times == {"step": (0.0, 7.0), "read": (1.0, 3.0), "within": (1.0, 3.0), "decide": (3.0, 7.0)}
    assert [traced.parent_of(name) for name in ("within", "read", "decide", "step")] == ["read", "step", "step", None]
    assert traced.spans["read"].attributes == {"metta.sweep_id": "sw33p", "metta.events": 3}
    assert len({span.context.trace_id for span in traced.spans.values()}) == 1


def test_what_takes_long_is_shown_whatever_comes_of_it(traced: Traced) -> None:
    with traced.tracing.span("step"), traced.tracing.span("read"):
        traced.clock.advance(0.06)
    assert traced.spans.keys() == {"step", "read"}


def test_a_clock_that_is_set_back_makes_no_negative_durations(traced: Traced) -> None:
    with traced.tracing.span("step"):
        traced.clock.advance(1.0)
        traced.clock.set(traced.clock.now() - 3600.0)
    step = traced.spans["step"]
    assert (step.end_time or 0) - (step.start_time or 0) == pytest.approx(1e9, rel=1e-3)


def test_an_error_is_shown_and_goes_on_its_way(traced: Traced) -> None:
    with pytest.raises(RuntimeError, match="no"), traced.tracing.span("step"), traced.tracing.span("append"):
        raise RuntimeError("no")
    assert {name: span.status.description for name, span in traced.spans.items()} == {
        "append": "RuntimeError: no",
        "step": "RuntimeError: no",
    }
    with traced.tracing.span("later"):
        traced.tracing.happened([event(REQUEUED)])
    assert traced.parent_of("later") is None


def test_work_that_goes_on_elsewhere_is_a_child_of_what_it_is_told(traced: Traced) -> None:
    with traced.tracing.span("step"):
        dispatch = traced.tracing.begin("dispatch")
    job = traced.tracing.begin("job", traceparent=dispatch.traceparent, attempt=1)
    other = traced.tracing.begin("other", traceparent=OUTSIDE)
    job.note("started")
    for span in (other, job, dispatch):
        span.end()
    assert (traced.parent_of("dispatch"), traced.parent_of("job")) == ("step", "dispatch")
    assert [event.name for event in traced.spans["job"].events] == ["started"]
    parent = traced.spans["other"].parent
    assert parent is not None
    assert (f"{parent.trace_id:032x}", f"{parent.span_id:016x}") == tuple(OUTSIDE.split("-")[1:3])
    assert (other.traceparent or "").split("-")[1] == OUTSIDE.split("-")[1]


@pytest.mark.parametrize("nonsense", ["", "nonsense", "00-0-0-00"])
def test_who_is_told_nonsense_has_no_parent(traced: Traced, nonsense: str) -> None:
    traced.tracing.begin("job", traceparent=nonsense).end()
    assert traced.parent_of("job") is None


def test_a_step_is_linked_to_what_the_sweep_is_part_of(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACEPARENT", OUTSIDE)
    inner = OpenTelemetryTracing(traced.provider, traced.clock, "sw33p")
    with inner.span("step"), inner.span("read"):
        inner.happened([event(REQUEUED)])
    assert traced.parent_of("step") is None
    assert [f"{link.context.span_id:016x}" for link in traced.spans["step"].links] == [OUTSIDE.split("-")[2]]
    assert traced.spans["read"].links == ()


def test_a_collector_that_never_answers_keeps_nobody_waiting(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metta.sweep.observe.tracing.open_telemetry._CLOSE_S", 0.01)
    asked, is_over = threading.Event(), threading.Event()

    def shut_down() -> None:
        asked.set()
        is_over.wait()

    OpenTelemetryTracing(traced.provider, traced.clock, "sw33p", shut_down).close()
    assert asked.is_set()
    is_over.set()


def test_what_a_program_around_has_set_up_outlives_the_sweep(traced: Traced) -> None:
    OpenTelemetryTracing(traced.provider, traced.clock, "sw33p").close()
    traced.tracing.begin("afterwards").end()
    assert "afterwards" in traced.spans
