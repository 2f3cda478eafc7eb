"""Many configurations as points of the unit cube at once: `SearchSpace.encode` by columns.

Bit for bit what `Parameter.encode` gives, so that it makes no difference how many configurations are encoded together:
logarithms are the C library's, called once a value, and the rest is exact arithmetic on arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metta.sweep.model.parameters import LogUniform, Parameter, Range, Uniform
from metta.sweep.model.space import Config, SearchSpace

Floats: TypeAlias = NDArray[np.float64]
Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

#: Configurations taken at a time: so few stay in the processor's cache while column after column is read.
_CHUNK = 1024
#: Types whose values can be looked up in a dictionary, and which nearly all choices are of.
_SIMPLE = frozenset({str, int, float, bool})


class Encoder:
    """Encodes the configurations of one space."""

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self._axis = {name: axis for axis, name in enumerate(space.dimensions)}
        self._parents = {parent for conditions in space.conditions.values() for parent in conditions}
        self._accepted = {
            name: {parent: [index for index in indices if index is not None] for parent, indices in conditions.items()}
            for name, conditions in space.conditions.items()
        }
        self._numbers = {
            name: _Numbers(parameter)
            for name, parameter in space.parameters.items()
            if parameter.cardinality is not None
        }

    def encode(self, configs: Sequence[Config]) -> tuple[Floats, Booleans, Booleans]:
        """Points of the unit cube.

        Returns:
            units (n, d), as `SearchSpace.encode` gives them, inactive axes at 0.5; active (n, d), whether the parameter
            of the axis exists; fits (n,), False for what is no configuration of this space, whose row means nothing.
        """
        shape = (len(configs), len(self._axis))
        units, active, fits = np.full(shape, 0.5), np.zeros(shape, np.bool_), np.ones(len(configs), np.bool_)
        for start in range(0, len(configs), _CHUNK):
            rows = slice(start, start + _CHUNK)
            self._encode(configs[rows], units[rows], active[rows], fits[rows])
        return units, active, fits

    def _encode(self, configs: Sequence[Config], units: Floats, active: Booleans, fits: Booleans) -> None:
        """Fills in what `encode` returns."""
        count = len(configs)
        known = np.zeros(count, dtype=np.int64)
        indices: dict[str, Integers] = {}
        gathered = self._gathered(configs)
        for name in self.space.resolution_order:
            values, exists = gathered[name]
            known += exists
            if self._accepted[name] or len(values) < count:
                fits &= exists == self._is_active(name, indices, count)
            # A slice, where it will do, is several times as fast.
            rows = slice(None) if len(values) == count else np.flatnonzero(exists)
            column, numbers = self._column(name, values)
            fits[rows] &= np.isfinite(column)
            if name in self._parents:
                indices[name] = np.full(count, -1, dtype=np.int64)
                indices[name][rows] = numbers
            if name in self._axis:
                units[rows, self._axis[name]] = column
                active[:, self._axis[name]] = exists
        fits &= known == np.fromiter(map(len, configs), np.int64, count)

    def _gathered(self, configs: Sequence[Config]) -> dict[str, tuple[Sequence[Any], Booleans]]:
        """Of each parameter the values, where it has one, and where that is."""
        names = list(self.space.parameters)
        everywhere = np.ones(len(configs), dtype=np.bool_)
        if configs and all(map(names.__eq__, map(list, configs))):
            # Nothing is conditional, nothing out of order: reading along is faster than looking up.
            columns = zip(*map(dict.values, configs), strict=True)
            return {name: (column, everywhere) for name, column in zip(names, columns, strict=True)}
        gathered: dict[str, tuple[Sequence[Any], Booleans]] = {}
        for name in names:
            exists = np.array([name in config for config in configs], dtype=np.bool_)
            gathered[name] = [config[name] for config in configs if name in config], exists
        return gathered

    def _is_active(self, name: str, indices: dict[str, Integers], count: int) -> Booleans:
        active = np.ones(count, dtype=np.bool_)
        for parent, accepted in self._accepted[name].items():
            active &= np.isin(indices[parent], accepted)
        return active

    def _column(self, name: str, values: Sequence[Any]) -> tuple[Floats, Integers]:
        """Units, NaN for what the parameter does not contain, and, of finite parameters, the numbers of the values."""
        parameter = self.space.parameters[name]
        if name not in self._numbers:
            return _continuous(parameter, values), np.empty(0, dtype=np.int64)
        numbers = self._numbers[name].of(values)
        if isinstance(parameter, Range) and parameter.log:
            low, high = math.log(parameter.low - 0.5), math.log(parameter.high + 0.5)
            column = (_logarithms(values, numbers >= 0) - low) / (high - low)
        else:
            assert parameter.cardinality is not None
            column = (numbers + 0.5) / parameter.cardinality
        return np.where(numbers >= 0, column, np.nan), numbers


def _continuous(parameter: Parameter, values: Sequence[Any]) -> Floats:
    if set(map(type, values)) != {float} or not isinstance(parameter, Uniform | LogUniform | Range):
        return _one_by_one(parameter, values)
    column = np.array(values, dtype=np.float64)
    contained = (column >= parameter.low) & (column <= parameter.high)
    if isinstance(parameter, LogUniform) or (isinstance(parameter, Range) and parameter.log):
        low, high = math.log(parameter.low), math.log(parameter.high)
        column = (_logarithms(values, contained) - low) / (high - low)
    else:
        column = (column - parameter.low) / (parameter.high - parameter.low)
    return np.where(contained, np.clip(column, 0.0, 1.0), np.nan)


def _one_by_one(parameter: Parameter, values: Sequence[Any]) -> Floats:
    contains, encode = parameter.contains, parameter.encode
    return np.array([encode(value) if contains(value) else math.nan for value in values], dtype=np.float64)


def _logarithms(values: Sequence[Any], wanted: Booleans) -> Floats:
    """Natural logarithms; 0 where they are not wanted, and may not exist."""
    if wanted.all():
        return np.array(list(map(math.log, values)), dtype=np.float64)
    pairs = zip(values, wanted, strict=True)
    return np.array([math.log(value) if is_wanted else 0.0 for value, is_wanted in pairs], dtype=np.float64)


class _Numbers:
    """`index_of` for many values of a finite parameter, -1 for None; looks each value up once."""

    def __init__(self, parameter: Parameter) -> None:
        self._index_of: Callable[[Any], int | None] = parameter.index_of
        #: By type, for 1, 1.0 and True are different values of a choice, and the same key of a dictionary.
        self._known: dict[type, dict[Any, int]] = {}
        self._steps: tuple[int, int, int] | None = None
        if isinstance(parameter, Range) and all(
            isinstance(number, int) for number in (parameter.low, parameter.high, parameter.step or 1)
        ):
            self._steps = (int(parameter.low), int(parameter.high), int(parameter.step or 1))

    def of(self, values: Sequence[Any]) -> Integers:
        if self._steps is not None and set(map(type, values)) == {int}:
            low, high, step = self._steps
            try:
                column = np.array(values, dtype=np.int64)
            except OverflowError:
                return self._one_by_one(values)
            index, rest = np.divmod(column - low, step)
            return np.where((column >= low) & (column <= high) & (rest == 0), index, -1)
        return self._one_by_one(values)

    def _one_by_one(self, values: Sequence[Any]) -> Integers:
        kinds = set(map(type, values))
        if len(kinds) == 1 and not kinds.isdisjoint(_SIMPLE):
            # Of one type, so that the value alone tells it apart.
            known = self._known.setdefault(kinds.pop(), {})
            found = list(map(known.get, values))
            if None in found:
                known.update((value, self._number(value)) for value in set(values).difference(known))
                found = list(map(known.get, values))
            return np.array(found, dtype=np.int64)
        return np.array([self._number(value) for value in values], dtype=np.int64)

    def _number(self, value: Any) -> int:
        index = self._index_of(value)
        return -1 if index is None else index
