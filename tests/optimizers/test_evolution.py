"""Age-regularised evolution."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.errors import ConfigError
from metta.sweep.model.space import Choice, Config, LogUniform, Range, SearchSpace, Uniform
from metta.sweep.optimizers.evolution import EvolutionOptimizer
from metta.sweep.optimizers.random import RandomOptimizer
from metta.sweep.protocols import History
from metta.sweep.testing import OptimizerContract, sweep_config
from metta.sweep.testing.searches import SPACES, configs, history_of, lived, searched, started
from optimizers.searching import best

MIXED = SearchSpace.of(
    {
        "lr": LogUniform(1e-5, 1e-1),
        "layers": Range(1, 8),
        "units": Range(16, 1024, log=True),
        "kind": Choice(["a", "b", "c"]),
        "rate": Uniform(0.0, 1.0, when={"kind": ["a", "b"]}),
    }
)


class TestEvolution(OptimizerContract):
    def new_optimizer(self) -> EvolutionOptimizer:
        return EvolutionOptimizer(population=6, sample=3)


def generation(scores: list[float | None], tried: list[Config]) -> History:
    """A sweep to be minimised in which these configurations had these scores; None for a failure."""
    state = started(sweep_config(search_space=MIXED, direction="minimize"))
    known = {MIXED.key(config): score for config, score in zip(tried, scores, strict=True)}
    fates = "".join("f" if score is None else "c" for score in scores)
    return history_of(lived(state, tried, fates, lambda config: known[MIXED.key(config)] or 0.0))


def member(layers: int) -> Config:
    return {"lr": 10.0**-layers, "layers": layers, "units": 16 * layers, "kind": "c"}


def parents(history: History, population: int, sample: int) -> set[int]:
    """Layers of the runs that many children come from; their steps are so small that the learning rate tells."""
    children = configs(EvolutionOptimizer(population, sample, step=0.001).suggest(history, 60))
    return {round(-math.log10(child["lr"])) for child in children}


def test_children_differ_from_their_parent_and_mostly_in_little() -> None:
    members = [member(layers) for layers in (1, 2, 3, 4)]
    history = generation([4.0, 1.0, 2.0, 3.0], members)
    children = configs(EvolutionOptimizer(population=4, sample=4).suggest(history, 200))
    differences = [sum(members[1][name] != child.get(name) for name in members[1]) for child in children]
    assert min(differences) == 1
    assert sum(differences) / 200 < 2.2


def test_the_best_of_those_drawn_is_the_parent() -> None:
    history = generation([4.0, 1.0, 2.0, 3.0], [member(layers) for layers in (1, 2, 3, 4)])
    assert parents(history, population=4, sample=4) == {2}
    assert parents(history, population=4, sample=3) == {2, 3}
    assert parents(history, population=4, sample=1) == {1, 2, 3, 4}


def test_the_old_die_however_good_they_were() -> None:
    history = generation([0.0, 4.0, 3.0, 2.0, 5.0], [member(layers) for layers in (1, 2, 3, 4, 5)])
    assert parents(history, population=4, sample=4) == {4}


def test_who_failed_has_children_only_where_all_failed() -> None:
    members = [member(layers) for layers in (1, 2, 3)]
    assert parents(generation([None, 5.0, None], members), population=3, sample=3) == {2}
    assert parents(generation([None, None, None], members), population=3, sample=1) == {1, 2, 3}


def test_a_parameter_that_only_the_child_has_is_drawn_from_all_its_values() -> None:
    children = configs(
        EvolutionOptimizer(population=1, sample=1, step=0.01).suggest(generation([1.0], [member(3)]), 300)
    )
    rates = [child["rate"] for child in children if "rate" in child]
    assert min(rates) < 0.1
    assert max(rates) > 0.9


def test_steps_grow_with_the_exploration_that_is_asked_for() -> None:
    state = searched(SearchSpace.of({"x": Uniform(0.0, 1.0)}), "c" * 5)
    spreads = []
    for exploration in (0.0, 0.2, 0.5, 1.0):
        children = configs(EvolutionOptimizer(5, 5).suggest(History.of(state, exploration), 50))
        places = [child["x"] for child in children]
        spreads.append(max(places) - min(places))
    assert spreads[0] < 0.15
    assert spreads == sorted(spreads)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), step=st.sampled_from([1e-6, 0.1, 1.0]), values=st.integers(2, 40), log=st.booleans())
def test_a_step_is_one_value_at_least_and_stays_in_the_range(seed: int, step: float, values: int, log: bool) -> None:
    space = SearchSpace.of({"n": Range(1, values, log=log), "beside": Choice(["x"])})
    state = started(sweep_config(search_space=space, seed=seed))
    state = lived(state, [{"n": 1 + seed % values, "beside": "x"}], "c", lambda _: 1.0)
    [child] = configs(EvolutionOptimizer(1, 1, step=step).suggest(history_of(state), 1))
    assert 1 <= child["n"] <= values
    assert child["n"] != 1 + seed % values


def test_it_finds_better_configurations_than_random_search() -> None:
    def score(config: Config) -> float:
        return sum((unit - 0.2) ** 2 for unit in MIXED.encode(config)) + {"a": 0.0, "b": 0.3, "c": 0.3}[config["kind"]]

    ours, random = (best(new, MIXED, score, [4] * 25) for new in (EvolutionOptimizer, RandomOptimizer))
    assert ours < random / 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": 0}, "population to be an integer from 1 to 100000, got 0"),
        ({"sample": 2.5}, "sample to be an integer from 1 to 100000, got 2.5"),
        ({"population": 4, "sample": 5}, "at most 4, got 5"),
        ({"step": 0}, "step to be a number above 0 and at most 1, got 0"),
        ({"step": True}, "step to be a number above 0 and at most 1, got True"),
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvolutionOptimizer(**options)


def test_every_space_is_accepted() -> None:
    for space in SPACES.values():
        EvolutionOptimizer().check(sweep_config(search_space=space))
