"""Where the acquisition is highest: candidates everywhere and around the best runs, the best of them moved uphill."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from metta.sweep.optimizers.encoding import Booleans, Floats, Integers
from metta.sweep.optimizers.features import FeatureMap

#: Candidates all over the space, and around the best runs.
SPREAD, AROUND = 512, 512
#: Candidates that are moved uphill.
_STARTS = 6
_ITERATIONS = 20
#: Points closer than this on every axis to one that was measured, or is being measured, would teach nothing new.
MEASURED, PENDING = 0.003, 0.01
#: Changes of single values after which the search for better ones ends.
_CHANGES = 5
#: Values of one choice that are tried in exchange, of those that have more.
_MOST_VALUES = 64
#: Instead of what is no number or minus infinity.
_DROWNED = -1e300


class Acquisition(Protocol):
    """What is to be maximised, at features (q, f)."""

    def __call__(self, features: Floats) -> Floats:
        """Values (q,)."""
        ...

    def with_slopes(self, features: Floats) -> tuple[Floats, Floats]:
        """Values (q,), and their derivatives (q, f)."""
        ...


@dataclass(frozen=True)
class Points:
    """Settled points with their values, best first."""

    units: Floats
    active: Booleans
    values: Floats

    def take(self, rows: Integers) -> Points:
        """These rows."""
        return Points(self.units[rows], self.active[rows], self.values[rows])

    def ranked(self) -> Points:
        """Best first; of equal ones the first."""
        return self.take(np.argsort(-self.values, kind="stable"))

    def __add__(self, other: Points) -> Points:
        return Points(
            np.concatenate([self.units, other.units]),
            np.concatenate([self.active, other.active]),
            np.concatenate([self.values, other.values]),
        )


class Search:
    """Maximises an acquisition over the points of a space that are not taken yet.

    Args:
        feature_map: Of the space.
        acquisition: What to maximise.
        centres: (c, d) settled points of the best runs.
        measured: (m, d) settled points of runs that have ended.
        pending: (p, d) settled points of runs on their way.
    """

    def __init__(
        self, feature_map: FeatureMap, acquisition: Acquisition, centres: Floats, measured: Floats, pending: Floats
    ) -> None:
        self._map = feature_map
        self._acquisition = acquisition
        self._centres = centres
        self._taken = ((measured, MEASURED), (pending, PENDING))

    def among(self, units: Floats) -> Points:
        """These points, best first, whatever they are near to."""
        return self._with_values(*self._map.settle(units)).ranked()

    def run(self, generator: np.random.Generator, effort: float = 1.0) -> Points:
        """The best points found, best first; with an effort below 1 fewer candidates, moved less far."""
        iterations = math.ceil(_ITERATIONS * effort)
        everywhere = self._valued(generator.random((int(SPREAD * effort), self._map.dimensions))).ranked()
        near = self._valued(around(self._map, self._centres, int(AROUND * effort), generator)).ranked()
        half = np.arange(math.ceil(_STARTS // 2 * effort))
        starts = everywhere.take(half[: len(everywhere.values)]) + near.take(half[: len(near.values)])
        if not len(starts.values):
            return starts
        found = (self._climbed(starts, iterations) + starts).ranked()
        return (self._exchanged(found.take(np.arange(1)), math.ceil(_CHANGES * effort), iterations) + found).ranked()

    def _valued(self, units: Floats) -> Points:
        units, active = self._map.settle(units)
        for taken, distance in self._taken:
            if len(taken) and len(units):
                free = cdist(units, taken, "chebyshev").min(axis=1) > distance
                units, active = units[free], active[free]
        return self._with_values(units, active)

    def _with_values(self, units: Floats, active: Booleans) -> Points:
        if not len(units):
            return Points(units, active, np.empty(0))
        values = self._acquisition(self._map.features(units, active))
        return Points(units, active, np.nan_to_num(values, nan=_DROWNED, neginf=_DROWNED))

    def _climbed(self, starts: Points, iterations: int) -> Points:
        return self._valued(climb(self._map, starts.units, starts.active, self._acquisition, iterations))

    def _exchanged(self, point: Points, changes: int, iterations: int) -> Points:
        """The best point reached from this one by exchanging one value of a choice or a step at a time."""
        start = point
        for _ in range(changes):
            beside = self._valued(neighbours(self._map, point.units[0], point.active[0]))
            if not len(beside.values):
                break
            best = beside.ranked().take(np.arange(1))
            if best.values[0] <= point.values[0] + 1e-9:
                break
            point = best
        return point if point is start else self._climbed(point, iterations // 2) + point


def around(feature_map: FeatureMap, centres: Floats, count: int, generator: np.random.Generator) -> Floats:
    """About `count` points near the centres (c, d): a few axes moved a little or more, or to another value."""
    dimensions = feature_map.dimensions
    points = np.repeat(centres, max(1, count // len(centres)), axis=0)
    # Small steps and large ones, of one axis, of a few, or of all: nobody knows the scale of what is left to win.
    size = 10.0 ** generator.uniform(-2.5, -0.5, (len(points), 1))
    share = np.minimum(1.0, generator.choice([1.5, 3.0, 20.0], (len(points), 1)) / dimensions)
    moved = generator.random(points.shape) < share
    moved[np.arange(len(points)), generator.integers(0, dimensions, len(points))] = True
    steps = size * generator.standard_normal(points.shape)
    draws = generator.random(points.shape)
    near = np.where(feature_map.is_smooth, _reflected(points + steps), draws)
    # Of ordered values the neighbour, or any.
    steps_away = np.sign(steps) / np.maximum(feature_map.sizes, 1)
    hops = ~feature_map.is_smooth & ~feature_map.is_choice & (draws < 0.5)
    near = np.where(hops, np.clip(points + steps_away, 0.0, 1.0), near)
    return np.where(moved, near, points)


def _reflected(points: Floats) -> Floats:
    """Folded back into the cube at its faces; points in it stay as they are."""
    folded = 1.0 - np.abs(1.0 - np.mod(points, 2.0))
    return np.asarray(np.where((points >= 0.0) & (points <= 1.0), points, folded))


def climb(feature_map: FeatureMap, starts: Floats, active: Booleans, acquisition: Acquisition, most: int) -> Floats:
    """The starts (s, d), each moved uphill along its smooth axes, all in one L-BFGS-B run over their coordinates.

    As in BoTorch (Balandat et al. 2020): the sum of the values has the gradient of each in its own coordinates.
    """
    smooth = np.flatnonzero(feature_map.is_smooth)
    if not len(smooth):
        return starts
    columns = feature_map.first[smooth]
    features = feature_map.features(starts, active)
    movable = active[:, smooth]

    def negative(flat: Floats) -> tuple[float, Floats]:
        features[:, columns] = flat.reshape(movable.shape)
        values, slopes = acquisition.with_slopes(features)
        return -float(values.sum()), -(slopes[:, columns] * movable).ravel()

    found = minimize(
        negative,
        starts[:, smooth].ravel(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(0.0, 1.0)] * movable.size,
        options={"maxiter": most, "maxfun": most, "ftol": 1e-9},
    )
    moved = starts.copy()
    moved[:, smooth] = found.x.reshape(movable.shape)
    return moved


def neighbours(feature_map: FeatureMap, point: Floats, active: Booleans) -> Floats:
    """The points that differ from `point` (d,) in one axis of few values: every other choice, the steps beside."""
    found = [np.empty((0, len(point)))]
    for axis in np.flatnonzero(~feature_map.is_smooth & active).tolist():
        size = int(feature_map.sizes[axis])
        here = int(feature_map.numbers(point[axis : axis + 1], axis)[0])
        beside = range(0, size, -(-size // _MOST_VALUES)) if feature_map.is_choice[axis] else (here - 1, here + 1)
        numbers = np.array([number for number in beside if number != here and 0 <= number < size], dtype=np.int64)
        copies = np.repeat(point[None], len(numbers), axis=0)
        copies[:, axis] = feature_map.at(axis, numbers)
        found.append(copies)
    return np.concatenate(found)


def off_the_faces(feature_map: FeatureMap, point: Floats, generator: np.random.Generator) -> Floats:
    """The point (d,) with half of its coordinates that lie on a face of the cube moved a little inside.

    An acquisition likes faces, and a model that has seen an axis at its end alone, and far from it, knows nothing of
    what lies between: of a weight decay from 0 to 0.1 that is best at 0.001. A step between a thousandth and a tenth of
    the axis costs little where the end is best, and finds out where it is not.
    """
    on_face = feature_map.is_smooth & ((point <= 0.0) | (point >= 1.0))
    step = 10.0 ** generator.uniform(-3.0, -1.0, len(point))
    moves = on_face & (generator.random(len(point)) < 0.5)
    return np.where(moves, np.where(point <= 0.0, step, 1.0 - step), point)
