"""Configurations near another: what a member of a population tries that goes on with somebody else's weights.

Jaderberg et al. (2017), "Population Based Training of Neural Networks", section 4.1: each hyperparameter is multiplied
by a factor, or drawn anew.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from metta.sweep.model.parameters import Choice, Constant, LogNormal, Normal, Parameter, Range
from metta.sweep.model.space import Config, SearchSpace

#: Normal parameters are cut off so many deviations from their mean.
_CUT = 5.0


def perturbed(
    space: SearchSpace,
    config: Config,
    generator: np.random.Generator,
    *,
    factors: Sequence[float],
    resample_probability: float,
    fixed: Collection[str] = (),
) -> Config:
    """A configuration near `config`.

    Numbers are multiplied by one of the factors, kept within their bounds and, where they have steps, moved to the
    nearest one, or the one beside where that is the same. Of a choice among numbers it is the next larger or smaller
    one, among other values, which have no order, it stays. Each value is drawn anew from its prior instead with the
    probability given; so is one whose parameter did not exist before.
    """
    units = generator.random(len(space.dimensions)).tolist()
    place = dict(zip(space.dimensions, units, strict=True))
    # Drawn for all, whatever exists: one value's fate does not depend on another's.
    draws = {name: generator.random() for name in space.dimensions}
    chosen = {name: factors[int(generator.integers(len(factors)))] for name in space.dimensions}
    wanted: Config = {}
    for name, value in config.items():
        parameter = space.parameters.get(name)
        if parameter is None or not parameter.contains(value):
            continue  # the space was amended since
        if name in fixed or isinstance(parameter, Constant):
            wanted[name] = value
        elif draws[name] < resample_probability:
            wanted[name] = parameter.decode(place[name])
        else:
            wanted[name] = _moved(parameter, value, chosen[name])
    return space.completed(wanted, units)


def _moved(parameter: Parameter, value: Any, factor: float) -> Any:
    if isinstance(parameter, Choice):
        return _neighbour(parameter.values, value, factor)
    low, high = _bounds(parameter)
    # What is zero stays so however it is multiplied: it moves by that share of its range.
    aim = value * factor if value else (factor - 1.0) * (high - low)
    aim = min(max(aim, low), high)
    if not isinstance(parameter, Range) or parameter.cardinality is None:
        return parameter.decode(parameter.encode(aim))
    here = parameter.index_of(value)
    assert here is not None
    index = round((aim - low) / (parameter.step or 1))
    if index == here:
        index += 1 if factor > 1 else -1
    return parameter.value_at(min(max(index, 0), parameter.cardinality - 1))


def _bounds(parameter: Parameter) -> tuple[float, float]:
    if isinstance(parameter, Normal):
        return parameter.mean - _CUT * parameter.std, parameter.mean + _CUT * parameter.std
    if isinstance(parameter, LogNormal):
        spread = _CUT * parameter.std
        return math.exp(parameter.mean - spread), math.exp(parameter.mean + spread)
    assert not isinstance(parameter, Choice | Constant)
    return parameter.low, parameter.high


def _neighbour(values: Sequence[Any], value: Any, factor: float) -> Any:
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in values):
        return value
    ascending = sorted(values)
    index = ascending.index(value) + (1 if factor > 1 else -1)
    return ascending[min(max(index, 0), len(ascending) - 1)]
