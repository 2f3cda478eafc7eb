"""Runs and jobs: a run is one configuration's way through the sweep, a job is one attempt at a step of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from metta.sweep.model.space import Config


class JobStatus(StrEnum):
    """Status of a run, named for the job it waits for, runs or has behind it."""

    PENDING = "PENDING"
    IN_TRAINING = "IN_TRAINING"
    TRAINING_DONE_NO_EVAL = "TRAINING_DONE_NO_EVAL"
    IN_EVAL = "IN_EVAL"
    EVAL_DONE_NOT_COMPLETED = "EVAL_DONE_NOT_COMPLETED"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether the run is over, unless something brings it back."""
        return self is JobStatus.COMPLETED or self is JobStatus.FAILED or self is JobStatus.CANCELLED


class JobType(StrEnum):
    """What a job does for its run."""

    TRAIN = "train"
    EVAL = "eval"


class JobState(StrEnum):
    """Where one attempt stands."""

    GRANTED = "granted"
    DISPATCHED = "dispatched"
    RUNNING = "running"
    EXITED = "exited"
    LOST = "lost"

    @property
    def open(self) -> bool:
        """Whether the attempt may still be executing somewhere."""
        return self is not JobState.EXITED and self is not JobState.LOST


class Outcome(StrEnum):
    """How a job ended."""

    SUCCEEDED = "succeeded"
    #: The user's code raised, returned something unusable, or exited with a code other than 0.
    FAILED = "failed"
    #: A signal that we did not send: segmentation fault, out-of-memory killer, somebody's kill.
    KILLED = "killed"
    TIMED_OUT = "timed_out"
    #: Stopped for good at the user's wish.
    CANCELLED = "cancelled"
    #: Stopped because the operator interrupted the controller; a resume starts the run again.
    INTERRUPTED = "interrupted"


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one job occupies."""

    #: Also the number of threads that numerical libraries may use in it.
    cpus: Annotated[int, Meta(ge=1)] = 1
    gpus: Annotated[int, Meta(ge=0)] = 0


class JobDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A job as handed to a dispatcher: enough to run it, knowing nothing else of the sweep's state."""

    job_id: str
    run_id: str
    sweep_id: str
    type: JobType
    attempt: int
    config: Config


class JobInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One attempt at a job, as far as the log tells."""

    job_id: str
    type: JobType
    attempt: int
    granted_at: float
    state: JobState = JobState.GRANTED
    host: str | None = None
    pid: int | None = None
    started_at: float | None = None
    ended_at: float | None = None
    outcome: Outcome | None = None
    log: str | None = None
    #: Names of the metrics that this attempt has reported.
    reported: tuple[str, ...] = ()


class RunInfo(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One configuration and everything that came of it."""

    sweep_id: str
    run_id: str
    #: Position in the sweep, from 0; the k-th suggestion of the optimizer.
    index: int
    config: Config
    created_at: float
    status: JobStatus = JobStatus.PENDING
    #: The latest value of each metric reported.
    metrics: dict[str, float] = {}
    #: Number of reports.
    reports: int = 0
    score: float | None = None
    #: Compute seconds of the run's jobs that ended.
    cost: float = 0.0
    started_at: float | None = None
    ended_at: float | None = None
    failure_reasons: tuple[str, ...] = ()
    jobs: tuple[JobInfo, ...] = ()

    @property
    def open_job(self) -> JobInfo | None:
        """The attempt that may be executing now; at most one is."""
        return self.jobs[-1] if self.jobs and self.jobs[-1].state.open else None

    def attempts(self, job_type: JobType) -> int:
        """Number of attempts so far at this kind of job."""
        return sum(1 for job in self.jobs if job.type is job_type)


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What a completed run taught: the optimizers' view of it."""

    run_id: str
    config: Config
    score: float
    #: Compute seconds.
    cost: float
    metrics: dict[str, float]
