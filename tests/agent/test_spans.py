"""The spans of jobs."""

from __future__ import annotations

import pytest

from metta.sweep.agent.spans import JobSpans
from metta.sweep.model import events as ev
from metta.sweep.model.events import Body, new_event
from metta.sweep.model.run import FailureKind, JobDefinition, JobType, Outcome
from metta.sweep.observe.tracing.spans import NO_TRACING
from metta.sweep.testing.sweeps import START, SWEEP
from observe.tracing.in_memory import OUTSIDE, Traced

JOB = JobDefinition(
    job_id="7kq.train.2", run_id="7kq", sweep_id=SWEEP, type=JobType.TRAIN, attempt=2, config={}, traceparent=OUTSIDE
)
STARTED = ev.JobStarted(host="here", pid=7, log="/log")
CHECKPOINT = ev.CheckpointSaved(step=3, path="c", sha256="0", size_bytes=1)


def tell(spans: JobSpans, *bodies: Body) -> None:
    for body in bodies:
        spans.observe(new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id="7kq", job_id=JOB.job_id))


def exited(outcome: Outcome, failure: FailureKind | None = None, error: str | None = None) -> ev.JobExited:
    return ev.JobExited(outcome=outcome, failure=failure, error=error, seconds=1.0)


def test_a_job_is_a_child_of_its_dispatch_and_tells_what_happened_in_it() -> None:
    traced = Traced()
    spans = JobSpans(traced.tracing)
    told = spans.begin(JOB)
    metrics = ev.MetricsReported(metrics={"loss": 0.5})
    tell(spans, STARTED, metrics, metrics, CHECKPOINT, metrics, exited(Outcome.SUCCEEDED))
    span = traced.spans["job"]
    assert span.parent is not None
    assert (told or "").split("-")[1:3] == [OUTSIDE.split("-")[1], f"{span.context.span_id:016x}"]
    assert [event.name for event in span.events] == ["started", "first metrics", "checkpoint"]
    assert dict(span.events[1].attributes or {}) == {"metta.loss": 0.5}
    assert dict(span.attributes or {}) == {
        "metta.sweep_id": SWEEP,
        "metta.run_id": "7kq",
        "metta.job_id": "7kq.train.2",
        "metta.kind": "train",
        "metta.attempt": 2,
        "metta.pid": 7,
        "metta.log": "/log",
        "metta.outcome": "succeeded",
    }


def test_metrics_may_have_any_names() -> None:
    traced = Traced()
    spans = JobSpans(traced.tracing)
    spans.begin(JOB)
    tell(spans, STARTED, ev.MetricsReported(metrics={"self": 1.0, "what": 2.0}), exited(Outcome.SUCCEEDED))
    assert dict(traced.spans["job"].events[1].attributes or {}) == {"metta.self": 1.0, "metta.what": 2.0}


@pytest.mark.parametrize(
    ("exit_", "error"),
    [
        (exited(Outcome.FAILED, FailureKind.USER_ERROR, "KeyError: 1"), "user_error: KeyError: 1"),
        (exited(Outcome.KILLED, FailureKind.OUT_OF_MEMORY), "out_of_memory"),
        (exited(Outcome.TIMED_OUT), "timed_out"),
        (exited(Outcome.PAUSED), None),
        (exited(Outcome.STOPPED, error="not among the best"), None),
        (exited(Outcome.CANCELLED, error="stopped by the user"), None),
        (exited(Outcome.INTERRUPTED), None),
    ],
)
def test_failures_are_errors_and_wishes_are_none(exit_: ev.JobExited, error: str | None) -> None:
    traced = Traced()
    spans = JobSpans(traced.tracing)
    spans.begin(JOB)
    tell(spans, STARTED, exit_)
    span = traced.spans["job"]
    assert (span.status.is_ok, span.status.description) == (error is None, error)
    assert (span.attributes or {})["metta.outcome"] == exit_.outcome


def test_what_is_left_is_abandoned_once() -> None:
    traced = Traced()
    spans = JobSpans(traced.tracing)
    spans.begin(JOB)
    spans.abandon("the fork server died")
    tell(spans, exited(Outcome.SUCCEEDED))
    spans.abandon("the agent ended")
    assert traced.spans["job"].status.description == "the fork server died"


def test_who_does_not_trace_passes_on_what_it_was_told() -> None:
    spans = JobSpans(NO_TRACING)
    assert spans.begin(JOB) == OUTSIDE
    tell(spans, STARTED, exited(Outcome.SUCCEEDED))
    spans.abandon("the agent ended")
