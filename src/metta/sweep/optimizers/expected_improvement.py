"""The logarithm of expected improvement, exact where the improvement itself is too small for floats.

Ament et al. (2023), "Unexpected Improvements to Expected Improvement for Bayesian Optimization".
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import erfcx, ndtr

from metta.sweep.optimizers.encoding import Floats

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_SQRT_HALF_PI = math.sqrt(0.5 * math.pi)
_SQRT_HALF = math.sqrt(0.5)
#: Below -1 the sum of density and distribution cancels; beyond -1e3 so does what replaces it.
_CANCELS, _SERIES = -1.0, -1e3


def log_h(z: Floats) -> tuple[Floats, Floats]:
    """Log h(z) with h(z) = phi(z) + z Phi(z), and its derivative Phi(z) / h(z).

    With a = -z and the Mills ratio R(a) = Phi(-a) / phi(a) = sqrt(pi/2) erfcx(a / sqrt 2), h = phi(a) (1 - a R(a)),
    where 1 - a R(a) = 1/a^2 - 3/a^4 + ... for large a.
    """
    z = np.asarray(z, dtype=np.float64)
    a = np.maximum(-z, -_CANCELS)
    mills = _SQRT_HALF_PI * erfcx(a * _SQRT_HALF)
    squares = np.square(np.minimum(1.0 / a, 1.0))
    rest = np.where(z < _SERIES, squares * (1.0 - 3.0 * squares), 1.0 - a * mills)
    log_tail = -0.5 * np.square(a) - _LOG_SQRT_2PI + np.log(rest)
    near = np.maximum(z, _CANCELS)
    distribution = ndtr(near)
    h = np.exp(-0.5 * np.square(near) - _LOG_SQRT_2PI) + near * distribution
    is_tail = z < _CANCELS
    return np.where(is_tail, log_tail, np.log(h)), np.where(is_tail, mills / rest, distribution / h)


def log_expected_improvement(mean: Floats, deviation: Floats, best: float) -> tuple[Floats, Floats, Floats]:
    """Log E[max(best - f, 0)], f ~ N(mean, deviation^2), with its derivatives by mean and by deviation."""
    z = (best - mean) / deviation
    value, slope = log_h(z)
    # d/dm = -h'/h / s; d/ds = 1/s - z h'/h / s.
    by_mean = -slope / deviation
    return value + np.log(deviation), by_mean, (1.0 - z * slope) / deviation


def expected_improvement(mean: float, deviation: float, best: float) -> float:
    """E[max(best - f, 0)]."""
    if deviation <= 0.0:
        return max(best - mean, 0.0)
    return float(deviation * np.exp(log_h(np.array((best - mean) / deviation))[0]))
