"""What a run that has not ended waits for: who decides looks only at those that there is something to decide about."""

from __future__ import annotations

from enum import StrEnum

from metta.sweep.model.run import JobInfo, JobState, JobStatus, JobType, RunInfo


class WaitsFor(StrEnum):
    """What has to come before a run gets further. Its status does not tell: a run is PENDING with a job and without."""

    #: A slot in which it is trained, or evaluated.
    TRAIN_SLOT = "train slot"
    EVAL_SLOT = "eval slot"
    #: A dispatcher that takes its job: it is granted, and not taken as far as the log tells.
    DISPATCH = "dispatch"
    #: The end of its job.
    TRAINING = "training"
    EVALUATION = "evaluation"
    #: The end of its job, because it is given up.
    STOP = "stop"
    #: The controller, to say what follows from how its last job ended.
    VERDICT = "verdict"
    #: The time of its next attempt.
    RETRY = "retry"
    #: The scheduler, to say whether it goes on from the level where it is.
    PROMOTION = "promotion"


#: Of runs with a job that may be executing.
WITH_JOB = (WaitsFor.DISPATCH, WaitsFor.TRAINING, WaitsFor.EVALUATION, WaitsFor.STOP)
#: Of all others.
WITHOUT_JOB = tuple(each for each in WaitsFor if each not in WITH_JOB)

_BY_STATUS = {
    JobStatus.PENDING: WaitsFor.TRAIN_SLOT,
    JobStatus.TRAINING_DONE_NO_EVAL: WaitsFor.EVAL_SLOT,
    JobStatus.PAUSED: WaitsFor.PROMOTION,
}


def waits_for(run: RunInfo) -> WaitsFor | None:
    """What a run waits for; None of one that has ended."""
    if run.status.ended:
        return None
    if (job := run.open_job) is not None:
        return _with(job, run.stop_reason is not None)
    if run.stop_reason is not None:
        return WaitsFor.VERDICT
    if run.retry_at is not None:
        return WaitsFor.RETRY
    if run.wanted and run.status is JobStatus.PAUSED:
        return WaitsFor.TRAIN_SLOT
    return _BY_STATUS.get(run.status, WaitsFor.VERDICT)


def _with(job: JobInfo, is_given_up: bool) -> WaitsFor:
    if job.state is JobState.GRANTED:
        return WaitsFor.DISPATCH
    if is_given_up:
        return WaitsFor.STOP
    return WaitsFor.TRAINING if job.type is JobType.TRAIN else WaitsFor.EVALUATION
