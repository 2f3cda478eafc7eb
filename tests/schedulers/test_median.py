"""The median stopping rule on curves whose fate is known."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.errors import ConfigError
from metta.sweep.model.run import JobStatus
from metta.sweep.model.sweep import Strategy
from metta.sweep.schedulers.median import MedianScheduler
from metta.sweep.testing.sweeps import sweep_config
from schedulers.halving import Halving

MEDIAN = Strategy(scheduler="median")


def test_whoever_is_below_the_median_is_stopped_once_there_are_enough_others() -> None:
    # Two good ones in three; the first five are judged by nobody.
    state = Halving(MEDIAN, lambda index, _: 0.0 if index % 3 == 0 else 1.0, max_parallel=1, max_trials=12).run()
    stopped = [run.index for run in state.runs.values() if run.status is JobStatus.STOPPED]
    assert sorted(stopped) == [6, 9]
    [reason] = {run.stop_reason for run in state.runs.values() if run.index == 6}
    assert reason == "at epoch 1 its best reward 0 was worse than 1, the median of the averages of 6 others"


def test_a_run_is_judged_by_the_best_it_has_had() -> None:
    """It was good at the first level: that it gets worse later is not held against it."""

    def curve(index: int, epoch: int) -> float:
        return (2.0 if epoch == 1 else -5.0) if index == 9 else 1.0

    state = Halving(MEDIAN, curve, max_parallel=1, max_trials=10).run()
    assert state.sweep.counts == {JobStatus.COMPLETED: 10}


def test_less_is_better_where_the_sweep_minimizes() -> None:
    def curve(index: int, _: int) -> float:
        return 3.0 if index == 8 else 1.0

    state = Halving(MEDIAN, curve, max_parallel=1, max_trials=10, direction="minimize").run()
    assert [run.index for run in state.runs.values() if run.status is JobStatus.STOPPED] == [8]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), parallel=st.integers(1, 6))
def test_a_controller_that_is_new_each_time_decides_the_same(seed: int, parallel: int) -> None:
    def curve(index: int, epoch: int) -> float:
        return (index * 7919 + seed) % 101 * (1 - 0.8**epoch)

    logs = []
    for fresh in (False, True):
        halving = Halving(MEDIAN, curve, max_trials=20, max_parallel=parallel, fresh=fresh)
        halving.run()
        logs.append([event.body for event in halving.history])
    assert logs[0] == logs[1]


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ConfigError, match="min_runs is a whole number from 1, got 0"):
        MedianScheduler(min_runs=0)
    with pytest.raises(ConfigError, match="fidelity: is missing"):
        MedianScheduler().check(sweep_config())
