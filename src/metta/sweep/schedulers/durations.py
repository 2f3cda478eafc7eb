"""How long will jobs take? Many guesses at their distribution, from those that ended and those that still run.

A guess is a draw from the posterior of a Dirichlet process: the Bayesian bootstrap (Rubin 1981) of what was observed,
beside a few values of a Weibull distribution fitted to it, so that guesses differ much after three jobs and little
after three hundred.

Jobs that still run are observations, too: the first ones to end of 32 that began together are the short ones, and an
estimate from these alone is off by half. They are taken as censored, so each guess is a Kaplan-Meier estimate (1958)
with the guess's weights. What of its mass lies beyond the longest job so far goes to the Weibull distribution's tail.

Arrays have a row for each guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

#: Guesses.
GUESSES = 200
#: Values that the Weibull distribution adds, and the weight of all of them, where that of an observation is 1.
_ADDED, _ADDED_WEIGHT = 8, 2.0
#: Values that stand for its tail.
_IN_TAIL = 16
#: Shapes: 1 is that of jobs as likely to end in their first minute as in any later one, 50 that of all taking nearly
#: the same time. What is to come of jobs with one far below 1 nobody can tell.
_LEAST_SHAPE, _GREATEST_SHAPE = 0.7, 50.0
#: What is believed of the shape before anything was seen: a deviation of half the mean, or half or twice as much.
_PRIOR_SHAPE, _PRIOR_DEVIATION = 2.0, 0.6
#: Percentile intervals of the bootstrap are too narrow for few and skewed observations, and no job's distribution is
#: Weibull's: so much more uncertain is the shape, and by that part of its standard error the mean of each guess is off.
_SHAPE_DOUBT, _MEAN_DOUBT = 1.5, 0.7
#: Nothing has no logarithm.
_SHORTEST_S = 1e-3


class Durations:
    """Guesses at the distribution of durations: values, ascending, and their weights, which add up to 1.

    Args:
        ended_s: Durations of jobs that ended; at least one.
        running_s: How long others have been running.
        rng: The source of the guesses and of all that is drawn from them.
    """

    def __init__(self, ended_s: Sequence[float], running_s: Sequence[float], rng: np.random.Generator) -> None:
        self._rng = rng
        shape, scale = self._weibull(np.asarray(ended_s), np.asarray(running_s))
        added = scale[:, None] * rng.standard_exponential((GUESSES, _ADDED)) ** (1 / shape[:, None])
        observed = np.tile(np.concatenate([ended_s, running_s]), (GUESSES, 1))
        weights = rng.standard_exponential((GUESSES, observed.shape[1] + _ADDED))
        weights[:, observed.shape[1] :] *= _ADDED_WEIGHT / _ADDED
        has_ended = np.ones_like(weights, dtype=bool)
        has_ended[:, len(ended_s) : observed.shape[1]] = False
        values = np.concatenate([observed, added], axis=1)
        # Of equal ones those that ended come first: the others are longer.
        order = np.lexsort((~has_ended, values), axis=1)
        values, weights, has_ended = (np.take_along_axis(each, order, 1) for each in (values, weights, has_ended))
        at_risk = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]
        survival = np.cumprod(np.where(has_ended, 1 - weights / at_risk, 1.0), axis=1)
        survival[has_ended[:, -1], -1] = 0.0
        before = np.concatenate([np.ones((GUESSES, 1)), survival[:, :-1]], axis=1)
        tail = self._tail(shape, scale, values[:, -1])
        self.values: Floats = np.concatenate([values, tail], axis=1)
        error = float(np.std(ended_s)) / max(float(np.mean(ended_s)), _SHORTEST_S) / math.sqrt(len(ended_s))
        self._shift = np.exp(_MEAN_DOUBT * error * rng.standard_normal((GUESSES, 1)))
        self._bandwidth = _bandwidth(np.asarray(ended_s))
        in_tail = np.tile(survival[:, -1:] / _IN_TAIL, (1, _IN_TAIL))
        self.weights: Floats = np.concatenate([before - survival, in_tail], axis=1)

    def _weibull(self, ended: Floats, running: Floats) -> tuple[Floats, Floats]:
        """Shape and scale of each guess."""
        ended = np.maximum(ended[ended > 0], _SHORTEST_S)  # evaluations that failed runs did not have are no durations
        if not len(ended):
            return np.full(GUESSES, _PRIOR_SHAPE), np.full(GUESSES, _SHORTEST_S)
        times = np.concatenate([ended, np.maximum(running, _SHORTEST_S)])
        shape, deviation = fit_shape(ended, times)
        shapes = shape * np.exp(_SHAPE_DOUBT * deviation * self._rng.standard_normal(GUESSES))
        shapes = np.clip(shapes, _LEAST_SHAPE, _GREATEST_SHAPE)
        # Given the shape k, the sum of t^k over scale^k has a Gamma distribution of as many degrees as jobs have ended.
        longest = times.max()
        sums = (np.power.outer(times / longest, shapes)).sum(axis=0)
        return shapes, longest * (sums / self._rng.standard_gamma(len(ended), GUESSES)) ** (1 / shapes)

    def _tail(self, shape: Floats, scale: Floats, beyond: Floats) -> Floats:
        """Values of the Weibull distribution beyond the given ones, one in each of as many equal parts of it."""
        uniform = (np.arange(_IN_TAIL) + self._rng.random((GUESSES, _IN_TAIL))) / _IN_TAIL
        hazard = (beyond / scale) ** shape
        values = scale[:, None] * (hazard[:, None] - np.log1p(-uniform)) ** (1 / shape[:, None])
        return np.asarray(np.maximum(values, beyond[:, None] * (1 + 1e-9)))

    @property
    def mean(self) -> Floats:
        """Of each guess."""
        return np.asarray((self.weights * self.values * self._shift).sum(axis=1))

    @property
    def deviation(self) -> Floats:
        """The standard deviation, of each guess."""
        return np.asarray(np.sqrt((self.weights * (self.values * self._shift - self.mean[:, None]) ** 2).sum(axis=1)))

    def draw(self, count: int) -> Floats:
        """Durations, guesses by `count`."""
        picked = self._pick(self.weights, self._rng.random((GUESSES, count)))
        # Smoothed, or none could be longer than the longest so far, and the longest decides when a sweep ends.
        smoothing = np.exp(self._bandwidth * self._rng.standard_normal((GUESSES, count)))
        return self._shift * picked * smoothing

    def draw_remaining(self, spent_s: float) -> Floats:
        """What is left of a job that has been running for `spent_s`, one of `running_s`, in each guess."""
        longer = np.where(self.values > spent_s, self.weights, 0.0)
        return self._pick(longer, self._rng.random((GUESSES, 1)))[:, 0] - spent_s

    def _pick(self, weights: Floats, uniform: Floats) -> Floats:
        """The values that numbers in [0, 1) fall on when each value is as wide as its weight."""
        shares = np.cumsum(weights, axis=1)
        shares /= shares[:, -1:]
        # One search for all guesses: the g-th has the numbers from g to g + 1.
        first = np.arange(GUESSES)[:, None]
        found = np.searchsorted((shares + first).ravel(), (uniform + first).ravel(), side="right")
        columns = np.minimum(found.reshape(uniform.shape) - first * weights.shape[1], weights.shape[1] - 1)
        return np.take_along_axis(self.values, columns, 1)


def _bandwidth(ended: Floats) -> float:
    """Silverman's rule (1986, section 3.4) for the logarithms.

    With the spread of their upper half, as the short ones are often a group of their own: runs that failed at once.
    """
    logs = np.log(np.maximum(ended[ended > 0], _SHORTEST_S))
    if len(logs) < 2:
        return 0.0
    middle, high = np.quantile(logs, [0.5, 0.9])
    return float(0.9 * (high - middle) / 1.2816 * len(logs) ** -0.2)


def fit_shape(ended: Floats, times: Floats) -> tuple[float, float]:
    """The Weibull shape that durations speak for, together with what is believed of it beforehand.

    Args:
        ended: Durations of jobs that ended.
        times: These, and those that others have been running for.

    Returns:
        The shape, and the deviation of its logarithm.
    """
    logs = np.log(times / times.max())
    mean = float(np.log(ended / times.max()).mean())
    # The likelihood equation, sum t^k ln t / sum t^k - 1/k = mean, has one root, as its left side grows with k.
    low, high = _LEAST_SHAPE, _GREATEST_SHAPE
    for _ in range(30):
        shape = math.sqrt(low * high)
        powers = np.exp(shape * logs)
        expected = float((powers * logs).sum() / powers.sum())
        low, high = (shape, high) if expected - 1 / shape < mean else (low, shape)
    variance = float((powers * (logs - expected) ** 2).sum() / powers.sum())
    observed, believed = len(ended) * (1 + shape**2 * variance), _PRIOR_DEVIATION**-2
    logarithm = (observed * math.log(shape) + believed * math.log(_PRIOR_SHAPE)) / (observed + believed)
    return math.exp(logarithm), (observed + believed) ** -0.5
