"""The Gaussian process: gradients to many digits, predictions against the textbook, hyperparameters that are found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from metta.sweep.model.space import Choice, SearchSpace, Uniform
from metta.sweep.optimizers.acquisition import LogImprovement
from metta.sweep.optimizers.blas import one_thread
from metta.sweep.optimizers.encoding import Floats
from metta.sweep.optimizers.features import FeatureMap
from metta.sweep.optimizers.input_warping import kumaraswamy
from metta.sweep.optimizers.kernel import Hyperparameters, Likelihood, matern, squared_distances
from metta.sweep.optimizers.surrogate import Posterior, fit


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


MIXED = FeatureMap(
    SearchSpace.of({"x": Uniform(0, 1), "kind": Choice(["a", "b", "c"]), "y": Uniform(0, 1), "z": Uniform(0, 1)})
)


def data(count: int, seed: int = 0, feature_map: FeatureMap = MIXED) -> tuple[Floats, Floats]:
    generator = np.random.default_rng(seed)
    units, active = feature_map.settle(generator.random((count, feature_map.dimensions)))
    targets = np.sin(3 * units[:, 0]) + (units[:, 1] > 0.5) - units[:, -1] ** 2
    return feature_map.features(units, active), (targets - targets.mean()) / targets.std()


def hyperparameters(feature_map: FeatureMap = MIXED, seed: int = 1) -> Hyperparameters:
    size = feature_map.dimensions + 3 + 2 * len(feature_map.warped)
    return Hyperparameters.of(0.3 * np.random.default_rng(seed).standard_normal(size) - 0.5, feature_map.dimensions)


@pytest.mark.parametrize("uncertain", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_the_likelihood_is_that_of_finite_differences(seed: int, uncertain: bool) -> None:
    features, targets = data(30)
    variances = np.random.default_rng(seed).random(30) if uncertain else 0.0
    likelihood = Likelihood(MIXED, features, targets, variances)
    size = MIXED.dimensions + 3 + 2 * len(MIXED.warped)
    point = 0.4 * np.random.default_rng(seed).standard_normal(size)
    _, gradient = likelihood(point)
    step = 1e-5
    for axis in range(size):
        move = step * np.eye(size)[axis]
        difference = (likelihood(point + move)[0] - likelihood(point - move)[0]) / (2 * step)
        assert gradient[axis] == pytest.approx(difference, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("believing", [False, True])
def test_slopes_of_predictions_are_those_of_finite_differences(believing: bool) -> None:
    features, targets = data(25)
    posterior = Posterior(hyperparameters(), MIXED, features, targets)
    if believing:
        posterior.believe(data(3, seed=5)[0])
    points = np.random.default_rng(2).random((4, features.shape[1]))
    mean, deviation, of_mean, of_deviation = posterior.predict_with_slopes(points)
    assert np.allclose(posterior.predict(points), (mean, deviation), rtol=1e-12)
    step = 1e-6
    for axis in range(points.shape[1]):
        move = step * np.eye(points.shape[1])[axis]
        above, below = posterior.predict(points + move), posterior.predict(points - move)
        assert np.allclose(of_mean[:, axis], (above[0] - below[0]) / (2 * step), atol=1e-6)
        assert np.allclose(of_deviation[:, axis], (above[1] - below[1]) / (2 * step), atol=1e-6)


def test_predictions_are_those_of_the_textbook() -> None:
    features, targets = data(20)
    prior = hyperparameters()
    points = data(7, seed=3)[0]

    def warped(rows: Floats) -> Floats:
        rows = rows.copy()
        rows[:, MIXED.warped] = kumaraswamy(rows[:, MIXED.warped], prior.exponents).values
        return rows

    def kernel(left: Floats, right: Floats) -> Floats:
        left, right = warped(left), warped(right)
        steps = (left[:, None] - right[None]) / prior.lengthscales[MIXED.axes]
        distances = np.sqrt(5 * (steps**2).sum(axis=2))
        details = prior.scale * (1 + distances + distances**2 / 3) * np.exp(-distances)
        return np.asarray(details + prior.trend * (left - MIXED.centre) @ (right - MIXED.centre).T)

    inverse = np.linalg.inv(kernel(features, features) + prior.noise * np.eye(20))
    cross = kernel(points, features)
    mean, deviation = Posterior(prior, MIXED, features, targets).predict(points)
    assert np.allclose(mean, cross @ inverse @ targets)
    assert np.allclose(deviation**2, np.diag(kernel(points, points) - cross @ inverse @ cross.T))


def test_an_uncertain_target_is_noisy_by_that_much_more() -> None:
    features, targets = data(20)
    prior, points = hyperparameters(), data(7, seed=3)[0]
    certain = Posterior(prior, MIXED, features, targets)
    doubled = Posterior(prior, MIXED, features, targets, np.full(20, prior.noise))
    noisy = Posterior(replace(prior, noise=2 * prior.noise), MIXED, features, targets)
    assert np.allclose(doubled.predict(points), noisy.predict(points))
    # Where one target is hardly known, so is the function; the others say as much as before.
    one = Posterior(prior, MIXED, features, targets, np.where(np.arange(20) == 4, 10.0, 0.0))
    without = np.arange(20) != 4
    assert np.allclose(
        one.predict(points),
        Posterior(prior, MIXED, features[without], targets[without]).predict(points),
        atol=0.05,
    )
    assert one.predict(features[4:5])[1] > certain.predict(features[4:5])[1]


def test_believing_a_point_moves_no_mean_and_takes_the_doubt_away_there() -> None:
    features, targets = data(20)
    one, other = (Posterior(hyperparameters(), MIXED, features, targets) for _ in range(2))
    more, points = data(4, seed=7)[0], data(9, seed=8)[0]
    one.believe(more)
    means = other.predict(more)[0]
    whole = Posterior(hyperparameters(), MIXED, np.concatenate([features, more]), np.concatenate([targets, means]))
    assert np.allclose(one.predict(points), whole.predict(points), atol=1e-6)
    assert np.allclose(one.predict(points)[0], other.predict(points)[0])
    assert (one.predict(more)[1] < other.predict(more)[1]).all()


def test_the_slope_of_the_kernel_is_finite_where_points_meet() -> None:
    value, slope = matern(np.array([[0.0, 1e-300, 1e-12, 4.0]]))
    assert value[0, 0] == 1.0
    assert slope[0, :3] == pytest.approx(-5 / 6)
    assert (np.diff(value[0]) <= 0).all()
    assert (squared_distances(np.full((2, 3), 0.1), np.full((2, 3), 0.1)) >= 0).all()


def test_an_axis_that_does_not_matter_gets_a_long_lengthscale() -> None:
    space = FeatureMap(SearchSpace.of({name: Uniform(0, 1) for name in "abc"}))
    units = np.random.default_rng(0).random((60, 3))
    targets = np.sin(6 * units[:, 0]) + 0.5 * np.cos(5 * units[:, 1])
    fitted = fit(space, units, (targets - targets.mean()) / targets.std())
    assert fitted.lengthscales[2] > 4 * max(fitted.lengthscales[:2])
    assert fitted.noise < 1e-3


def test_noise_is_told_from_the_function() -> None:
    space = FeatureMap(SearchSpace.of({"a": Uniform(0, 1)}))
    generator = np.random.default_rng(0)
    units = generator.random((80, 1))
    targets = np.sin(4 * units[:, 0]) + 0.5 * generator.standard_normal(80)
    fitted = fit(space, units, (targets - targets.mean()) / targets.std())
    assert 0.1 < fitted.noise < 0.6


def test_equal_points_and_equal_targets_are_no_obstacle() -> None:
    features = np.repeat(data(2)[0][:1], 30, axis=0)
    fitted = fit(MIXED, features, np.zeros(30))
    mean, deviation = Posterior(fitted, MIXED, features, np.zeros(30)).predict(features[:1])
    assert mean[0] == 0.0
    assert np.isfinite(deviation).all()


@pytest.mark.parametrize("exponents", [(1.0, 1.0), (0.3, 1.0), (1.0, 3.0), (2.0, 0.5)])
def test_input_warping_is_monotone_from_corner_to_corner(exponents: tuple[float, float]) -> None:
    x = np.linspace(0, 1, 101)[:, None]
    warped = kumaraswamy(x, np.array(exponents)[:, None])
    assert (np.diff(warped.values[:, 0]) > 0).all()
    assert np.isfinite(np.concatenate(warped)).all()
    if exponents == (1.0, 1.0):
        assert np.allclose(warped.values, x, atol=2e-3)


@pytest.mark.parametrize("kinds", ["score", "score, success", "score, success, cost"])
def test_slopes_of_the_acquisition_are_those_of_finite_differences(kinds: str) -> None:
    features, targets = data(25)
    acquisition = LogImprovement(Posterior(hyperparameters(), MIXED, features, targets), best=-1.0, widening=1.5)
    if "success" in kinds:
        acquisition.success = Posterior(hyperparameters(seed=4), MIXED, features, np.where(targets > 0, -1.0, 1.0))
    if "cost" in kinds:
        acquisition.cost = Posterior(hyperparameters(seed=6), MIXED, features, -targets)
        acquisition.cost_size = 0.7
    points = np.random.default_rng(2).random((4, features.shape[1]))
    values, slopes = acquisition.with_slopes(points)
    assert np.allclose(values, acquisition(points))
    step = 1e-6
    for axis in range(points.shape[1]):
        move = step * np.eye(points.shape[1])[axis]
        difference = (acquisition(points + move) - acquisition(points - move)) / (2 * step)
        assert np.allclose(slopes[:, axis], difference, rtol=1e-4, atol=1e-4)
