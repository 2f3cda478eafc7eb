"""Why: each decision in a run's life, by the reasons in the log."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.run import FailureKind, JobType, Outcome, Parent
from metta.sweep.observe.explanations import explain
from metta.sweep.testing import random_history
from metta.sweep.testing.sweeps import START, SWEEP

RUN = ids.run_id(SWEEP, 0)


def log(*bodies: Body) -> list[Event]:
    events = [new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id=RUN) for body in bodies]
    return [replace(event, seq=seq) for seq, event in enumerate(events, start=1)]


def decided(*bodies: Body) -> list[tuple[str, tuple[str, ...]]]:
    return [(each.decision, each.because) for each in explain(log(*bodies))]


def granted(attempt: int, reason: str, job_type: JobType = JobType.TRAIN) -> ev.JobGranted:
    return ev.JobGranted(job_type=job_type, attempt=attempt, reasons=(reason,))


CREATED = ev.RunCreated(index=0, config={"lr": 0.1}, reasons=("initial point 0",))


def test_a_life_with_a_failure_a_retry_a_promotion_and_an_early_stop() -> None:
    assert decided(
        CREATED,
        granted(1, "a slot is free"),
        ev.JobStarted(host="node", pid=1, log="log"),
        ev.JobExited(outcome=Outcome.FAILED, error="ValueError: no", exit_code=1, failure=FailureKind.USER_ERROR),
        ev.RunRetryScheduled(retry_at=START, retry_count=1, reason="user_error: retry 1 of 2 in 1 s"),
        ev.RunRequeued(reason="its wait is over"),
        granted(2, "a slot is free"),
        ev.JobExited(outcome=Outcome.PAUSED, error="epoch has reached 3"),
        granted(3, "among the best 1 of 3"),
        ev.JobLost(reason="local no longer knows it", failure=FailureKind.NODE_LOST),
        granted(4, "a slot is free"),
        ev.RunStopRequested(reason="number 3 of 3"),
        ev.JobExited(outcome=Outcome.STOPPED, error="number 3 of 3"),
        ev.RunStopped(reason="number 3 of 3", partial_score=0.5),
        ev.RunRolledBack(reason="a mistake"),
    ) == [
        ("suggested", ("initial point 0",)),
        ("started", ("a slot is free",)),
        ("job failed", ("ValueError: no", "put down to user_error")),
        ("retry", ("user_error: retry 1 of 2 in 1 s",)),
        ("requeued", ("its wait is over",)),
        ("started again", ("a slot is free",)),
        ("job paused", ("epoch has reached 3",)),
        ("promoted", ("among the best 1 of 3",)),
        ("job lost", ("local no longer knows it", "put down to node_lost")),
        ("started again", ("a slot is free",)),
        ("given up", ("number 3 of 3",)),
        ("job stopped", ("number 3 of 3",)),
        ("stopped", ("number 3 of 3",)),
        ("rolled back", ("a mistake",)),
    ]


def test_an_exploit_names_its_parent_and_whose_place_it_takes() -> None:
    parent = Parent(run_id="p4r3n", level=10, step=10, replaces="w0r5t")
    [(decision, because)] = decided(replace(CREATED, parent=parent))
    assert (decision, because[0]) == ("branched", "goes on from run p4r3n at 10, in the place of w0r5t")


def test_an_evaluation_after_a_training_is_no_second_attempt() -> None:
    done = ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=1.0)
    decisions = decided(
        CREATED, granted(1, "free"), done, granted(1, "trained", JobType.EVAL), done, ev.RunCompleted(score=0.25)
    )
    assert [decision for decision, _ in decisions] == ["suggested", "started", "evaluated", "completed"]
    assert decisions[-1][1] == ("its score is 0.25",)


@pytest.mark.parametrize("seed", range(10))
def test_every_event_that_gives_a_reason_is_explained(seed: int) -> None:
    events = [replace(event, seq=seq) for seq, event in enumerate(random_history(seed), start=1)]
    explained = {each.seq: each for each in explain(events)}
    # What these tell is no decision about the search.
    passed_over = (ev.ControllerStopped, ev.CheckpointDeleted)
    for event in events:
        reason = getattr(event.body, "reason", None)
        if reason and not isinstance(event.body, passed_over):
            assert reason in explained[event.seq].because
