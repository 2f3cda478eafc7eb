"""A Gaussian process: its hyperparameters from data, its predictions, and how sure it would be after more runs."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.linalg import lapack
from scipy.optimize import minimize

from metta.sweep.optimizers.encoding import Floats
from metta.sweep.optimizers.features import FeatureMap
from metta.sweep.optimizers.input_warping import kumaraswamy
from metta.sweep.optimizers.kernel import Hyperparameters, Likelihood, matern, squared_distances

#: Bounds of the logarithms of lengthscales, scale, noise, trend and the exponents of input warping.
_LENGTHSCALES = (math.log(0.02), math.log(1e3))
_SCALE = (math.log(0.05), math.log(20.0))
_NOISE = (math.log(1e-6), math.log(1.0))
_TREND = (math.log(1e-4), math.log(20.0))
_EXPONENTS = (-1.5, 1.5)
_MOST_ITERATIONS = 50
#: Least variance of a prediction, for targets of size one.
_CERTAIN = 1e-12


def fit(feature_map: FeatureMap, features: Floats, targets: Floats, variances: Floats | float = 0.0) -> Hyperparameters:
    """The most probable hyperparameters, by L-BFGS-B from fixed starts, so that they depend on the data alone."""
    likelihood = Likelihood(feature_map, features, targets, variances)
    dimensions, warped = feature_map.dimensions, len(feature_map.warped)
    bounds = [_LENGTHSCALES] * dimensions + [_SCALE, _NOISE, _TREND] + [_EXPONENTS] * (2 * warped)
    found = [
        minimize(
            likelihood,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": _MOST_ITERATIONS, "ftol": 1e-5},
        )
        for start in _starts(dimensions, warped)
    ]
    # Of equal ones the first.
    return Hyperparameters.of(min(found, key=lambda each: float(each.fun)).x, dimensions)


def _starts(dimensions: int, warped: int) -> list[Floats]:
    """Smooth with hardly any noise, and rougher with some."""
    typical = 0.5 * math.log(max(dimensions, 1)) - 0.7
    trend = -math.log(max(dimensions, 1))
    return [
        np.concatenate([np.full(dimensions, typical + shift), [0.0, math.log(noise), trend], np.zeros(2 * warped)])
        for shift, noise in ((0.5, 1e-3), (-0.7, 1e-2))
    ]


def _solved(factor: Floats, right: Floats, *, transposed: bool = False) -> Floats:
    """L^-1 B or L^-T B; by LAPACK itself, since SciPy's own function takes longer to check than small systems do."""
    solution, info = lapack.dtrtrs(factor, right, lower=1, trans=int(transposed))
    assert not info, "a Cholesky factor has no zeros on its diagonal"
    return np.asarray(solution)


class _Inputs(NamedTuple):
    """Points as the two parts of the kernel see them, (n, f) each."""

    #: In units of the lengthscales.
    scaled: Floats
    #: From the centre, in units whose products are the covariance of the trend.
    centred: Floats

    def then(self, other: _Inputs) -> _Inputs:
        """These points, and the others after them."""
        return _Inputs(*(np.concatenate(pair) for pair in zip(self, other, strict=True)))


class Posterior:
    """A Gaussian process given points (n, f) and targets (n,): K = L L^T, predictions k^T K^-1 y.

    With `variances` (n,) the targets are uncertain by these, beside the noise.
    """

    def __init__(
        self,
        hyperparameters: Hyperparameters,
        feature_map: FeatureMap,
        features: Floats,
        targets: Floats,
        variances: Floats | float = 0.0,
    ) -> None:
        self._roots = 1.0 / hyperparameters.lengthscales[feature_map.axes]
        self._exponents = hyperparameters.exponents
        self._warped = feature_map.warped
        self._scale = hyperparameters.scale
        self._noise = hyperparameters.noise
        self._slope = math.sqrt(hyperparameters.trend)
        self._centre = feature_map.centre
        self._points = self._inputs(features)
        covariance = self._covariance(self._points, self._points)
        covariance.flat[:: len(covariance) + 1] += variances
        self._factor = self._factored(covariance)
        self._weights = _solved(self._factor, _solved(self._factor, targets), transposed=True)

    def _inputs(self, features: Floats) -> _Inputs:
        return self._inputs_with_slopes(features)[0]

    def _inputs_with_slopes(self, features: Floats) -> tuple[_Inputs, Floats]:
        """Inputs, and the derivatives of the warping by the features, (n, f)."""
        slopes = np.ones_like(features)
        if len(self._warped):
            warped = kumaraswamy(features[:, self._warped], self._exponents)
            features = features.copy()
            features[:, self._warped] = warped.values
            slopes[:, self._warped] = warped.slopes
        return _Inputs(features * self._roots, self._slope * (features - self._centre)), slopes

    def _covariance(self, left: _Inputs, right: _Inputs) -> Floats:
        covariance = matern(squared_distances(left.scaled, right.scaled))[0]
        covariance *= self._scale
        covariance += left.centred @ right.centred.T
        return covariance

    def _factored(self, covariance: Floats) -> Floats:
        step = len(covariance) + 1
        covariance.flat[::step] += self._noise
        factor, info = lapack.dpotrf(covariance, lower=1, clean=1)
        while info:
            # Where the noise is so small that rounding outweighs it.
            covariance.flat[::step] += 1e-6 * self._scale
            factor, info = lapack.dpotrf(covariance, lower=1, clean=1)
        return np.asarray(factor)

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the function, noise apart, at (q, f) features."""
        points = self._inputs(features)
        cross = self._covariance(self._points, points)
        half = _solved(self._factor, cross)
        return self._mean(cross), self._deviation(points, half)

    def _mean(self, cross: Floats) -> Floats:
        return np.asarray(self._weights @ cross[: len(self._weights)])

    def _deviation(self, points: _Inputs, half: Floats) -> Floats:
        prior = self._scale + np.einsum("ij,ij->i", points.centred, points.centred)
        return np.asarray(np.sqrt(np.maximum(prior - np.einsum("ij,ij->j", half, half), _CERTAIN)))

    def predict_with_slopes(self, features: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """As `predict`, and the derivatives of mean and deviation by the features, (q, f) each."""
        points, warping = self._inputs_with_slopes(features)
        cross, slope = matern(squared_distances(self._points.scaled, points.scaled))
        cross *= self._scale
        cross += self._points.centred @ points.centred.T
        # dk / dx = 2 dk/d(r^2) (x - x_i) / lengthscale^2, and of the trend x_i.
        slope *= 2.0 * self._scale
        half = _solved(self._factor, cross)
        deviation = self._deviation(points, half)
        inverse = _solved(self._factor, half, transposed=True)
        known = len(self._weights)
        scaled, centred = self._points
        of_mean = self._roots * _pulled(scaled[:known], points.scaled, slope[:known] * self._weights[:, None])
        of_mean += self._slope * (self._weights @ centred[:known])
        of_deviation = self._slope * (points.centred - inverse.T @ centred)
        inverse *= slope
        of_deviation -= self._roots * _pulled(scaled, points.scaled, inverse)
        of_deviation /= deviation[:, None]
        return self._mean(cross), deviation, of_mean * warping, of_deviation * warping

    def believe(self, features: Floats) -> None:
        """Take points (q, f) in as if measured, each with the target that is expected of it.

        That moves no mean: their weights are zero. The factor grows by the rows [L^-1 k; chol(K' - k^T K^-1 k)].
        """
        points = self._inputs(features)
        cross = _solved(self._factor, self._covariance(self._points, points))
        corner = self._factored(self._covariance(points, points) - cross.T @ cross)
        count, more = len(self._factor), len(corner)
        factor = np.zeros((count + more, count + more), order="F")
        factor[:count, :count] = self._factor
        factor[count:, :count] = cross.T
        factor[count:, count:] = corner
        self._factor = factor
        self._points = self._points.then(points)


def _pulled(known: Floats, points: Floats, coefficients: Floats) -> Floats:
    """sum_i c_ij (x_j - x_i) for each j: (q, f)."""
    return np.asarray(points * coefficients.sum(axis=0)[:, None] - coefficients.T @ known)
