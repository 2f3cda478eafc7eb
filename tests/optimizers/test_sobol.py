"""Sobol points: more even than random ones, wherever the sweep ends."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import qmc

from metta.sweep.errors import ConfigError
from metta.sweep.model.space import Choice, Constant, LogUniform, Range, SearchSpace, Uniform
from metta.sweep.optimizers.random import RandomOptimizer
from metta.sweep.optimizers.sobol import SobolOptimizer
from metta.sweep.protocols import Optimizer
from metta.sweep.testing import OptimizerContract
from metta.sweep.testing.optimizers import SPACES, configs, history_of, started, suggest, with_runs
from metta.sweep.testing.sweeps import sweep_config


class TestSobol(OptimizerContract):
    def new_optimizer(self) -> SobolOptimizer:
        return SobolOptimizer()


def points(optimizer: Optimizer, dimensions: int, number: int, seed: int) -> NDArray[np.float64]:
    space = SearchSpace.of({f"x{axis}": Uniform(0.0, 1.0) for axis in range(dimensions)})
    history = history_of(started(sweep_config(search_space=space, seed=seed)))
    return np.array([list(config.values()) for config in configs(optimizer.suggest(history, number))])


@pytest.mark.parametrize("dimensions", [1, 2, 5])
@pytest.mark.parametrize("number", [16, 50, 128])
def test_points_are_more_even_than_random_ones(dimensions: int, number: int) -> None:
    discrepancies = [
        [qmc.discrepancy(points(optimizer, dimensions, number, seed)) for seed in range(5)]
        for optimizer in (SobolOptimizer(), RandomOptimizer())
    ]
    sobol, random = discrepancies
    assert max(sobol) < min(random) if dimensions < 3 else np.mean(sobol) < np.mean(random)


def test_each_half_and_quarter_of_an_axis_gets_its_share() -> None:
    for axis in points(SobolOptimizer(), dimensions=6, number=64, seed=3).T:
        assert np.histogram(axis, bins=16, range=(0.0, 1.0))[0].tolist() == [4] * 16


def test_values_of_a_choice_come_equally_often() -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0), "kind": Choice(["a", "b", "c", "d"]), "lr": LogUniform(1e-5, 1e-1)})
    found = configs(suggest(SobolOptimizer(), sweep_config(search_space=space), [32]))
    assert sorted(config["kind"] for config in found) == sorted(["a", "b", "c", "d"] * 8)


def test_the_sequence_goes_on_after_a_restart_in_the_middle() -> None:
    config = sweep_config(search_space=SPACES["continuous"])
    whole = suggest(SobolOptimizer(), config, [30])
    state = with_runs(started(config), whole[:17])
    optimizer = SobolOptimizer()
    assert optimizer.suggest(history_of(state), 13) == whole[17:]
    # Back again, as when a decision is checked later.
    assert optimizer.suggest(history_of(with_runs(started(config), whole[:3])), 2) == whole[3:5]


def test_one_optimizer_may_serve_sweeps_in_turn() -> None:
    sweeps = [
        started(sweep_config(search_space=SPACES[space], seed=seed))
        for space in ("continuous", "conditional")
        for seed in (1, 2)
    ]
    optimizer = SobolOptimizer()
    for _ in range(3):
        for number, state in enumerate(sweeps):
            suggestions = optimizer.suggest(history_of(state), 2)
            assert suggestions == SobolOptimizer().suggest(history_of(state), 2)
            sweeps[number] = with_runs(state, suggestions)


def test_a_space_of_constants_has_one_point() -> None:
    config = sweep_config(search_space=SearchSpace.of({"lr": Constant(0.1)}))
    assert configs(suggest(SobolOptimizer(), config, [2])) == [{"lr": 0.1}]


def test_more_dimensions_than_there_are_direction_numbers_for_are_refused() -> None:
    most = qmc.Sobol.MAXDIM
    parameters = {f"x{axis}": Range(0, 1) for axis in range(most + 1)}
    with pytest.raises(ConfigError, match=f"at most {most} parameters, got {most + 1}; use random"):
        SobolOptimizer().check(sweep_config(search_space=SearchSpace.of(parameters)))
    del parameters["x0"]
    SobolOptimizer().check(sweep_config(search_space=SearchSpace.of({**parameters, "x0": 1})))
