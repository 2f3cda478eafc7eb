"""Functional analysis of variance of a forest of regression trees over the unit cube.

Hutter, Hoos, Leyton-Brown (2014), "An Efficient Approach for Assessing Hyperparameter Importance", section 4: a tree is
constant on boxes, so what it predicts on average at one value of one parameter, over all values of the others, is a sum
over its leaves, and so is the variance of these averages. Here the sums over all places of an axis are taken at once,
from where each leaf begins and ends on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.intp]


@dataclass(frozen=True)
class Tree:
    """A binary regression tree of n nodes, the root first, as scikit-learn has it (`tree_`)."""

    #: (n,) the children of a node, -1 for leaves; what is at most the threshold goes left.
    left: Integers
    right: Integers
    #: (n,) the axis that a node splits.
    axis: Integers
    threshold: Floats
    #: (n,) what it predicts.
    value: Floats


class Variances:
    """Where the variance of a tree's predictions over the unit cube, under the uniform distribution, comes from."""

    def __init__(self, tree: Tree, dimensions: int) -> None:
        self._lower, self._upper, self._value = _leaves(tree, dimensions)
        self._volume = np.prod(self._upper - self._lower, axis=1)
        self._mean = float(self._volume @ self._value)
        self._edges = [np.unique([self._lower[:, axis], self._upper[:, axis]]) for axis in range(dimensions)]

    @cached_property
    def total(self) -> float:
        """The variance over the whole cube."""
        return float(self._volume @ (self._value - self._mean) ** 2)

    def marginal(self, axis: int) -> tuple[Floats, Floats]:
        """What is predicted along an axis, on average over all others: edges (k + 1,) and the values between (k,)."""
        edges = self._edges[axis]
        begin, end = self._span(axis)
        weight = self._value * self._volume / (self._upper[:, axis] - self._lower[:, axis])
        changes = np.bincount(begin, weight, len(edges)) - np.bincount(end, weight, len(edges))
        return edges, np.cumsum(changes)[:-1]

    def alone(self, axis: int) -> float:
        """The variance of what is predicted along one axis: its main effect."""
        edges, values = self.marginal(axis)
        return float(np.diff(edges) @ (values - self._mean) ** 2)

    def together(self, first: int, second: int) -> float:
        """The variance over two axes that neither explains alone: their interaction."""
        shape = len(self._edges[first]), len(self._edges[second])
        size = (self._upper - self._lower)[:, [first, second]]
        weight = self._value * self._volume / (size[:, 0] * size[:, 1])
        changes = np.zeros(shape)
        for sign_of_row, row in zip((1, -1), self._span(first), strict=True):
            for sign_of_column, column in zip((1, -1), self._span(second), strict=True):
                # A flat index is much faster to add at than a pair of them.
                flat = np.bincount(row * shape[1] + column, weight, shape[0] * shape[1])
                changes += sign_of_row * sign_of_column * flat.reshape(shape)
        values = changes.cumsum(axis=0).cumsum(axis=1)[:-1, :-1]
        both = np.diff(self._edges[first]) @ (values - self._mean) ** 2 @ np.diff(self._edges[second])
        return max(0.0, float(both) - self.alone(first) - self.alone(second))

    def _span(self, axis: int) -> tuple[Integers, Integers]:
        """Numbers of the edges at which each leaf begins and ends."""
        edges = self._edges[axis]
        return np.searchsorted(edges, self._lower[:, axis]), np.searchsorted(edges, self._upper[:, axis])


def _leaves(tree: Tree, dimensions: int) -> tuple[Floats, Floats, Floats]:
    """Of the m leaves: the lower and upper corners, (m, d), and what is predicted there, (m,)."""
    count = len(tree.value)
    lower, upper = np.zeros((count, dimensions)), np.ones((count, dimensions))
    nodes = np.array([0])
    while len(nodes):
        nodes = nodes[tree.left[nodes] >= 0]
        left, right, axis = tree.left[nodes], tree.right[nodes], tree.axis[nodes]
        for children in (left, right):
            lower[children], upper[children] = lower[nodes], upper[nodes]
        upper[left, axis] = lower[right, axis] = tree.threshold[nodes]
        nodes = np.concatenate([left, right])
    leaves = tree.left < 0
    return lower[leaves], upper[leaves], tree.value[leaves]
