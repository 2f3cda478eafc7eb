"""What has happened in a sweep so far, as numbers that only grow: a fold over its log, kept up with what is new."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import TypeAlias

import immutables
import msgspec

from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.run import FailureKind, JobStatus, Outcome, RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold


class Counted(StrEnum):
    """What is counted, each by the labels named here."""

    RUNS_CREATED = "runs created"
    #: By `JobStatus`: each time that a run comes to an end.
    RUNS_ENDED = "runs ended"
    #: By `JobType`.
    JOBS_STARTED = "jobs started"
    #: By `JobType` and `FailureKind`, or UNKNOWN.
    JOB_FAILURES = "job failures"
    RETRIES = "retries"
    DISPATCH_FAILURES = "dispatch failures"
    #: Wall time of jobs, at their end.
    COMPUTE_SECONDS = "compute seconds"


class Timed(StrEnum):
    """Of what the durations are kept, each by the labels named here."""

    #: By `JobStatus`: from the creation of a run to its end.
    RUN_DURATION = "run duration"
    #: By `JobType`: from the grant of a job to its start.
    JOB_QUEUE = "job queue"


#: The kind of a failure of which the log, written by an early version, does not tell one.
UNKNOWN = "unknown"

#: Upper bounds in seconds: trainings take seconds to days.
RUN_BOUNDS = (1, 3, 10, 30, 60, 180, 600, 1800, 3600, 10_800, 21_600, 43_200, 86_400, 259_200, 604_800)
#: A job starts within milliseconds where a slot is free, and waits for hours in the queue of a cluster.
QUEUE_BOUNDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 60, 300, 1800, 3600, 21_600, 86_400)
_BOUNDS = {Timed.RUN_DURATION: RUN_BOUNDS, Timed.JOB_QUEUE: QUEUE_BOUNDS}


class Durations(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """How long something took, each time."""

    #: Upper bounds in seconds, ascending.
    bounds: tuple[float, ...]
    #: How many were above the bound before and not above this one; the last one counts those above all bounds.
    counts: tuple[int, ...]
    #: Seconds.
    sum: float = 0.0

    @classmethod
    def none(cls, timed: Timed) -> Durations:
        """Before the first."""
        bounds = _BOUNDS[timed]
        return cls(bounds=bounds, counts=(0,) * (len(bounds) + 1))

    def with_one(self, seconds: float) -> Durations:
        """And one more."""
        place = bisect_left(self.bounds, seconds)
        counts = (*self.counts[:place], self.counts[place] + 1, *self.counts[place + 1 :])
        return Durations(bounds=self.bounds, counts=counts, sum=self.sum + seconds)


#: What, and the values of its labels.
_Count: TypeAlias = tuple[Counted, tuple[str, ...]]
_Time: TypeAlias = tuple[Timed, tuple[str, ...]]


class Totals(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep after some event, with the totals of all that happened up to it.

    Events are counted, not states: a run that is rolled back has ended all the same, one that is tried again may end a
    second time. So no total ever falls, and whoever reads the log again comes to the same numbers.
    """

    state: SweepState = EMPTY
    #: Time of the last event, in seconds since the epoch, by the clock of whoever wrote it.
    last_event_at: float = 0.0
    #: Its id: another log may have another event under its number.
    last_event_id: str = ""
    counts: immutables.Map[_Count, float] = immutables.Map()
    durations: immutables.Map[_Time, Durations] = immutables.Map()

    def count(self, counted: Counted, *labels: str) -> float:
        """How much of it there was."""
        return self.counts.get((counted, labels), 0.0)

    def taken(self, timed: Timed, *labels: str) -> Durations:
        """How long it took."""
        return self.durations.get((timed, labels)) or Durations.none(timed)

    def after(self, events: Iterable[Event]) -> Totals:
        """The totals when these have happened, too; takes time in proportion to them alone.

        Raises:
            InvalidTransition: one does not fit what is before it.
        """
        state, last_event_at, last_event_id = self.state, self.last_event_at, self.last_event_id
        counts, durations = self.counts.mutate(), self.durations.mutate()
        for event in events:
            before = state.runs.get(event.run_id) if event.run_id is not None else None
            state = fold(state, [event])
            last_event_at, last_event_id = event.at, event.id
            after = state.runs.get(event.run_id) if event.run_id is not None else None
            for counted, amount in _counted(event, before, after):
                counts[counted] = counts.get(counted, 0.0) + amount
            for timed, seconds in _timed(event, before, after):
                durations[timed] = (durations.get(timed) or Durations.none(timed[0])).with_one(max(0.0, seconds))
        return Totals(
            state=state,
            last_event_at=last_event_at,
            last_event_id=last_event_id,
            counts=counts.finish(),
            durations=durations.finish(),
        )


_FAILED = frozenset({Outcome.FAILED, Outcome.KILLED, Outcome.TIMED_OUT})


def _counted(event: Event, before: RunInfo | None, after: RunInfo | None) -> Iterator[tuple[_Count, float]]:
    body = event.body
    if isinstance(body, ev.RunCreated):
        yield (Counted.RUNS_CREATED, ()), 1
    elif isinstance(body, ev.DispatchFailed):
        yield (Counted.DISPATCH_FAILURES, ()), 1
    elif isinstance(body, ev.RunRetryScheduled):
        yield (Counted.RETRIES, ()), 1
    elif isinstance(body, ev.JobStarted) and after is not None:
        yield (Counted.JOBS_STARTED, (after.jobs[-1].type,)), 1
    elif isinstance(body, ev.JobExited | ev.JobLost) and before is not None and after is not None:
        yield (Counted.COMPUTE_SECONDS, ()), max(0.0, after.cost - before.cost)
        if isinstance(body, ev.JobLost) or body.outcome in _FAILED:
            yield (Counted.JOB_FAILURES, (after.jobs[-1].type, body.failure or UNKNOWN)), 1
    if (end := _end(before, after)) is not None:
        yield (Counted.RUNS_ENDED, (end,)), 1


def _timed(event: Event, before: RunInfo | None, after: RunInfo | None) -> Iterator[tuple[_Time, float]]:
    if after is None:
        return
    if isinstance(event.body, ev.JobStarted):
        job = after.jobs[-1]
        yield (Timed.JOB_QUEUE, (job.type,)), event.at - job.granted_at
    if (end := _end(before, after)) is not None:
        yield (Timed.RUN_DURATION, (end,)), event.at - after.created_at


def _end(before: RunInfo | None, after: RunInfo | None) -> JobStatus | None:
    """The status with which a run has just come to its end; None where it has not."""
    if before is None or after is None or before.status.ended or not after.status.ended:
        return None
    return after.status


#: Labels of what is exported even while there is none, so that a first one is seen as a rise.
ENDS = tuple(status for status in JobStatus if status.ended and status is not JobStatus.ROLLED_BACK)
FAILURE_KINDS = (*FailureKind, UNKNOWN)
