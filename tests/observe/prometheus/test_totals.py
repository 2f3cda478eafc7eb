"""Totals: numbers that only grow, whatever is taken back, and the same whoever reads the log however often."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.run import FailureKind, JobStatus, JobType, Outcome
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.observe.prometheus.totals import ENDS, FAILURE_KINDS, UNKNOWN, Counted, Timed, Totals
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP
from observe.prometheus.sights import numbered

FAILED = {Outcome.FAILED, Outcome.KILLED, Outcome.TIMED_OUT}


@given(st.integers(0, 999), st.lists(st.integers(0, 150), max_size=5))
@settings(deadline=None, max_examples=60)
def test_it_does_not_matter_how_often_the_log_is_looked_at(seed: int, looks: list[int]) -> None:
    events = numbered(random_history(seed, 150))
    totals, seen = Totals(), 0
    for look in sorted(looks):
        totals, seen = totals.after(events[seen:look]), look
    totals = totals.after(events[seen:])
    assert totals == Totals().after(events)
    assert totals.state == fold(EMPTY, events)
    assert totals.last_event_at == events[-1].at


@given(st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_no_total_ever_falls(seed: int) -> None:
    totals = Totals()
    for event in numbered(random_history(seed, 150)):
        later = totals.after([event])
        for counted, amount in totals.counts.items():
            assert later.counts[counted] >= amount
        for timed, durations in totals.durations.items():
            now = later.durations[timed]
            assert now.sum >= durations.sum
            assert all(after >= before for before, after in zip(durations.counts, now.counts, strict=True))
        totals = later


@given(st.integers(0, 999))
@settings(deadline=None, max_examples=60)
def test_totals_are_of_what_the_log_says(seed: int) -> None:
    events = numbered(random_history(seed, 150))
    totals = Totals().after(events)
    bodies = [event.body for event in events]
    types = Counter(type(body) for body in bodies)
    assert totals.count(Counted.RUNS_CREATED) == types[ev.RunCreated] == totals.state.sweep.run_count
    assert totals.count(Counted.RETRIES) == types[ev.RunRetryScheduled]
    assert totals.count(Counted.DISPATCH_FAILURES) == types[ev.DispatchFailed]
    assert sum(totals.count(Counted.JOBS_STARTED, job) for job in JobType) == types[ev.JobStarted]
    assert sum(sum(totals.taken(Timed.JOB_QUEUE, job).counts) for job in JobType) == types[ev.JobStarted]
    failures = Counter(
        body.failure or UNKNOWN
        for body in bodies
        if isinstance(body, ev.JobLost) or (isinstance(body, ev.JobExited) and body.outcome in FAILED)
    )
    for kind in FAILURE_KINDS:
        assert sum(totals.count(Counted.JOB_FAILURES, job, kind) for job in JobType) == failures[kind]
    repaired = sum(
        body.after["cost"] - body.before["cost"]
        for body in bodies
        if isinstance(body, ev.StateRepaired) and "cost" in body.after
    )
    assert totals.count(Counted.COMPUTE_SECONDS) + repaired == pytest.approx(totals.state.sweep.cost)
    for status in ENDS:
        assert sum(totals.taken(Timed.RUN_DURATION, status).counts) == totals.count(Counted.RUNS_ENDED, status)
    ended = sum(totals.count(Counted.RUNS_ENDED, status) for status in ENDS)
    assert ended >= sum(run.status.ended for run in totals.state.runs.values())


def _about(body: Body, index: int, at: float) -> Event:
    return new_event(body, sweep_id=SWEEP, at=at, actor="test", run_id=ids.run_id(SWEEP, index))


def test_what_is_rolled_back_and_restored_has_ended_once() -> None:
    events = [sweep_created(), *run_events(0), _about(ev.RunRolledBack(reason="wrong data"), 0, START + 4000)]
    totals = Totals().after(numbered(events))
    assert totals.state.sweep.counts == {JobStatus.ROLLED_BACK: 1}
    assert totals.count(Counted.RUNS_ENDED, JobStatus.COMPLETED) == 1
    assert totals.count(Counted.COMPUTE_SECONDS) == 3600.0
    events.append(_about(ev.RunRestored(reason="right after all"), 0, START + 5000))
    again = Totals().after(numbered(events))
    assert again.state.sweep.counts == {JobStatus.COMPLETED: 1}
    assert (again.counts, again.durations) == (totals.counts, totals.durations)


def test_a_run_that_is_tried_again_ends_twice() -> None:
    first = run_events(0, score=None)
    requeued = _about(ev.RunRequeued(reason="the user asked"), 0, START + 4000)
    cancelled = _about(ev.RunCancelled(reason="the user asked"), 0, START + 7200)
    totals = Totals().after(numbered([sweep_created(), *first, requeued, cancelled]))
    ends = {status: totals.count(Counted.RUNS_ENDED, status) for status in ENDS}
    assert ends == {JobStatus.COMPLETED: 0, JobStatus.STOPPED: 0, JobStatus.FAILED: 1, JobStatus.CANCELLED: 1}
    assert totals.taken(Timed.RUN_DURATION, JobStatus.FAILED).sum == 3600.0
    assert totals.taken(Timed.RUN_DURATION, JobStatus.CANCELLED).sum == 7200.0


def test_durations_fall_into_the_buckets_that_end_at_them() -> None:
    events = [sweep_created(), *run_events(0)]
    taken = Totals().after(numbered(events)).taken(Timed.RUN_DURATION, JobStatus.COMPLETED)
    assert dict(zip(taken.bounds, taken.counts, strict=False))[3600] == 1
    assert sum(taken.counts) == 1
    assert Totals().taken(Timed.RUN_DURATION, JobStatus.COMPLETED).counts == (0,) * len(taken.counts)


def test_every_kind_of_failure_has_a_label() -> None:
    assert set(FailureKind) < set(FAILURE_KINDS)
