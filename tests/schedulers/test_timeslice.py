"""Runs that share the slots in turn: all come to their end, nobody waits while others get ahead."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.controller.controller import SweepController
from metta.sweep.dispatchers.simulated import SimulatedClock, SimulatedDispatcher, SimulatedStore
from metta.sweep.errors import ConfigError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobStatus, Outcome, RunInfo
from metta.sweep.model.space import Range, SearchSpace
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import Strategy, SweepStatus
from metta.sweep.schedulers.timeslice import TimeSliceScheduler
from metta.sweep.testing import sweep_config
from metta.sweep.testing.sweeps import SWEEP
from schedulers.halving import EPOCHS, Halving


def strategy(length: float = 5.0, concurrent: int | None = None) -> Strategy:
    options = {"slice": length} if concurrent is None else {"slice": length, "concurrent": concurrent}
    return Strategy(scheduler="timeslice", scheduler_options=options)


def halving(concurrent: int | None = None, *, fresh: bool = False, **fields: Any) -> Halving:
    return Halving(strategy(concurrent=concurrent), lambda index, epoch: index + epoch / 100, fresh=fresh, **fields)


def grants(history: list[Event]) -> list[tuple[str | None, float | None]]:
    return [(event.run_id, event.body.until) for event in history if isinstance(event.body, ev.JobGranted)]


class TestSlices:
    def test_each_ends_at_a_multiple_whatever_the_levels_and_the_last_at_the_end(self) -> None:
        world = halving(max_trials=1, fidelity=Fidelity(maximum=EPOCHS))
        state = world.run()
        [run] = state.runs.values()
        assert [job.until for job in run.jobs] == [5, 10, 15, 20, 25, None]
        assert [job.outcome for job in run.jobs] == [*[Outcome.PAUSED] * 5, Outcome.SUCCEEDED]
        assert [rung.level for rung in run.rungs] == [1, 3, 9]

    def test_a_training_has_ten_without_a_length(self) -> None:
        world = Halving(
            Strategy(scheduler="timeslice"), lambda _, epoch: epoch, max_trials=1, fidelity=Fidelity(maximum=EPOCHS)
        )
        [run] = world.run().runs.values()
        assert len(run.jobs) == 10
        assert [job.until for job in run.jobs[:9]] == pytest.approx([2.7 * count for count in range(1, 10)])

    def test_runs_take_turns_and_a_new_one_begins_when_one_has_ended(self) -> None:
        world = halving(concurrent=2, max_parallel=1, max_trials=3)
        state = world.run()
        first, second, third = sorted(state.runs.values(), key=lambda run: run.index)
        order = [run_id for run_id, _ in grants(world.history)]
        assert order[:4] == [first.run_id, second.run_id, first.run_id, second.run_id]
        assert first.ended_at is not None
        assert third.created_at == first.ended_at

    def test_four_runs_share_a_slot_without_a_number(self) -> None:
        world = halving(max_parallel=2, max_trials=20)
        most = 0
        state = EMPTY
        world.run()
        for event in world.history:
            state = fold(state, [event])
            most = max(most, len(state.unfinished))
        assert most == 8

    def test_where_no_configuration_is_left_those_that_wait_go_on(self) -> None:
        world = halving(max_parallel=2, max_trials=None, search_space=SearchSpace.of({"layers": Range(1, 6)}))
        state = world.run()
        assert [run.status for run in state.runs.values()] == [JobStatus.COMPLETED] * 6
        assert state.sweep.reason == "search space exhausted: 6 configurations were tried"

    def test_a_controller_that_is_new_each_time_decides_the_same(self) -> None:
        one, other = halving(max_trials=12), halving(max_trials=12, fresh=True)
        one.run()
        other.run()
        assert [event.body for event in one.history] == [event.body for event in other.history]


class Killed(BaseException):
    """As if by kill -9, but for the lease, which is given up."""


def simulated(
    kills: list[int], *, preemption_rate: float, length: float, concurrent: int | None, **fields: Any
) -> list[Event]:
    """The log of a sweep whose controller is killed after so many steps, each time anew."""
    config = sweep_config(**{"strategy": strategy(length, concurrent), "fidelity": Fidelity(maximum=20), **fields})
    clock = SimulatedClock()
    store = SimulatedStore(clock)
    store.append([new_event(ev.SweepCreated(config=config), sweep_id=SWEEP, at=0.0, actor="user")])
    dispatcher = SimulatedDispatcher(store, SWEEP, config, clock, preemption_rate=preemption_rate)
    for steps in [*kills, None]:
        left = [steps]

        def observe(_state: SweepState, _events: object, left: list[int | None] = left) -> None:
            if left[0] is not None:
                left[0] -= 1
                if left[0] <= 0:
                    raise Killed

        try:
            SweepController(store, SWEEP, dispatcher, clock, observe).run()
        except Killed:
            continue
    return list(store.read(SWEEP))


def slices(run: RunInfo, length: float) -> int:
    return int((run.progress or 0.0) / length + 1e-9)


def check_turns(log: list[Event], length: float) -> SweepState:
    """Nobody goes on from a pause while one that has had fewer slices waits."""
    state = EMPTY
    for event in log:
        if isinstance(event.body, ev.JobGranted):
            chosen = state.runs[event.run_id or ""]
            paused = [run for run in state.runs.values() if run.status is JobStatus.PAUSED]
            if chosen.status is JobStatus.PAUSED:
                assert slices(chosen, length) == min(slices(run, length) for run in paused)
        state = fold(state, [event])
    return state


class TestWhateverHappens:
    @settings(max_examples=25, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        # The made-up jobs report every two epochs.
        length=st.sampled_from([2.0, 4.0, 6.0, 18.0]),
        parallel=st.integers(1, 4),
        concurrent=st.none() | st.integers(1, 9),
        trials=st.integers(1, 12),
        preemption_rate=st.sampled_from([0.0, 0.3]),
        kills=st.lists(st.integers(1, 40), max_size=3),
    )
    def test_all_come_to_their_end_and_none_waits_while_others_get_ahead(
        self,
        seed: int,
        length: float,
        parallel: int,
        concurrent: int | None,
        trials: int,
        preemption_rate: float,
        kills: list[int],
    ) -> None:
        log = simulated(
            kills,
            preemption_rate=preemption_rate,
            length=length,
            concurrent=concurrent,
            seed=seed,
            max_parallel=parallel,
            max_trials=trials,
        )
        state = check_turns(log, length)
        assert state.sweep.status is SweepStatus.COMPLETED
        assert state.sweep.counts == {JobStatus.COMPLETED: trials}
        for run in state.runs.values():
            ends = [job.until for job in run.jobs if job.outcome in {Outcome.PAUSED, Outcome.SUCCEEDED}]
            assert ends == [end * length for end in range(1, len(ends))] + [None], "each slice once, to the end"

    def test_a_lost_job_goes_on_to_the_end_of_its_slice(self) -> None:
        log = simulated([], preemption_rate=0.5, length=4.0, concurrent=4, seed=1, max_parallel=2, max_trials=6)
        state = check_turns(log, 4.0)
        lost = [
            (job, after)
            for run in state.runs.values()
            for job, after in zip(run.jobs, run.jobs[1:], strict=False)
            if job.outcome is Outcome.KILLED
        ]
        assert lost
        assert all(job.until == after.until for job, after in lost)

    def test_a_slice_may_be_one_of_wall_time(self) -> None:
        log = simulated(
            [],
            preemption_rate=0.0,
            length=6.0,
            concurrent=4,
            fidelity=Fidelity(resource="seconds", maximum=20),
            max_parallel=2,
            max_trials=6,
        )
        state = check_turns(log, 6.0)
        assert state.sweep.counts == {JobStatus.COMPLETED: 6}
        assert all([job.until for job in run.jobs] == [6, 12, 18, None] for run in state.runs.values())
        seconds = {event.body.seconds for event in log if isinstance(event.body, ev.JobExited)}
        assert max(seconds) <= 6

    def test_a_killed_controller_goes_on_with_the_same_turns(self) -> None:
        options: dict[str, Any] = {"preemption_rate": 0.3, "length": 4.0, "concurrent": 5, "max_parallel": 2}
        whole = simulated([], **options, seed=3, max_trials=9)
        killed = simulated([5, 9, 20], **options, seed=3, max_trials=9)
        assert sum(isinstance(event.body, ev.ControllerStarted) for event in killed) == 4
        assert grants(killed) == grants(whole)

    def test_runs_of_one_sweep_are_never_more_than_a_slice_apart_where_none_is_slower(self) -> None:
        world = halving(concurrent=6, max_parallel=2, max_trials=6)
        state = EMPTY
        world.run()
        for event in world.history:
            state = fold(state, [event])
            if len(state.runs) == 6:
                paused = [slices(run, 5.0) for run in state.runs.values() if run.status is JobStatus.PAUSED]
                assert max(paused, default=0) - min(paused, default=0) <= 1


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"slice": 0}, "slice is a number above 0, of the sweep's resource, got 0"),
            ({"slice": float("nan")}, "slice is a number above 0, of the sweep's resource, got nan"),
            ({"slice": "5"}, "slice is a number above 0, of the sweep's resource, got '5'"),
            ({"slice": 5, "concurrent": 0}, "concurrent is a whole number from 1, got 0"),
            ({"slice": 5, "concurrent": True}, "concurrent is a whole number from 1, got True"),
        ],
    )
    def test_what_is_wrong_is_said(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            TimeSliceScheduler(**options)

    def test_a_slice_is_a_part_of_a_whole_training_that_is_known(self) -> None:
        with pytest.raises(ConfigError, match="fidelity: is missing"):
            TimeSliceScheduler(slice=5).check(sweep_config())
        with pytest.raises(ConfigError, match=r"slice is less than fidelity.maximum \(5\), got 5"):
            TimeSliceScheduler(slice=5).check(sweep_config(fidelity=Fidelity(maximum=5)))
        with pytest.raises(ConfigError, match=r"slice is at least 0\.005, got 0\.001"):
            TimeSliceScheduler(slice=0.001).check(sweep_config(fidelity=Fidelity(maximum=5)))
        TimeSliceScheduler(slice=4).check(sweep_config(fidelity=Fidelity(maximum=5, grace_period=5)))
