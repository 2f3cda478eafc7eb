"""What each event makes of a run; `fold` applies it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.run import Checkpoint, JobInfo, JobState, JobStatus, JobType, Outcome, RunInfo, Undone
from metta.sweep.model.sweep_transitions import check_finite, check_plain, refused
from metta.sweep.model.usage import JobUsage, numbers_of


def created(event: Event, run_id: str, body: ev.RunCreated) -> RunInfo:
    """A new run. What it has from a parent stands in the event: the parent itself may not be at hand."""
    parent = body.parent
    if parent is not None:
        check_finite(event, {"level": parent.level, **{f"rung {each.level:g}": each.value for each in body.rungs}})
        if run_id in {parent.run_id, parent.replaces}:
            raise refused(event, "it would come from itself")
    return RunInfo(
        sweep_id=event.sweep_id,
        run_id=run_id,
        index=body.index,
        config=body.config,
        created_at=event.at,
        parent=parent,
        progress=None if parent is None else parent.level,
        rungs=body.rungs,
    )


#: Of the reasons why a run's attempts failed the first is kept, and the latest.
_MOST_REASONS = 20


def _with_reason(run: RunInfo, reason: str) -> tuple[str, ...]:
    return (*run.failure_reasons[:1], *(*run.failure_reasons[1:], reason)[1 - _MOST_REASONS :])


#: What each kind of job needs before it, is during it, and leaves after success.
_BEFORE = {JobType.TRAIN: JobStatus.PENDING, JobType.EVAL: JobStatus.TRAINING_DONE_NO_EVAL}
_DURING = {JobType.TRAIN: JobStatus.IN_TRAINING, JobType.EVAL: JobStatus.IN_EVAL}
_AFTER = {JobType.TRAIN: JobStatus.TRAINING_DONE_NO_EVAL, JobType.EVAL: JobStatus.EVAL_DONE_NOT_COMPLETED}


def _job_granted(run: RunInfo, event: Event, body: ev.JobGranted) -> RunInfo:
    goes_on = run.status is JobStatus.PAUSED and body.job_type is JobType.TRAIN
    if (run.status is not _BEFORE[body.job_type] and not goes_on) or run.open_job is not None:
        raise refused(event, f"run {run.run_id} is {run.status}")
    if event.job_id is None or body.attempt != run.attempts(body.job_type) + 1:
        raise refused(event, f"attempt {body.attempt} comes after {run.attempts(body.job_type)} earlier ones")
    if any(job.job_id == event.job_id for job in run.jobs):
        raise refused(event, "it was granted before")
    check_finite(event, {"until": body.until})
    job = JobInfo(
        job_id=event.job_id,
        type=body.job_type,
        attempt=body.attempt,
        granted_at=event.at,
        until=body.until,
        keep=body.keep,
    )
    return replace(run, status=_BEFORE[body.job_type], jobs=(*run.jobs, job))


def _current_job(run: RunInfo, event: Event) -> JobInfo:
    job = run.open_job
    if job is None or job.job_id != event.job_id:
        raise refused(event, f"it is not the open job of run {run.run_id} ({run.status})")
    return job


def _with_job(run: RunInfo, job: JobInfo) -> tuple[JobInfo, ...]:
    return (*run.jobs[:-1], job)


def _job_dispatched(run: RunInfo, event: Event, body: ev.JobDispatched) -> RunInfo:
    # The agent may have started, and even finished, the job before the controller writes that it handed it over.
    if all(job.job_id != event.job_id for job in run.jobs):
        raise refused(event, f"run {run.run_id} has no such job")
    job = run.jobs[-1]
    if job.job_id != event.job_id or job.state is not JobState.GRANTED:
        return run
    return replace(run, jobs=_with_job(run, replace(job, state=JobState.DISPATCHED)))


def _job_started(run: RunInfo, event: Event, body: ev.JobStarted) -> RunInfo:
    job = _current_job(run, event)
    if job.state is JobState.RUNNING:
        raise refused(event, "it is running already")
    started = replace(job, state=JobState.RUNNING, host=body.host, pid=body.pid, started_at=event.at, log=body.log)
    return replace(
        run,
        status=_DURING[job.type],
        started_at=event.at if run.started_at is None else run.started_at,
        jobs=_with_job(run, started),
    )


def _running_job(run: RunInfo, event: Event) -> JobInfo:
    job = _current_job(run, event)
    if job.state is not JobState.RUNNING:
        raise refused(event, "it is not running")
    return job


def _metrics_reported(run: RunInfo, event: Event, body: ev.MetricsReported) -> RunInfo:
    job = _running_job(run, event)
    check_finite(event, body.metrics)
    jobs = run.jobs
    if new := [name for name in body.metrics if name not in job.reported]:
        jobs = _with_job(run, replace(job, reported=(*job.reported, *new)))
    return replace(run, metrics={**run.metrics, **body.metrics}, reports=run.reports + 1, jobs=jobs)


def _resources_measured(run: RunInfo, event: Event, body: ev.ResourcesMeasured) -> RunInfo:
    job = _running_job(run, event)
    return replace(run, jobs=_with_job(run, replace(job, usage=_kept(event, body.usage))))


def _kept(event: Event, usage: JobUsage | None) -> JobUsage | None:
    """What a run keeps of a measurement: its curves would weigh more than all the rest of it."""
    if usage is None:
        return None
    check_finite(event, dict(numbers_of(usage)))
    return usage if usage.curves is None else replace(usage, curves=None)


def _job_exited(run: RunInfo, event: Event, body: ev.JobExited) -> RunInfo:
    job = _current_job(run, event)
    check_finite(event, {"seconds": body.seconds})
    ended = replace(
        job,
        state=JobState.EXITED,
        ended_at=event.at,
        outcome=body.outcome,
        failure=body.failure,
        signature=body.signature,
        usage=job.usage if body.usage is None else _kept(event, body.usage),
    )
    run = replace(run, jobs=_with_job(run, ended), cost=run.cost + body.seconds)
    if body.outcome is Outcome.SUCCEEDED:
        return replace(run, status=_AFTER[job.type], retry_count=0, resume_from=None)
    reason = f"{job.type} {body.outcome}" + (f": {body.error}" if body.error else "")
    if body.outcome in {Outcome.PAUSED, Outcome.STOPPED}:
        return replace(run, status=JobStatus.PAUSED, retry_count=0, resume_from=None)
    if body.outcome in {Outcome.CANCELLED, Outcome.INTERRUPTED}:
        return _ended(run, JobStatus.CANCELLED, event, reason)
    if body.failure is None:
        return _ended(run, JobStatus.FAILED, event, reason)
    return _undecided(run, reason)


def _job_lost(run: RunInfo, event: Event, body: ev.JobLost) -> RunInfo:
    job = _current_job(run, event)
    lost = replace(job, state=JobState.LOST, ended_at=event.at, failure=body.failure)
    spent = max(0.0, event.at - job.started_at) if job.started_at is not None else 0.0
    run = replace(run, jobs=_with_job(run, lost), cost=run.cost + spent)
    if body.failure is None:
        return replace(run, status=_BEFORE[job.type])
    return _undecided(run, f"{job.type} lost: {body.reason}")


def _undecided(run: RunInfo, reason: str) -> RunInfo:
    """A run whose job has failed: to be tried again or not, as the controller will say."""
    return replace(run, status=JobStatus.RETRYING, retry_at=None, failure_reasons=_with_reason(run, reason))


def _checkpoint_saved(run: RunInfo, event: Event, body: ev.CheckpointSaved) -> RunInfo:
    job = _running_job(run, event)
    return replace(
        run,
        checkpoints=_with_checkpoint(run, event, body, job),
        # What was saved since the user went back to a step is part of the new way, what comes after it of the old one.
        resume_from=None if run.resume_from is None else body.step,
    )


def _checkpoint_copied(run: RunInfo, event: Event, body: ev.CheckpointCopied) -> RunInfo:
    job = _current_job(run, event)
    if job.state is JobState.RUNNING or run.parent is None or run.parent.run_id != body.source:
        raise refused(event, f"run {run.run_id} is {run.status}, its parent {run.parent and run.parent.run_id}")
    check_finite(event, {"score": body.score})
    return replace(run, checkpoints=_with_checkpoint(run, event, body, job, body.score))


def _with_checkpoint(
    run: RunInfo,
    event: Event,
    body: ev.CheckpointSaved | ev.CheckpointCopied,
    job: JobInfo,
    score: float | None = None,
) -> tuple[Checkpoint, ...]:
    checkpoint = Checkpoint(
        step=body.step,
        path=body.path,
        sha256=body.sha256,
        size_bytes=body.size_bytes,
        at=event.at,
        job_id=job.job_id,
        score=score,
    )
    others = [other for other in run.checkpoints if other.step != body.step]
    return tuple(sorted([*others, checkpoint], key=lambda each: each.step))


def _checkpoint_deleted(run: RunInfo, event: Event, body: ev.CheckpointDeleted) -> RunInfo:
    left = tuple(checkpoint for checkpoint in run.checkpoints if checkpoint.step != body.step)
    if len(left) == len(run.checkpoints):
        raise refused(event, f"run {run.run_id} has no checkpoint of step {body.step}")
    return replace(run, checkpoints=left)


def _ended(run: RunInfo, status: JobStatus, event: Event, reason: str | None = None) -> RunInfo:
    reasons = run.failure_reasons if reason is None else _with_reason(run, reason)
    return replace(run, status=status, ended_at=event.at, retry_at=None, failure_reasons=reasons)


def _waiting(run: RunInfo, event: Event) -> RunInfo:
    if run.status.ended or run.open_job is not None:
        raise refused(event, f"run {run.run_id} is {run.status}")
    return run


def _run_completed(run: RunInfo, event: Event, body: ev.RunCompleted) -> RunInfo:
    if run.status not in {JobStatus.TRAINING_DONE_NO_EVAL, JobStatus.EVAL_DONE_NOT_COMPLETED}:
        raise refused(event, f"run {run.run_id} is {run.status}")
    check_finite(event, {"score": body.score})
    # It may have come to its end before it could be stopped.
    return _ended(replace(_waiting(run, event), score=body.score, stop_reason=None), JobStatus.COMPLETED, event)


def _run_failed(run: RunInfo, event: Event, body: ev.RunFailed) -> RunInfo:
    check_finite(event, {"partial_score": body.partial_score})
    # A run that failed by its last job has that job's reason already.
    is_known = run.status is JobStatus.RETRYING and body.reason in run.failure_reasons
    run = replace(_waiting(run, event), partial_score=body.partial_score)
    return _ended(run, JobStatus.FAILED, event, None if is_known else body.reason)


def _run_retry_scheduled(run: RunInfo, event: Event, body: ev.RunRetryScheduled) -> RunInfo:
    if run.status is not JobStatus.RETRYING or run.retry_at is not None:
        raise refused(event, f"run {run.run_id} is {run.status}")
    check_finite(event, {"retry_at": body.retry_at, "memory_gb": body.memory_gb})
    return replace(run, retry_at=body.retry_at, retry_count=body.retry_count, memory_gb=body.memory_gb or run.memory_gb)


def _run_stop_requested(run: RunInfo, event: Event, body: ev.RunStopRequested) -> RunInfo:
    if run.status.ended or run.open_job is None or run.stop_reason is not None:
        raise refused(event, f"run {run.run_id} is {run.status}{', and being stopped' if run.stop_reason else ''}")
    return replace(run, stop_reason=body.reason)


def _run_stopped(run: RunInfo, event: Event, body: ev.RunStopped) -> RunInfo:
    check_finite(event, {"partial_score": body.partial_score})
    run = replace(_waiting(run, event), stop_reason=body.reason, partial_score=body.partial_score)
    return _ended(run, JobStatus.STOPPED, event)


def _run_cancelled(run: RunInfo, event: Event, body: ev.RunCancelled) -> RunInfo:
    return _ended(_waiting(run, event), JobStatus.CANCELLED, event, body.reason)


#: The search has decided against these, or not for them yet: who requeues them outranks it.
_WANTED_FROM = frozenset({JobStatus.STOPPED, JobStatus.PAUSED})
#: What can be tried again.
REQUEUED_FROM = frozenset({JobStatus.CANCELLED, JobStatus.RETRYING, JobStatus.FAILED}) | _WANTED_FROM


def _run_requeued(run: RunInfo, event: Event, body: ev.RunRequeued) -> RunInfo:
    if run.status not in REQUEUED_FROM:
        raise refused(event, f"run {run.run_id} is {run.status}")
    if body.checkpoint is not None and all(body.checkpoint != each.step for each in run.checkpoints):
        steps = ", ".join(str(each.step) for each in run.checkpoints) or "none"
        raise refused(event, f"there is no checkpoint of step {body.checkpoint}; there are: {steps}")
    resume_from = run.resume_from if body.checkpoint is None else body.checkpoint
    if resume_from is None and _has_trained_in_vain(run):
        resume_from = run.checkpoints[-1].step if run.checkpoints else 0
    # Whoever wanted to go back to a step wants it trained from there, however many attempts that takes.
    to_evaluate = run.is_trained and resume_from is None
    return replace(
        run,
        status=JobStatus.TRAINING_DONE_NO_EVAL if to_evaluate else JobStatus.PENDING,
        # Forgiven failures are remembered over a wait; a run that had ended starts with a clean sheet.
        retry_count=run.retry_count if run.status is JobStatus.RETRYING else 0,
        retry_at=None,
        ended_at=None,
        partial_score=None,
        resume_from=resume_from,
        stop_reason=None,
        wanted=run.wanted or run.status in _WANTED_FROM,
    )


def _has_trained_in_vain(run: RunInfo) -> bool:
    """Whether the run failed by what its training reported, or did not: judged again, it would only fail again."""
    last = run.jobs[-1] if run.jobs else None
    is_trained_last = last is not None and last.type is JobType.TRAIN and last.outcome is Outcome.SUCCEEDED
    return run.status is JobStatus.FAILED and is_trained_last


def _run_rolled_back(run: RunInfo, event: Event, body: ev.RunRolledBack) -> RunInfo:
    if not run.status.ended or run.undone is not None:
        raise refused(event, f"run {run.run_id} is {run.status}")
    if body.best_run_id == run.run_id:
        raise refused(event, "it would still be the best run")
    check_finite(event, {"best_score": body.best_score})
    return _undone(run, event.at)


def _undone(run: RunInfo, at: float) -> RunInfo:
    undone = Undone(status=run.status, score=run.score, at=at)
    return replace(run, status=JobStatus.ROLLED_BACK, score=None, undone=undone)


def _run_restored(run: RunInfo, event: Event, body: ev.RunRestored) -> RunInfo:
    if run.undone is None:
        raise refused(event, f"run {run.run_id} is {run.status}, it was not rolled back")
    return replace(run, status=run.undone.status, score=run.undone.score, undone=None)


def _has_come_to_its_end(run: RunInfo) -> bool:
    return bool(run.jobs) and run.jobs[-1].outcome is Outcome.SUCCEEDED


def _run_rescored(run: RunInfo, event: Event, body: ev.RunRescored) -> RunInfo:
    if run.undone is not None:
        # What counted then must not come back with the run, and be the best by another measure.
        before = replace(run, status=run.undone.status, score=run.undone.score, undone=None)
        return _undone(_run_rescored(before, event, body), run.undone.at)
    if run.status not in {JobStatus.COMPLETED, JobStatus.STOPPED, JobStatus.FAILED}:
        raise refused(event, f"run {run.run_id} is {run.status}")
    check_finite(event, {"score": body.score})
    if run.status is not JobStatus.COMPLETED and (run.status is JobStatus.STOPPED or not _has_come_to_its_end(run)):
        return replace(run, partial_score=body.score)
    if body.score is None:
        reasons = _with_reason(run, body.reason)
        return replace(run, status=JobStatus.FAILED, score=None, failure_reasons=reasons)
    return replace(run, status=JobStatus.COMPLETED, score=body.score, partial_score=None, resume_from=None)


def _state_repaired(run: RunInfo, event: Event, body: ev.StateRepaired) -> RunInfo:
    if fixed := body.after.keys() & {"sweep_id", "run_id", "index"}:
        raise refused(event, f"{', '.join(sorted(fixed))} cannot be repaired")
    if unknown := body.after.keys() - set(RunInfo.__struct_fields__):
        raise refused(event, f"runs have no {', '.join(sorted(unknown))}")
    check_plain(event, body.after)
    try:
        return msgspec.convert({**msgspec.to_builtins(run), **body.after}, RunInfo)
    except msgspec.ValidationError as error:
        raise refused(event, str(error)) from error


def _noted(run: RunInfo, event: Event, body: ev.Noted) -> RunInfo:
    check_plain(event, {"data": body.data})
    return run


#: What may still happen to the runs of a sweep that has ended.
AFTER_THE_END = (ev.RunRolledBack, ev.RunRestored, ev.RunRescored, ev.StateRepaired, ev.CheckpointDeleted, ev.Noted)

_RunTransition: TypeAlias = Callable[[RunInfo, Event, Any], RunInfo]
RUN_TRANSITIONS: dict[type, _RunTransition] = {
    ev.JobGranted: _job_granted,
    ev.JobDispatched: _job_dispatched,
    ev.JobStarted: _job_started,
    ev.MetricsReported: _metrics_reported,
    ev.ResourcesMeasured: _resources_measured,
    ev.JobExited: _job_exited,
    ev.JobLost: _job_lost,
    ev.CheckpointSaved: _checkpoint_saved,
    ev.CheckpointCopied: _checkpoint_copied,
    ev.CheckpointDeleted: _checkpoint_deleted,
    ev.RunCompleted: _run_completed,
    ev.RunFailed: _run_failed,
    ev.RunRetryScheduled: _run_retry_scheduled,
    ev.RunStopRequested: _run_stop_requested,
    ev.RunStopped: _run_stopped,
    ev.RunCancelled: _run_cancelled,
    ev.RunRequeued: _run_requeued,
    ev.RunRolledBack: _run_rolled_back,
    ev.RunRestored: _run_restored,
    ev.RunRescored: _run_rescored,
    ev.StateRepaired: _state_repaired,
    ev.Noted: _noted,
}
