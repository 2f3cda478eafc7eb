"""The axes of the unit cube, for optimizers that move points about in it: what `decode` sees, for many at once."""

from __future__ import annotations

import math

import numpy as np

from metta.sweep.model.parameters import Choice, Range
from metta.sweep.model.space import SearchSpace
from metta.sweep.optimizers.encoding import Booleans, Floats, Integers


class Axes:
    """What each axis stands for. Points are arrays (m, d) of numbers in [0, 1]."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.names = space.dimensions
        parameters = [space.parameters[name] for name in self.names]
        #: (d,) number of values; 0 where there is a continuum of them.
        self.counts: Integers = np.array([parameter.cardinality or 0 for parameter in parameters], dtype=np.int64)
        #: Axes whose values have no order, and those whose values have one and are finitely many.
        self.categorical = [axis for axis, parameter in enumerate(parameters) if isinstance(parameter, Choice)]
        self.stepped = [axis for axis, count in enumerate(self.counts) if count and axis not in self.categorical]
        self.continuous = [axis for axis, count in enumerate(self.counts) if not count]
        #: By axis, the logarithms of the bounds of integers on a log scale, and the lowest of them.
        self._logs = {
            axis: (math.log(parameter.low - 0.5), math.log(parameter.high + 0.5), int(parameter.low))
            for axis, parameter in enumerate(parameters)
            if isinstance(parameter, Range) and parameter.log and parameter.cardinality is not None
        }
        self._axis = {name: axis for axis, name in enumerate(self.names)}
        self._conditional = [name for name in space.resolution_order if space.conditions[name]]

    def __len__(self) -> int:
        return len(self.names)

    def numbers(self, axis: int, column: Floats) -> Integers:
        """Which value of a finite axis each coordinate stands for."""
        if axis in self._logs:
            low, high, lowest = self._logs[axis]
            values = np.rint(np.exp(low + column * (high - low))).astype(np.int64)
            return np.asarray(np.clip(values - lowest, 0, self.counts[axis] - 1), dtype=np.int64)
        return np.asarray(np.minimum((column * self.counts[axis]).astype(np.int64), self.counts[axis] - 1))

    def cells(self, axis: int, numbers: Integers) -> tuple[Floats, Floats]:
        """The interval of coordinates that stand for each value of a finite axis."""
        if axis in self._logs:
            low, high, lowest = self._logs[axis]
            values = (numbers + lowest).astype(np.float64)
            lower, upper = np.log(values - 0.5), np.log(values + 0.5)
            return (lower - low) / (high - low), (upper - low) / (high - low)
        return numbers / self.counts[axis], (numbers + 1) / self.counts[axis]

    def places(self, axis: int, numbers: Integers) -> Floats:
        """Where values of a finite axis stand, as `SearchSpace.encode` has it."""
        if axis in self._logs:
            low, high, lowest = self._logs[axis]
            return np.asarray((np.log((numbers + lowest).astype(np.float64)) - low) / (high - low))
        return np.asarray((numbers + 0.5) / self.counts[axis])

    def snapped(self, points: Floats) -> Floats:
        """The points moved to where the values that they stand for have their place."""
        points = points.copy()
        for axis in (*self.categorical, *self.stepped):
            points[:, axis] = self.places(axis, self.numbers(axis, points[:, axis]))
        return points

    def active(self, points: Floats) -> Booleans:
        """(m, d) whether the parameter of each axis exists there."""
        exists = np.ones(points.shape, dtype=np.bool_)
        present: dict[str, Booleans] = {}
        for name in self._conditional:
            here = np.ones(len(points), dtype=np.bool_)
            for parent, accepted in self.space.conditions[name].items():
                here &= present.get(parent, np.True_)
                if parent in self._axis:
                    axis = self._axis[parent]
                    here &= np.isin(
                        self.numbers(axis, points[:, axis]), [number for number in accepted if number is not None]
                    )
                elif 0 not in accepted:  # a constant has one value
                    here[:] = False
            present[name] = here
            if name in self._axis:
                exists[:, self._axis[name]] = here
        return exists
