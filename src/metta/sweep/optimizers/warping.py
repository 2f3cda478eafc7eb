"""Scores as the model sees them: of the size of one, with what is bad brought near."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from metta.sweep.optimizers.encoding import Floats

#: Digits after the point that count, in units of the largest of the better half: below is rounding.
_DIGITS = 12
#: In the same units, where scores are as bad as can be.
_FAR = 1e300


@dataclass(frozen=True)
class Warping:
    """A monotone map of scores (lower is better) to standardised targets, and back.

    The better half is moved and scaled alone, so that improvements keep their proportions; the worse half is replaced
    by the normal quantiles of its ranks, so that it matters by how many a run was beaten and not by how much (the
    half-rank warping of Vizier, Song et al. 2024). A diverged run with a loss of 1e30 then says no more than that it
    was the worst.
    """

    #: (n,) one for each score.
    targets: Floats
    #: Distinct targets with their scores, both ascending; scores in units of `unit`, lest they overflow.
    _knots: Floats
    _scores: Floats
    _slope: float
    _unit: float

    @classmethod
    def of(cls, scores: Floats) -> Warping:
        """The warping that these scores (n,), all finite, call for."""
        better = scores <= _middle(scores)
        unit = float(np.abs(scores[better]).max()) or 1.0
        with np.errstate(over="ignore"):
            scores = np.asarray(np.round(np.minimum(scores / unit, _FAR), _DIGITS), dtype=np.float64)
        warped = _half_ranks(scores)
        size = float(warped.std())
        if size <= 10.0**-_DIGITS:
            return cls(np.zeros(len(scores)), np.zeros(1), scores[:1], 0.0, unit)
        targets = (warped - warped.mean()) / size
        distinct, first = np.unique(targets, return_index=True)
        return cls(targets, distinct, scores[first], size, unit)

    def score(self, target: float) -> float:
        """The score that a target stands for; beyond the best and the worst in a straight line."""
        low, high = float(self._knots[0]), float(self._knots[-1])
        inside = float(np.interp(target, self._knots, self._scores))
        return self._in_units(inside + self._slope * (min(target - low, 0.0) + max(target - high, 0.0)))

    def difference(self, targets: float) -> float:
        """The difference of scores that a difference of targets stands for in the better half."""
        return self._in_units(self._slope * targets)

    def variances(self, scores: Floats, deviations: Floats) -> Floats:
        """The variances (n,) of the targets of scores that have these deviations."""
        return np.square((self._targets(scores + deviations) - self._targets(scores - deviations)) / 2.0)

    def _targets(self, scores: Floats) -> Floats:
        """Targets of any scores; beyond the best in a straight line, beyond the worst none is worse."""
        if not self._slope:
            return np.zeros(len(scores))
        scaled = scores / self._unit
        beyond = np.minimum(scaled - self._scores[0], 0.0) / self._slope
        return np.asarray(np.interp(scaled, self._scores, self._knots) + beyond)

    def _in_units(self, number: float) -> float:
        # Not beyond the largest float: the log holds no infinities.
        return min(max(number * self._unit, -sys.float_info.max), sys.float_info.max)


def _middle(scores: Floats) -> float:
    """The median; of an even number of scores the better one in the middle, so that nothing is added up."""
    return float(np.partition(scores, (len(scores) - 1) // 2)[(len(scores) - 1) // 2])


def _half_ranks(scores: Floats) -> Floats:
    median = _middle(scores)
    better = scores[scores <= median]
    # For a normal distribution the mean square distance of its better half from the median is the variance.
    spread = float(np.sqrt(np.mean(np.square(better - median)))) or 1.0
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # Equal scores share the middle of their ranks.
    middles = np.cumsum(counts) - 0.5 * (counts + 1)
    quantiles = (middles[place] + 0.5) / len(scores)
    return np.where(scores <= median, scores, median + spread * ndtri(np.maximum(quantiles, 0.5)))
