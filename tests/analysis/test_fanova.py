"""Variances of trees, against sums over a grid fine enough to be exact."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.analysis.fanova import Floats, Tree, Variances

#: Thresholds are multiples of 1/8, so that a grid of eighths tells each leaf apart.
_STEPS = 8
_DIMENSIONS = 3


def random_tree(seed: int, splits: int) -> Tree:
    """Grown by splitting a leaf again and again, at random."""
    choose = np.random.default_rng(seed)
    left, right, axis, threshold = [-1], [-1], [-2], [-2.0]
    boxes = [(np.zeros(_DIMENSIONS), np.ones(_DIMENSIONS))]
    for _ in range(splits):
        node = int(choose.choice([each for each, child in enumerate(left) if child < 0]))
        lower, upper = boxes[node]
        along = int(choose.integers(_DIMENSIONS))
        places = np.arange(lower[along] * _STEPS + 1, upper[along] * _STEPS) / _STEPS
        if not len(places):
            continue
        place = float(choose.choice(places))
        left[node], right[node], axis[node], threshold[node] = len(left), len(left) + 1, along, place
        for is_left in (True, False):
            ends = lower.copy(), upper.copy()
            ends[is_left][along] = place
            boxes.append(ends)
            left.append(-1)
            right.append(-1)
            axis.append(-2)
            threshold.append(-2.0)
    return Tree(
        left=np.array(left),
        right=np.array(right),
        axis=np.array(axis),
        threshold=np.array(threshold),
        value=choose.normal(size=len(left)),
    )


def predictions(tree: Tree) -> Floats:
    """At the centres of the cells of a grid (8, 8, 8), by walking down the tree."""
    grid = np.zeros((_STEPS,) * _DIMENSIONS)
    for cell in np.ndindex(grid.shape):
        node = 0
        while tree.left[node] >= 0:
            goes_left = (cell[tree.axis[node]] + 0.5) / _STEPS <= tree.threshold[node]
            node = tree.left[node] if goes_left else tree.right[node]
        grid[cell] = tree.value[node]
    return grid


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 2**32), splits=st.integers(0, 30))
def test_variances_are_those_of_the_means_over_the_other_axes(seed: int, splits: int) -> None:
    tree = random_tree(seed, splits)
    grid = predictions(tree)
    found = Variances(tree, _DIMENSIONS)

    assert found.total == pytest.approx(grid.var(), abs=1e-12)
    alone = [grid.mean(axis=tuple(other for other in range(3) if other != axis)).var() for axis in range(3)]
    assert [found.alone(axis) for axis in range(3)] == pytest.approx(alone, abs=1e-12)
    for first, second, other in ((0, 1, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1)):
        both = grid.mean(axis=other).var()
        assert found.together(first, second) == pytest.approx(both - alone[first] - alone[second], abs=1e-12)


def test_a_tree_of_one_leaf_varies_in_nothing() -> None:
    found = Variances(random_tree(0, 0), _DIMENSIONS)
    assert (found.total, found.alone(0), found.together(0, 1)) == (0.0, 0.0, 0.0)


def test_the_marginal_is_the_mean_over_the_other_axes() -> None:
    tree = random_tree(5, 20)
    edges, values = Variances(tree, _DIMENSIONS).marginal(1)
    at_each_step = values[np.searchsorted(edges, (np.arange(_STEPS) + 0.5) / _STEPS) - 1]
    assert at_each_step == pytest.approx(predictions(tree).mean(axis=(0, 2)))
