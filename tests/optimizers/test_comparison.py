"""Scores of runs that were stopped early, among those of runs that were not."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.optimizers.comparison import comparable
from metta.sweep.optimizers.encoding import Floats

NAN = np.nan


def table(*rows: tuple[float, ...]) -> tuple[Floats, Floats, np.ndarray]:
    """Rows of values at the two levels and at the end, as far as each came."""
    rungs = np.array([[*row[:2], NAN, NAN][:2] for row in rows])
    return np.array([row[-1] for row in rows]), rungs, np.array([len(row) == 3 for row in rows])


def test_where_enough_came_to_the_end_the_end_counts() -> None:
    scores = comparable(*table((5, 4, 3), (6, 5, 1), (2, 1)), enough=2)
    assert scores[:2].tolist() == [3, 1]
    # It was the best at each level that it came to, and yet it was stopped: somebody there was better, or will be.
    assert scores[2] > 3


def test_else_what_counts_is_the_highest_level_that_enough_came_to() -> None:
    scores = comparable(*table((5, 4, 3), (6, 5), (7, 6), (8,)), enough=3)
    assert scores[:3].tolist() == [4, 5, 6]
    assert scores[3] > 6


def test_those_that_were_stopped_before_follow_by_how_far_and_how_well() -> None:
    scores = comparable(*table((1, 1, 1), (2, 2, 2), (9, 9), (3, 8), (4,), (5,)), enough=2)
    assert np.argsort(scores).tolist() == [0, 1, 3, 2, 4, 5]


def test_without_levels_or_stops_nothing_changes() -> None:
    scores = np.array([3.0, NAN, 1.0])
    assert comparable(scores, np.empty((3, 0)), np.array([True, False, True]), 1) is scores
    whole = np.array([3.0, 1.0])
    assert comparable(whole, np.array([[4.0], [2.0]]), np.array([True, True]), 1) is whole


@settings(deadline=None)
@given(data=st.data(), enough=st.integers(1, 6))
def test_who_came_there_keeps_what_it_had_and_nobody_else_is_better(data: st.DataObject, enough: int) -> None:
    number = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
    rows = data.draw(st.lists(st.lists(number, min_size=1, max_size=3).map(tuple), min_size=1, max_size=12))
    scores, rungs, whole = table(*rows)
    result = comparable(scores, rungs, whole, enough)
    assert np.isfinite(result).all()
    counts = [sum(len(row) > level for row in rows) for level in range(3)]
    if max(counts) < enough or whole.all():
        assert result.tolist() == scores.tolist()
        return
    level = max(number for number, count in enumerate(counts) if count >= enough)
    there = [len(row) > level for row in rows]
    assert [value for value, is_there in zip(result, there, strict=True) if is_there] == [
        row[level] for row in rows if len(row) > level
    ]
    behind = result[~np.array(there)]
    assert not len(behind) or behind.min() > max(row[level] for row in rows if len(row) > level)
