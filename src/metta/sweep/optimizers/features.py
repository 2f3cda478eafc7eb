"""The unit cube as the kernel sees it, and the points of it that configurations stand on.

Values of a choice are one-hot, so that any two are equally far apart; integers and steps are moved to the value that
they decode to before the model sees them (Garrido-Merchan & Hernandez-Lobato 2020), so that it knows no differences
where there are none; what does not exist stands in the middle of its axis and adds no distance between configurations
that both lack it.
"""

from __future__ import annotations

import math

import numpy as np

from metta.sweep.model.parameters import Choice, Range
from metta.sweep.model.space import SearchSpace
from metta.sweep.optimizers.encoding import Booleans, Floats, Integers

#: Finite axes with more values than this are searched like continuous ones, and rounded.
FEW_VALUES = 12
#: One-hot values are the distance 1 apart, as the ends of a continuous axis are.
_ONE_HOT = math.sqrt(0.5)


class FeatureMap:
    """From points of the unit cube to features, for one space."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        names = space.dimensions
        parameters = [space.parameters[name] for name in names]
        #: Number of values of each axis, 0 for continuous ones.
        self.sizes: Integers = np.array([parameter.cardinality or 0 for parameter in parameters], dtype=np.int64)
        self.is_choice: Booleans = np.array([isinstance(each, Choice) for each in parameters], dtype=np.bool_)
        is_log = np.array([isinstance(each, Range) and each.log for each in parameters], dtype=np.bool_)
        #: Finite axes whose values have parts of the axis of one length, and those of integers on a log scale.
        self._steps = np.flatnonzero((self.sizes > 0) & ~is_log)
        self._log_integers = np.flatnonzero((self.sizes > 0) & is_log)
        #: Of the latter, the first and the last value, and the logarithms of the ends of the axis; zero elsewhere.
        bounds = np.zeros((2, len(names)))
        for axis in self._log_integers.tolist():
            bounds[:, axis] = parameters[axis].value_at(0), parameters[axis].value_at(int(self.sizes[axis]) - 1)
        self._lowest, self._highest = bounds
        ends = np.where((self.sizes > 0) & is_log, np.stack([self._lowest - 0.5, self._highest + 0.5]), 1.0)
        self._logarithms = np.log(ends)
        #: Axes along which a point may be moved little by little.
        self.is_smooth: Booleans = ~self.is_choice & ((self.sizes == 0) | (self.sizes > FEW_VALUES))
        widths = np.where(self.is_choice, self.sizes, 1)
        #: The axis that each feature belongs to: features of one axis share a lengthscale.
        self.axes: Integers = np.repeat(np.arange(len(names)), widths)
        #: The first feature of each axis.
        self.first: Integers = np.concatenate([[0], np.cumsum(widths)[:-1]]).astype(np.int64)
        #: Features whose axis has an order, and may be stretched (`input_warping`).
        self.warped: Integers = self.first[~self.is_choice]
        #: (f,) where a linear trend has no effect: the middle of each ordered axis.
        self.centre: Floats = np.where(self.is_choice, 0.0, 0.5)[self.axes]
        self._conditions = self._resolved_conditions()

    def _resolved_conditions(self) -> list[tuple[int, list[tuple[int, Integers]]]]:
        """For each conditional parameter in order of resolution: its axis, and numbers accepted by axis of the parent.

        Constants take part: whether they exist may depend on others, and others on them.
        """
        space = self.space
        axis = {name: number for number, name in enumerate(space.dimensions)}
        resolved: list[tuple[int, list[tuple[int, Integers]]]] = []
        #: Constants, with the conditions under which they exist.
        exists: dict[str, list[tuple[int, Integers]]] = {}
        for name in space.resolution_order:
            rules: list[tuple[int, Integers]] = []
            for parent, accepted in space.conditions[name].items():
                if parent in axis:
                    rules.append((axis[parent], np.array([each for each in accepted if each is not None])))
                else:
                    # The only value of a constant is accepted, or the space would have refused the condition.
                    rules += exists[parent]
            exists[name] = rules
            if name in axis and rules:
                resolved.append((axis[name], rules))
        return resolved

    @property
    def dimensions(self) -> int:
        """Number of axes of the cube."""
        return len(self.sizes)

    def settle(self, units: Floats) -> tuple[Floats, Booleans]:
        """The points (n, d) on which the configurations that `units` (n, d) decode to stand, and what exists there.

        `SearchSpace.encode(decode(x))`, but for the last bits of continuous axes; inactive axes at 0.5.
        """
        settled = np.clip(units, 0.0, 1.0)
        if len(self._steps):
            sizes = self.sizes[self._steps]
            settled[:, self._steps] = (np.minimum(np.floor(settled[:, self._steps] * sizes), sizes - 1) + 0.5) / sizes
        if len(self._log_integers):
            values = np.round(self._values(settled[:, self._log_integers], self._log_integers))
            values = np.clip(values, self._lowest[self._log_integers], self._highest[self._log_integers])
            settled[:, self._log_integers] = self._places(values, self._log_integers)
        active = np.ones(settled.shape, dtype=np.bool_)
        for axis, rules in self._conditions:
            for parent, accepted in rules:
                active[:, axis] &= active[:, parent] & np.isin(self.numbers(settled[:, parent], parent), accepted)
            settled[~active[:, axis], axis] = 0.5
        return settled, active

    def _values(self, columns: Floats, axes: Integers | int) -> Floats:
        """The values, unrounded, at points of axes of integers on a log scale, as in `Range.decode`."""
        low, high = self._logarithms[:, axes]
        return np.asarray(np.exp(low + columns * (high - low)))

    def _places(self, values: Floats | Integers, axes: Integers | int) -> Floats:
        """Where values of such axes stand, as in `Range.encode`."""
        low, high = self._logarithms[:, axes]
        return np.asarray((np.log(values) - low) / (high - low))

    def numbers(self, column: Floats, axis: int) -> Integers:
        """Numbers of the values at settled points of a finite axis."""
        if axis in self._log_integers:
            return np.asarray(np.round(self._values(column, axis)) - self._lowest[axis], dtype=np.int64)
        return np.asarray(np.minimum(column * self.sizes[axis], self.sizes[axis] - 1), dtype=np.int64)

    def at(self, axis: int, numbers: Integers) -> Floats:
        """Where the values of these numbers stand on a finite axis."""
        if axis in self._log_integers:
            return self._places(numbers + self._lowest[axis], axis)
        return np.asarray((numbers + 0.5) / self.sizes[axis])

    def features(self, settled: Floats, active: Booleans) -> Floats:
        """What the kernel compares, (n, f), for settled points (n, d)."""
        features = settled[:, self.axes]
        for axis in np.flatnonzero(self.is_choice).tolist():
            start, size = int(self.first[axis]), int(self.sizes[axis])
            chosen = self.numbers(settled[:, axis], axis)[:, None] == np.arange(size)
            # What does not exist is equally far from all values, and at no distance from itself.
            features[:, start : start + size] = _ONE_HOT * (chosen & active[:, axis, None])
        return features
