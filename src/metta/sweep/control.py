"""What users do to a sweep from outside: pause, resume, stop, roll back, amend. Each is an event or a few of them.

A controller at work on the sweep sees them within moments; without one they hold for the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from metta.sweep.clock import SystemClock
from metta.sweep.controller import revisions
from metta.sweep.controller.decide import Decision
from metta.sweep.controller.lease import is_controlled
from metta.sweep.errors import NotFoundError, StaleWriteError
from metta.sweep.model.events import Event, SweepPaused, SweepStopRequested, new_event
from metta.sweep.model.run import RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepMetadata, SweepStatus
from metta.sweep.protocols import Store

#: While another controller brings a sweep to its end, look this often whether it still lives.
_LOOK_AGAIN_S = 1.0
#: A sweep in which something happens between reading and writing every time, is read again so often.
_MOST_CONFLICTS = 50


def revise(store: Store, sweep_id: str, think: Callable[[SweepState], Sequence[Decision]]) -> list[Event]:
    """Append what `think` makes of the sweep's state; it is asked again when something happened meanwhile.

    Raises:
        NotFoundError: the store has no such sweep.
        StaleWriteError: something happens all the time.
    """
    state = EMPTY
    conflicts = 0
    while True:
        state = fold(state, store.read(sweep_id, after=state.seq))
        if state.metadata is None:
            raise NotFoundError(f"store holds no sweep {sweep_id!r}")
        now = SystemClock().now()
        events = [
            new_event(
                decision.body,
                sweep_id=sweep_id,
                at=now,
                actor="user",
                run_id=decision.run_id,
                job_id=decision.job_id,
            )
            for decision in think(state)
        ]
        try:
            return store.append(events, expected_seq=state.seq)
        except StaleWriteError:
            conflicts += 1
            if conflicts > _MOST_CONFLICTS:
                raise


def pause(store: Store, sweep: SweepMetadata, reason: str) -> list[Event]:
    """Start nothing new in a sweep until it is resumed; running jobs finish. Nothing when it is paused already."""

    def think(state: SweepState) -> list[Decision]:
        is_running = state.sweep.status is SweepStatus.RUNNING
        return [Decision(body=SweepPaused(reason=reason))] if is_running else []

    return revise(store, sweep.sweep_id, think)


def resume(store: Store, sweep: SweepMetadata, changes: dict[str, Any]) -> list[Event]:
    """Let a sweep go on that is paused or has ended, or change its limits."""
    return revise(store, sweep.sweep_id, lambda state: revisions.resume_sweep(state.sweep, changes))


def resume_run(store: Store, run: RunInfo, checkpoint: int | None) -> list[Event]:
    """Try a run again, from its last checkpoint or the one of that step; see `revisions.resume_run`.

    Raises:
        UsageError: it cannot be.
    """
    return revise(
        store, run.sweep_id, lambda state: revisions.resume_run(state.sweep, state.runs[run.run_id], checkpoint)
    )


def roll_back(store: Store, sweep: SweepMetadata, count: int, reason: str) -> list[Event]:
    """Take back the runs that ended last: they count as observations no more."""
    return revise(store, sweep.sweep_id, lambda state: revisions.roll_back(state, count, reason))


def restore(store: Store, sweep: SweepMetadata, reason: str) -> list[Event]:
    """Undo the latest rollback that is in force."""
    return revise(store, sweep.sweep_id, lambda state: revisions.restore(state, reason))


def amend(store: Store, sweep: SweepMetadata, changes: dict[str, Any]) -> list[Event]:
    """Change what is searched, and judge the results anew where it matters; see `revisions.amend`."""
    return revise(store, sweep.sweep_id, lambda state: revisions.amend(state, changes))


def request_stop(store: Store, sweep: SweepMetadata, reason: str) -> SweepMetadata | None:
    """Ask for a sweep's end and wait for it while a controller is at work on it.

    Returns:
        The sweep when it has ended; None when no controller is there, so that one has to be started.
    """
    clock = SystemClock()
    event = new_event(SweepStopRequested(reason=reason), sweep_id=sweep.sweep_id, at=clock.now(), actor="user")
    [event] = store.append([event])
    seq = event.seq
    while is_controlled(store, sweep.sweep_id, clock.now()):
        store.wait_for_change(sweep.sweep_id, seq, _LOOK_AGAIN_S)
        [current] = store.fetch_sweeps(sweep.sweep_id)
        if current.status.ended:
            return current
        seq = current.seq
    return None
