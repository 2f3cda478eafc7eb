"""Why each decision was taken, read off the log: whoever decides writes the reasons into the event."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from metta.sweep.model import events as ev
from metta.sweep.model.acquisition import Acquisition
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobType, Outcome, Parent
from metta.sweep.model.space import Config
from metta.sweep.observe.wording import fields_of, reasons_of


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was decided about a sweep or a run, or that happened to it and was decided upon, with the why."""

    #: Number of the event.
    seq: int
    #: Seconds since the epoch.
    at: float
    actor: str
    #: Of the event.
    type: str
    #: In a word or two, such as `suggested`, `started`, `promoted`, `retry`, `stopped`.
    decision: str
    #: As the optimizer, scheduler, guard, dispatcher or user said it.
    because: tuple[str, ...] = ()
    run_id: str | None = None
    job_id: str | None = None
    #: Of a suggestion.
    config: Config | None = None
    #: Of a suggestion by a model: what it expected of this one, and of those that it considered instead.
    acquisition: Acquisition | None = None
    #: Of a run that goes on from another's checkpoint.
    parent: Parent | None = None
    #: What else the event says, in JSON's terms; of a suggestion nothing.
    details: dict[str, Any] = {}


def explain(events: Iterable[Event]) -> Iterator[Explanation]:
    """What was decided in these events, one after the other.

    Args:
        events: Of a whole sweep, or those of one run, from its first on: what a start means depends on how the job
            before it ended.
    """
    ends: dict[str, ev.JobExited | ev.JobLost] = {}
    for event in events:
        named = _named(event, ends)
        if event.run_id is not None and isinstance(event.body, ev.JobExited | ev.JobLost):
            ends[event.run_id] = event.body
        if named is not None:
            decision, because = named
            body = event.body
            created = body if isinstance(body, ev.RunCreated) else None
            yield Explanation(
                seq=event.seq,
                at=event.at,
                actor=event.actor,
                type=event.type,
                decision=decision,
                because=because,
                run_id=event.run_id,
                job_id=event.job_id,
                config=None if created is None else created.config,
                acquisition=None if created is None else created.acquisition,
                parent=None if created is None else created.parent,
                details=fields_of(event) if created is None else {},
            )


_Named = tuple[str, tuple[str, ...]]


def _named(event: Event, ends: dict[str, ev.JobExited | ev.JobLost]) -> _Named | None:
    """What was decided and why; None of what nobody decides about the search: reports, successes, files."""
    body = event.body
    if isinstance(body, ev.JobGranted):
        return _granted(body, ends.get(event.run_id or "")), reasons_of(event)
    naming = _NAMINGS.get(type(body))
    if naming is not None:
        return naming(body)
    name = _NAMES.get(type(body))
    return None if name is None else (name, reasons_of(event))


def _granted(body: ev.JobGranted, last: ev.JobExited | ev.JobLost | None) -> str:
    if isinstance(last, ev.JobLost):
        return "started again"
    if last is None or last.outcome is Outcome.SUCCEEDED:
        return "started" if body.job_type is JobType.TRAIN else "evaluated"
    # A promotion is the next part of the training, not another attempt at the same.
    return "promoted" if last.outcome is Outcome.PAUSED else "started again"


def _created(body: ev.RunCreated) -> _Named:
    if body.parent is None:
        return "suggested", body.reasons
    of = f"goes on from run {body.parent.run_id} at {body.parent.level:g}, in the place of {body.parent.replaces}"
    return "branched", (of, *body.reasons)


def _exited(body: ev.JobExited) -> _Named | None:
    if body.outcome is Outcome.SUCCEEDED:
        return None
    why = [body.error] if body.error else []
    if body.exit_code and not why:
        why.append(f"exit code {body.exit_code}")
    if body.signal is not None:
        why.append(f"signal {body.signal}")
    if body.failure is not None:
        why.append(f"put down to {body.failure}")
    return f"job {body.outcome}".replace("_", " "), tuple(why)


def _lost(body: ev.JobLost) -> _Named:
    return "job lost", (body.reason, *([f"put down to {body.failure}"] if body.failure else []))


def _dispatched(body: ev.JobDispatched) -> _Named | None:
    """Where there was a choice."""
    return (f"placed on {body.dispatcher}", body.reasons) if body.reasons else None


def _completed(body: ev.RunCompleted) -> _Named:
    return "completed", (f"its score is {body.score:.6g}",)


def _repaired(body: ev.StateRepaired) -> _Named:
    return "repaired", (body.problem,)


def _noted(body: ev.Noted) -> _Named:
    return f"noted {body.topic}".replace("_", " "), ((body.text,) if body.text else ())


_NAMINGS: dict[type, Callable[[Any], _Named | None]] = {
    ev.RunCreated: _created,
    ev.JobExited: _exited,
    ev.JobLost: _lost,
    ev.JobDispatched: _dispatched,
    ev.RunCompleted: _completed,
    ev.StateRepaired: _repaired,
    ev.Noted: _noted,
}
#: Those that say why in so many words.
_NAMES: dict[type, str] = {
    ev.RunFailed: "failed",
    ev.RunRetryScheduled: "retry",
    ev.RunStopRequested: "given up",
    ev.RunStopped: "stopped",
    ev.RunCancelled: "cancelled",
    ev.RunRequeued: "requeued",
    ev.RunRolledBack: "rolled back",
    ev.RunRestored: "restored",
    ev.RunRescored: "rescored",
    ev.SweepPaused: "paused",
    ev.SweepStopRequested: "stop requested",
    ev.SweepEnded: "ended",
    ev.DispatchFailed: "dispatch refused",
}
