"""Scores are warped monotonely, whatever they are, and outliers matter by their rank."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.optimizers.warping import Warping

SCORES = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=40)


@given(scores=SCORES)
def test_targets_keep_the_order_and_are_of_size_one(scores: list[float]) -> None:
    targets = Warping.of(np.array(scores)).targets
    order = np.argsort(scores, kind="stable")
    assert np.isfinite(targets).all()
    assert (np.diff(targets[order]) >= -1e-9).all()
    assert abs(targets).max() < 1 + len(scores)


@given(scores=SCORES, target=st.floats(-1e6, 1e6))
def test_what_is_predicted_can_be_written_down(scores: list[float], target: float) -> None:
    warping = Warping.of(np.array(scores))
    assert np.isfinite([warping.score(target), warping.difference(abs(target))]).all()
    assert warping.score(target + 1.0) >= warping.score(target)


def test_the_way_back_leads_to_the_scores() -> None:
    scores = np.random.default_rng(0).standard_normal(30) ** 3
    warping = Warping.of(scores)
    assert [warping.score(target) for target in warping.targets] == pytest.approx(scores.tolist())


def test_a_diverged_run_counts_as_the_worst_and_no_more() -> None:
    scores = np.random.default_rng(0).standard_normal(30)
    scores[3] = 50.0
    far = scores.copy()
    far[3] = 1e30
    assert Warping.of(scores).targets == pytest.approx(Warping.of(far).targets, abs=1e-6)


def test_improvements_keep_their_proportions() -> None:
    scores = np.array([1.0, 2.0, 4.0, 7.0, 100.0, 1000.0, 1e4])
    targets = Warping.of(scores).targets
    assert np.diff(targets[:4]) == pytest.approx(np.array([1.0, 2.0, 3.0]) * (targets[1] - targets[0]))
    assert Warping.of(scores).difference(targets[1] - targets[0]) == pytest.approx(1.0)


@pytest.mark.parametrize("scores", [[3.0] * 9, [0.0], [1e300, 1e300 * (1 + 1e-15)], [5e-324, 5e-324]])
def test_scores_that_do_not_differ_have_no_size(scores: list[float]) -> None:
    warping = Warping.of(np.array(scores))
    assert not warping.targets.any()
    assert warping.score(2.0) == pytest.approx(scores[0])


def test_the_unit_of_the_scores_does_not_matter() -> None:
    scores = np.random.default_rng(1).standard_normal(20)
    assert Warping.of(scores * 1e-9).targets == pytest.approx(Warping.of(scores).targets)


def test_uncertain_scores_have_uncertain_targets_as_far_as_that_matters() -> None:
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1e30])
    warping = Warping.of(scores)
    assert not warping.variances(scores, np.zeros(7)).any()
    deviations = np.sqrt(warping.variances(scores, np.full(7, 0.5)))
    # In the better half by its scale; what is far off is the worst, however uncertain.
    assert np.allclose(deviations[:3] * warping.difference(1.0), 0.5)
    assert deviations[-1] < 1e-6
    assert not Warping.of(np.ones(3)).variances(np.ones(3), np.ones(3)).any()
