"""What each event makes of a sweep's metadata; `fold` applies it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from metta.sweep.errors import InvalidTransition, SearchSpaceError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.notify import NOTHING_TOLD
from metta.sweep.model.run import Outcome, RunInfo
from metta.sweep.model.sweep import AMENDABLE, LIMITS, SweepConfig, SweepMetadata, SweepStatus


def refused(event: Event, why: str) -> InvalidTransition:
    """The error for an event that does not fit."""
    subject = event.job_id or event.run_id or f"sweep {event.sweep_id}"
    return InvalidTransition(f"{event.type} does not fit {subject}: {why}")


def check_finite(event: Event, numbers: Mapping[str, float | None]) -> None:
    """Refuse what JSON has no numbers for: written down, it would come back as null, and not be what was folded."""
    for name, number in numbers.items():
        if number is not None and not math.isfinite(number):
            raise refused(event, f"{name!r} is {number}, not a finite number")


def check_plain(event: Event, fields: Mapping[str, Any]) -> None:
    """As `check_finite`, for values of any shape."""
    try:
        json.dumps(fields, allow_nan=False, default=msgspec.to_builtins)
    except (TypeError, ValueError) as error:
        raise refused(event, f"{error}: {fields!r}") from error


def _sweep_created(before: SweepMetadata | None, event: Event, body: ev.SweepCreated) -> SweepMetadata:
    if before is not None:
        raise refused(event, "the sweep exists already")
    return SweepMetadata(sweep_id=event.sweep_id, config=body.config, created_at=event.at, seq=0)


def _existing(before: SweepMetadata | None, event: Event) -> SweepMetadata:
    if before is None:
        raise refused(event, "there is no such sweep")
    return before


def _sweep_resumed(before: SweepMetadata | None, event: Event, body: ev.SweepResumed) -> SweepMetadata:
    sweep = _existing(before, event)
    if fixed := body.changes.keys() - LIMITS:
        raise refused(event, f"only limits may change, not {', '.join(sorted(fixed))}")
    return replace(
        sweep,
        status=SweepStatus.RUNNING,
        reason=None,
        ended_at=None,
        config=_changed(sweep.config, event, body.changes),
        failure_signature=None,
        failure_reason=None,
        same_failures=0,
        dispatch_failures=0,
        dispatch_at=None,
    )


def _changed(config: SweepConfig, event: Event, changes: Mapping[str, Any]) -> SweepConfig:
    if not changes:
        return config
    check_plain(event, changes)
    try:
        return msgspec.convert({**msgspec.to_builtins(config), **changes}, SweepConfig)
    except (msgspec.ValidationError, SearchSpaceError) as error:
        raise refused(event, str(error)) from error


def _sweep_amended(before: SweepMetadata | None, event: Event, body: ev.SweepAmended) -> SweepMetadata:
    sweep = _existing(before, event)
    if fixed := body.changes.keys() - set(AMENDABLE):
        raise refused(event, f"an amendment changes {', '.join(AMENDABLE)}, not {', '.join(sorted(fixed))}")
    check_finite(event, {"best_score": body.best_score})
    config = _changed(sweep.config, event, body.changes)
    return replace(sweep, config=config, best_run_id=body.best_run_id, best_score=body.best_score)


def _sweep_paused(before: SweepMetadata | None, event: Event, body: ev.SweepPaused) -> SweepMetadata:
    sweep = _existing(before, event)
    if sweep.status is not SweepStatus.RUNNING:
        raise refused(event, f"it is {sweep.status}")
    return replace(sweep, status=SweepStatus.PAUSED, reason=body.reason)


def _dispatch_failed(before: SweepMetadata | None, event: Event, body: ev.DispatchFailed) -> SweepMetadata:
    sweep = _existing(before, event)
    check_finite(event, {"retry_at": body.retry_at})
    return replace(sweep, dispatch_failures=sweep.dispatch_failures + 1, dispatch_at=body.retry_at)


def _sweep_stop_requested(before: SweepMetadata | None, event: Event, body: ev.SweepStopRequested) -> SweepMetadata:
    sweep = _existing(before, event)
    if sweep.status.ended:
        raise refused(event, f"it is {sweep.status} already")
    return replace(sweep, status=SweepStatus.STOPPING, reason=body.reason)


def _sweep_ended(before: SweepMetadata | None, event: Event, body: ev.SweepEnded) -> SweepMetadata:
    sweep = _existing(before, event)
    if sweep.status.ended:
        raise refused(event, f"it is {sweep.status} already")
    if not body.status.ended:
        raise refused(event, f"{body.status} is no end")
    return replace(sweep, status=body.status, reason=body.reason, ended_at=event.at)


def _unchanged(before: SweepMetadata | None, event: Event, body: ev.Body) -> SweepMetadata:
    return _existing(before, event)


def _noted(before: SweepMetadata | None, event: Event, body: ev.Noted) -> SweepMetadata:
    check_plain(event, {"data": body.data})
    return _existing(before, event)


def _notified(before: SweepMetadata | None, event: Event, body: ev.Notified) -> SweepMetadata:
    sweep = _existing(before, event)
    check_finite(event, {"best_score": body.best_score})
    if not 0 <= body.through < event.seq:
        raise refused(event, f"it tells of events up to {body.through}, and is event {event.seq} itself")
    told = sweep.notified.get(body.channel, NOTHING_TOLD).after(
        through=body.through, at=event.at if body.title else None, best_score=body.best_score, once=body.once
    )
    return replace(sweep, notified={**sweep.notified, body.channel: told})


_SweepTransition: TypeAlias = Callable[[SweepMetadata | None, Event, Any], SweepMetadata]
SWEEP_TRANSITIONS: dict[type, _SweepTransition] = {
    ev.SweepCreated: _sweep_created,
    ev.SweepResumed: _sweep_resumed,
    ev.SweepPaused: _sweep_paused,
    ev.SweepAmended: _sweep_amended,
    ev.DispatchFailed: _dispatch_failed,
    ev.SweepStopRequested: _sweep_stop_requested,
    ev.SweepEnded: _sweep_ended,
    ev.ControllerStarted: _unchanged,
    ev.ControllerStopped: _unchanged,
    ev.Noted: _noted,
    ev.Notified: _notified,
}


# --------------------------------------------------------------------- what events of single runs say about the sweep

#: Of failures that pass, the latest so many are remembered.
_MOST_PASSING = 16


def learned(sweep: SweepMetadata, before: RunInfo, event: Event) -> SweepMetadata:
    """The metadata after an event about the run that was `before`; its counts, its cost and a new best score aside."""
    lesson = _LESSONS.get(type(event.body))
    return sweep if lesson is None else lesson(sweep, before, event.body)


def _from_exit(sweep: SweepMetadata, before: RunInfo, body: ev.JobExited) -> SweepMetadata:
    if body.outcome in {Outcome.CANCELLED, Outcome.INTERRUPTED, Outcome.STOPPED}:
        return sweep
    if body.outcome not in {Outcome.SUCCEEDED, Outcome.PAUSED}:
        return sweep if body.failure is None else _failed_alike(sweep, body.signature, body.error)
    job = before.jobs[-1]
    overcome = [other.signature for other in before.jobs[:-1] if other.type is job.type and other.signature]
    new = [signature for signature in dict.fromkeys(overcome) if signature not in sweep.passing_failures]
    if not new:
        return sweep
    sweep = replace(sweep, passing_failures=(*sweep.passing_failures, *new)[-_MOST_PASSING:])
    return _from_success(sweep) if sweep.failure_signature in new else sweep


def _from_failure(sweep: SweepMetadata, _before: RunInfo, body: ev.RunFailed) -> SweepMetadata:
    return sweep if body.signature is None else _failed_alike(sweep, body.signature, body.reason)


def _failed_alike(sweep: SweepMetadata, signature: str | None, reason: str | None) -> SweepMetadata:
    if signature is None or signature in sweep.passing_failures:
        return _from_success(sweep)
    again = sweep.same_failures if signature == sweep.failure_signature else 0
    return replace(sweep, failure_signature=signature, failure_reason=reason, same_failures=again + 1)


def _from_success(sweep: SweepMetadata, *_: object) -> SweepMetadata:
    if not sweep.same_failures:
        return sweep
    return replace(sweep, failure_signature=None, failure_reason=None, same_failures=0)


def _from_dispatch(sweep: SweepMetadata, *_: object) -> SweepMetadata:
    return replace(sweep, dispatch_failures=0, dispatch_at=None) if sweep.dispatch_failures else sweep


def _from_rollback(sweep: SweepMetadata, _before: RunInfo, body: ev.RunRolledBack) -> SweepMetadata:
    return replace(sweep, best_run_id=body.best_run_id, best_score=body.best_score)


_LESSONS: dict[type, Callable[[SweepMetadata, RunInfo, Any], SweepMetadata]] = {
    ev.JobExited: _from_exit,
    ev.RunFailed: _from_failure,
    ev.RunCompleted: _from_success,
    ev.JobDispatched: _from_dispatch,
    ev.RunRolledBack: _from_rollback,
}
