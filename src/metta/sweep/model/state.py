"""The state of a sweep as a pure fold over its events: the only place where anything changes status.

The same function serves the controller (the whole state, event by event), the store (only the runs that a batch
touches, to refuse what is illegal and to write the projections), and replay (any prefix of the log).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import immutables
import msgspec
from msgspec.structs import replace

from metta.sweep.errors import InvalidTransition, SearchSpaceError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobInfo, JobState, JobStatus, JobType, Outcome, RunInfo
from metta.sweep.model.sweep import LIMITS, SweepConfig, SweepMetadata, SweepStatus


class SweepState(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep at one moment. The maps are persistent: a new state shares all that did not change with the old one."""

    metadata: SweepMetadata | None = None
    runs: immutables.Map[str, RunInfo] = immutables.Map()
    #: Ids of the runs that have not ended: all that the controller has to think about.
    unfinished: immutables.Map[str, None] = immutables.Map()
    #: In finite spaces, the keys of all configurations tried (`SearchSpace.key`), so that none is tried twice.
    tried: immutables.Map[bytes, str] = immutables.Map()

    @property
    def sweep(self) -> SweepMetadata:
        """The sweep's metadata; only the state before the first event has none."""
        assert self.metadata is not None
        return self.metadata

    @property
    def seq(self) -> int:
        """Sequence number of the last event folded; 0 before the first."""
        return self.metadata.seq if self.metadata else 0


EMPTY = SweepState()


def fold(state: SweepState, events: Iterable[Event]) -> SweepState:
    """The state after `events`, which must follow `state` without a gap.

    Takes time in proportion to the events alone, however many runs the state holds.

    Raises:
        InvalidTransition: an event does not fit the state it meets; `state` is as it was.
    """
    draft = _Draft(state)
    for event in events:
        draft.apply(event)
    return draft.finish()


class _Draft:
    """A state being written; lives only inside `fold`."""

    def __init__(self, state: SweepState) -> None:
        self._metadata = state.metadata
        self._runs = state.runs.mutate()
        self._unfinished = state.unfinished.mutate()
        self._tried = state.tried.mutate()
        self._counts = dict(state.metadata.counts) if state.metadata else {}
        self._seq = state.seq

    def finish(self) -> SweepState:
        metadata = self._metadata
        if metadata is not None:
            metadata = replace(metadata, seq=self._seq, counts=self._counts)
        return SweepState(
            metadata=metadata,
            runs=self._runs.finish(),
            unfinished=self._unfinished.finish(),
            tried=self._tried.finish(),
        )

    def apply(self, event: Event) -> None:
        if event.seq != self._seq + 1:
            raise InvalidTransition(
                f"sweep {event.sweep_id}: event {event.seq} follows {self._seq}; events are missing"
            )
        if self._metadata is not None and event.sweep_id != self._metadata.sweep_id:
            raise _refused(event, f"sweep {event.sweep_id} is another than {self._metadata.sweep_id}")
        body = event.body
        if event.run_id is None:
            if isinstance(body, ev.SweepEnded) and not all(status.ended for status in self._counts):
                raise _refused(event, "some of its runs have not ended")
            transition = _SWEEP_TRANSITIONS.get(type(body))
            if transition is None:
                raise _refused(event, "it names no run")
            self._metadata = transition(self._metadata, event, body)
        else:
            self._apply_to_run(event.run_id, event, body)
        self._seq = event.seq

    def _apply_to_run(self, run_id: str, event: Event, body: ev.Body) -> None:
        if self._metadata is None or self._metadata.status.ended:
            raise _refused(event, f"the sweep is {self._metadata.status if self._metadata else 'not created'}")
        before = self._runs.get(run_id)
        if isinstance(body, ev.RunCreated):
            if before is not None:
                raise _refused(event, "the run exists already")
            if body.index != sum(self._counts.values()):
                raise _refused(event, f"its index is {body.index}, the next one is {sum(self._counts.values())}")
            run = _created(event, run_id, body)
            if self._metadata.config.search_space.cardinality is not None:
                self._tried[self._metadata.config.search_space.key(body.config)] = run_id
        else:
            if before is None:
                raise _refused(event, "there is no such run")
            transition = _RUN_TRANSITIONS.get(type(body))
            if transition is None:
                raise _refused(event, "it is about the sweep, not about a run")
            run = transition(before, event, body)
        self._runs[run_id] = run
        if before is None or run.status is not before.status:
            self._count(before, run)
        if before is not None and run.cost != before.cost:
            self._metadata = replace(self._metadata, cost=self._metadata.cost + run.cost - before.cost)
        if run.status is JobStatus.COMPLETED and run.score is not None and self._metadata.is_better(run.score):
            self._metadata = replace(self._metadata, best_run_id=run_id, best_score=run.score)

    def _count(self, before: RunInfo | None, run: RunInfo) -> None:
        counts = self._counts
        if before is not None:
            counts[before.status] -= 1
            if not counts[before.status]:
                del counts[before.status]
        counts[run.status] = counts.get(run.status, 0) + 1
        if run.status.ended:
            self._unfinished.pop(run.run_id, None)
        else:
            self._unfinished[run.run_id] = None


def _refused(event: Event, why: str) -> InvalidTransition:
    subject = event.job_id or event.run_id or f"sweep {event.sweep_id}"
    return InvalidTransition(f"{event.type} does not fit {subject}: {why}")


# ------------------------------------------------------------------------------------------------------- sweep


def _sweep_created(before: SweepMetadata | None, event: Event, body: ev.SweepCreated) -> SweepMetadata:
    if before is not None:
        raise _refused(event, "the sweep exists already")
    return SweepMetadata(sweep_id=event.sweep_id, config=body.config, created_at=event.at, seq=0)


def _existing(before: SweepMetadata | None, event: Event) -> SweepMetadata:
    if before is None:
        raise _refused(event, "there is no such sweep")
    return before


def _sweep_resumed(before: SweepMetadata | None, event: Event, body: ev.SweepResumed) -> SweepMetadata:
    sweep = _existing(before, event)
    if fixed := body.changes.keys() - LIMITS:
        raise _refused(event, f"only limits may change, not {', '.join(sorted(fixed))}")
    config = sweep.config
    if body.changes:
        try:
            config = msgspec.convert({**msgspec.to_builtins(config), **body.changes}, SweepConfig)
        except (msgspec.ValidationError, SearchSpaceError) as error:
            raise _refused(event, str(error)) from error
    return replace(sweep, status=SweepStatus.RUNNING, reason=None, ended_at=None, config=config)


def _sweep_stop_requested(before: SweepMetadata | None, event: Event, body: ev.SweepStopRequested) -> SweepMetadata:
    sweep = _existing(before, event)
    if sweep.status.ended:
        raise _refused(event, f"it is {sweep.status} already")
    return replace(sweep, status=SweepStatus.STOPPING, reason=body.reason)


def _sweep_ended(before: SweepMetadata | None, event: Event, body: ev.SweepEnded) -> SweepMetadata:
    sweep = _existing(before, event)
    if sweep.status.ended:
        raise _refused(event, f"it is {sweep.status} already")
    if not body.status.ended:
        raise _refused(event, f"{body.status} is no end")
    return replace(sweep, status=body.status, reason=body.reason, ended_at=event.at)


def _noted(before: SweepMetadata | None, event: Event, body: ev.Body) -> SweepMetadata:
    return _existing(before, event)


_SweepTransition: TypeAlias = Callable[[SweepMetadata | None, Event, Any], SweepMetadata]
_SWEEP_TRANSITIONS: dict[type, _SweepTransition] = {
    ev.SweepCreated: _sweep_created,
    ev.SweepResumed: _sweep_resumed,
    ev.SweepStopRequested: _sweep_stop_requested,
    ev.SweepEnded: _sweep_ended,
    ev.ControllerStarted: _noted,
    ev.ControllerStopped: _noted,
}


# ------------------------------------------------------------------------------------------------- runs and jobs


def _created(event: Event, run_id: str, body: ev.RunCreated) -> RunInfo:
    return RunInfo(sweep_id=event.sweep_id, run_id=run_id, index=body.index, config=body.config, created_at=event.at)


#: What each kind of job needs before it, is during it, and leaves after success.
_BEFORE = {JobType.TRAIN: JobStatus.PENDING, JobType.EVAL: JobStatus.TRAINING_DONE_NO_EVAL}
_DURING = {JobType.TRAIN: JobStatus.IN_TRAINING, JobType.EVAL: JobStatus.IN_EVAL}
_AFTER = {JobType.TRAIN: JobStatus.TRAINING_DONE_NO_EVAL, JobType.EVAL: JobStatus.EVAL_DONE_NOT_COMPLETED}


def _job_granted(run: RunInfo, event: Event, body: ev.JobGranted) -> RunInfo:
    if run.status is not _BEFORE[body.job_type] or run.open_job is not None:
        raise _refused(event, f"run {run.run_id} is {run.status}")
    if event.job_id is None or body.attempt != run.attempts(body.job_type) + 1:
        raise _refused(event, f"attempt {body.attempt} comes after {run.attempts(body.job_type)} earlier ones")
    job = JobInfo(job_id=event.job_id, type=body.job_type, attempt=body.attempt, granted_at=event.at)
    return replace(run, jobs=(*run.jobs, job))


def _current_job(run: RunInfo, event: Event) -> JobInfo:
    job = run.open_job
    if job is None or job.job_id != event.job_id:
        raise _refused(event, f"it is not the open job of run {run.run_id} ({run.status})")
    return job


def _with_job(run: RunInfo, job: JobInfo) -> tuple[JobInfo, ...]:
    return (*run.jobs[:-1], job)


def _job_dispatched(run: RunInfo, event: Event, body: ev.JobDispatched) -> RunInfo:
    # The agent may have started, and even finished, the job before the controller writes that it handed it over.
    if all(job.job_id != event.job_id for job in run.jobs):
        raise _refused(event, f"run {run.run_id} has no such job")
    job = run.jobs[-1]
    if job.job_id != event.job_id or job.state is not JobState.GRANTED:
        return run
    return replace(run, jobs=_with_job(run, replace(job, state=JobState.DISPATCHED)))


def _job_started(run: RunInfo, event: Event, body: ev.JobStarted) -> RunInfo:
    job = _current_job(run, event)
    if job.state is JobState.RUNNING:
        raise _refused(event, "it is running already")
    started = replace(job, state=JobState.RUNNING, host=body.host, pid=body.pid, started_at=event.at, log=body.log)
    return replace(
        run,
        status=_DURING[job.type],
        started_at=event.at if run.started_at is None else run.started_at,
        jobs=_with_job(run, started),
    )


def _check_finite(event: Event, numbers: Mapping[str, float]) -> None:
    # JSON has no NaN: written down, it would come back as null, and the log could not be read again.
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise _refused(event, f"{name!r} is {number}, not a finite number")


def _metrics_reported(run: RunInfo, event: Event, body: ev.MetricsReported) -> RunInfo:
    job = _current_job(run, event)
    if job.state is not JobState.RUNNING:
        raise _refused(event, "it is not running")
    _check_finite(event, body.metrics)
    jobs = run.jobs
    if new := [name for name in body.metrics if name not in job.reported]:
        jobs = _with_job(run, replace(job, reported=(*job.reported, *new)))
    return replace(run, metrics={**run.metrics, **body.metrics}, reports=run.reports + 1, jobs=jobs)


def _job_exited(run: RunInfo, event: Event, body: ev.JobExited) -> RunInfo:
    job = _current_job(run, event)
    ended = replace(job, state=JobState.EXITED, ended_at=event.at, outcome=body.outcome)
    run = replace(run, jobs=_with_job(run, ended), cost=run.cost + body.seconds)
    if body.outcome is Outcome.SUCCEEDED:
        return replace(run, status=_AFTER[job.type])
    status = JobStatus.CANCELLED if body.outcome in {Outcome.CANCELLED, Outcome.INTERRUPTED} else JobStatus.FAILED
    reason = f"{job.type} {body.outcome}" + (f": {body.error}" if body.error else "")
    return _ended(run, status, event, reason)


def _job_lost(run: RunInfo, event: Event, body: ev.JobLost) -> RunInfo:
    job = _current_job(run, event)
    lost = replace(job, state=JobState.LOST, ended_at=event.at)
    spent = max(0.0, event.at - job.started_at) if job.started_at is not None else 0.0
    return replace(run, jobs=_with_job(run, lost), status=_BEFORE[job.type], cost=run.cost + spent)


def _ended(run: RunInfo, status: JobStatus, event: Event, reason: str | None = None) -> RunInfo:
    reasons = run.failure_reasons if reason is None else (*run.failure_reasons, reason)
    return replace(run, status=status, ended_at=event.at, failure_reasons=reasons)


def _waiting(run: RunInfo, event: Event) -> RunInfo:
    if run.status.ended or run.open_job is not None:
        raise _refused(event, f"run {run.run_id} is {run.status}")
    return run


def _run_completed(run: RunInfo, event: Event, body: ev.RunCompleted) -> RunInfo:
    if run.status not in {JobStatus.TRAINING_DONE_NO_EVAL, JobStatus.EVAL_DONE_NOT_COMPLETED}:
        raise _refused(event, f"run {run.run_id} is {run.status}")
    _check_finite(event, {"score": body.score})
    return _ended(replace(_waiting(run, event), score=body.score), JobStatus.COMPLETED, event)


def _run_failed(run: RunInfo, event: Event, body: ev.RunFailed) -> RunInfo:
    return _ended(_waiting(run, event), JobStatus.FAILED, event, body.reason)


def _run_cancelled(run: RunInfo, event: Event, body: ev.RunCancelled) -> RunInfo:
    return _ended(_waiting(run, event), JobStatus.CANCELLED, event, body.reason)


def _run_requeued(run: RunInfo, event: Event, body: ev.RunRequeued) -> RunInfo:
    if run.status is not JobStatus.CANCELLED:
        raise _refused(event, f"run {run.run_id} is {run.status}")
    trained = any(job.type is JobType.TRAIN and job.outcome is Outcome.SUCCEEDED for job in run.jobs)
    status = JobStatus.TRAINING_DONE_NO_EVAL if trained else JobStatus.PENDING
    return replace(run, status=status, ended_at=None)


_RunTransition: TypeAlias = Callable[[RunInfo, Event, Any], RunInfo]
_RUN_TRANSITIONS: dict[type, _RunTransition] = {
    ev.JobGranted: _job_granted,
    ev.JobDispatched: _job_dispatched,
    ev.JobStarted: _job_started,
    ev.MetricsReported: _metrics_reported,
    ev.JobExited: _job_exited,
    ev.JobLost: _job_lost,
    ev.RunCompleted: _run_completed,
    ev.RunFailed: _run_failed,
    ev.RunCancelled: _run_cancelled,
    ev.RunRequeued: _run_requeued,
}
