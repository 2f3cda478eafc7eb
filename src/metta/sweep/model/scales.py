"""Maps between the unit interval and scales of numbers, rounded so that each is the exact inverse of the other."""

from __future__ import annotations

import math
from statistics import NormalDist

_STANDARD_NORMAL = NormalDist()
#: Normal parameters are cut off this many deviations from the mean: beyond, floats near 1 can't tell values apart.
NORMAL_CUT = 5.0
_NORMAL_TAIL = _STANDARD_NORMAL.cdf(-NORMAL_CUT)


def clamp(value: float, low: float, high: float) -> float:
    """The value, or the bound that it lies beyond."""
    return min(max(value, low), high)


def linear_decode(unit: float, low: float, high: float) -> float:
    """Where a point of [0, 1] lies between two bounds."""
    digits_after_point = 11 - math.floor(math.log10(high - low))
    # The sum makes a negative zero an ordinary one.
    return clamp(round(float(low + unit * (high - low)), digits_after_point) + 0.0, float(low), float(high))


def linear_encode(value: float, low: float, high: float) -> float:
    """The inverse of `linear_decode`."""
    return clamp((value - low) / (high - low), 0.0, 1.0)


def log_decode(unit: float, low: float, high: float) -> float:
    """Where a point of [0, 1] lies between two bounds, by their logarithms."""
    # Rounding may take the sum beyond log(high), and its exponential beyond the largest float.
    value = math.exp(min(math.log(low) + unit * (math.log(high) - math.log(low)), math.log(high)))
    return clamp(float(f"{value:.11e}"), float(low), float(high))


def log_encode(value: float, low: float, high: float) -> float:
    """The inverse of `log_decode`."""
    return clamp((math.log(value) - math.log(low)) / (math.log(high) - math.log(low)), 0.0, 1.0)


def normal_score(unit: float) -> float:
    """Standard score at a point of [0, 1], on a lattice of 1e-8 deviations."""
    score = _STANDARD_NORMAL.inv_cdf(_NORMAL_TAIL + unit * (1 - 2 * _NORMAL_TAIL))
    return round(clamp(score, -NORMAL_CUT, NORMAL_CUT), 8)


def normal_unit(score: float) -> float:
    """The inverse of `normal_score`."""
    return clamp((_STANDARD_NORMAL.cdf(score) - _NORMAL_TAIL) / (1 - 2 * _NORMAL_TAIL), 0.0, 1.0)


def is_normal_score(score: float) -> bool:
    """Whether a standard score lies before the cut, give or take half a step of the lattice."""
    return abs(score) <= NORMAL_CUT + 5e-9
