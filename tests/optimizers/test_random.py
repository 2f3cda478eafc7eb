"""Random search: its draws follow the distributions of the space."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metta.sweep.model.space import Choice, LogNormal, LogUniform, Normal, Parameter, Range, SearchSpace, Uniform
from metta.sweep.optimizers.random import RandomOptimizer
from metta.sweep.testing import OptimizerContract
from metta.sweep.testing.optimizers import configs, history_of, started, suggest
from metta.sweep.testing.sweeps import sweep_config

DRAWS = 1000


class TestRandom(OptimizerContract):
    def new_optimizer(self) -> RandomOptimizer:
        return RandomOptimizer()


def draws(**parameters: Parameter) -> list[dict[str, Any]]:
    """Many draws; a continuous parameter beside makes any space infinite, so that nothing is drawn again."""
    config = sweep_config(search_space=SearchSpace.of({"beside": Uniform(0.0, 1.0), **parameters}), seed=1)
    return configs(RandomOptimizer().suggest(history_of(started(config)), DRAWS))


@pytest.mark.parametrize(
    ("parameter", "distribution"),
    [
        (Uniform(-1.0, 3.0), stats.uniform(-1.0, 4.0)),
        (LogUniform(1e-5, 1e-1), stats.loguniform(1e-5, 1e-1)),
        (Range(0.5, 2.0), stats.uniform(0.5, 1.5)),
        (Range(1e-3, 1e3, log=True), stats.loguniform(1e-3, 1e3)),
        (Normal(5.0, 2.0), stats.norm(5.0, 2.0)),
        (LogNormal(1.0, 0.5), stats.lognorm(0.5, scale=math.e)),
    ],
    ids=lambda parameter: type(parameter).__name__ if hasattr(parameter, "when") else "",
)
def test_draws_follow_the_distribution_of_the_parameter(parameter: Parameter, distribution: Any) -> None:
    values = [draw["x"] for draw in draws(x=parameter)]
    assert stats.kstest(values, distribution.cdf).pvalue > 0.01


@pytest.mark.parametrize("parameter", [Choice(["a", "b", "c"]), Range(1, 7), Range(0.0, 1.0, step=0.25)])
def test_draws_are_spread_equally_over_values(parameter: Parameter) -> None:
    values = [draw["x"] for draw in draws(x=parameter)]
    assert parameter.cardinality is not None
    counts = [values.count(parameter.value_at(index)) for index in range(parameter.cardinality)]
    assert sum(counts) == DRAWS
    assert stats.chisquare(counts).pvalue > 0.01


def test_integers_on_a_log_scale_are_as_frequent_in_each_octave() -> None:
    values = [draw["x"] for draw in draws(x=Range(1, 1023, log=True))]
    # Each integer stands for all that rounds to it, so from 0.5 to 1023.5: eleven octaves.
    counts, _ = np.histogram(np.log2(values), bins=np.linspace(math.log2(1.5), math.log2(1023.5), 5))
    assert stats.chisquare(counts).pvalue > 0.01


def test_parameters_are_independent_of_each_other() -> None:
    values = [(draw["x"], draw["y"]) for draw in draws(x=Uniform(0.0, 1.0), y=LogUniform(0.1, 10.0))]
    assert stats.spearmanr(values).pvalue > 0.01


def test_suggestions_are_independent_of_each_other() -> None:
    values = [draw["x"] for draw in draws(x=Uniform(0.0, 1.0))]
    assert stats.spearmanr(values[1:], values[:-1]).pvalue > 0.01


def test_a_conditional_parameter_appears_as_often_as_its_condition_holds() -> None:
    found = draws(kind=Choice(["a", "b", "c", "d"]), rate=Uniform(0.0, 1.0, when={"kind": ["a", "b", "c"]}))
    assert all(("rate" in draw) == (draw["kind"] != "d") for draw in found)
    assert stats.binomtest(sum("rate" in draw for draw in found), DRAWS, 0.75).pvalue > 0.01


def test_the_reason_names_the_draw() -> None:
    assert [suggestion.reasons for suggestion in suggest(RandomOptimizer(), sweep_config(), [1, 1])] == [
        ("random draw 0",),
        ("random draw 1",),
    ]
