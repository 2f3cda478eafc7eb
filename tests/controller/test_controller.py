"""The shell around the thinking: when nobody takes its jobs, when it is told to end, and when it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from metta.sweep.controller import lease as leases
from metta.sweep.controller.controller import SweepController
from metta.sweep.errors import DispatchError, StoreAwayError
from metta.sweep.model import events as ev
from metta.sweep.model.events import new_event
from metta.sweep.model.run import JobDefinition, JobStatus, Outcome
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.protocols import Placement, Standing, Store
from metta.sweep.stores import open_store
from metta.sweep.testing import ManualClock, sweep_config
from metta.sweep.testing.sweeps import SWEEP


class Nobody:
    """A dispatcher that takes no job."""

    name = "nobody"

    def __init__(self) -> None:
        self.offers = 0
        self.cancelled: list[str] = []

    def capacity(self) -> int | None:
        return None

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        self.offers += 1
        raise DispatchError("nobody is there")

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        return dict.fromkeys(job_ids, Standing.LOST)

    def held(self) -> list[str]:
        return []

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        self.cancelled += job_ids

    def close(self) -> None:
        """Nothing to let go of."""


class Silent(Nobody):
    """A dispatcher that takes every job, and that is the last that is heard of it."""

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        return {job.job_id: Placement(dispatcher=self.name) for job in jobs}

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        return dict.fromkeys(job_ids, Standing.KNOWN)


class Watched:
    """A store in which something else happens when the controller does what is named."""

    def __init__(self, store: Store, **instead: Callable[..., Any]) -> None:
        self._store, self._instead = store, instead

    def __getattr__(self, name: str) -> Any:
        return self._instead.get(name) or getattr(self._store, name)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        config = sweep_config(max_trials=4, max_parallel=2)
        store.append([new_event(ev.SweepCreated(config=config), sweep_id=SWEEP, at=ManualClock().now(), actor="user")])
        yield store


def append(store: Store, body: ev.Body) -> None:
    store.append([new_event(body, sweep_id=SWEEP, at=ManualClock().now(), actor="user")])


def drive(
    store: Store,
    dispatcher: Any,
    *,
    on_wait: Callable[[SweepController, int], None] = lambda _controller, _waits: None,
    seconds: float = 1.0,
    **instead: Callable[..., Any],
) -> SweepController:
    """Run a controller to its end; so much time passes whenever it waits, and `on_wait` is told."""
    clock = ManualClock()
    waits = 0

    def wait(*_: object) -> bool:
        nonlocal waits
        waits += 1
        assert waits < 200, "the controller does not come to an end"
        clock.advance(seconds)
        on_wait(controller, waits)
        return True

    watched: Any = Watched(store, wait_for_change=wait, **instead)
    controller = SweepController(watched, SWEEP, dispatcher, clock)
    controller.run()
    return controller


def test_jobs_that_nobody_takes_are_offered_less_and_less_often_and_then_the_sweep_is_paused(store: Store) -> None:
    dispatcher = Nobody()
    state = drive(store, dispatcher, seconds=10.0).state
    assert (state.sweep.status, dispatcher.offers) == (SweepStatus.PAUSED, 10)
    assert state.sweep.reason == "no job could be dispatched, 10 times in a row"
    assert {run.status for run in state.runs.values()} == {JobStatus.RETRYING}
    # What was never taken is no failure of the run.
    assert all(run.retry_count == 0 for run in state.runs.values())
    failures = [event.body for event in store.read(SWEEP) if isinstance(event.body, ev.DispatchFailed)]
    assert {failure.reason for failure in failures} == {"nobody is there"}


def test_a_sweep_whose_jobs_nobody_takes_can_be_stopped(store: Store) -> None:
    def stop(_controller: SweepController, waits: int) -> None:
        if waits == 3:
            append(store, ev.SweepStopRequested(reason="enough"))

    state = drive(store, Nobody(), on_wait=stop).state
    assert state.sweep.status is SweepStatus.STOPPED
    assert {run.status for run in state.runs.values()} == {JobStatus.CANCELLED}


def test_a_controller_whose_jobs_nobody_takes_winds_down_when_it_is_told_to(store: Store) -> None:
    def interrupt(controller: SweepController, waits: int) -> None:
        if waits == 3:
            controller.wind_down()

    state = drive(store, Nobody(), on_wait=interrupt).state
    assert state.sweep.status is SweepStatus.RUNNING
    assert all(run.open_job is None for run in state.runs.values())


def test_who_asks_a_leaving_controller_to_go_on_is_heard(store: Store) -> None:
    append(store, ev.SweepPaused(reason="so"))
    asked: list[str] = []

    def release(lease: Any) -> None:
        if not asked:
            # At the last moment: it has decided to leave, and to whoever asks it still is at work.
            asked.append("resume")
            append(store, ev.SweepResumed())
        store.release_lease(lease)

    def interrupt(controller: SweepController, _waits: int) -> None:
        if controller.state.runs:
            controller.wind_down()

    controller = drive(store, Nobody(), on_wait=interrupt, release_lease=release)
    assert len(controller.state.runs) == 2, "it left, and nobody is at work on the sweep"
    assert not leases.is_controlled(store, SWEEP, ManualClock().now())


def test_a_stop_whose_controller_died_is_carried_out_by_the_next_one(store: Store) -> None:
    append(store, ev.SweepStopRequested(reason="enough"))
    controller = SweepController(store, SWEEP, Nobody(), ManualClock())
    controller.resume({})
    assert controller.run().sweep.status is SweepStatus.STOPPED


def test_two_interrupts_while_the_store_is_away_cancel_the_jobs_and_are_the_end(store: Store) -> None:
    dispatcher = Silent()
    away: list[bool] = []

    def read(*arguments: Any, **options: Any) -> Any:
        if away:
            raise StoreAwayError("the server is down")
        return store.read(*arguments, **options)

    def interrupt(controller: SweepController, _waits: int) -> None:
        away.append(True)
        controller.wind_down()
        controller.wind_down()

    with pytest.raises(KeyboardInterrupt):
        drive(store, dispatcher, on_wait=interrupt, read=read)
    assert len(set(dispatcher.cancelled)) == 2
    assert not leases.is_controlled(store, SWEEP, ManualClock().now())
