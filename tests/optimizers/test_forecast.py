"""Forecasts of trainings that were cut short, on curves that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.optimizers.encoding import Floats
from metta.sweep.optimizers.forecast import forecast

NAN = np.nan


def curves(count: int, seed: int, *, noise: float = 0.02, by_coordinate: float = 1.0) -> tuple[Floats, Floats, Floats]:
    """Values at two levels and at the end, all of them and as known: of each level the worse half went no further.

    The larger the second coordinate, the worse a run begins and the better it ends.
    """
    generator = np.random.default_rng(seed)
    units = generator.random((count, 3))
    first = 2.0 + units[:, 0] + by_coordinate * units[:, 1] + noise * generator.normal(size=count)
    levels = [first]
    for _ in range(2):
        levels.append(0.9 * levels[-1] - by_coordinate * units[:, 1] + noise * generator.normal(size=count))
    whole = np.column_stack(levels)
    known = whole.copy()
    for number in (0, 1):
        there = np.isfinite(known[:, number])
        known[~there | (known[:, number] > np.median(known[there, number])), number + 1 :] = NAN
    return whole, known, units


def test_what_was_measured_is_certain() -> None:
    whole, known, units = curves(40, seed=0)
    found = forecast(known, units)
    assert found is not None
    assert found.level == 2
    ended = np.isfinite(known[:, 2])
    assert found.means[ended].tolist() == whole[ended, 2].tolist()
    assert not found.deviations[ended].any()
    assert (found.deviations[~ended] > 0).all()


def test_who_begins_badly_and_ends_well_is_known_by_its_configuration() -> None:
    whole, known, units = curves(80, seed=1)
    found = forecast(known, units)
    without = forecast(known, np.full_like(units, 0.5))
    assert found is not None
    assert without is not None
    open_ = np.isnan(known[:, 2])
    errors, blind = (np.abs(each.means - whole[:, 2])[open_] for each in (found, without))
    assert np.median(errors) < 0.5 * np.median(blind)
    # The ranks at the first level say next to nothing of those in the end; the forecasts do.
    assert np.corrcoef(found.means, whole[:, 2])[0, 1] > 0.9


@pytest.mark.parametrize("seed", range(5))
def test_deviations_are_of_the_size_of_the_errors(seed: int) -> None:
    whole, known, units = curves(100, seed, noise=0.1)
    found = forecast(known, units)
    assert found is not None
    open_ = np.isnan(known[:, 2])
    standardised = (whole[open_, 2] - found.means[open_]) / found.deviations[open_]
    assert 0.3 < np.sqrt(np.mean(np.square(standardised))) < 1.6


def test_a_level_that_says_nothing_leaves_the_end_open() -> None:
    generator = np.random.default_rng(3)
    known, units = generator.normal(size=(60, 2)), generator.random((60, 2))
    known[30:, 1] = NAN
    found = forecast(known, units)
    assert found is not None
    assert found.deviations[30:].min() > 0.7 * np.std(known[:30, 1])


def test_before_two_have_come_to_the_end_the_highest_level_of_two_counts() -> None:
    levels = np.array([[3.0, 2.0, 1.0], [4.0, 3.0, NAN], [5.0, NAN, NAN], [NAN, NAN, NAN]])
    found = forecast(levels, np.full((4, 1), 0.5))
    assert found is not None
    assert found.level == 1
    assert found.means[:2].tolist() == [2.0, 3.0]
    assert 3.0 < found.means[2] < 5.0
    assert np.isnan(found.means[3])


def test_of_one_run_nothing_can_be_learned() -> None:
    assert forecast(np.array([[3.0, 2.0], [NAN, NAN]]), np.zeros((2, 1))) is None


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 99), power=st.integers(-30, 30), shift=st.floats(-5, 5))
def test_units_and_origin_of_the_metric_do_not_matter(seed: int, power: int, shift: float) -> None:
    _, known, units = curves(30, seed)
    found, moved = forecast(known, units), forecast((known + shift) * 2.0**power, units)
    assert found is not None
    assert moved is not None
    assert np.allclose(moved.means / 2.0**power - shift, found.means, atol=1e-3)
    assert np.allclose(moved.deviations / 2.0**power, found.deviations, atol=1e-3)


_VALUES = st.one_of(st.floats(-1e300, 1e300), st.sampled_from([0.0, 1.0, 1e-300, 1e300, -1e300]))


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.lists(_VALUES, max_size=3), min_size=1, max_size=12),
    seed=st.integers(0, 99),
    dimensions=st.integers(0, 4),
)
def test_whatever_was_reported_forecasts_are_numbers(rows: list[list[float]], seed: int, dimensions: int) -> None:
    levels = np.array([[*row, NAN, NAN, NAN][:3] for row in rows])
    found = forecast(levels, np.random.default_rng(seed).random((len(rows), dimensions)))
    if found is None:
        return
    has_any = np.isfinite(levels[:, 0])
    assert np.isfinite(found.means[has_any]).all()
    assert np.isfinite(found.deviations[has_any]).all()
    assert (found.deviations[has_any] >= 0).all()


def test_runs_that_diverge_do_not_blur_the_others() -> None:
    _, known, units = curves(60, seed=5)
    found = forecast(known, units)
    known[:5, 0], known[:5, 1:] = 1e200, NAN
    diverged = forecast(known, units)
    assert found is not None
    assert diverged is not None
    assert np.median(diverged.deviations[5:]) < 3 * np.median(found.deviations[5:])
