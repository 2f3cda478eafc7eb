"""Parzen densities: they are densities, of the points they are made from, and what is drawn from them follows them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from metta.sweep.model.space import Choice, Range, SearchSpace, Uniform
from metta.sweep.optimizers.axes import Axes
from metta.sweep.optimizers.parzen import Parzen

FINITE = SearchSpace.of(
    {"layers": Range(1, 5), "units": Range(1, 12, log=True), "kind": Choice(["a", "b", "c"]), "one": Choice(["only"])}
)
BRANCHES = SearchSpace.of(
    {"kind": Choice(["a", "b"]), "depth": Range(1, 4, when={"kind": "a"}), "width": Range(1, 3, when={"kind": "b"})}
)


def density(space: SearchSpace, count: int, *, prior_weight: float = 1.0, seed: int = 2) -> Parzen:
    """About random points, weighing 1, 2, 3, ..."""
    axes = Axes(space)
    points = axes.snapped(np.random.default_rng(seed).random((count, len(axes))))
    weights = np.arange(1.0, count + 1)
    return Parzen(axes, points, axes.active(points), weights=weights, prior_weight=prior_weight)


def every_point(space: SearchSpace) -> np.ndarray:
    """The place of each configuration of a finite space, those that do not exist at 0.5."""
    assert space.cardinality is not None
    return np.array([space.encode(space.lattice.at(index)) for index in range(space.cardinality)])


@pytest.mark.parametrize("space", [FINITE, BRANCHES], ids=["finite", "branches"])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_the_masses_of_all_configurations_add_up_to_one(space: SearchSpace, count: int) -> None:
    points = every_point(space)
    logs = density(space, count).log_density(points, Axes(space).active(points))
    assert np.exp(logs).sum() == pytest.approx(1.0)


def test_a_continuous_density_has_a_volume_of_one() -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0), "y": Uniform(0.0, 1.0)})
    grid = (np.arange(200) + 0.5) / 200
    points = np.array(list(itertools.product(grid, grid)))
    logs = density(space, 5).log_density(points, np.ones(points.shape, dtype=np.bool_))
    assert np.exp(logs).mean() == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("space", [FINITE, BRANCHES], ids=["finite", "branches"])
def test_draws_are_as_frequent_as_the_density_says(space: SearchSpace) -> None:
    parzen, axes, points = density(space, 4), Axes(space), every_point(space)
    expected = np.exp(parzen.log_density(points, axes.active(points)))
    drawn = [space.key(space.decode(point)) for point in parzen.sample(np.random.default_rng(0), 20_000).tolist()]
    counts = [drawn.count(space.key(space.lattice.at(index))) for index in range(len(points))]
    assert stats.chisquare(counts, expected / expected.sum() * len(drawn)).pvalue > 0.001


def test_continuous_draws_follow_the_density() -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0)})
    parzen = density(space, 3)
    edges = np.linspace(0.0, 1.0, 21)
    fine = (np.arange(2000) + 0.5)[:, None] / 2000
    masses = np.exp(parzen.log_density(fine, np.ones(fine.shape, dtype=np.bool_))).reshape(20, 100).mean(axis=1) / 20
    counts, _ = np.histogram(parzen.sample(np.random.default_rng(0), 20_000)[:, 0], bins=edges)
    assert stats.chisquare(counts, masses / masses.sum() * 20_000).pvalue > 0.001


def test_the_density_is_the_sum_of_products_that_it_is_said_to_be() -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0), "y": Uniform(0.0, 1.0), "kind": Choice(["a", "b", "c"])})
    axes = Axes(space)
    points = axes.snapped(np.random.default_rng(1).random((6, 3)))
    parzen = Parzen(axes, points, axes.active(points), weights=np.arange(1.0, 7.0), prior_weight=2.0)
    deviations = np.sqrt((points.var(axis=0) * 6 + 3.0 / 12) / 9)
    widths = np.maximum(deviations * 6 ** (-1 / 7), 0.03)
    change = 2 / (6 + 1 + 3)

    def kernel(at: np.ndarray, own: np.ndarray) -> float:
        values = 1.0
        for axis in (0, 1):
            bounds = (0.0 - own[axis]) / widths[axis], (1.0 - own[axis]) / widths[axis]
            values *= stats.truncnorm(*bounds, loc=own[axis], scale=widths[axis]).pdf(at[axis])
        return float(values * (1 - change if at[2] == own[2] else change / 2))

    for at in axes.snapped(np.random.default_rng(3).random((10, 3))):
        sums = sum(weight * kernel(at, own) for weight, own in zip(range(1, 7), points, strict=True))
        direct = (sums + 2.0 / 3) / (21 + 2)
        [log] = parzen.log_density(at[None, :], np.ones((1, 3), dtype=np.bool_))
        assert np.exp(log) == pytest.approx(direct)


@pytest.mark.parametrize("values", [2_000, 10**6, 2**50])
def test_very_many_values_are_like_a_continuum(values: int) -> None:
    stepped, continuous = SearchSpace.of({"x": Range(1, values)}), SearchSpace.of({"x": Uniform(0.0, 1.0)})
    at = np.linspace(0.0, 1.0, 50)[:, None]
    exists = np.ones(at.shape, dtype=np.bool_)
    own = np.array([[0.2], [0.25], [0.9]])
    logs = [
        Parzen(Axes(space), own, own > 0, weights=np.ones(3), prior_weight=1.0).log_density(at, exists)
        for space in (stepped, continuous)
    ]
    assert logs[0] + np.log(values) == pytest.approx(logs[1], abs=0.02)


def test_points_close_together_make_narrow_kernels_and_few_points_wide_ones() -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0)})
    axes = Axes(space)
    spreads = []
    for count in (1, 5, 50):
        points = np.full((count, 1), 0.5)
        parzen = Parzen(axes, points, points > 0, weights=np.ones(count), prior_weight=1e-9)
        spreads.append(float(parzen.sample(np.random.default_rng(0), 2000).std()))
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[0] > 0.2
    assert spreads[-1] < 0.06


def test_the_weight_of_the_whole_space_is_the_share_of_draws_from_it() -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0)})
    axes = Axes(space)
    points = np.full((30, 1), 0.02)
    far = []
    for prior_weight in (1e-9, 10.0, 30.0, 1e9):
        parzen = Parzen(axes, points, points > 0, weights=np.ones(30), prior_weight=prior_weight)
        far.append(float((parzen.sample(np.random.default_rng(0), 4000) > 0.5).mean()))
    assert far == pytest.approx([0.0, 0.125, 0.25, 0.5], abs=0.03)
