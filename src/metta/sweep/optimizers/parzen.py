"""Densities from observations: a mixture of one product kernel for each of them, and one for the whole space."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp, ndtr, ndtri

from metta.sweep.optimizers.axes import Axes
from metta.sweep.optimizers.encoding import Booleans, Floats, Integers

#: Uniform draws stay this far from 0 and 1, where quantiles are infinite.
_TINY = 1e-12
#: Points of the uniform distribution that the spread of the others is averaged with.
_SHRINKAGE = 3.0
#: Narrower than this no kernel becomes (Watanabe 2023), as a share of the axis.
_LEAST_WIDTH = 0.03
#: Over less than this many deviations a density is flat, and the difference of its masses below lost in rounding.
_FLAT = 1e-4
_HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Parzen:
    """A density over the unit cube, about n points.

    Along ordered axes kernels are normal distributions cut off at 0 and 1; of parameters with finitely many values
    they count with their mass on a value. Along categorical axes a kernel keeps its own value with a probability and
    takes any other equally often (Aitchison & Aitken 1976). Along axes that do not exist at its point a kernel is
    uniform: what is not known of a parameter is left open, so one mixture covers all branches of a conditional space.

    Args:
        axes: The axes of the cube.
        points: (n, d) centres of the kernels.
        active: (n, d) whether the parameters exist there.
        weights: (n,) of the kernels, in any unit.
        prior_weight: Weight of the uniform kernel, in the same unit; above 0.
    """

    def __init__(self, axes: Axes, points: Floats, active: Booleans, *, weights: Floats, prior_weight: float) -> None:
        self._axes, self._points, self._active = axes, points, active
        self._log_weights = np.log(np.append(np.maximum(weights, _TINY), prior_weight))
        self._log_weights -= logsumexp(self._log_weights)
        #: (d,) standard deviations of the kernels along ordered axes.
        self._widths = _widths(points, active)
        #: (d,) probabilities that a kernel takes another category than its own.
        self._changes = _changes(axes.counts, len(points))
        # (n, d) mass of each normal distribution below 0 and below 1.
        self._low, self._high = ndtr((0.0 - points) / self._widths), ndtr((1.0 - points) / self._widths)

    def sample(self, generator: np.random.Generator, count: int) -> Floats:
        """`count` points drawn from the density, at the places of values."""
        kernels = generator.choice(len(self._log_weights), size=count, p=np.exp(self._log_weights))
        draws = generator.random((count, len(self._axes)))
        samples = draws.copy()
        about = np.flatnonzero(kernels < len(self._points))
        if len(about):
            rows = kernels[about]
            quantiles = self._low[rows] + draws[about] * (self._high[rows] - self._low[rows])
            values = self._points[rows] + self._widths * ndtri(np.clip(quantiles, _TINY, 1 - _TINY))
            for axis in self._axes.categorical:
                values[:, axis] = self._changed(axis, self._points[rows, axis], draws[about, axis])
            samples[about] = np.where(self._active[rows], np.clip(values, 0.0, 1.0), draws[about])
        return self._axes.snapped(samples)

    def _changed(self, axis: int, own: Floats, draws: Floats) -> Floats:
        """Each kernel's own category, or with the probability of a change another."""
        count, change = int(self._axes.counts[axis]), self._changes[axis]
        numbers = self._axes.numbers(axis, own)
        others = (numbers + 1 + np.floor(draws / max(change, _TINY) * (count - 1)).astype(np.int64)) % max(count, 1)
        return self._axes.places(axis, np.where(draws < change, others, numbers))

    def log_density(self, points: Floats, active: Booleans) -> Floats:
        """(m,) at points (m, d) whose existing parameters are `active` (m, d)."""
        logs = np.zeros((len(points), len(self._points)))
        if len(self._points):
            ordered = self._axes.continuous
            if ordered:
                logs += self._normal(points[:, ordered], active[:, ordered].astype(np.float64), ordered)
            for axis in self._axes.stepped:
                logs += self._stepped(axis, points[:, axis], active[:, axis])
            for axis in self._axes.categorical:
                logs += self._categorical(axis, points[:, axis], active[:, axis])
        prior = np.zeros((len(points), 1))
        for axis in (*self._axes.stepped, *self._axes.categorical):
            lower, upper = self._axes.cells(axis, self._axes.numbers(axis, points[:, axis]))
            prior[:, 0] += np.where(active[:, axis], np.log(upper - lower), 0.0)
        return np.asarray(logsumexp(np.hstack([logs, prior]) + self._log_weights, axis=1))

    def _normal(self, points: Floats, exists: Floats, axes: list[int]) -> Floats:
        """Squares expanded, so that all axes are two products of matrices."""
        precisions = self._active[:, axes] / self._widths[axes] ** 2
        centred = self._points[:, axes] - 0.5
        mass = np.maximum(self._high[:, axes] - self._low[:, axes], 1e-300)
        constant = -0.5 * centred**2 * precisions - self._active[:, axes] * (
            np.log(self._widths[axes]) + _HALF_LOG_TWO_PI + np.log(mass)
        )
        shifted = exists * (points - 0.5)
        features = np.hstack([-0.5 * shifted * (points - 0.5), shifted, exists])
        return features @ np.hstack([precisions, centred * precisions, constant]).T

    def _stepped(self, axis: int, column: Floats, exists: Booleans) -> Floats:
        lower, upper = self._axes.cells(axis, self._axes.numbers(axis, column))
        centres, width = self._points[:, axis], self._widths[axis]
        above, below = (upper[:, None] - centres) / width, (lower[:, None] - centres) / width
        flat = (above - below) * np.exp(-0.5 * (0.5 * (above + below)) ** 2 - _HALF_LOG_TWO_PI)
        mass = np.where(above - below < _FLAT, flat, ndtr(above) - ndtr(below))
        logs = np.log(np.maximum(mass / (self._high[:, axis] - self._low[:, axis]), 1e-300))
        own = self._active[:, axis]
        logs = np.where(own, logs, np.log(upper - lower)[:, None])
        return np.where(exists[:, None], logs, 0.0)

    def _categorical(self, axis: int, column: Floats, exists: Booleans) -> Floats:
        count, change = int(self._axes.counts[axis]), float(self._changes[axis])
        if count == 1:
            return np.zeros((len(column), len(self._points)))
        same = self._axes.numbers(axis, column)[:, None] == self._axes.numbers(axis, self._points[:, axis])
        logs = np.where(same, math.log1p(-change), math.log(change / (count - 1)))
        logs = np.where(self._active[:, axis], logs, -math.log(count))
        return np.where(exists[:, None], logs, 0.0)


def _widths(points: Floats, active: Booleans) -> Floats:
    """Scott's rule, n^(-1/(d+4)) standard deviations, along each axis over the points that have it.

    The standard deviation is shrunk towards that of the uniform distribution, as if `_SHRINKAGE` more points had been
    drawn from it: a handful of good points says little about how far around them it is good.
    """
    count = np.maximum(active.sum(axis=0), 1)
    means = np.where(active, points, 0.0).sum(axis=0) / count
    squares = np.where(active, (points - means) ** 2, 0.0).sum(axis=0)
    deviations = np.sqrt((squares + _SHRINKAGE / 12) / (count + _SHRINKAGE))
    return np.asarray(np.maximum(deviations * count ** (-1.0 / (points.shape[1] + 4)), _LEAST_WIDTH))


def _changes(counts: Integers, kernels: int) -> Floats:
    """A kernel's own category counts once, and each category 1 / (n + 1) times beside (as in Optuna's)."""
    return np.asarray(np.maximum(counts - 1, 0) / (kernels + 1 + counts))
