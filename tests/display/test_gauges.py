"""Bars and curves of one line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.analysis.curve import Curve, Improvement
from metta.sweep.display.gauges import bar, sparkline


@pytest.mark.parametrize(
    ("share", "full"), [(0.0, 0), (0.001, 1), (0.5, 5), (0.999, 9), (1.0, 10), (1.7, 10), (-0.2, 0)]
)
def test_a_bar_is_full_only_at_the_end_and_empty_only_at_the_beginning(share: float, full: int) -> None:
    assert bar(share, 10, "cyan").plain == "█" * full + "░" * (10 - full)


def curve(*scores: float | None) -> Curve:
    """Of runs that scored so, each with a result better than all before it, or none."""
    improvements = [
        Improvement(run_id=str(runs), score=score, runs=runs, cost=0.0, at=0.0)
        for runs, score in enumerate(scores, start=1)
        if score is not None
    ]
    return Curve(improvements=tuple(improvements), runs=len(scores))


def test_a_sparkline_climbs_as_the_best_score_did() -> None:
    assert sparkline(curve(None, 0.0, None, 4.0, None, 7.0), 6) == " ▁▁▅▅█"
    assert sparkline(curve(7.0, None, 0.0), 3) == "█" * 2 + "▁"
    assert sparkline(curve(None, None), 8) == ""


def test_a_first_value_beside_which_all_others_look_alike_does_not_set_the_scale() -> None:
    line = sparkline(curve(1e30, 3.0, *[None] * 13, 2.0, *[None] * 3, 1.0), 20)
    assert line == "█" * 15 + "▄" * 4 + "▁" or line == "█" * 15 + "▅" * 4 + "▁"


@given(st.integers(1, 500), st.integers(1, 60), st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=9, unique=True))
def test_a_sparkline_is_never_too_long_and_ends_at_its_best(runs: int, width: int, scores: list[float]) -> None:
    rising = [*sorted(scores)[:runs], *[None] * max(0, runs - len(scores))]
    line = sparkline(curve(*rising), width)
    assert len(line) == min(width, runs)
    assert line[-1] == ("█" if len(set(line.strip())) > 1 else line[-1])
