"""A sweep: what the user asked for, and where it stands."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from metta.sweep.model.dispatching import LOCAL, Dispatching
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.notify import Notify, Told
from metta.sweep.model.run import JobStatus, JobType, Resources, RetryPolicy
from metta.sweep.model.space import SearchSpace


class FunctionTarget(msgspec.Struct, frozen=True, kw_only=True, tag="function"):
    """A Python function that can be imported."""

    #: The module's dotted name, or the absolute path of a file.
    module: str
    #: The function's name in it, with dots inside classes.
    name: str
    #: Folders that modules are imported from, those that every Python process has aside.
    import_path: list[str] = []


class PickledTarget(msgspec.Struct, frozen=True, kw_only=True, tag="pickle"):
    """A Python function that can only be carried by value: a lambda, a closure, one defined in a notebook."""

    name: str
    #: The cloudpickle file, beside the sweep's other files.
    path: str
    sha256: str
    #: As of FunctionTarget.
    import_path: list[str] = []


class MetricsSource(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where a command's metrics are found, besides `metta sweep report`, which always works."""

    #: Lines of standard output that are JSON objects of numbers. On unless `regex` or `file` is given.
    stdout: Literal["json"] | None = None
    #: A pattern searched in each line of standard output: `(?P<name>...)` groups, or `name=number` through two plain
    #: groups.
    regex: str | None = None
    #: A file of JSON lines (or one JSON object) that the command writes; relative to its working folder, with
    #: placeholders.
    file: str | None = None


class CommandTarget(msgspec.Struct, frozen=True, kw_only=True, tag="command"):
    """Any program. `{name}` in an argument stands for a parameter; see `agent.command`."""

    argv: list[str]
    metrics: MetricsSource = MetricsSource(stdout="json")


Target: TypeAlias = FunctionTarget | PickledTarget | CommandTarget
Direction: TypeAlias = Literal["maximize", "minimize"]
Isolation: TypeAlias = Literal["process", "reuse"]


class Strategy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which optimizer proposes configurations and which scheduler runs them, each with its options."""

    optimizer: str = "random"
    scheduler: str = "fifo"
    optimizer_options: dict[str, Any] = {}
    scheduler_options: dict[str, Any] = {}


class Retention(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which checkpoints of a run are kept: those that any rule names, and always the last; all without a rule."""

    last: Annotated[int, Meta(ge=1)] | None = None
    #: Those with the best values of the sweep's metric.
    best: Annotated[int, Meta(ge=1)] | None = None
    #: Those whose step is a multiple of this.
    every: Annotated[int, Meta(ge=1)] | None = None


class SweepConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that defines a sweep. A resume may change its LIMITS, an amendment what is AMENDABLE."""

    name: str
    target: Target
    search_space: SearchSpace
    #: The metric that counts, by the name under which the trials report it; its last value is a run's score.
    metric: str
    direction: Direction = "maximize"
    strategy: Strategy = Strategy()
    #: Scores a trained run in a job of its own; without it a run is complete when trained.
    evaluate: Target | None = None
    #: How far runs are trained, for schedulers that stop some of them early.
    fidelity: Fidelity | None = None
    #: Root of all randomness of the sweep.
    seed: int
    #: Train jobs at one time.
    max_parallel: int
    #: Eval jobs at one time, beside the train jobs.
    max_parallel_eval: int = 1
    #: Runs in all, counted when they start, however they end.
    max_trials: int | None = None
    #: Compute hours: wall time summed over all jobs.
    budget_hours: float | None = None
    #: Hours since the sweep was created.
    max_hours: float | None = None
    resources: Resources = Resources()
    #: Wall time after which a job is stopped.
    job_timeout_s: float | None = None
    #: Time between SIGTERM and SIGKILL for a job that has to go.
    grace_s: float = 10.0
    #: "process" gives each job a process of its own; "reuse" lets a warm worker serve many jobs in turn.
    isolation: Isolation = "process"
    #: Whether failed jobs are tried again; for eval jobs `retry_eval` where it is given.
    retry: RetryPolicy = RetryPolicy()
    retry_eval: RetryPolicy | None = None
    #: So many jobs in a row that fail in the same way pause the sweep: a typo must not burn a thousand runs. 0: never.
    same_error_limit: int = 3
    #: Whether the last score of a run that failed counts as an observation.
    partial_results: bool = False
    checkpoints: Retention = Retention()
    #: Hours between automatic backups of an SQLite store, and how many of them are kept.
    backup_hours: float | None = None
    backups: int = 3
    #: Who is told what; without it, what METTA_SWEEP_NOTIFY says.
    notify: Notify | None = None
    #: Where jobs run.
    dispatcher: Dispatching = LOCAL
    #: Absolute folder for logs and the trials' own files.
    directory: str
    #: Absolute folder in which jobs run.
    working_directory: str


#: Fields of SweepConfig that may change while a sweep is under way.
LIMITS = (
    "max_parallel",
    "max_parallel_eval",
    "max_trials",
    "budget_hours",
    "max_hours",
    "job_timeout_s",
    "grace_s",
    "retry",
    "retry_eval",
    "same_error_limit",
    "partial_results",
    "checkpoints",
    "backup_hours",
    "backups",
    "notify",
)
#: Fields that define what is searched: they change only when the user amends the sweep.
AMENDABLE = ("search_space", "metric", "direction", "strategy")


class SweepStatus(StrEnum):
    """Where a sweep stands. Whether a controller is at work on it is the lease's to say, not the status's."""

    RUNNING = "RUNNING"
    #: Nothing new starts until the user resumes it.
    PAUSED = "PAUSED"
    #: The user asked for the end; running jobs are being cancelled.
    STOPPING = "STOPPING"
    STOPPED = "STOPPED"
    COMPLETED = "COMPLETED"

    @property
    def ended(self) -> bool:
        """Whether nothing more will start unless the sweep is resumed."""
        return self is SweepStatus.STOPPED or self is SweepStatus.COMPLETED


class SweepMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep's configuration and running totals; its size does not depend on the number of runs."""

    sweep_id: str
    config: SweepConfig
    created_at: float
    #: Sequence number of the last event.
    seq: int
    status: SweepStatus = SweepStatus.RUNNING
    #: Why the sweep is paused, ending or ended.
    reason: str | None = None
    ended_at: float | None = None
    #: Runs by status; statuses without runs are absent.
    counts: dict[JobStatus, int] = {}
    best_run_id: str | None = None
    best_score: float | None = None
    #: Compute seconds of all jobs that ended.
    cost: float = 0.0
    #: How the last failure came about, and how many came about like it since a run last completed.
    failure_signature: str | None = None
    failure_reason: str | None = None
    same_failures: int = 0
    #: Failures that a second attempt has got over: they pass, so they don't pause the sweep.
    passing_failures: tuple[str, ...] = ()
    #: How often in a row the dispatcher would not take jobs, and when it is asked again.
    dispatch_failures: int = 0
    dispatch_at: float | None = None
    #: By the name of the channel, how far those know of the sweep who are told of it.
    notified: dict[str, Told] = {}

    @property
    def run_count(self) -> int:
        """Runs created so far, however they stand."""
        return sum(self.counts.values())

    @property
    def trial_count(self) -> int:
        """Runs that count against `max_trials`: all but those that were rolled back."""
        return self.run_count - self.counts.get(JobStatus.ROLLED_BACK, 0)

    @property
    def ended_count(self) -> int:
        """Runs that ended, in whatever way, but for those that were rolled back."""
        ended = sum(count for status, count in self.counts.items() if status.ended)
        return ended - self.counts.get(JobStatus.ROLLED_BACK, 0)

    def retry_policy(self, job_type: JobType) -> RetryPolicy:
        """What holds for failed jobs of this kind."""
        if job_type is JobType.EVAL and self.config.retry_eval is not None:
            return self.config.retry_eval
        return self.config.retry

    def is_better(self, score: float) -> bool:
        """Whether a score beats the best so far; of equal scores the earlier stays best."""
        if self.best_score is None:
            return True
        return score > self.best_score if self.config.direction == "maximize" else score < self.best_score
