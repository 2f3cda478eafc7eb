"""Best so far."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from analysis.runs import run
from metta.sweep.analysis.curve import curve_of
from metta.sweep.model.run import JobStatus
from metta.sweep.testing.sweeps import sweep_config


@given(st.lists(st.none() | st.floats(-9, 9), max_size=30), st.sampled_from(["maximize", "minimize"]))
def test_it_is_the_best_of_the_first_so_many_runs(scores: list[float | None], direction: str) -> None:
    runs = [
        run(index, score, status=JobStatus.FAILED if score is None else JobStatus.COMPLETED)
        for index, score in enumerate(scores)
    ]
    curve = curve_of(sweep_config(direction=direction), runs)
    best = max if direction == "maximize" else min
    for count in range(len(scores) + 1):
        expected = best([score for score in scores[:count] if score is not None], default=None)
        assert curve.after_runs(count) == expected
        assert curve.after_cost(3600.0 * count + 1) == expected
    assert (curve.runs, curve.cost) == (len(scores), 3600.0 * len(scores))


def test_what_was_stopped_counts_as_spent() -> None:
    curve = curve_of(sweep_config(), [run(0, status=JobStatus.STOPPED, partial_score=9.0, cost=60.0), run(1, 0.5)])
    [improvement] = curve.improvements
    assert (improvement.runs, improvement.cost, improvement.score) == (2, 3660.0, 0.5)
