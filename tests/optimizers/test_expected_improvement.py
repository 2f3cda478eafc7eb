"""The logarithm of expected improvement, checked against numbers of many digits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from metta.sweep.optimizers.expected_improvement import expected_improvement, log_expected_improvement, log_h


@pytest.mark.parametrize("z", [-30.0, -5.0, -1.5, -1.0, -0.5, 0.0, 0.7, 3.0, 10.0])
def test_it_is_the_integral_that_defines_it(z: float) -> None:
    # h(z) = int_0^inf t phi(t - z) dt; phi(z) is taken out, lest it underflow.
    integral = integrate.quad(
        lambda t: t * math.exp(z * t - 0.5 * t * t), 0.0, 40.0, epsabs=0.0, epsrel=1e-12, limit=500
    )[0]
    assert float(log_h(np.array(z))[0]) == pytest.approx(math.log(integral) + stats.norm.logpdf(z), rel=1e-9)


def test_its_branches_meet() -> None:
    for border in (-1.0, -1e3):
        below, above = log_h(np.array([border * (1 + 1e-9), border * (1 - 1e-9)]))
        assert below[0] == pytest.approx(below[1], rel=1e-7)
        assert above[0] == pytest.approx(above[1], rel=1e-6)


@pytest.mark.parametrize("z", [-1e8, -1e5, -1e3])
def test_far_out_it_goes_as_minus_half_z_squared_and_stays_finite(z: float) -> None:
    value, slope = log_h(np.array(z))
    assert float(value) == pytest.approx(-0.5 * z * z - math.log(math.sqrt(2 * math.pi)) - 2 * math.log(-z), rel=1e-6)
    assert float(slope) == pytest.approx(-z, rel=1e-5)


@pytest.mark.parametrize(("mean", "deviation"), [(0.3, 1.0), (5.0, 0.5), (-2.0, 0.1), (40.0, 1.0), (3000.0, 1.0)])
def test_slopes_are_those_of_finite_differences(mean: float, deviation: float) -> None:
    def value(m: float, s: float) -> float:
        return float(log_expected_improvement(np.array([m]), np.array([s]), 0.25)[0][0])

    _, by_mean, by_deviation = log_expected_improvement(np.array([mean]), np.array([deviation]), 0.25)
    step = 1e-6
    assert by_mean[0] == pytest.approx(
        (value(mean + step, deviation) - value(mean - step, deviation)) / (2 * step), rel=1e-4
    )
    difference = (value(mean, deviation + step) - value(mean, deviation - step)) / (2 * step)
    assert by_deviation[0] == pytest.approx(difference, rel=1e-4)


def test_without_doubt_it_is_the_difference() -> None:
    assert expected_improvement(1.0, 0.0, 3.0) == 2.0
    assert expected_improvement(3.0, 0.0, 1.0) == 0.0
    assert expected_improvement(0.0, 1.0, 0.0) == pytest.approx(1 / math.sqrt(2 * math.pi))
