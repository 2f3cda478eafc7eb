"""Which checkpoints the rules keep."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.agent.retention import superseded
from metta.sweep.model.run import Checkpoint
from metta.sweep.model.sweep import Direction, Retention


def checkpoint(step: int, score: float | None = None, at: float | None = None) -> Checkpoint:
    return Checkpoint(
        step=step,
        path=f"checkpoints/step-{step}",
        sha256="",
        size_bytes=1,
        at=float(step) if at is None else at,
        job_id="7kq9z.train.1",
        score=score,
    )


def kept(checkpoints: list[Checkpoint], policy: Retention, direction: Direction = "maximize") -> list[int]:
    gone = superseded(checkpoints, policy, direction)
    return sorted(each.step for each in checkpoints if each not in gone)


#: The best is that of step 4.
TEN = [checkpoint(step, score=float(-abs(step - 4))) for step in range(10)]

CHECKPOINTS = st.lists(
    st.builds(
        checkpoint,
        st.integers(0, 10**6),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.floats(0, 2e9),
    ),
    unique_by=lambda each: each.step,
    max_size=30,
)
COUNT = st.none() | st.integers(1, 12)
POLICIES = st.builds(Retention, last=COUNT, best=COUNT, every=COUNT)
DIRECTIONS: Any = st.sampled_from(["maximize", "minimize"])


@pytest.mark.parametrize(
    ("policy", "direction", "steps"),
    [
        (Retention(), "maximize", list(range(10))),
        (Retention(last=1), "maximize", [9]),
        (Retention(last=3), "maximize", [7, 8, 9]),
        (Retention(last=30), "maximize", list(range(10))),
        (Retention(best=1), "maximize", [4, 9]),
        (Retention(best=3), "maximize", [3, 4, 5, 9]),
        (Retention(best=2), "minimize", [0, 9]),
        (Retention(every=4), "maximize", [0, 4, 8, 9]),
        (Retention(last=2, best=1, every=7), "maximize", [0, 4, 7, 8, 9]),
    ],
)
def test_a_checkpoint_is_kept_by_any_rule_that_names_it(
    policy: Retention, direction: Direction, steps: list[int]
) -> None:
    assert kept(TEN, policy, direction) == steps


def test_of_equal_scores_the_earlier_is_the_better() -> None:
    assert kept([checkpoint(step, score=1.0) for step in range(5)], Retention(best=2)) == [0, 1, 4]


def test_one_without_a_score_is_none_of_the_best() -> None:
    assert kept([checkpoint(0), checkpoint(1, score=-5.0), checkpoint(2), checkpoint(3)], Retention(best=2)) == [1, 3]


def test_one_that_was_just_saved_is_kept_when_the_job_has_gone_back() -> None:
    again = [*TEN[:2], checkpoint(2, at=50.0), *TEN[3:]]
    assert kept(again, Retention(last=1)) == [2, 9]


def test_nothing_is_given_up_where_there_is_nothing() -> None:
    assert superseded([], Retention(last=1), "maximize") == []


@given(CHECKPOINTS, POLICIES, DIRECTIONS)
def test_the_last_step_and_the_last_saved_always_stay(
    checkpoints: list[Checkpoint], policy: Retention, direction: Direction
) -> None:
    gone = superseded(checkpoints, policy, direction)
    if checkpoints:
        assert max(checkpoints, key=lambda each: each.step) not in gone
        assert any(each.at == max(other.at for other in checkpoints) for each in checkpoints if each not in gone)


@given(CHECKPOINTS, POLICIES, DIRECTIONS)
def test_what_stays_is_what_the_rules_name_and_no_more(
    checkpoints: list[Checkpoint], policy: Retention, direction: Direction
) -> None:
    gone = superseded(checkpoints, policy, direction)
    assert all(each in checkpoints for each in gone)
    assert gone == sorted(gone, key=lambda each: each.step)
    if policy == Retention():
        assert gone == []
        return
    stay = [each for each in checkpoints if each not in gone]
    multiples = [each for each in checkpoints if policy.every and each.step % policy.every == 0]
    assert all(each in stay for each in multiples)
    assert len(stay) <= len(multiples) + (policy.last or 0) + (policy.best or 0) + 2


@given(CHECKPOINTS, POLICIES, DIRECTIONS)
def test_nothing_that_goes_is_better_than_one_of_the_best(
    checkpoints: list[Checkpoint], policy: Retention, direction: Direction
) -> None:
    gone = superseded(checkpoints, policy, direction)
    sign = 1 if direction == "maximize" else -1
    scores = sorted((sign * each.score for each in checkpoints if each.score is not None), reverse=True)
    if policy.best:
        bar = scores[: policy.best][-1] if scores else 0.0
        assert all(each.score is None or sign * each.score <= bar for each in gone)


@given(CHECKPOINTS, POLICIES, DIRECTIONS)
def test_applying_the_rules_again_changes_nothing(
    checkpoints: list[Checkpoint], policy: Retention, direction: Direction
) -> None:
    gone = superseded(checkpoints, policy, direction)
    assert superseded([each for each in checkpoints if each not in gone], policy, direction) == []


@given(CHECKPOINTS, POLICIES, DIRECTIONS, st.randoms())
def test_their_order_does_not_matter(
    checkpoints: list[Checkpoint], policy: Retention, direction: Direction, choose: Any
) -> None:
    shuffled = list(checkpoints)
    choose.shuffle(shuffled)
    assert superseded(shuffled, policy, direction) == superseded(checkpoints, policy, direction)


@given(checkpoints=CHECKPOINTS, policy=POLICIES, direction=DIRECTIONS, data=st.data())
def test_what_others_may_need_is_kept_and_changes_nothing_for_the_rest(
    checkpoints: list[Checkpoint], policy: Retention, direction: Direction, data: st.DataObject
) -> None:
    steps = sorted(each.step for each in checkpoints)
    keep = data.draw(st.lists(st.sampled_from(steps)) if steps else st.just([]))
    gone = superseded(checkpoints, policy, direction, keep)
    assert gone == [each for each in superseded(checkpoints, policy, direction) if each.step not in keep]
