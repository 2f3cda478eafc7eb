"""Axes see what `SearchSpace.decode` and `encode` see, for many points at once."""

from __future__ import annotations

import numpy as np
import pytest

from metta.sweep.model.space import Choice, Constant, Range, SearchSpace, Uniform
from metta.sweep.optimizers.axes import Axes
from metta.sweep.testing.searches import SPACES

LARGE = SearchSpace.of(
    {
        "huge": Range(1, 10**12, log=True),
        "many": Range(-5, 10**9, step=7),
        "few": Range(0.1, 0.7, step=0.2),
        "one": Choice(["only"]),
        "fixed": Constant(2),
        "with_fixed": Uniform(0.0, 1.0, when={"fixed": 2}),
        "by_number": Choice(["a", "b"], when={"few": [0.1, 0.5]}),
        "deep": Range(1, 9, when={"by_number": "b", "one": "only"}),
    }
)
ALL = {**SPACES, "large": LARGE}


def points(space: SearchSpace, count: int = 300) -> np.ndarray:
    """Random ones, with all corners of a diagonal."""
    dimensions = len(space.dimensions)
    drawn = np.random.default_rng(5).random((count, dimensions))
    return np.vstack([drawn, np.zeros(dimensions), np.ones(dimensions)])


@pytest.mark.parametrize("space", ALL.values(), ids=ALL)
def test_points_move_to_where_their_values_have_their_place(space: SearchSpace) -> None:
    axes, drawn = Axes(space), points(space)
    snapped, active = axes.snapped(drawn), axes.active(drawn)
    for row, point in enumerate(drawn.tolist()):
        config = space.decode(point)
        assert active[row].tolist() == [name in config for name in space.dimensions]
        place = np.array(space.encode(config))
        assert snapped[row][active[row]] == pytest.approx(place[active[row]], abs=1e-7)


@pytest.mark.parametrize("space", ALL.values(), ids=ALL)
def test_cells_hold_the_points_that_stand_for_a_value_and_no_others(space: SearchSpace) -> None:
    axes = Axes(space)
    for axis in (*axes.categorical, *axes.stepped):
        column = points(space)[:, axis]
        lower, upper = axes.cells(axis, axes.numbers(axis, column))
        assert (lower <= column + 1e-12).all()
        assert (column <= upper + 1e-12).all()
        numbers = np.arange(min(axes.counts[axis], 1000))
        lower, upper = axes.cells(axis, numbers)
        assert lower[0] == pytest.approx(0.0, abs=1e-12)
        assert lower[1:] == pytest.approx(upper[:-1], abs=1e-12)
        if len(numbers) == axes.counts[axis]:
            assert upper[-1] == pytest.approx(1.0)


def test_axes_are_of_three_kinds() -> None:
    axes = Axes(LARGE)
    kinds = {
        kind: {axes.names[axis] for axis in getattr(axes, kind)} for kind in ("continuous", "stepped", "categorical")
    }
    assert kinds == {
        "continuous": {"with_fixed"},
        "stepped": {"huge", "many", "few", "deep"},
        "categorical": {"one", "by_number"},
    }
    assert len(axes) == 7


def test_a_condition_on_another_constant_never_holds() -> None:
    space = SearchSpace.of({"fixed": Constant(2), "x": Uniform(0.0, 1.0, when={"fixed": [2]}), "y": Uniform(0.0, 1.0)})
    assert Axes(space).active(points(space)).all()
