"""What runs that are under way, or were stopped early, would have in the end: from what they had at levels before.

From each level to the next, the change of the metric is a linear function of its value at the level and of the
configuration, with noise, all learned from the runs that went on: Bayesian linear regression with its conjugate prior
(Bishop 2006, "Pattern Recognition and Machine Learning", section 3.3 and exercises 3.12 and 3.13). Which runs went on
was decided by what is regressed on, so that regressions from them hold for those that did not. The forecast of a run is
the chain of them from where it is.

That large networks, or small learning rates, begin badly and end well is what this can know and a comparison at one
level cannot; and where a level says nothing of the next one, the noise is found to be large.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metta.sweep.optimizers.encoding import Floats, Integers

#: Runs that have to have come to a level before it is forecast: of one alone there is nothing to tell noise from.
_FEWEST = 2
#: Runs that one regression is made of, at most: the best at its level, since it is among these that is decided.
_MOST = 200
#: Standard deviation of the noise before anything is known, in units of the spread of values at the level, and how many
#: runs that knowledge is worth.
_NOISE, _NOISE_WORTH = 0.3, 2.0
#: Variances of the coefficients, of the value and of each of the configuration's coordinates at unit variance, in units
#: of the noise's.
_BY_VALUE, _BY_COORDINATE = 1.0, 0.3
#: Coordinates of the unit cube come to unit variance by this.
_UNIT_VARIANCE = float(np.sqrt(12.0))
#: In units of the largest of what is better than the median, where values are as far off as can be.
_FAR = 1e6
#: In the same units, what differs by less is equal.
_ROUNDING = 1e-9
#: Of these units, lest anything overflow.
_LARGEST = 1e300


class Forecast(NamedTuple):
    """Values at one level, for n runs; lower is better."""

    #: Number of the level: the last one, the end, as soon as two runs have come there.
    level: int
    #: (n,) what was measured, or is expected; NaN for runs that have come to no level.
    means: Floats
    #: (n,) standard deviations; 0 where it was measured, NaN as in `means`.
    deviations: Floats


def forecast(levels: Floats, units: Floats) -> Forecast | None:
    """What each run has at the highest level that enough runs have come to.

    Args:
        levels: (n, k) values at the levels, the last of which is the end of the training; lower is better, NaN where a
            run did not come.
        units: (n, d) the runs' configurations in the unit cube.

    Returns:
        None as long as no level is known of two runs.
    """
    has_come = np.isfinite(levels)
    level = max((number for number, count in enumerate(has_come.sum(axis=0)) if count >= _FEWEST), default=None)
    if level is None:
        return None
    unit = max(float(np.abs(_better_half(column[np.isfinite(column)])).max(initial=0.0)) for column in levels.T)
    unit = min(unit, _LARGEST) or 1.0
    with np.errstate(over="ignore"):
        scaled = np.clip(levels / unit, -_FAR, _FAR)
    means, variances = scaled[:, 0].copy(), np.zeros(len(levels))
    coordinates = (units - 0.5) * _UNIT_VARIANCE
    for number in range(level):
        change = _Change.learned(scaled[:, number], scaled[:, number + 1], coordinates)
        expected, uncertainty = change.after(means, variances, coordinates)
        is_known = has_come[:, number + 1]
        means = np.where(is_known, scaled[:, number + 1], expected)
        variances = np.where(is_known, 0.0, uncertainty)
    measured = np.where(has_come[:, level], levels[:, level], np.clip(means, -_FAR, _FAR) * unit)
    return Forecast(level, measured, np.minimum(np.sqrt(variances), _FAR) * unit)


class _Change(NamedTuple):
    """The regression of what becomes of values from one level to the next."""

    #: Values are measured from this, in units of this.
    middle: float
    spread: float
    #: (p,) coefficients: of one, of the value, of the coordinates; and (p, p) their covariance, in units of the noise.
    coefficients: Floats
    covariance: Floats
    #: Variance.
    noise: float

    @classmethod
    def learned(cls, before: Floats, after: Floats, coordinates: Floats) -> _Change:
        """From the runs for which both values (n,) are known."""
        spread = _spread(before[np.isfinite(before)])
        rows = _better(before, np.flatnonzero(np.isfinite(before) & np.isfinite(after)), coordinates.shape[1])
        prior = (_NOISE * spread) ** 2
        if not len(rows):
            # All runs will change alike, as far as is known.
            size = coordinates.shape[1] + 2
            return cls(0.0, spread, np.zeros(size), np.zeros((size, size)), prior)
        middle = float(before[rows].mean())
        inputs = _inputs((before[rows] - middle) / spread, coordinates[rows])
        changes = after[rows] - before[rows]
        precision = np.full(inputs.shape[1], 1.0 / _BY_COORDINATE)
        # Nothing is known of how much all runs change together.
        precision[:2] = 1e-8, 1.0 / _BY_VALUE
        covariance: Floats = np.asarray(np.linalg.inv(inputs.T @ inputs + np.diag(precision)), dtype=np.float64)
        coefficients = covariance @ (inputs.T @ changes)
        residuals = changes - inputs @ coefficients
        squares = float(residuals @ residuals + np.square(coefficients) @ precision)
        noise = (_NOISE_WORTH * prior + squares) / (_NOISE_WORTH + len(rows) - 1)
        return cls(middle, spread, coefficients, covariance, noise)

    def after(self, means: Floats, variances: Floats, coordinates: Floats) -> tuple[Floats, Floats]:
        """Means and variances (n,) at the next level of runs that have these at this one."""
        inputs = _inputs((means - self.middle) / self.spread, coordinates)
        expected = means + inputs @ self.coefficients
        uncertainty = self.noise * (1.0 + np.einsum("ij,ij->i", inputs @ self.covariance, inputs))
        slope = 1.0 + float(self.coefficients[1]) / self.spread
        return expected, slope**2 * variances + uncertainty


def _inputs(values: Floats, coordinates: Floats) -> Floats:
    return np.column_stack([np.ones(len(values)), values, coordinates])


def _better(values: Floats, rows: Integers, dimensions: int) -> Integers:
    """The better half of the rows, where that is enough for all coefficients; how the worst fare is of no account."""
    enough = 2 * (dimensions + 2)
    most = min(max(enough, len(rows) // 2), _MOST)
    return np.sort(rows[np.argsort(values[rows], kind="stable")[:most]])


def _spread(values: Floats) -> float:
    """Root mean square distance of the better half from the median, so that runs which diverge are of no account."""
    if not len(values):
        return 1.0
    better = _better_half(values)
    # Where these are all equal, that of the others.
    spread = float(np.sqrt(np.mean(np.square(better - better[-1])))) or float(np.ptp(values))
    return max(spread, _ROUNDING)


def _better_half(values: Floats) -> Floats:
    return np.sort(values)[: max(2, (len(values) + 1) // 2)]
