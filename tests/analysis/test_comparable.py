"""What is compared with what."""

from __future__ import annotations

from analysis.runs import run
from metta.sweep.analysis.comparable import best_first, comparable, in_order_of_end
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobStatus, Parent
from metta.sweep.testing.sweeps import sweep_config

STOPPING = sweep_config(fidelity=Fidelity(maximum=9))  # levels 1 and 3


def test_without_early_stopping_completed_runs_count_by_their_scores() -> None:
    runs = [run(0, 0.5), run(1, status=JobStatus.FAILED, partial_score=0.9), run(2, 0.7)]
    found = comparable(sweep_config(), runs)
    assert (found.level, found.values, [each.index for each in found.runs]) == (None, (0.5, 0.7), [0, 2])


def test_runs_stopped_early_count_at_the_highest_level_that_half_of_them_came_to() -> None:
    whole = [run(0, 0.9, rungs=[(1, 0.1), (3, 0.4)])]
    to_three = [run(index, status=JobStatus.STOPPED, rungs=[(1, 0.2), (3, 0.5)]) for index in (1, 2)]
    to_one = [run(index, status=JobStatus.STOPPED, rungs=[(1, 0.3)]) for index in (3, 4)]
    found = comparable(STOPPING, [*whole, *to_three, *to_one])
    assert (found.level, found.values) == (3, (0.4, 0.5, 0.5))
    found = comparable(STOPPING, [*whole, *to_three, *to_one, *[run(9, rungs=[(1, 0.3)], status=JobStatus.FAILED)] * 2])
    assert (found.level, len(found.values)) == (1, 7)


def test_with_a_fidelity_whole_runs_count_while_most_are_whole() -> None:
    runs = [run(0, 0.9, rungs=[(1, 0.1)]), run(1, status=JobStatus.STOPPED, rungs=[(1, 0.2)])]
    assert comparable(STOPPING, runs).values == (0.9,)


def test_what_others_weights_reached_and_what_was_taken_back_does_not_count() -> None:
    parent = Parent(run_id="x", level=1.0, step=1, replaces="y")
    runs = [run(0, 0.9, parent=parent), run(1, 0.8, status=JobStatus.ROLLED_BACK), run(2, 0.7)]
    assert comparable(sweep_config(), runs).values == (0.7,)


def test_the_best_come_first_in_the_sweeps_direction_and_the_earlier_of_equals() -> None:
    runs = [run(0, 0.5), run(1, 0.9), run(2, 0.9), run(3, status=JobStatus.FAILED)]
    assert [each.index for each in best_first(sweep_config(), runs)] == [1, 2, 0]
    assert [each.index for each in best_first(sweep_config(direction="minimize"), runs)] == [0, 1, 2]


def test_runs_come_in_the_order_of_their_ends() -> None:
    runs = [run(0, 0.5, ended_at=9e9), run(1, 0.9), run(2, status=JobStatus.IN_TRAINING, ended_at=None)]
    assert [each.index for each in in_order_of_end(runs)] == [1, 0]
