"""The model sees the points that configurations stand on, and nothing of what does not exist."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.model.space import Choice, Constant, Range, SearchSpace, Uniform
from metta.sweep.optimizers.features import FeatureMap
from metta.sweep.testing.optimizers import SPACES

CONDITIONAL = SearchSpace.of(
    {
        "net": Choice(["cnn", "mlp"]),
        "marker": Constant("x", when={"net": "cnn"}),
        "filters": Range(1, 64, log=True, when={"marker": "x"}),
        "kernel": Choice([3, 5, 7], when={"filters": [1, 2, 3, 4, 5, 6, 7, 8]}),
        "rate": Uniform(0, 1, when={"kernel": [5, 7]}),
    }
)


@given(space=st.sampled_from([*SPACES.values(), CONDITIONAL]), seed=st.integers(0, 2**32))
@settings(max_examples=100, deadline=None)
def test_points_settle_where_the_configurations_that_they_decode_to_stand(space: SearchSpace, seed: int) -> None:
    feature_map = FeatureMap(space)
    generator = np.random.default_rng(seed)
    points = generator.random((8, feature_map.dimensions))
    points = np.where(generator.random(points.shape) < 0.2, np.round(points), points)
    settled, active = feature_map.settle(points)
    for point, units, exists in zip(points, settled, active, strict=True):
        config = space.decode(point.tolist())
        assert units == pytest.approx(space.encode(config), abs=1e-7)  # normal values have eight digits
        assert exists.tolist() == [name in config for name in space.dimensions]
        assert space.decode(units.tolist()).keys() == config.keys()
    again, same = feature_map.settle(settled)
    assert np.allclose(again, settled, atol=1e-12)
    assert (same == active).all()


def test_any_two_values_of_a_choice_are_as_far_apart_as_the_ends_of_an_axis() -> None:
    feature_map = FeatureMap(SearchSpace.of({"kind": Choice(["a", "b", "c"]), "x": Uniform(0, 1)}))
    units = np.array([[1 / 6, 0.0], [0.5, 0.0], [5 / 6, 0.0], [1 / 6, 1.0]])
    features = feature_map.features(*feature_map.settle(units))
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    assert distances[0, 1] == pytest.approx(1.0)
    assert distances[0, 2] == distances[1, 2] == distances[0, 1]
    assert distances[0, 3] == pytest.approx(1.0)


def test_what_does_not_exist_makes_no_difference() -> None:
    feature_map = FeatureMap(CONDITIONAL)
    generator = np.random.default_rng(0)
    points = generator.random((20, feature_map.dimensions))
    points[:, 0] = 0.75
    features = feature_map.features(*feature_map.settle(points))
    assert (features == features[0]).all()


def test_numbers_and_places_of_values_are_inverse() -> None:
    space = SearchSpace.of({"b": Range(3, 99, log=True), "n": Range(-2, 9), "k": Choice(list("abcde"))})
    feature_map = FeatureMap(space)
    for axis, size in enumerate([97, 12, 5]):
        numbers = np.arange(size)
        assert feature_map.numbers(feature_map.at(axis, numbers), axis).tolist() == numbers.tolist()
