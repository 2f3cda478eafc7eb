"""A sweep: what the user asked for, and where it stands."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, TypeAlias

import msgspec

from metta.sweep.model.run import JobStatus, Resources
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


class SweepConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that defines a sweep. Immutable but for its limits, which a resume may change."""

    name: str
    target: Target
    search_space: SearchSpace
    #: The metric that counts, by the name under which the trials report it; its last value is a run's score.
    metric: str
    direction: Direction = "maximize"
    strategy: Strategy = Strategy()
    #: Scores a trained run in a job of its own; without it a run is complete when trained.
    evaluate: Target | None = None
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
)


class SweepStatus(StrEnum):
    """Where a sweep stands. Whether a controller is at work on it is the lease's to say, not the status's."""

    RUNNING = "RUNNING"
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
    #: Why the sweep ended or is ending.
    reason: str | None = None
    ended_at: float | None = None
    #: Runs by status; statuses without runs are absent.
    counts: dict[JobStatus, int] = {}
    best_run_id: str | None = None
    best_score: float | None = None
    #: Compute seconds of all jobs that ended.
    cost: float = 0.0

    @property
    def run_count(self) -> int:
        """Runs created so far, however they stand."""
        return sum(self.counts.values())

    @property
    def ended_count(self) -> int:
        """Runs that ended, in whatever way."""
        return sum(count for status, count in self.counts.items() if status.ended)

    def is_better(self, score: float) -> bool:
        """Whether a score beats the best so far; of equal scores the earlier stays best."""
        if self.best_score is None:
            return True
        return score > self.best_score if self.config.direction == "maximize" else score < self.best_score
