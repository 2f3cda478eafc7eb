"""The seams of the system on one page. Everything replaceable is one of these; arguments are plain data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Protocol, TypeAlias

import msgspec

from metta.sweep.model.acquisition import Acquisition
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobDefinition, JobStatus, JobType, Observation, Outcome, Parent, RunInfo
from metta.sweep.model.space import Config
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepConfig, SweepMetadata
from metta.sweep.model.trail import Trail


class Clock(Protocol):
    """The only source of time."""

    def now(self) -> float:
        """Seconds since the epoch, UTC; jumps when somebody sets the clock."""
        ...

    def monotonic(self) -> float:
        """Seconds since some moment, for durations; never jumps."""
        ...


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """The right to act for a sweep."""

    sweep_id: str
    #: `host:pid:start`, so that a controller on the same host can tell whether the holder still lives.
    holder: str
    #: Grows with every change of holder; a write with an older number is refused.
    fence: int
    expires_at: float


class GpuLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What all processes together do on a GPU."""

    #: As NVIDIA's library counts them on that machine.
    index: int
    #: Share of the time in which it was busy, from 0 to 1.
    utilization: float
    #: Bytes in use, and bytes that it has.
    memory: int
    memory_whole: int


class Heartbeat(msgspec.Struct, frozen=True, kw_only=True):
    """A sign of life of an agent; overwritten by the next, and no event."""

    sweep_id: str
    host: str
    pid: int
    at: float
    #: Jobs it runs.
    jobs: int
    #: The GPUs that it may use, while jobs run.
    gpus: tuple[GpuLoad, ...] = ()


class Reader(Protocol):
    """What may be seen of a store: the log, and the tables projected from it.

    All methods raise StoreAwayError while the store cannot be reached, and work again when it can; they raise
    DamagedStoreError rather than give back what is not as it was written, or not all of it.
    """

    #: Where other processes find the same store.
    url: str

    def read(self, sweep_id: str, after: int = 0, *, run_id: str | None = None) -> Iterable[Event]:
        """The sweep's events with sequence numbers above `after`, in order; with `run_id`, those about that run."""
        ...

    def wait_for_change(self, sweep_id: str, after: int, timeout_s: float) -> bool:
        """Wait until the sweep has an event beyond `after`; False when the time is over first."""
        ...

    def fetch_sweeps(self, sweep_id: str | None = None) -> list[SweepMetadata]:
        """All sweeps, oldest first, or the one with this id."""
        ...

    def fetch_runs(
        self,
        sweep_id: str | None = None,
        *,
        run_ids: Iterable[str] | None = None,
        statuses: Iterable[JobStatus] | None = None,
        id_prefix: str | None = None,
        best_first: bool = False,
        limit: int | None = None,
    ) -> list[RunInfo]:
        """Runs that fit all filters, by index, or by score in the sweep's direction (then only those that have one)."""
        ...

    def projection_differences(self, sweep_id: str) -> list[str]:
        """In what the tables projected from the sweep's log differ from the log, a line each; none when all is well.

        Raises:
            DamagedStoreError: the log itself is damaged.
        """
        ...

    def fetch_lease(self, sweep_id: str) -> Lease | None:
        """The lease as it stands, expired or not."""
        ...

    def fetch_heartbeats(self, sweep_id: str) -> list[Heartbeat]:
        """The last heartbeat of each agent that ever worked for the sweep."""
        ...

    def close(self) -> None:
        """Let go of all connections."""
        ...


class Store(Reader, Protocol):
    """Keeps the events, and tables projected from them.

    Guarantees, checked by `testing.StoreContract`:
    1. `append` writes all events or none. After it returns, they survive a crash.
    2. The same event id twice is one event, also across calls.
    3. An event that the sweep's state does not allow raises InvalidTransition and nothing is written.
    4. Sequence numbers of a sweep are 1, 2, 3, ... without gaps, and `read` gives events in that order.
    5. After any append the projections equal the fold of the events.
    6. Methods may be called from any thread; several processes may use one store.
    """

    def append(
        self, events: Sequence[Event], *, fence: int | None = None, expected_seq: int | None = None
    ) -> list[Event]:
        """Write events of one sweep; returns them with their sequence numbers, also those that were there before.

        Args:
            events: What happened, in order.
            fence: That of the lease under which the writer acts.
            expected_seq: Number of the last event that the writer has seen. It does not matter where there is nothing
                to write: what was written already may be handed in again.

        Raises:
            InvalidTransition: an event does not fit the state it meets.
            FencedError: `fence` is given and the sweep's lease has moved on.
            StaleWriteError: `expected_seq` is given and the sweep has other events.
            NameTakenError: a sweep is created under another's name.
            StoreAwayError: the store cannot be written just now. It may have been written all the same, when the
                connection was lost at the last moment; the same events may be appended again.
            StoreError: the store cannot be written.
        """
        ...

    def rebuild(self, sweep_id: str) -> None:
        """Write the tables projected from the sweep's log anew.

        Raises:
            DamagedStoreError: the log itself is damaged, so there is nothing to rebuild them from.
        """
        ...

    def acquire_lease(
        self, sweep_id: str, holder: str, now: float, ttl_s: float, *, steal: Lease | None = None
    ) -> Lease:
        """Take or renew the sweep's lease. `steal` is one whose holder is known to be dead: it does not count.

        Raises:
            LeaseHeldError: another holder's lease has not expired.
        """
        ...

    def release_lease(self, lease: Lease) -> None:
        """Give the lease up, if it is still held."""
        ...

    def beat(self, heartbeat: Heartbeat) -> None:
        """Replace the heartbeat of that sweep and host."""
        ...


class History(msgspec.Struct, frozen=True, kw_only=True):
    """What an optimizer may know: the sweep's configuration and every run so far."""

    config: SweepConfig
    runs: Mapping[str, RunInfo]
    #: Keys of the configurations tried (`SearchSpace.key`); filled in finite spaces only.
    tried: Mapping[bytes, str]
    #: What has changed among the runs, so that a cache can keep up without looking at all of them.
    trail: Trail | None
    #: How much of the effort should go where little is known: 0 where the best is expected, 1 where nothing is known.
    exploration: float = 0.5
    #: Where a suggestion is for a run that goes on from another's checkpoint: from which, and the values that it has to
    #: share with it. Optimizers need not care.
    parent: Parent | None = None
    fixed: Config = {}

    @classmethod
    def of(cls, state: SweepState, exploration: float = 0.5) -> History:
        """What an optimizer gets to see of a sweep."""
        return cls(
            config=state.sweep.config,
            runs=state.runs,
            tried=state.tried,
            trail=state.trail,
            exploration=exploration,
        )

    @property
    def count(self) -> int:
        """Number of suggestions made before: the index of the next one."""
        return len(self.runs)

    @property
    def observations(self) -> list[Observation]:
        """What the runs have taught so far, in the order of their indices; looks at all runs."""
        scored = [(run, self.score_of(run)) for run in self.runs.values()]
        return [
            Observation(
                run_id=run.run_id,
                config=run.config,
                score=score,
                cost=run.cost,
                metrics=run.metrics,
                partial=run.status is not JobStatus.COMPLETED,
                fidelity=None if run.status is JobStatus.COMPLETED else run.progress,
            )
            for run, score in sorted(scored, key=lambda pair: pair[0].index)
            if score is not None
        ]

    def score_of(self, run: RunInfo) -> float | None:
        """What a run has taught; None where that is nothing, so far.

        Completed runs count with their score; those stopped early with the last value before that, and so do failed
        ones where the sweep wants partial results.
        """
        if run.status is JobStatus.COMPLETED:
            return run.score
        is_partial = run.status is JobStatus.STOPPED or (run.status is JobStatus.FAILED and self.config.partial_results)
        return run.partial_score if is_partial else None


class Suggestion(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration to try, and why."""

    config: Config
    reasons: tuple[str, ...] = ()
    #: Of optimizers with a model: what it said.
    acquisition: Acquisition | None = None


class Optimizer(Protocol):
    """Proposes configurations. Stateless: the answer depends on the arguments alone; caches may only speed it up.

    Checked by `testing.OptimizerContract`.
    """

    def check(self, config: SweepConfig) -> None:
        """Raise a UsageError when this optimizer cannot search the sweep's space."""
        ...

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """Up to `n` configurations, all different; fewer only when the space is exhausted.

        The k-th suggestion of a sweep draws its randomness from `optimizers.rng(seed, k)` and from nothing else.
        """
        ...


class CreateRuns(msgspec.Struct, frozen=True, kw_only=True):
    """Wish for new configurations, each to be trained at once."""

    count: int
    reasons: tuple[str, ...] = ()
    #: As of `History`, for the optimizer that chooses them.
    exploration: float = 0.5
    #: As of `JobDefinition`.
    until: float | None = None


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """Wish that no new configurations be tried: the search has reached its end."""

    reason: str


class StartJob(msgspec.Struct, frozen=True, kw_only=True):
    """Wish for a job of an existing run."""

    run_id: str
    type: JobType
    reasons: tuple[str, ...] = ()
    #: As of `JobDefinition`.
    until: float | None = None
    keep: tuple[int, ...] = ()


class BranchRun(msgspec.Struct, frozen=True, kw_only=True):
    """Wish for a new run that goes on from another's checkpoint, in the place of one that is given up or has failed."""

    parent: Parent
    config: Config
    #: Whether the sweep's optimizer is asked for a better configuration than `config`, which holds where it has none.
    ask: bool = False
    #: Values that its answer has to have.
    fixed: Config = {}
    reasons: tuple[str, ...] = ()
    #: As of `JobDefinition`.
    until: float | None = None


class StopRun(msgspec.Struct, frozen=True, kw_only=True):
    """Wish that a run be given up, whether it is trained just now or waits."""

    run_id: str
    reason: str


Wish: TypeAlias = CreateRuns | BranchRun | StartJob | StopRun | Finish


class Scheduler(Protocol):
    """Says what should start, go on and stop: a pure function of the state."""

    def check(self, config: SweepConfig) -> None:
        """Raise a UsageError when this scheduler cannot run the sweep."""
        ...

    def schedule(self, state: SweepState, capacity: int | None) -> list[Wish]:
        """Wishes, most urgent first, each with its reasons.

        Never more than the sweep's limits allow, nor more than `capacity` jobs at one time together with those that are
        open.
        """
        ...


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """A guard's no."""

    reason: str
    #: Whether runs that are paused may not go on either; they are stopped then.
    ends_paused: bool = True


class Guard(Protocol):
    """Allows or refuses that something new starts: a pure function of the state."""

    def refuse(self, state: SweepState, now: float) -> Refusal | None:
        """Why no new run may start any more, or None. A refusal is final unless the sweep's limits are changed."""
        ...


class Standing(StrEnum):
    """What a dispatcher knows of a job."""

    KNOWN = "known"
    LOST = "lost"
    #: The compute did not answer; never treated as an end.
    UNKNOWN = "unknown"


class Placement(msgspec.Struct, frozen=True, kw_only=True):
    """Where a job went."""

    #: Name of the dispatcher that took it.
    dispatcher: str
    #: Why that one, where there was a choice.
    reasons: tuple[str, ...] = ()


class Dispatcher(Protocol):
    """Brings jobs to some compute and answers for them.

    Guarantees, checked by `testing.DispatcherContract`:
    1. `dispatch` called twice with one job id starts one job.
    2. `standing` says LOST for a job it no longer knows, and which no earlier `dispatch` can still bring there; it
       does not raise for it.
    3. Jobs go on when the process that dispatched them dies; a new one finds them by their ids.
    4. What happens to a job is written to the store by the agent beside it, not through the dispatcher.
    """

    name: str

    def capacity(self) -> int | None:
        """How many jobs of this sweep fit at one time; None where there is no limit."""
        ...

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        """Start these jobs, those already known excepted.

        Returns:
            By job id, where the jobs are that it took or already had; those for which there is no room just now are
            left out and may be offered again.

        Raises:
            DispatchError: the compute does not answer or refuses; none or some of the jobs may have been taken.
        """
        ...

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        """What is known of each job."""
        ...

    def held(self) -> list[str]:
        """Ids of all jobs of the sweep that run or wait there, those that nobody asked about included.

        Raises:
            DispatchError: the compute does not answer.
        """
        ...

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        """Ask the jobs to end: SIGTERM, the sweep's grace, SIGKILL. They exit with `outcome`."""
        ...

    def close(self) -> None:
        """Let go of the compute; running jobs go on, and an agent that serves nobody ends by itself."""
        ...


Observer: TypeAlias = Callable[[SweepState, Sequence[Event]], None]
