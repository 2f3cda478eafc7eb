"""What the sampling optimizers share: randomness by suggestion number, nothing twice in finite spaces."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.model.space import Choice, Constant, Range, SearchSpace, Uniform
from metta.sweep.optimizers.cmaes import CMAESOptimizer
from metta.sweep.optimizers.evolution import EvolutionOptimizer
from metta.sweep.optimizers.optuna import OptunaOptimizer
from metta.sweep.optimizers.random import RandomOptimizer
from metta.sweep.optimizers.sampling import rng
from metta.sweep.optimizers.sobol import SobolOptimizer
from metta.sweep.optimizers.tpe import TPEOptimizer
from metta.sweep.testing.optimizers import SPACES, configs, history_of, started, suggest, with_runs
from metta.sweep.testing.searches import searched
from metta.sweep.testing.sweeps import sweep_config

SAMPLERS = [RandomOptimizer, SobolOptimizer]
sampler = pytest.mark.parametrize("new_sampler", SAMPLERS, ids=["random", "sobol"])
QUICK = settings(max_examples=40, deadline=None)


@st.composite
def finite_spaces(draw: st.DrawFn) -> SearchSpace:
    """Up to four parameters of few values; each may exist only where the one before has some of its values."""
    parameters: dict[str, Any] = {}
    for name in ["a", "b", "c", "d"][: draw(st.integers(1, 4))]:
        when: dict[str, Any] = {}
        if parameters and draw(st.booleans()):
            parent, of_parent = list(parameters.items())[-1]
            when = {parent: [of_parent.value_at(draw(st.integers(0, of_parent.cardinality - 1)))]}
        parameters[name] = draw(
            st.sampled_from(
                [
                    Choice(["x", 1, 1.0, True, None], when=when),
                    Range(1, 6, log=True, when=when),
                    Range(-3, 3, step=2, when=when),
                    Range(0.1, 0.5, step=0.1, when=when),
                    Choice([[1, 2]], when=when),
                    Constant({"deep": [1]}, when=when),
                ]
            )
        )
    return SearchSpace(parameters=parameters)


@sampler
@QUICK
@given(space=finite_spaces(), seed=st.integers(0, 2**63 - 1), sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4))
def test_every_finite_space_is_walked_once_and_to_its_end(
    new_sampler: type, space: SearchSpace, seed: int, sizes: list[int]
) -> None:
    assert space.cardinality is not None
    config = sweep_config(search_space=space, seed=seed)
    found = configs(suggest(new_sampler(), config, [*sizes, space.cardinality, 3]))
    assert len(found) == space.cardinality
    assert {space.key(suggested) for suggested in found} == {
        space.key(space.lattice.at(index)) for index in range(space.cardinality)
    }


@sampler
@QUICK
@given(space=st.sampled_from(sorted(SPACES)) | finite_spaces(), seed=st.integers(0, 2**63 - 1), data=st.data())
def test_a_suggestion_depends_on_the_seed_its_number_and_what_was_tried_alone(
    new_sampler: type, space: str | SearchSpace, seed: int, data: st.DataObject
) -> None:
    config = sweep_config(search_space=SPACES[space] if isinstance(space, str) else space, seed=seed)
    at_once = suggest(new_sampler(), config, [12])
    one_by_one = suggest(new_sampler(), config, [1] * 12)
    in_batches = suggest(new_sampler(), config, data.draw(st.lists(st.integers(1, 4), min_size=12, max_size=12)))
    assert at_once == one_by_one == in_batches[:12]


@sampler
def test_seeds_make_different_sweeps(new_sampler: type) -> None:
    sweeps = [
        configs(suggest(new_sampler(), sweep_config(search_space=SPACES["continuous"], seed=seed), [5]))
        for seed in (0, 1, 2, 2**32, 2**64)
    ]
    learning_rates = [suggested["lr"] for sweep in sweeps for suggested in sweep]
    assert len(set(learning_rates)) == 25


@sampler
def test_more_than_what_is_left_gets_what_is_left(new_sampler: type) -> None:
    config = sweep_config(search_space=SearchSpace.of({"x": Range(1, 5)}))
    state = with_runs(started(config), new_sampler().suggest(history_of(started(config)), 4))
    assert len(new_sampler().suggest(history_of(state), 100)) == 1
    state = with_runs(state, new_sampler().suggest(history_of(state), 100))
    assert new_sampler().suggest(history_of(state), 1) == []


@sampler
def test_nothing_asked_for_is_nothing_suggested(new_sampler: type) -> None:
    assert new_sampler().suggest(history_of(started(sweep_config())), 0) == []


@sampler
def test_the_last_point_of_a_large_space_is_found_at_once(new_sampler: type) -> None:
    space = SearchSpace.of({"x": Range(1, 10_000), "odd": Choice([True, False])})
    assert space.cardinality is not None
    missing = {"x": 1_234, "odd": False}
    keys = {space.key(space.lattice.at(index)): f"run {index}" for index in range(space.cardinality)}
    del keys[space.key(missing)]
    history = history_of(started(sweep_config(search_space=space)))
    history = replace(history, tried=keys)
    before = time.process_time()
    assert configs(new_sampler().suggest(history, 3)) == [missing]
    assert time.process_time() - before < 5


@sampler
def test_a_continuous_space_never_ends(new_sampler: type) -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0), "kind": Choice(["a", "b"])})
    found = configs(suggest(new_sampler(), sweep_config(search_space=space), [200]))
    assert len({suggested["x"] for suggested in found}) == 200


@pytest.mark.parametrize(
    "new_sampler",
    [*SAMPLERS, CMAESOptimizer, EvolutionOptimizer, OptunaOptimizer, TPEOptimizer],
    ids=lambda each: each.__name__,
)
def test_branches_that_are_single_points_are_suggested_once_in_one_call(new_sampler: type) -> None:
    space = SearchSpace.of({"kind": Choice(["a", "b", "c", "d"]), "x": Uniform(0.0, 1.0, when={"kind": "a"})})
    state = searched(space, "c" * 21)
    found = configs(new_sampler().suggest(history_of(state), 30))
    assert len({space.key(suggested) for suggested in found}) == 30


def test_each_suggestion_has_a_generator_of_its_own() -> None:
    draws = {rng(seed, index).random() for seed in range(20) for index in range(20)}
    assert len(draws) == 400
    assert rng(3, 5).random() == rng(3, 5).random()
