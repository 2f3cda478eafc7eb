"""Successive halving against the papers, and what must hold whatever runs do."""

from __future__ import annotations

import random
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.errors import ConfigError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import Strategy
from metta.sweep.schedulers.asha import AshaScheduler, HyperbandScheduler, bracket_sizes
from metta.sweep.testing.sweeps import sweep_config
from schedulers.halving import EPOCHS, FIDELITY, Curve, Halving

Mode = Literal["stop", "promote"]


def strategy(scheduler: str = "asha", **options: Any) -> Strategy:
    return Strategy(scheduler=scheduler, scheduler_options=options)


def by_index(state: SweepState) -> list[RunInfo]:
    return sorted(state.runs.values(), key=lambda run: run.index)


def reached(state: SweepState, level: float) -> list[int]:
    return [run.index for run in by_index(state) if any(rung.level == level for rung in run.rungs)]


def rising(index: int, epoch: int) -> float:
    """The later a run begins, the better it is."""
    return index + epoch / 100


def falling(index: int, epoch: int) -> float:
    return -index + epoch / 100


def drawn(seed: int) -> Curve:
    quality = random.Random(seed)
    values = [quality.gauss(0, 1) for _ in range(1000)]
    return lambda index, epoch: values[index] * (1 - 0.9**epoch)


class TestLevels:
    def test_each_is_eta_times_the_one_before_from_the_grace_period_on(self) -> None:
        assert Fidelity(maximum=27).levels == (1, 3, 9)
        assert Fidelity(maximum=52).levels == (1, 3, 9, 27)
        assert Fidelity(maximum=256, reduction_factor=4).levels == (1, 4, 16, 64)
        assert Fidelity(maximum=10, grace_period=10).levels == ()


class TestHyperband:
    def test_the_sizes_of_its_brackets_are_those_of_the_paper(self) -> None:
        # Li et al. (2018), table 1: R = 81, eta = 3.
        assert bracket_sizes(Fidelity(maximum=81), 5) == (81, 34, 15, 8, 5)

    def test_a_bracket_is_not_judged_before_its_level(self) -> None:
        state = Halving(strategy("hyperband"), falling, max_trials=27 + 12 + 6 + 4).run()
        runs = by_index(state)
        # Whoever comes later is worse: the brackets after the first begin with a run that nobody beats there.
        assert all(len(run.rungs) >= 1 for run in runs[:27])
        assert all(len(run.rungs) >= 2 for run in runs[27:39])
        assert all(len(run.rungs) == 3 for run in runs[39:45])
        assert all(run.status is JobStatus.COMPLETED for run in runs[45:])

    def test_it_takes_a_mode_and_no_number_of_brackets(self) -> None:
        with pytest.raises(TypeError):
            HyperbandScheduler(brackets=2)  # type: ignore[call-arg]


class TestPromotion:
    def test_the_rungs_hold_what_the_paper_says(self) -> None:
        """Nine runs, eta 3, levels 1 and 3 below 9: figure 1 of the paper, nine, three, one."""
        halving = Halving(
            strategy(mode="promote"), drawn(3), max_trials=9, max_parallel=1, fidelity=Fidelity(maximum=9)
        )
        state = halving.run()
        assert [len(reached(state, level)) for level in (1, 3)] == [9, 3]
        assert state.sweep.counts == {JobStatus.COMPLETED: 1, JobStatus.STOPPED: 8}

    def test_a_promotion_comes_before_a_new_run(self) -> None:
        """Algorithm 2: with three at the bottom the best of them goes on before a fourth begins."""
        halving = Halving(strategy(mode="promote"), rising, max_trials=9, max_parallel=1)
        state = halving.run()
        granted = [event.run_id for event in halving.history if isinstance(event.body, ev.JobGranted)]
        runs = by_index(state)
        assert granted[:5] == [runs[0].run_id, runs[1].run_id, runs[2].run_id, runs[2].run_id, runs[3].run_id]

    def test_it_goes_on_where_it_was_paused(self) -> None:
        halving = Halving(strategy(mode="promote"), drawn(1))
        state = halving.run()
        reports = [event for event in halving.history if isinstance(event.body, ev.MetricsReported)]
        told = [(event.run_id, event.body.metrics["epoch"]) for event in reports]  # type: ignore[union-attr]
        assert len(told) == len(set(told))
        assert state.sweep.counts[JobStatus.COMPLETED] >= 1


class TestStopping:
    def test_worse_and_worse_runs_are_stopped_at_the_first_level(self) -> None:
        state = Halving(strategy(), falling, max_parallel=1).run()
        first, *others = by_index(state)
        assert first.status is JobStatus.COMPLETED
        assert all(run.status is JobStatus.STOPPED and run.progress == 1 for run in others)
        assert "number 2 of 2; the best 1 go on" in str(others[0].stop_reason)

    def test_better_and_better_ones_never_are(self) -> None:
        state = Halving(strategy(), rising, max_parallel=1).run()
        assert state.sweep.counts == {JobStatus.COMPLETED: 27}

    def test_what_it_had_reached_is_kept_as_a_partial_result(self) -> None:
        state = Halving(strategy(), falling, max_parallel=1).run()
        stopped = by_index(state)[1]
        assert stopped.partial_score == falling(1, 1)
        assert stopped.score is None


def check_promotions(history: list[Event]) -> None:
    """Whoever goes on from a level is among the best third of those that have come there by then.

    But for the best of the highest level, when there were too few runs for anybody to come to the end.
    """
    values: dict[float, dict[str, float]] = {}
    for event in history:
        body, run_id = event.body, event.run_id or ""
        if isinstance(body, ev.MetricsReported) and body.metrics["epoch"] in FIDELITY.levels:
            values.setdefault(body.metrics["epoch"], {})[run_id] = body.metrics["reward"]
        if isinstance(body, ev.JobGranted) and body.attempt > 1:
            rivals = next(rivals for _, rivals in sorted(values.items(), reverse=True) if run_id in rivals)
            is_last = "no run has been trained to its end" in body.reasons[0]
            best = sorted(rivals.values(), reverse=True)[: 1 if is_last else len(rivals) // 3]
            assert rivals[run_id] in best


class TestWhateverRunsDo:
    @settings(max_examples=40, deadline=None)
    @given(
        seed=st.integers(0, 10**6),
        mode=st.sampled_from(["stop", "promote"]),
        scheduler=st.sampled_from(["asha", "hyperband"]),
        parallel=st.integers(1, 9),
        trials=st.integers(1, 40),
        slow=st.booleans(),
    )
    def test_no_level_lets_too_many_on_and_all_come_to_an_end(
        self, seed: int, mode: Mode, scheduler: str, parallel: int, trials: int, slow: bool
    ) -> None:
        straggler = (lambda index: 50.0 if index % 5 == 0 else 1.0) if slow else (lambda _: 1.0)
        halving = Halving(
            strategy(scheduler, mode=mode), drawn(seed), straggler, max_trials=trials, max_parallel=parallel
        )
        state = halving.run()
        assert state.sweep.run_count == trials
        assert set(state.sweep.counts) <= {JobStatus.COMPLETED, JobStatus.STOPPED}
        assert state.sweep.counts[JobStatus.COMPLETED] >= 1
        if scheduler == "asha" and mode == "promote":
            check_promotions(halving.history)
        for run in state.runs.values():
            levels = [job.until for job in run.jobs]
            assert len(levels) == len(set(levels)), "promoted twice from one level"

    @pytest.mark.parametrize("mode", ["stop", "promote"])
    @pytest.mark.parametrize("scheduler", ["asha", "hyperband"])
    def test_a_controller_that_is_new_each_time_decides_the_same(self, scheduler: str, mode: Mode) -> None:
        one = Halving(strategy(scheduler, mode=mode), drawn(5), max_trials=40)
        other = Halving(strategy(scheduler, mode=mode), drawn(5), max_trials=40, fresh=True)
        one.run()
        other.run()
        assert [event.body for event in one.history] == [event.body for event in other.history]

    def test_it_takes_far_fewer_epochs_than_training_all_of_them(self) -> None:
        halving = Halving(strategy(), drawn(2), max_trials=81)
        state = halving.run()
        epochs = sum(isinstance(event.body, ev.MetricsReported) for event in halving.history)
        assert epochs < 0.35 * 81 * EPOCHS
        best = max(run.score for run in state.runs.values() if run.score is not None)
        assert best == max(drawn(2)(index, EPOCHS) for index in range(81))


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mode": "stopp"}, "mode cannot be 'stopp'; did you mean 'stop'?"),
            ({"brackets": 0}, "brackets is a whole number from 1, got 0"),
            ({"brackets": True}, "brackets is a whole number from 1, got True"),
        ],
    )
    def test_what_is_wrong_is_said(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            AshaScheduler(**options)
        assert message in str(caught.value)

    def test_a_sweep_without_levels_cannot_be_halved(self) -> None:
        with pytest.raises(ConfigError, match="fidelity: is missing"):
            AshaScheduler().check(sweep_config())
        with pytest.raises(ConfigError, match="there is no level below the maximum"):
            AshaScheduler().check(sweep_config(fidelity=Fidelity(maximum=1)))
        with pytest.raises(ConfigError, match="brackets is at most 4"):
            AshaScheduler(brackets=5).check(sweep_config(fidelity=FIDELITY))
