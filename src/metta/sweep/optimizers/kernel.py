"""The kernel, Matern-5/2 about a linear trend, and the posterior of its hyperparameters with its gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from metta.sweep.optimizers.encoding import Floats
from metta.sweep.optimizers.features import FeatureMap
from metta.sweep.optimizers.input_warping import kumaraswamy

#: log lengthscale ~ N(-1 + log(d) / 2, 1). Distances in the cube grow with sqrt(d), and with this the lengthscales do,
#: as in Hvarfner et al. (2024), "Vanilla Bayesian Optimization Performs Great in High Dimensions". Theirs has its mode
#: at -1.6 and a deviation of sqrt(3), which leaves each axis more to itself.
_LENGTHSCALE = (-1.0, 1.0)
#: log variance of the details, whose targets are of size one.
_SCALE = (0.0, 0.7)
#: log variance of the noise: a deviation of 3 % of the targets' unless the data say otherwise.
_NOISE = (-7.0, 2.0)
#: log variance of the slopes of the trend, less log(6 / d): with that, one half of the targets' variance over the cube.
_TREND = (0.0, 1.0)
#: Logarithms of the exponents of input warping: none unless the data ask for it.
_EXPONENT = (0.0, 0.5)


@dataclass(frozen=True)
class Hyperparameters:
    """Of a Gaussian process with independent noise, for targets of size one.

    k(x, x') = scale * matern(r^2) + trend * (w(x) - c) (w(x') - c), with r in units of the lengthscales, w the input
    warping and c the `FeatureMap.centre`.
    """

    #: (d,) by axis; features of one axis share it.
    lengthscales: Floats
    #: Variances of the details, of the noise, and of the slopes of the trend.
    scale: float
    noise: float
    trend: float
    #: (2, w) exponents of the input warping of the warped features.
    exponents: Floats

    @classmethod
    def of(cls, logarithms: Floats, dimensions: int) -> Hyperparameters:
        """From [log lengthscales (d), log scale, log noise, log trend, log a (w), log b (w)]."""
        values = np.exp(logarithms)
        scale, noise, trend = values[dimensions : dimensions + 3].tolist()
        return cls(values[:dimensions], scale, noise, trend, values[dimensions + 3 :].reshape(2, -1))


def squared_distances(left: Floats, right: Floats) -> Floats:
    """(n, m) squared Euclidean distances between rows; never negative."""
    squares = np.einsum("ij,ij->i", left, left)[:, None] + np.einsum("ij,ij->i", right, right)
    squares -= 2.0 * (left @ right.T)
    return np.asarray(np.maximum(squares, 0.0, out=squares))


def matern(squares: Floats) -> tuple[Floats, Floats]:
    """The kernel at squared scaled distances r^2, and its derivative by r^2.

    k = (1 + a + a^2 / 3) exp(-a) with a = sqrt(5) r; dk / d(r^2) = -5/6 (1 + a) exp(-a), finite at r = 0 too.
    """
    a = np.sqrt(5.0 * squares)
    decay = np.exp(-a)
    slope = 1.0 + a
    slope *= decay
    a *= a
    a *= decay
    a /= 3.0
    a += slope
    slope *= -5.0 / 6.0
    return a, slope


class Likelihood:
    """Minus the log posterior of hyperparameters, up to a constant, given features (n, f) and targets (n,).

    With `variances` (n,) the targets are uncertain by these, beside the noise.
    Called with the logarithms that `Hyperparameters.of` takes; returns value and gradient.
    """

    def __init__(
        self, feature_map: FeatureMap, features: Floats, targets: Floats, variances: Floats | float = 0.0
    ) -> None:
        self._axes, self._warped = feature_map.axes, feature_map.warped
        self._centre = feature_map.centre
        self._dimensions = feature_map.dimensions
        self._features = features
        self._targets = targets
        self._variances = variances
        self._location, self._deviation = self._priors()

    def _priors(self) -> tuple[Floats, Floats]:
        dimensions = max(self._dimensions, 1)
        lengthscale = (_LENGTHSCALE[0] + 0.5 * math.log(dimensions), _LENGTHSCALE[1])
        trend = (_TREND[0] + math.log(6.0 / dimensions), _TREND[1])
        priors = [lengthscale] * self._dimensions + [_SCALE, _NOISE, trend] + [_EXPONENT] * (2 * len(self._warped))
        location, deviations = np.array(priors).T
        return location, deviations

    def __call__(self, logarithms: Floats) -> tuple[float, Floats]:
        """Value and gradient."""
        deviations = (logarithms - self._location) / self._deviation
        value = 0.5 * float(deviations @ deviations)
        gradient = deviations / self._deviation
        try:
            by_data = self._by_data(logarithms, gradient)
        except np.linalg.LinAlgError:
            # Not positive definite by rounding: a wall that the line search steps back from.
            return 1e10, gradient
        return value + by_data, gradient

    def _by_data(self, logarithms: Floats, gradient: Floats) -> float:
        """y^T K^-1 y / 2 + log |K| / 2; adds its gradient.

        dL/dK = (K^-1 - a a^T) / 2 with a = K^-1 y.
        """
        d, warped = self._dimensions, self._warped
        hyperparameters = Hyperparameters.of(logarithms, d)
        features = self._features
        if len(warped):
            warping = kumaraswamy(features[:, warped], hyperparameters.exponents)
            features = features.copy()
            features[:, warped] = warping.values
        scaled = features / hyperparameters.lengthscales[self._axes]
        kernel, slope = matern(squared_distances(scaled, scaled))
        centred = features - self._centre
        covariance = hyperparameters.scale * kernel + hyperparameters.trend * (centred @ centred.T)
        inverse, log_determinant = _inverse(covariance, hyperparameters.noise + self._variances)
        weights = inverse @ self._targets
        value = 0.5 * float(self._targets @ weights) + 0.5 * log_determinant
        by_covariance = inverse
        by_covariance -= np.outer(weights, weights)
        by_covariance *= 0.5
        gradient[d] += hyperparameters.scale * float(np.vdot(by_covariance, kernel))
        gradient[d + 1] += hyperparameters.noise * float(by_covariance.trace())
        by_products = hyperparameters.trend * (by_covariance @ centred)
        gradient[d + 2] += float(np.vdot(by_products, centred))
        by_covariance *= slope
        # sum_j W_ij (x_i - x_j) for every i, with W = dL/dK dk/d(r^2).
        pulls = features * by_covariance.sum(axis=1)[:, None] - by_covariance @ features
        pulls *= (4.0 * hyperparameters.scale / np.square(hyperparameters.lengthscales))[self._axes]
        by_axis = np.bincount(self._axes, weights=np.einsum("ij,ij->j", features, pulls), minlength=d)
        gradient[:d] -= by_axis
        if len(warped):
            moved = pulls[:, warped] + 2.0 * by_products[:, warped]
            by_exponents = [np.einsum("ij,ij->j", moved, by) for by in (warping.by_log_a, warping.by_log_b)]
            gradient[d + 3 :] += np.concatenate(by_exponents)
        return value


def _inverse(covariance: Floats, noise: Floats | float) -> tuple[Floats, float]:
    """K^-1 and log |K| for K = covariance + diag(noise); raises LinAlgError where K is not positive definite."""
    step = len(covariance) + 1
    covariance.flat[::step] += noise
    factor, info = lapack.dpotrf(covariance, lower=1, clean=1)
    if info:
        raise np.linalg.LinAlgError
    log_determinant = 2.0 * float(np.log(factor.diagonal()).sum())
    lower, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    inverse = lower + lower.T
    inverse.flat[::step] *= 0.5
    return np.ascontiguousarray(inverse), log_determinant
