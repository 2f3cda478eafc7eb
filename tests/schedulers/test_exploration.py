"""What is tried near a configuration is a configuration, near it, and drawn by number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.model.space import Choice, Config, Constant, LogUniform, Normal, Range, SearchSpace, Uniform
from metta.sweep.schedulers.exploration import perturbed
from model.strategies import QUICK, spaces


def near(space: SearchSpace, config: Config, seed: int = 0, **options: Any) -> Config:
    defaults: dict[str, Any] = {"factors": (0.8, 1.2), "resample_probability": 0.0}
    return perturbed(space, config, np.random.default_rng(seed), **{**defaults, **options})


@QUICK
@given(space=spaces(), seed=st.integers(0, 10**6), resample=st.sampled_from([0.0, 0.25, 1.0]), data=st.data())
def test_it_is_a_configuration_of_the_space_in_its_order(
    space: SearchSpace, seed: int, resample: float, data: st.DataObject
) -> None:
    units = data.draw(st.lists(st.floats(0, 1), min_size=len(space.dimensions), max_size=len(space.dimensions)))
    config = space.decode(units)
    explored = near(space, config, seed, resample_probability=resample)
    space.check(explored)
    assert list(explored) == [name for name in space.parameters if name in explored]
    assert explored == near(space, config, seed, resample_probability=resample)
    assert near(space, config, seed, resample_probability=resample, fixed=space.parameters) == config


@pytest.mark.parametrize(
    ("parameter", "value", "reached"),
    [
        (Uniform(0.0, 10.0), 5.0, {4.0, 6.0}),
        (Uniform(0.0, 10.0), 9.0, {7.2, 10.0}),
        (Uniform(0.0, 10.0), 0.0, {0.0, 2.0}),
        (Uniform(-1.0, 1.0), 0.0, {-0.4, 0.4}),
        (LogUniform(1e-4, 1e-1), 1e-2, {8e-3, 1.2e-2}),
        (Range(1, 100), 50, {40, 60}),
        (Range(1, 100), 1, {1, 2}),
        (Range(1, 100), 2, {1, 3}),
        (Range(1, 4096, log=True), 1000, {800, 1200}),
        (Range(0.1, 0.5, step=0.1), 0.3, {0.2, 0.4}),
        (Range(0, 64, step=16), 64, {48, 64}),
        (Normal(0.0, 1.0), 2.0, {1.6, 2.4}),
        (Choice([64, 16, 32, 128]), 32, {16, 64}),
        (Choice([64, 16, 32, 128]), 128, {64, 128}),
        (Choice(["relu", "tanh"]), "relu", {"relu"}),
        (Choice([True, False]), True, {True}),
        (Constant(3), 3, {3}),
    ],
)
def test_numbers_go_up_or_down_and_stay_within_their_bounds_and_on_their_steps(
    parameter: Any, value: Any, reached: set[Any]
) -> None:
    space = SearchSpace.of({"x": parameter, "y": Uniform(0, 1)})
    found = {near(space, {"x": value, "y": 0.5}, seed)["x"] for seed in range(40)}
    assert sorted(found) == pytest.approx(sorted(reached))


def test_values_are_drawn_anew_as_often_as_they_are_to_be() -> None:
    space = SearchSpace.of({"kind": Choice(list("abcdefghij"))})
    kinds = [near(space, {"kind": "a"}, seed, resample_probability=0.5)["kind"] for seed in range(400)]
    # Of those drawn anew one in ten is the same again.
    assert sum(kind != "a" for kind in kinds) / 400 == pytest.approx(0.45, abs=0.08)
    assert set(kinds) == set("abcdefghij")


def test_what_exists_anew_is_drawn_and_what_was_amended_away_forgotten() -> None:
    space = SearchSpace.of(
        {"optimizer": Choice(["adam", "sgd"]), "momentum": Uniform(0.0, 1.0, when={"optimizer": "sgd"})}
    )
    found = [near(space, {"optimizer": "adam", "gone": 1}, seed, resample_probability=1.0) for seed in range(20)]
    momenta = {config["momentum"] for config in found if config["optimizer"] == "sgd"}
    assert len(momenta) > 5
