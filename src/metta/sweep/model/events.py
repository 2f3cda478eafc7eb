"""Everything that can happen to a sweep, as one tagged union.

Events are facts and decisions in the past tense. New versions add optional fields and new types; they never change the
meaning of what is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

import msgspec

from metta.sweep.model.acquisition import Acquisition
from metta.sweep.model.ids import new_event_id
from metta.sweep.model.run import FailureKind, JobType, Outcome, Parent, Rung
from metta.sweep.model.space import Config
from metta.sweep.model.sweep import SweepConfig, SweepStatus
from metta.sweep.model.usage import JobUsage


# Made by the hundred thousand, as in `run.py`, and plain data without cycles: the garbage collector need not search it.
class _Body(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    pass


class SweepCreated(_Body, frozen=True, kw_only=True, tag="sweep_created"):
    """The user asked for a sweep."""

    config: SweepConfig


class SweepResumed(_Body, frozen=True, kw_only=True, tag="sweep_resumed"):
    """The user asked to go on, perhaps with other limits."""

    #: Fields of SweepConfig that changed, with their new values.
    changes: dict[str, Any] = {}


class SweepPaused(_Body, frozen=True, kw_only=True, tag="sweep_paused"):
    """Nothing new starts until the sweep is resumed: the user's wish, or the controller's after failures."""

    reason: str


class SweepAmended(_Body, frozen=True, kw_only=True, tag="sweep_amended"):
    """The user changed what is searched, in the middle of it; scores were written anew before, where they changed."""

    #: Fields of AMENDABLE with their new values.
    changes: dict[str, Any]
    best_run_id: str | None = None
    best_score: float | None = None


class DispatchFailed(_Body, frozen=True, kw_only=True, tag="dispatch_failed"):
    """The dispatcher would not take jobs that were granted; they are offered again later."""

    dispatcher: str
    reason: str
    #: Not before this time.
    retry_at: float


class SweepStopRequested(_Body, frozen=True, kw_only=True, tag="sweep_stop_requested"):
    """The user asked for the end: cancel what runs, keep what is done."""

    reason: str


class SweepEnded(_Body, frozen=True, kw_only=True, tag="sweep_ended"):
    """Nothing runs any more and nothing will start."""

    status: SweepStatus
    reason: str


class ControllerStarted(_Body, frozen=True, kw_only=True, tag="controller_started"):
    """A controller took the sweep's lease."""

    host: str
    pid: int
    fence: int
    version: str


#: Why a controller stops that its user interrupted.
WOUND_DOWN = "wound down"


class ControllerStopped(_Body, frozen=True, kw_only=True, tag="controller_stopped"):
    """A controller gave up the lease of its own accord."""

    reason: str


class RunCreated(_Body, frozen=True, kw_only=True, tag="run_created"):
    """A configuration was chosen to be tried."""

    index: int
    config: Config
    #: How the optimizer came to it, and why a run was wanted now.
    reasons: tuple[str, ...] = ()
    #: Of optimizers with a model: what it said.
    acquisition: Acquisition | None = None
    #: Of a run that goes on from another's checkpoint, and the levels that this one had come to by then.
    parent: Parent | None = None
    rungs: tuple[Rung, ...] = ()


class JobGranted(_Body, frozen=True, kw_only=True, tag="job_granted"):
    """A job may start; whoever reads this and finds it not started has to start it."""

    job_type: JobType
    attempt: int
    reasons: tuple[str, ...] = ()
    #: As of JobDefinition.
    until: float | None = None
    keep: tuple[int, ...] = ()


class JobDispatched(_Body, frozen=True, kw_only=True, tag="job_dispatched"):
    """A dispatcher took the job."""

    dispatcher: str
    #: Why this one, where there are several.
    reasons: tuple[str, ...] = ()


class JobStarted(_Body, frozen=True, kw_only=True, tag="job_started"):
    """The job's process exists."""

    host: str
    pid: int
    log: str
    #: Indices of the GPUs it may use.
    gpus: tuple[int, ...] = ()


class MetricsReported(_Body, frozen=True, kw_only=True, tag="metrics_reported"):
    """The user's code measured something."""

    metrics: dict[str, float]


class ResourcesMeasured(_Body, frozen=True, kw_only=True, tag="resources_measured"):
    """What a job that goes on has used so far: what is known of it should nobody see its end.

    Told the more seldom, the longer it has run.
    """

    usage: JobUsage


class JobExited(_Body, frozen=True, kw_only=True, tag="job_exited"):
    """The job's process is gone, or its worker is done with it."""

    outcome: Outcome
    #: Wall time from the start of the process.
    seconds: float = 0.0
    exit_code: int | None = None
    signal: int | None = None
    #: What went wrong, in one line; the traceback is in the job's log.
    error: str | None = None
    #: CPU time of the process and its children, where known.
    cpu_seconds: float | None = None
    #: Peak resident memory of the process, where known.
    memory_peak_bytes: int | None = None
    #: Of a failure: what it is put down to. With it the run waits for a decision; without it, as written by versions
    #: before retries, the run has failed.
    failure: FailureKind | None = None
    #: Of a failure: equal for failures of the same kind at the same place of the code.
    signature: str | None = None
    #: What it used, measured to its end.
    usage: JobUsage | None = None


class JobLost(_Body, frozen=True, kw_only=True, tag="job_lost"):
    """Nobody knows the job any more: its agent or machine is gone."""

    reason: str
    #: With it the run waits for a decision; without it, as written by versions before retries, it is tried again at
    #: once.
    failure: FailureKind | None = None


class CheckpointSaved(_Body, frozen=True, kw_only=True, tag="checkpoint_saved"):
    """The job saved its progress; the file was on disk before this was written."""

    step: int
    #: Relative to the run's folder.
    path: str
    sha256: str
    size_bytes: int


class CheckpointCopied(_Body, frozen=True, kw_only=True, tag="checkpoint_copied"):
    """The agent gave a run that has not begun yet a copy of its parent's checkpoint, to go on from.

    The copy is on the disk, and was compared with what the parent had saved, before this was written.
    """

    #: The parent.
    source: str
    step: int
    #: Relative to the folder of the run that has it now.
    path: str
    sha256: str
    size_bytes: int
    #: Value of the sweep's metric when the parent saved it.
    score: float | None = None


class CheckpointDeleted(_Body, frozen=True, kw_only=True, tag="checkpoint_deleted"):
    """A checkpoint is no more: the retention rules let it go, or it was found damaged."""

    step: int
    reason: str


class RunCompleted(_Body, frozen=True, kw_only=True, tag="run_completed"):
    """The run's result counts."""

    score: float


class RunFailed(_Body, frozen=True, kw_only=True, tag="run_failed"):
    """The run ended without a result that counts."""

    reason: str
    #: The metric's last value, if there was one.
    partial_score: float | None = None
    #: As of JobExited, for a failure that is found after the job.
    signature: str | None = None


class RunRetryScheduled(_Body, frozen=True, kw_only=True, tag="run_retry_scheduled"):
    """A failed job will be tried again."""

    #: Seconds since the epoch.
    retry_at: float
    #: Failures forgiven so far that count, this one included if it does.
    retry_count: int
    reason: str
    #: Memory limit from now on, where it changes.
    memory_gb: float | None = None


class RunStopRequested(_Body, frozen=True, kw_only=True, tag="run_stop_requested"):
    """The search gives a run up whose job is under way; whoever reads this has to stop the job."""

    reason: str


class RunStopped(_Body, frozen=True, kw_only=True, tag="run_stopped"):
    """The search has given a run up early. What it had reached by then counts as a partial observation."""

    reason: str
    #: The metric's last value, if there was one.
    partial_score: float | None = None


class RunCancelled(_Body, frozen=True, kw_only=True, tag="run_cancelled"):
    """A run that was waiting will not go on."""

    reason: str


class RunRequeued(_Body, frozen=True, kw_only=True, tag="run_requeued"):
    """A run is to be tried again: its wait is over, it was interrupted, or the user wants it.

    Only users requeue a run that was stopped or waits at a level: from then on it is `RunInfo.wanted`.
    """

    reason: str
    #: The step of the checkpoint to go on from; None for the last one.
    checkpoint: int | None = None


class RunRolledBack(_Body, frozen=True, kw_only=True, tag="run_rolled_back"):
    """The user took a run back: it counts as no observation any more. What it left is kept."""

    reason: str
    #: The sweep's best run without it.
    best_run_id: str | None = None
    best_score: float | None = None


class RunRestored(_Body, frozen=True, kw_only=True, tag="run_restored"):
    """A run that was rolled back counts again."""

    reason: str


class RunRescored(_Body, frozen=True, kw_only=True, tag="run_rescored"):
    """An amendment changed what counts: the run's result by another metric, or none where it was not reported.

    Of a run that is rolled back it is the result that comes back with it, of one that failed its partial score.
    """

    reason: str
    score: float | None = None


class StateRepaired(_Body, frozen=True, kw_only=True, tag="state_repaired"):
    """An inconsistency in what the log says of a run was mended."""

    problem: str
    #: Fields of RunInfo that were wrong, and what they are now, in JSON's terms.
    before: dict[str, Any]
    after: dict[str, Any]


class Noted(_Body, frozen=True, kw_only=True, tag="noted"):
    """Somebody wrote down what the system itself has no event for, about the sweep or a run; nothing follows from it.

    Deciders, trials and tools of one's own say by it what they thought. See `observe.event_log`.
    """

    #: What kind of note, such as `note` or `scheduling_decision`.
    topic: str
    text: str = ""
    #: In JSON's terms.
    data: dict[str, Any] = {}


class Notified(_Body, frozen=True, kw_only=True, tag="notified"):
    """A channel took a message; or, without a title, there was nothing to tell it up to here."""

    #: As of `Notify.channels`: a name, never what it stands for.
    channel: str
    #: Number of the last event that the message is about.
    through: int
    title: str = ""
    #: As of Told.
    best_score: float | None = None
    #: What is told once only and was told now.
    once: tuple[str, ...] = ()


Body: TypeAlias = (
    SweepCreated
    | SweepResumed
    | SweepPaused
    | SweepAmended
    | DispatchFailed
    | SweepStopRequested
    | SweepEnded
    | ControllerStarted
    | ControllerStopped
    | RunCreated
    | JobGranted
    | JobDispatched
    | JobStarted
    | MetricsReported
    | ResourcesMeasured
    | JobExited
    | JobLost
    | CheckpointSaved
    | CheckpointCopied
    | CheckpointDeleted
    | RunCompleted
    | RunFailed
    | RunRetryScheduled
    | RunStopRequested
    | RunStopped
    | RunCancelled
    | RunRequeued
    | RunRolledBack
    | RunRestored
    | RunRescored
    | StateRepaired
    | Noted
    | Notified
)


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One entry of the log: what happened, to what, when, and who says so."""

    #: UUIDv7; makes an append idempotent.
    id: str
    sweep_id: str
    #: Seconds since the epoch, UTC, by the clock of the actor.
    at: float
    #: `user`, `controller` or `agent`, with `@host` where it matters.
    actor: str
    body: Body
    run_id: str | None = None
    job_id: str | None = None
    #: Position in the sweep's log, from 1; 0 until the store assigns it.
    seq: int = 0

    @property
    def type(self) -> str:
        """The tag of the body."""
        return str(self.body.__struct_config__.tag)


def new_event(
    body: Body, *, sweep_id: str, at: float, actor: str, run_id: str | None = None, job_id: str | None = None
) -> Event:
    """An event that is not yet in the log."""
    return Event(id=new_event_id(at), sweep_id=sweep_id, at=at, actor=actor, body=body, run_id=run_id, job_id=job_id)


def reasons_of(events: Iterable[Event]) -> list[str]:
    """Why a run was created, its jobs started, and where, as the deciders said it, each reason once."""
    bodies = [event.body for event in events if isinstance(event.body, RunCreated | JobGranted | JobDispatched)]
    return list(dict.fromkeys(reason for body in bodies for reason in body.reasons))
