"""Runs by hand and at random: sound ones, and ones as the fold never makes them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.model.run import (
    Checkpoint,
    FailureKind,
    JobInfo,
    JobState,
    JobStatus,
    JobType,
    Outcome,
    RunInfo,
    Undone,
)
from metta.sweep.testing.sweeps import SWEEP

METRIC = "reward"

# ------------------------------------------------------------------------------------------------------ runs by hand


def job(job_type: JobType = JobType.TRAIN, attempt: int = 1, **fields: Any) -> JobInfo:
    """A job that succeeded; `fields` say otherwise."""
    defaults: dict[str, Any] = {
        "job_id": f"r.{job_type}.{attempt}",
        "type": job_type,
        "attempt": attempt,
        "granted_at": 1.0,
        "state": JobState.EXITED,
        "host": "node",
        "pid": 7,
        "started_at": 2.0,
        "ended_at": 3.0,
        "outcome": Outcome.SUCCEEDED,
    }
    return JobInfo(**{**defaults, **fields})


def granted(job_type: JobType = JobType.TRAIN, **fields: Any) -> JobInfo:
    unstarted = {"state": JobState.GRANTED, "started_at": None, "ended_at": None, "outcome": None}
    return job(job_type, **{**unstarted, **fields})


def running(job_type: JobType = JobType.TRAIN, **fields: Any) -> JobInfo:
    return job(job_type, **{"state": JobState.RUNNING, "ended_at": None, "outcome": None, **fields})


def run(status: JobStatus, *jobs: JobInfo, **fields: Any) -> RunInfo:
    """A run with these jobs, sound but for what `fields` say."""
    times: dict[str, Any] = {"started_at": 2.0} if any(each.started_at is not None for each in jobs) else {}
    if status.ended:
        times["ended_at"] = 4.0
    if status is JobStatus.COMPLETED:
        times |= {"score": 0.5, "metrics": {METRIC: 0.5}}
    defaults: dict[str, Any] = {
        "sweep_id": SWEEP,
        "run_id": "r",
        "index": 0,
        "config": {"lr": 0.1},
        "created_at": 0.0,
        "status": status,
        "jobs": jobs,
    }
    return RunInfo(**{**defaults, **times, **fields})


FAILED_JOB = job(outcome=Outcome.FAILED, failure=FailureKind.USER_ERROR)
LOST_JOB = job(state=JobState.LOST, outcome=None)
CHECKPOINTS = tuple(
    Checkpoint(step=step, path=f"checkpoints/{step}", sha256="0" * 64, size_bytes=1, at=2.5, job_id="r.train.1")
    for step in (1, 2)
)

SOUND = {
    "waits for its first job": run(JobStatus.PENDING),
    "was granted a job": run(JobStatus.PENDING, granted()),
    "trains": run(JobStatus.IN_TRAINING, running()),
    "is trained": run(JobStatus.TRAINING_DONE_NO_EVAL, job()),
    "evaluates": run(JobStatus.IN_EVAL, job(), running(JobType.EVAL)),
    "is evaluated": run(JobStatus.EVAL_DONE_NOT_COMPLETED, job(), job(JobType.EVAL)),
    "is complete": run(JobStatus.COMPLETED, job()),
    "failed": run(JobStatus.FAILED, FAILED_JOB),
    "was cancelled before it began": run(JobStatus.CANCELLED),
    "waits to be tried again": run(JobStatus.RETRYING, FAILED_JOB, retry_at=99.0),
    "is tried again": run(JobStatus.PENDING, LOST_JOB, granted(attempt=2)),
    "goes back to a checkpoint": run(JobStatus.PENDING, job(), resume_from=1, checkpoints=CHECKPOINTS),
    "was rolled back": run(
        JobStatus.ROLLED_BACK, job(), undone=Undone(status=JobStatus.COMPLETED, score=0.5), metrics={METRIC: 0.5}
    ),
    "could not be started": run(JobStatus.FAILED, job(outcome=Outcome.FAILED, started_at=None)),
}


#: A run, words of what is found, and what is to become of it.
INCONSISTENT: dict[str, tuple[RunInfo, str, dict[str, Any]]] = {
    "evaluated without training": (
        run(JobStatus.EVAL_DONE_NOT_COMPLETED, job(JobType.EVAL)),
        "evaluated without completing training",
        {"status": JobStatus.PENDING},
    ),
    "completed by an evaluation without training": (
        run(JobStatus.COMPLETED, LOST_JOB, job(JobType.EVAL)),
        "evaluated without completing training",
        {"status": JobStatus.FAILED, "score": None},
    ),
    "being evaluated without training": (
        run(JobStatus.IN_EVAL, running(JobType.EVAL)),
        "evaluated without completing training",
        {"status": JobStatus.PENDING, "open_job": None},
    ),
    "completed without start time": (
        run(JobStatus.COMPLETED, job(), started_at=None),
        "COMPLETED without start time",
        {"started_at": 2.0},
    ),
    "completed, and its job never started either": (
        run(JobStatus.COMPLETED, job(started_at=None)),
        "COMPLETED without start time",
        {"started_at": 1.0},
    ),
    "completed without a job": (
        run(JobStatus.COMPLETED),
        "completed without any job",
        {"status": JobStatus.FAILED, "score": None, "ended_at": 4.0},
    ),
    "ended without a time": (
        run(JobStatus.COMPLETED, job(), ended_at=None),
        "COMPLETED without a time of its end",
        {"ended_at": 3.0},
    ),
    "not ended, with a time": (
        run(JobStatus.IN_TRAINING, running(), ended_at=9.0),
        "it is IN_TRAINING and has a time of its end",
        {"ended_at": None},
    ),
    "in training without a job": (
        run(JobStatus.IN_TRAINING),
        "it is IN_TRAINING, but has no job",
        {"status": JobStatus.PENDING},
    ),
    "in training after its job succeeded": (
        run(JobStatus.IN_TRAINING, job()),
        "it is IN_TRAINING, but its last job r.train.1 has succeeded",
        {"status": JobStatus.TRAINING_DONE_NO_EVAL},
    ),
    "in training after its job failed": (
        run(JobStatus.IN_TRAINING, FAILED_JOB),
        "has failed",
        {"status": JobStatus.RETRYING, "retry_at": None},
    ),
    "in training after its job was cancelled": (
        run(JobStatus.IN_TRAINING, job(outcome=Outcome.CANCELLED)),
        "has cancelled",
        {"status": JobStatus.CANCELLED, "ended_at": 3.0},
    ),
    "in training before its job runs": (
        run(JobStatus.IN_TRAINING, granted()),
        "is granted",
        {"status": JobStatus.PENDING},
    ),
    "waiting while its job runs": (
        run(JobStatus.PENDING, running()),
        "is running",
        {"status": JobStatus.IN_TRAINING},
    ),
    "pending though trained": (
        run(JobStatus.PENDING, job()),
        "it is PENDING",
        {"status": JobStatus.TRAINING_DONE_NO_EVAL},
    ),
    "retrying without a failure": (
        run(JobStatus.RETRYING, LOST_JOB),
        "it is RETRYING",
        {"status": JobStatus.PENDING},
    ),
    "completed with an open job": (
        run(JobStatus.COMPLETED, job(), running(JobType.EVAL)),
        "job r.eval.1 is running though its run is COMPLETED",
        {"status": JobStatus.COMPLETED, "score": 0.5, "open_job": None},
    ),
    "two open jobs": (
        run(JobStatus.IN_TRAINING, running(), running(attempt=2)),
        "job r.train.1 is running though another attempt followed",
        {"jobs": (running(state=JobState.LOST, ended_at=2.0), running(attempt=2))},
    ),
    "a job that runs and has ended": (
        run(JobStatus.TRAINING_DONE_NO_EVAL, job(state=JobState.RUNNING)),
        "job r.train.1 is running though it succeeded",
        {"jobs": (job(),)},
    ),
    "a job that exited nobody knows how": (
        run(JobStatus.IN_TRAINING, job(outcome=None)),
        "has exited without an outcome",
        {"status": JobStatus.PENDING},
    ),
    "a job that runs without having started": (
        run(JobStatus.IN_TRAINING, running(started_at=None)),
        "runs without a start time",
        {"started_at": 1.0},
    ),
    "a job that runs and has a time of its end": (
        run(JobStatus.IN_TRAINING, running(ended_at=9.0)),
        "is running and has a time of its end",
        {"jobs": (running(),)},
    ),
    "a job that ended without a time": (
        run(JobStatus.TRAINING_DONE_NO_EVAL, job(ended_at=None)),
        "ended without a time",
        {"jobs": (job(ended_at=2.0),)},
    ),
    "a job that ended before it started": (
        run(JobStatus.TRAINING_DONE_NO_EVAL, job(ended_at=1.5)),
        "ended 0.5 s before it started: a clock was set or differs",
        {"jobs": (job(ended_at=2.0),)},
    ),
    "a run that ended before it started": (
        run(JobStatus.COMPLETED, job(), ended_at=1.0),
        "ended 1 s before it started",
        {"ended_at": 3.0},
    ),
    "a job that reported what has no value": (
        run(JobStatus.IN_TRAINING, running(reported=("loss", METRIC)), metrics={"loss": 1.0}),
        "reported reward, of which there is no value",
        {"jobs": (running(reported=("loss",)),)},
    ),
    "completed without a score that is known": (
        run(JobStatus.COMPLETED, job(), score=None),
        "completed without a score",
        {"status": JobStatus.COMPLETED, "score": 0.5},
    ),
    "completed without any score": (
        run(JobStatus.COMPLETED, job(), score=None, metrics={}),
        "completed without a score",
        {"status": JobStatus.FAILED, "score": None},
    ),
    "a score that is no number": (
        run(JobStatus.COMPLETED, job(), score=math.nan),
        "score is nan, no finite number",
        {"score": 0.5},
    ),
    "a score without completion": (
        run(JobStatus.TRAINING_DONE_NO_EVAL, job(), score=0.5),
        "it has a score though it is TRAINING_DONE_NO_EVAL",
        {"score": None},
    ),
    "metrics that are no numbers": (
        run(JobStatus.IN_TRAINING, running(reported=("loss",)), metrics={"loss": math.inf, METRIC: 1.0}),
        "no finite numbers: metrics loss",
        {"metrics": {METRIC: 1.0}, "jobs": (running(),)},
    ),
    "a negative cost": (
        run(JobStatus.TRAINING_DONE_NO_EVAL, job(), cost=-1.0),
        "cost is -1.0 s",
        {"cost": 1.0},
    ),
    "negative counts": (
        run(JobStatus.PENDING, reports=-1, retry_count=-2),
        "reports is -1; retry_count is -2",
        {"reports": 0, "retry_count": 0},
    ),
    "a limit of no memory": (
        run(JobStatus.PENDING, memory_gb=0.0),
        "memory_gb is 0.0",
        {"memory_gb": None},
    ),
    "to be retried though it runs": (
        run(JobStatus.IN_TRAINING, running(), retry_at=99.0),
        "it is IN_TRAINING and is to be retried at 99",
        {"retry_at": None},
    ),
    "rolled back from nowhere": (
        run(JobStatus.ROLLED_BACK, job()),
        "rolled back without what it was before",
        {"undone": Undone(status=JobStatus.CANCELLED, at=4.0)},
    ),
    "rolled back and not": (
        run(JobStatus.COMPLETED, job(), undone=Undone(status=JobStatus.COMPLETED, score=1.0)),
        "it is COMPLETED and rolled back at once",
        {"undone": None},
    ),
    "rolled back from what is no end": (
        run(JobStatus.ROLLED_BACK, undone=Undone(status=JobStatus.IN_TRAINING)),
        "rolled back from IN_TRAINING, which is no end",
        {"undone": Undone(status=JobStatus.CANCELLED)},
    ),
    "rolled back from a completion without a score": (
        run(JobStatus.ROLLED_BACK, job(), undone=Undone(status=JobStatus.COMPLETED)),
        "rolled back from COMPLETED with the score None",
        {"undone": Undone(status=JobStatus.FAILED)},
    ),
    "checkpoints out of order": (
        run(JobStatus.IN_TRAINING, running(), checkpoints=(CHECKPOINTS[1], *CHECKPOINTS)),
        "checkpoints are out of order, double",
        {"checkpoints": CHECKPOINTS},
    ),
}


# ------------------------------------------------------------------------------------------------------ runs at random

numbers = st.sampled_from([math.nan, math.inf, -1.0, 0.0, 0.5])
times = st.none() | st.floats(0, 10)
statuses = st.sampled_from(list(JobStatus))
job_fields: dict[str, st.SearchStrategy[Any]] = {
    "type": st.sampled_from(list(JobType)),
    "state": st.sampled_from(list(JobState)),
    "outcome": st.none() | st.sampled_from(list(Outcome)),
    "failure": st.none() | st.sampled_from(list(FailureKind)),
    "started_at": times,
    "ended_at": times,
    "reported": st.lists(st.sampled_from([METRIC, "loss"]), unique=True).map(tuple),
}
run_fields: dict[str, st.SearchStrategy[Any]] = {
    "status": statuses,
    "score": st.none() | numbers,
    "partial_score": st.none() | numbers,
    "metrics": st.dictionaries(st.sampled_from([METRIC, "loss"]), numbers),
    "cost": numbers,
    "reports": st.integers(-1, 2),
    "retry_count": st.integers(-1, 2),
    "retry_at": st.none() | numbers,
    "memory_gb": st.none() | numbers,
    "started_at": times,
    "ended_at": times,
    "resume_from": st.none() | st.integers(0, 2),
    "undone": st.none() | st.builds(Undone, status=statuses, score=st.none() | numbers),
    "checkpoints": st.lists(st.sampled_from(CHECKPOINTS), max_size=3).map(tuple),
}


def changed(what: Any, fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    """The same with some of its fields at random."""
    changes = st.fixed_dictionaries({}, optional=fields)
    return changes.map(lambda chosen: replace(what, **chosen))


@st.composite
def damaged_runs(draw: Callable[[Any], Any]) -> RunInfo:
    sound = draw(st.sampled_from(list(SOUND.values())))
    jobs = tuple(draw(changed(job, job_fields)) for job in sound.jobs)
    damaged: RunInfo = draw(changed(replace(sound, jobs=jobs), run_fields))
    return damaged
