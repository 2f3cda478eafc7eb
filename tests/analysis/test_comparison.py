"""Sweeps side by side."""

from __future__ import annotations

import random
from collections.abc import Sequence

from analysis.runs import metadata, run
from metta.sweep.analysis.comparison import Comparison, compare
from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import SweepMetadata


def sweep_of(scores: Sequence[float], **fields: str) -> tuple[SweepMetadata, list[RunInfo]]:
    return metadata(**fields), [run(index, score) for index, score in enumerate(scores)]


def drawn(seed: int, count: int, mean: float) -> list[float]:
    choose = random.Random(seed)
    return [choose.gauss(mean, 1.0) for _ in range(count)]


def against(found: Comparison) -> float:
    contest = found.sides[1].contest
    assert contest is not None
    return contest.wins


def test_scores_are_compared_at_the_budget_of_the_smaller_sweep() -> None:
    found = compare([sweep_of([1, 2, 3, 4]), sweep_of([2, 1, 1, 1, 9, 9, 9, 9])])
    assert found.runs == (1, 1, 2, 4)
    assert [side.at_runs for side in found.sides] == [(1, 1, 2, 4), (2, 2, 2, 2)]
    assert [side.at_cost[-1] for side in found.sides] == [4, 2]
    assert [side.curve.best for side in found.sides] == [4, 9]


def test_a_sweep_that_tries_better_ones_clearly_wins() -> None:
    found = compare([sweep_of(drawn(0, 60, 0.0)), sweep_of(drawn(1, 60, 3.0))])
    contest = found.sides[1].contest
    assert found.sides[0].contest is None
    assert contest is not None
    assert contest.is_clear
    assert contest.low > 0
    assert contest.wins > 0.99


def test_in_a_search_for_the_least_the_lower_wins_and_the_difference_keeps_its_sign() -> None:
    found = compare(
        [sweep_of(drawn(0, 60, 3.0), direction="minimize"), sweep_of(drawn(1, 60, 0.0), direction="minimize")]
    )
    contest = found.sides[1].contest
    assert contest is not None
    assert contest.high < 0
    assert contest.wins > 0.99


def test_sweeps_alike_are_rarely_told_apart() -> None:
    pairs = [compare([sweep_of(drawn(2 * seed, 40, 0)), sweep_of(drawn(2 * seed + 1, 40, 0))]) for seed in range(60)]
    clear = [pair for pair in pairs if (contest := pair.sides[1].contest) is not None and contest.is_clear]
    # A test at 5% finds three of sixty on average; more than eight in one of a hundred times.
    assert len(clear) <= 8


def test_equal_scores_are_a_draw() -> None:
    assert against(compare([sweep_of([1.0] * 20), sweep_of([1.0] * 20)])) == 0.5


def test_other_metrics_are_not_compared() -> None:
    found = compare([sweep_of(drawn(0, 20, 0)), sweep_of(drawn(1, 20, 0), metric="loss", direction="minimize")])
    assert found.sides[1].contest is None
    assert found.note == "their scores do not compare: maximize reward, minimize loss"


def test_too_few_results_make_no_contest() -> None:
    assert compare([sweep_of(drawn(0, 7, 0)), sweep_of(drawn(1, 50, 0))]).sides[1].contest is None


def test_empty_sweeps_compare_too() -> None:
    assert compare([sweep_of([]), sweep_of([1.0])]).sides[0].at_runs == (None,) * 4
