"""What matters for a sweep and is no event of its log: the time, the jobs that run just now, who is at work on it."""

from __future__ import annotations

from collections.abc import Callable

from metta.sweep.controller.lease import is_dead
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobStatus
from metta.sweep.model.sweep import SweepMetadata, SweepStatus
from metta.sweep.observe.notifications.notices import Surroundings, is_progress
from metta.sweep.protocols import Reader

#: An agent that has been silent for so long is not alive: it beats every few seconds.
_AGENT_SILENCE_S = 60.0
#: Of the end of the log so many events are read at first where the last one of some kind is looked for.
_LAST_EVENTS = 50


def look_around(store: Reader, sweep: SweepMetadata, now: float) -> Surroundings:
    """Look for it; takes no longer for the runs that are done.

    Raises:
        StoreError: the store cannot be read.
    """
    if sweep.status is not SweepStatus.RUNNING:
        return Surroundings(now=now, compute_s=sweep.cost)
    since, word = _uncontrolled(store, sweep, now)
    return Surroundings(
        now=now,
        compute_s=_compute_s(store, sweep, now),
        progress=_last(store, sweep, is_progress),
        uncontrolled_since=since,
        last_word=word,
        has_jobs=any(beat.jobs and beat.at > now - _AGENT_SILENCE_S for beat in store.fetch_heartbeats(sweep.sweep_id)),
        waits_until=_waits_until(store, sweep),
    )


def _uncontrolled(store: Reader, sweep: SweepMetadata, now: float) -> tuple[float | None, Event | None]:
    """Since when no controller is at work, and the last word of one; nothing where one is."""
    lease = store.fetch_lease(sweep.sweep_id)
    if lease is not None:
        # One that died has left its lease, and with it the time until which it lived for sure.
        is_gone = lease.expires_at <= now or is_dead(lease.holder)
        return (lease.expires_at, None) if is_gone else (None, None)
    word = _last(store, sweep, lambda event: isinstance(event.body, ev.ControllerStarted | ev.ControllerStopped))
    return (sweep.created_at if word is None else word.at), word


def _last(store: Reader, sweep: SweepMetadata, is_meant: Callable[[Event], bool]) -> Event | None:
    """The last event of a kind, which is near the end of the log nearly always."""
    size = _LAST_EVENTS
    while True:
        found = [event for event in store.read(sweep.sweep_id, after=max(0, sweep.seq - size)) if is_meant(event)]
        if found or size >= sweep.seq:
            return found[-1] if found else None
        size *= 10


def _compute_s(store: Reader, sweep: SweepMetadata, now: float) -> float:
    """As `guards.limits.compute_seconds`, from the store; looked up only where a budget asks for it."""
    if sweep.config.budget_hours is None:
        return sweep.cost
    training = store.fetch_runs(sweep.sweep_id, statuses=(JobStatus.IN_TRAINING, JobStatus.IN_EVAL))
    jobs = (run.open_job for run in training)
    return sweep.cost + sum(max(0.0, now - job.started_at) for job in jobs if job and job.started_at is not None)


def _waits_until(store: Reader, sweep: SweepMetadata) -> float:
    times = [sweep.dispatch_at]
    if sweep.counts.get(JobStatus.RETRYING):
        times += [run.retry_at for run in store.fetch_runs(sweep.sweep_id, statuses=(JobStatus.RETRYING,))]
    return max((at for at in times if at is not None), default=float("-inf"))
