"""When a search counts as converged: never sooner than its false-stop rate allows, and for certain on a plateau."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.schedulers.convergence import Plateau, is_improving

PATIENCE, RATE = 10, 0.1


def stopped_at(scores: list[float], tolerance: float = 0.01) -> int | None:
    """After how many scores, lower being better, the search counts as converged; None when it never does."""
    plateau = Plateau(PATIENCE, tolerance, RATE)
    for number, score in enumerate(scores, start=1):
        plateau.add(score)
        if plateau.is_reached:
            return number
    return None


def test_what_is_required_is_the_quantile_of_the_geometric_distribution() -> None:
    plateau = Plateau(PATIENCE, 0.0, RATE)
    required = []
    for score in range(10, 0, -1):
        plateau.add(float(score))
        required.append(plateau.required)
        for _ in range(7):  # long, as every other stretch is that is worth going on with
            plateau.add(float(score))
    assert 0.9**7 < 0.5 < 0.9**6
    assert required == [7 + more for more in [29, 39, 46, 51, 55, 58, 61, 63, 65, 67]]
    chances = [(1 - 1 / PATIENCE) ** (evaluations - 7) for evaluations in required]
    for j, chance in enumerate(chances, start=1):
        assert chance <= RATE / (j * (j + 1)) < chance / (1 - 1 / PATIENCE)


def test_quick_steps_do_not_raise_what_is_required() -> None:
    plateau = Plateau(PATIENCE, 0.0, RATE)
    for score in range(100, 0, -1):
        plateau.add(float(score))
        for _ in range(6):
            plateau.add(float(score))
    assert plateau.required == 36


def test_a_search_that_still_improves_is_hardly_ever_stopped() -> None:
    """Each evaluation improves with the smallest chance that is still worth it: the worst case of the bound."""
    choose = random.Random(0)
    sweeps = 400
    stops = 0
    for _ in range(sweeps):
        level, scores = 0.0, []
        for _ in range(600):
            if choose.random() < 1 / PATIENCE:
                level -= 1.0
                scores.append(level)
            else:
                scores.append(level + 20 + choose.random())
        stops += stopped_at(scores) is not None
    # The bound is 10 %; three standard errors of the estimate are 4.5 %.
    assert stops / sweeps < RATE + 3 * math.sqrt(RATE * (1 - RATE) / sweeps)


@pytest.mark.parametrize(("steps", "required"), [(1, 36), (2, 46), (3, 53)])
def test_a_plateau_ends_the_search_after_just_as_many_evaluations_as_required(steps: int, required: int) -> None:
    way = [float(steps - step) for step in range(steps) for _ in range(10)][:-9]
    assert stopped_at([*way, *[1.0] * 100]) == len(way) + required


def test_on_a_plateau_of_noisy_scores_most_searches_end_in_time() -> None:
    choose = random.Random(1)
    ends = []
    for _ in range(100):
        way = [math.exp(-step / 8) + 0.05 * abs(choose.gauss(0, 1)) for step in range(30)]
        flat = [0.02 + 0.05 * abs(choose.gauss(0, 1)) for _ in range(170)]
        ends.append(stopped_at([*way, *flat], tolerance=0.05))
    assert sum(end is not None for end in ends) >= 90


def test_many_small_steps_add_up_to_improvements() -> None:
    # Each is a fifth of what is relevant, so every sixth or so is a relevant one.
    assert stopped_at([1 - 0.002 * step for step in range(500)]) is None


def test_steps_below_the_tolerance_do_not_keep_a_search_going() -> None:
    way = [1.0 - 0.1 * step for step in range(10)]
    assert stopped_at([*way, *[0.1 - 1e-6 * step for step in range(100)]]) == 10 + 36


def test_a_lucky_score_does_not_end_a_search_that_gets_better_on_the_whole() -> None:
    choose = random.Random(2)
    stops = 0
    for _ in range(50):
        scores = [3 - 0.03 * step + choose.gauss(0, 0.1) for step in range(90)]
        scores[5] = 0.2
        stops += stopped_at(scores) is not None
    assert stops <= 2


def test_a_few_diverged_runs_do_not_blow_up_what_is_relevant() -> None:
    plateau = Plateau(PATIENCE, 0.01, RATE)
    for score in [1e30, 0.9, 0.8, 1e30, 0.7, 0.6, 1e30, 0.5]:
        plateau.add(score)
    assert plateau.least_improvement < 0.01


def test_equal_scores_are_a_plateau() -> None:
    assert stopped_at([0.5] * 100) == 1 + 36


class TestTrend:
    def test_falling_scores_are_improving_and_others_are_not(self) -> None:
        falling = [float(-step) for step in range(20)]
        assert is_improving(falling, 0.0)
        assert is_improving(falling, 9.9)
        assert not is_improving(falling, 10.0)
        assert not is_improving([float(step) for step in range(20)], 0.0)
        assert not is_improving([1.0] * 20, 0.0)
        assert not is_improving([3.0, 2.0, 1.0], 0.0)

    def test_a_trend_is_seen_in_one_of_five_sequences_without_one(self) -> None:
        choose = random.Random(3)
        seen = sum(is_improving([choose.random() for _ in range(40)], 0.0) for _ in range(1000))
        assert 120 <= seen <= 240


@settings(max_examples=100, deadline=None)
@given(
    scores=st.lists(st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]) | st.floats(-1e6, 1e6), max_size=120),
    scale=st.sampled_from([0.25, 1.0, 1024.0]),
    shift=st.sampled_from([0.0, 1.0, -64.0]),
)
def test_the_scale_and_origin_of_scores_do_not_matter(scores: list[float], scale: float, shift: float) -> None:
    exact = [round(score * 1024) / 1024 for score in scores]
    assert stopped_at(exact, 0.0) == stopped_at([score * scale + shift for score in exact], 0.0)
