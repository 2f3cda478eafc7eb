"""The search for the highest acquisition finds it, wherever it is, and never goes where it may not."""

from __future__ import annotations

import numpy as np
import pytest

from metta.sweep.model.space import Choice, Range, SearchSpace, Uniform
from metta.sweep.optimizers import initial_design
from metta.sweep.optimizers.encoding import Floats
from metta.sweep.optimizers.features import FeatureMap
from metta.sweep.optimizers.modelling import fitted_at
from metta.sweep.optimizers.search import Search, around, neighbours, off_the_faces
from metta.sweep.optimizers.subset import chosen_rows

SPACE = FeatureMap(
    SearchSpace.of(
        {
            "x": Uniform(0, 1),
            "kind": Choice(["a", "b", "c", "d", "e"]),
            "y": Uniform(0, 1),
            "layers": Range(1, 6),
            "rate": Uniform(0, 1, when={"kind": ["b", "c"]}),
        }
    )
)


NOTHING = np.empty((0, 5))


class Hill:
    """Minus the squared distance of the features to a peak."""

    def __init__(self, peak: Floats) -> None:
        self._peak = peak

    def __call__(self, features: Floats) -> Floats:
        return self.with_slopes(features)[0]

    def with_slopes(self, features: Floats) -> tuple[Floats, Floats]:
        return -np.square(features - self._peak).sum(axis=1), -2 * (features - self._peak)


def settled(count: int, seed: int = 0) -> Floats:
    return SPACE.settle(np.random.default_rng(seed).random((count, SPACE.dimensions)))[0]


@pytest.mark.parametrize("seed", range(5))
def test_it_finds_the_top_of_a_hill_in_a_mixed_space(seed: int) -> None:
    peak, active = SPACE.settle(np.random.default_rng(seed).random((1, SPACE.dimensions)))
    hill = Hill(SPACE.features(peak, active)[0])
    found = Search(SPACE, hill, settled(3, seed=9), NOTHING, NOTHING).run(np.random.default_rng(1))
    assert found.values[0] == pytest.approx(0.0, abs=1e-6)
    assert found.units[0] == pytest.approx(peak[0], abs=1e-3)
    assert (np.diff(found.values) <= 0).all()


def test_what_is_taken_is_not_found_again() -> None:
    space = FeatureMap(SearchSpace.of({"kind": Choice(["a", "b", "c"]), "layers": Range(1, 3)}))
    points = np.array([[kind, layers] for kind in (1 / 6, 0.5, 5 / 6) for layers in (1 / 6, 0.5, 5 / 6)])
    hill = Hill(space.features(*space.settle(points[4:5]))[0])
    for taken in range(len(points)):
        found = Search(space, hill, points[:2], np.delete(points, taken, axis=0), NOTHING[:, :2]).run(
            np.random.default_rng(0)
        )
        assert np.unique(found.units, axis=0).tolist() == [points[taken].tolist()]
    assert len(Search(space, hill, points[:2], points, points).among(points).values) == len(points)
    assert len(Search(space, hill, points[:2], NOTHING[:, :2], points).run(np.random.default_rng(0)).values) == 0


def test_neighbours_differ_in_one_value_that_exists() -> None:
    point, active = SPACE.settle(np.array([[0.3, 0.1, 0.5, 0.05, 0.5]]))
    found = neighbours(SPACE, point[0], active[0])
    assert len(found) == 4 + 1
    assert ((found != point).sum(axis=1) == 1).all()


def test_candidates_around_stay_in_the_cube_and_change_something() -> None:
    centres = settled(3)
    centres[0] = [0.0, 0.1, 1.0, 0.08, 0.5]
    found = around(SPACE, centres, 300, np.random.default_rng(0))
    assert ((found >= 0) & (found <= 1)).all()
    assert (found != np.repeat(centres, 100, axis=0)).any(axis=1).all()


def test_half_of_the_coordinates_on_a_face_move_a_little_inside_and_no_others() -> None:
    generator = np.random.default_rng(0)
    point = np.array([0.0, 0.1, 1.0, 0.08, 0.5])
    moved = np.array([off_the_faces(SPACE, point, generator) for _ in range(400)])
    assert (moved[:, [1, 3, 4]] == point[[1, 3, 4]]).all()
    assert 0.4 < (moved[:, 0] > 0).mean() < 0.6
    assert moved[:, 0].max() <= 0.1
    assert moved[:, 2].min() >= 0.9


@pytest.mark.parametrize("count", [1, 2, 7, 100, 1000, 100_000])
def test_hyperparameters_are_fitted_to_nearly_all_that_there_is(count: int) -> None:
    assert 0.9 * count <= fitted_at(count) <= count
    assert fitted_at(fitted_at(count)) == fitted_at(count)


def test_a_subset_holds_the_best_their_neighbours_and_a_bit_of_everything() -> None:
    generator = np.random.default_rng(0)
    units = generator.random((20_000, 4))
    scores = np.square(units - 0.3).sum(axis=1)
    scores[::7] = np.inf
    rows = chosen_rows(units, scores, 300)
    assert 250 <= len(rows) <= 300
    assert (np.diff(rows) > 0).all()
    assert set(np.argsort(scores)[:100]) <= set(rows)
    assert np.histogram(rows, bins=10, range=(0, 20_000))[0].min() >= 8
    assert chosen_rows(units[:300], scores[:300], 300).tolist() == list(range(300))
    assert chosen_rows(units, np.zeros(20_000), 300).tolist() == chosen_rows(units, np.zeros(20_000), 300).tolist()


def test_the_initial_design_begins_in_the_middle_and_covers_every_half() -> None:
    points = np.array([initial_design.point(3, index, 5) for index in range(9)])
    assert (points[0] == 0.5).all()
    assert ((points[1:] < 0.5).sum(axis=0) == 4).all()
    assert (points == [initial_design.point(3, index, 5) for index in range(9)]).all()
    assert (points[1:] != [initial_design.point(4, index, 5) for index in range(1, 9)]).all()
    assert initial_design.point(0, 2, 30_000).shape == (30_000,)


def test_a_choice_of_very_many_values_is_tried_in_part() -> None:
    many = FeatureMap(SearchSpace.of({"kind": Choice(list(range(5000)))}))
    found = neighbours(many, np.array([0.3]), np.array([True]))
    assert 60 <= len(found) <= 64
