"""Runs and jobs: a run is one configuration's way through the sweep, a job is one attempt at a step of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

from metta.sweep.model.space import Config
from metta.sweep.model.usage import JobUsage


class JobStatus(StrEnum):
    """Status of a run, named for the job it waits for, runs or has behind it."""

    PENDING = "PENDING"
    IN_TRAINING = "IN_TRAINING"
    TRAINING_DONE_NO_EVAL = "TRAINING_DONE_NO_EVAL"
    IN_EVAL = "IN_EVAL"
    EVAL_DONE_NOT_COMPLETED = "EVAL_DONE_NOT_COMPLETED"
    #: An attempt failed: what follows is still to be decided, or is decided and waits for its time.
    RETRYING = "RETRYING"
    #: Trained up to some level: whether it goes on is still to be decided.
    PAUSED = "PAUSED"
    COMPLETED = "COMPLETED"
    #: Given up early for better ones, with what it had reached by then.
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    #: Undone by the user: no observation any more, though all that it left is kept.
    ROLLED_BACK = "ROLLED_BACK"

    @property
    def ended(self) -> bool:
        """Whether the run is over, unless something brings it back."""
        return self in _ENDED


_ENDED = frozenset(
    {JobStatus.COMPLETED, JobStatus.STOPPED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.ROLLED_BACK}
)


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
    #: Has reached the level up to which it was to train.
    PAUSED = "paused"
    #: Stopped because the search has given the run up for better ones.
    STOPPED = "stopped"


class FailureKind(StrEnum):
    """What a failure is put down to; decides whether and how the run is tried again."""

    #: The user's code raised, or exited with a code other than 0.
    USER_ERROR = "user_error"
    #: What the code reported is no finite number, or not the metric that counts. The same again would end the same.
    BAD_METRICS = "bad_metrics"
    #: Over its memory limit, killed by the kernel for want of memory, or MemoryError and its kin.
    OUT_OF_MEMORY = "out_of_memory"
    #: A signal from outside: segmentation fault, somebody's kill.
    KILLED = "killed"
    TIMED_OUT = "timeout"
    #: The scheduler of the compute took the node back.
    PREEMPTED = "preempted"
    #: The machine, or the agent on it, is gone.
    NODE_LOST = "node_lost"
    #: What the job writes to is away: disk full, file system gone, store unreachable.
    STORE_LOST = "store_lost"
    #: The compute would not take the job.
    DISPATCHER_ERROR = "dispatcher_error"


#: Failures of the surroundings: tried again unless the user says otherwise.
_ENVIRONMENT = frozenset(
    {
        FailureKind.OUT_OF_MEMORY,
        FailureKind.KILLED,
        FailureKind.PREEMPTED,
        FailureKind.NODE_LOST,
        FailureKind.STORE_LOST,
        FailureKind.DISPATCHER_ERROR,
    }
)
#: Failures that are mostly the code's own but may pass: tried again when the user asks for retries.
_MAY_PASS = frozenset({FailureKind.USER_ERROR, FailureKind.TIMED_OUT})
#: As the founding document has it.
_DEFAULT_RETRIES = 3
#: Failures that say nothing about the run, and so do not count against `max_retries`.
UNCOUNTED_FAILURES = frozenset(
    {FailureKind.PREEMPTED, FailureKind.NODE_LOST, FailureKind.STORE_LOST, FailureKind.DISPATCHER_ERROR}
)


#: Bounds that hold wherever a user may write these.
MaxRetries = Annotated[int, Meta(ge=0, le=1_000_000)]
Delay = Annotated[float, Meta(ge=0, le=1e9)]


class RetryPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which failed jobs are tried again, how often, and after what time."""

    #: Failures of one kind of job of a run that are forgiven; lost nodes and preemptions are not counted. Without a
    #: number it is three, for failures of the surroundings only: the code's own errors would mostly come again.
    max_retries: MaxRetries | None = None
    #: Wait before the first retry.
    retry_delay_seconds: Delay = 60.0
    #: Each wait is this much longer than the one before it.
    backoff: Annotated[float, Meta(ge=1, le=100)] = 2.0
    max_delay_seconds: Delay = 3600.0
    #: Waits differ by up to this share, so that runs which failed together are not retried together.
    jitter: Annotated[float, Meta(ge=0, le=1)] = 0.1
    #: Kinds of failures that are tried again; without it those of the surroundings and, where `max_retries` is given,
    #: errors of the code and time-outs.
    on: tuple[FailureKind, ...] | None = None
    #: After running out of memory the next attempt may use this much more; 1 means that it is not tried again.
    memory_growth: Annotated[float, Meta(ge=1, le=100)] = 1.0
    #: But never more than this.
    max_memory_gb: Annotated[float, Meta(gt=0, le=1e9)] | None = None

    @property
    def limit(self) -> int:
        """Failures that are forgiven, of those that count."""
        return _DEFAULT_RETRIES if self.max_retries is None else self.max_retries

    @property
    def kinds(self) -> frozenset[FailureKind]:
        """Kinds of failures that are tried again."""
        if self.on is not None:
            return frozenset(self.on)
        return _ENVIRONMENT if self.max_retries is None else _ENVIRONMENT | _MAY_PASS


class Resources(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one job occupies."""

    #: Also the number of threads that numerical libraries may use in it.
    cpus: Annotated[int, Meta(ge=1)] = 1
    gpus: Annotated[int, Meta(ge=0)] = 0
    #: Resident memory of all its processes together, in GiB; a job that exceeds it is killed. Without it there is no
    #: limit.
    memory_gb: Annotated[float, Meta(gt=0, le=1e9)] | None = None


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job saved of its progress, so that it, another attempt or another run can go on from there."""

    step: int
    #: A file or folder, relative to the run's folder.
    path: str
    sha256: str
    size_bytes: int
    at: float
    #: The attempt that saved it.
    job_id: str
    #: Value of the sweep's metric at that time, if there was one.
    score: float | None = None


class Rung(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a run had reached when it came to a level of its sweep's `Fidelity`."""

    level: float
    #: The sweep's metric.
    value: float
    #: Number of the event that told it: runs reach a level one after the other.
    seq: int


class Parent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a run comes from that goes on from another's checkpoint."""

    run_id: str
    #: How far the parent was trained by then, in the sweep's resource: a level of its `Fidelity`.
    level: float
    #: Of the checkpoint.
    step: int
    #: The run whose place in the population it takes: that was given up for it, or had failed.
    replaces: str


class Damaged(msgspec.Struct, frozen=True, kw_only=True, tag="damaged"):
    """A checkpoint that the log lists and nobody can use any more."""

    step: int
    #: As listed; by now it is another one's if the step was saved again.
    path: str
    reason: str


class Inheritance(msgspec.Struct, frozen=True, kw_only=True):
    """The checkpoints of another run, one of which a job has to have a copy of before it starts."""

    run_id: str
    #: Oldest first, the one that is wanted last; those before it stand in for it where it is damaged.
    checkpoints: tuple[Checkpoint, ...]


class JobDefinition(msgspec.Struct, frozen=True, kw_only=True):
    """A job as handed to a dispatcher: enough to run it, knowing nothing else of the sweep's state."""

    job_id: str
    run_id: str
    sweep_id: str
    type: JobType
    attempt: int
    config: Config
    #: Failures that were forgiven before this attempt, of those that are forgiven at most.
    retry_count: int = 0
    max_retries: int = 0
    retry_delay_seconds: float = 0.0
    failure_reasons: tuple[str, ...] = ()
    #: What this attempt may go on from, oldest first.
    checkpoints: tuple[Checkpoint, ...] = ()
    #: Where it gets one from, of a run that goes on from another's and has none of its own yet.
    inheritance: Inheritance | None = None
    #: Steps of checkpoints that the retention rules leave alone, since other runs may have to go on from them.
    keep: tuple[int, ...] = ()
    resources: Resources = Resources()
    #: It is to train until its resource reaches this; None for a whole training.
    until: float | None = None
    #: Which span it is a child of, as W3C Trace Context writes it; None where nobody traces the sweep.
    traceparent: str | None = None


class JobInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
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
    failure: FailureKind | None = None
    #: Equal for failures of the same kind at the same place of the code.
    signature: str | None = None
    #: As of JobDefinition.
    until: float | None = None
    keep: tuple[int, ...] = ()
    #: As far as it was measured, without its curves.
    usage: JobUsage | None = None


class Undone(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a run was before it was rolled back."""

    status: JobStatus
    score: float | None = None
    #: When it was rolled back.
    at: float = 0.0


class RunInfo(msgspec.Struct, frozen=True, kw_only=True, gc=False, omit_defaults=True):
    """One configuration and everything that came of it."""

    sweep_id: str
    run_id: str
    #: Position in the sweep, from 0; the k-th suggestion of the optimizer.
    index: int
    config: Config
    created_at: float
    #: Of a run that goes on from another's checkpoint.
    parent: Parent | None = None
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
    #: The first and the latest of them.
    failure_reasons: tuple[str, ...] = ()
    jobs: tuple[JobInfo, ...] = ()
    #: Failures of the job at hand that were forgiven and counted.
    retry_count: int = 0
    #: When the next attempt is due; None while that is undecided, or nothing is to be retried.
    retry_at: float | None = None
    #: Memory limit of the next attempts where it differs from the sweep's.
    memory_gb: float | None = None
    #: Checkpoints on disk, by step.
    checkpoints: tuple[Checkpoint, ...] = ()
    #: The step from which the next attempt goes on: the one that the user chose, or the last one saved since then.
    #: None, once a job has succeeded or where the user chose none, is the last one. A run that was trained and has
    #: it is trained again, from the beginning where there are no checkpoints.
    resume_from: int | None = None
    #: The metric's last value of a run that failed or was stopped.
    partial_score: float | None = None
    undone: Undone | None = None
    #: The most of the sweep's resource that it has reported, and the levels that it has come to, ascending; those of
    #: its parent, up to where it goes on from, included.
    progress: float | None = None
    rungs: tuple[Rung, ...] = ()
    #: Why the search gives it up; its job, if it has one, is being stopped.
    stop_reason: str | None = None
    #: The user wants it after all: it is trained to its end, whatever the search thinks of it.
    wanted: bool = False

    @property
    def open_job(self) -> JobInfo | None:
        """The attempt that may be executing now; at most one is."""
        return self.jobs[-1] if self.jobs and self.jobs[-1].state.open else None

    @property
    def inherited(self) -> int:
        """How many of the rungs are its parent's."""
        return 0 if self.parent is None else sum(rung.level <= self.parent.level for rung in self.rungs)

    @property
    def seconds(self) -> float:
        """Wall time that its training has taken so far, its parent's up to where it goes on from included."""
        return self.cost if self.parent is None else self.parent.level + self.cost

    def attempts(self, job_type: JobType) -> int:
        """Number of attempts so far at this kind of job."""
        return sum(1 for job in self.jobs if job.type is job_type)

    @property
    def is_trained(self) -> bool:
        """Whether a train job has ever succeeded."""
        return any(job.type is JobType.TRAIN and job.outcome is Outcome.SUCCEEDED for job in self.jobs)

    @property
    def usable_checkpoints(self) -> tuple[Checkpoint, ...]:
        """Those that the next attempt may go on from, oldest first."""
        if self.resume_from is None:
            return self.checkpoints
        return tuple(checkpoint for checkpoint in self.checkpoints if checkpoint.step <= self.resume_from)


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What a run taught: the optimizers' view of it."""

    run_id: str
    config: Config
    score: float
    #: Compute seconds.
    cost: float
    metrics: dict[str, float]
    #: The last value before a failure or an early stop rather than the result.
    partial: bool = False
    #: How much of the sweep's resource it took; None for a whole training, or where that is not known.
    fidelity: float | None = None
