"""Axes stretched where the metric changes fast: the distribution function of Kumaraswamy (1980).

A learning rate or weight decay on a linear scale has most of its effect near zero. Warping w(x) = 1 - (1 - x^a)^b by
axis, a and b learned with the other hyperparameters, lets a stationary kernel see that (Snoek et al. 2014, "Input
Warping for Bayesian Optimization of Non-Stationary Functions"; HEBO, Cowen-Rivers et al. 2022).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from metta.sweep.optimizers.encoding import Floats

#: Keeps slopes finite at the faces of the cube: x is moved into [edge, 1 - edge] first.
_EDGE = 1e-3


class Warped(NamedTuple):
    """Values (n, w) of w(x), and their derivatives by x, log a and log b."""

    values: Floats
    slopes: Floats
    by_log_a: Floats
    by_log_b: Floats


def kumaraswamy(x: Floats, exponents: Floats) -> Warped:
    """Warps the columns of x (n, w), in [0, 1], by their exponents (2, w), a and b."""
    a, b = exponents
    inner = 1.0 - 2.0 * _EDGE
    x = _EDGE + inner * x
    logarithm = np.log(x)
    power = np.exp(a * logarithm)
    rest = 1.0 - power
    log_rest = np.log(rest)
    tail = np.exp(b * log_rest)
    common = b * tail / rest * power
    return Warped(1.0 - tail, common * a / x * inner, common * a * logarithm, -tail * log_rest * b)
