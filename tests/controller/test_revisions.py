"""Rollbacks, amendments and resumptions, as the events that they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.controller import revisions
from metta.sweep.controller.decide import Decision
from metta.sweep.errors import ConfigError, NotFoundError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import FailureKind, JobStatus, JobType, Outcome
from metta.sweep.model.space import Choice, Range, SearchSpace
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP


def state_of(events: Sequence[Event], state: SweepState = EMPTY) -> SweepState:
    numbered = [replace(event, seq=state.seq + number) for number, event in enumerate(events, start=1)]
    return fold(state, numbered)


def apply(state: SweepState, decisions: Sequence[Decision], at: float = START + 1e6) -> SweepState:
    events = [
        new_event(decision.body, sweep_id=SWEEP, at=at, actor="user", run_id=decision.run_id, job_id=decision.job_id)
        for decision in decisions
    ]
    return state_of(events, state)


def sweep_of(*scores: float | None, **config: Any) -> SweepState:
    """A sweep with one ended run for each score."""
    runs = [event for index, score in enumerate(scores) for event in run_events(index, score=score)]
    return state_of([sweep_created(**config), *runs])


def run(state: SweepState, index: int) -> Any:
    return state.runs[ids.run_id(SWEEP, index)]


def best(state: SweepState) -> tuple[str | None, float | None]:
    return state.sweep.best_run_id, state.sweep.best_score


scores = st.lists(st.none() | st.integers(-3, 3).map(float), max_size=8)


@settings(deadline=None)
@given(scores=scores, count=st.integers(1, 9), direction=st.sampled_from(["maximize", "minimize"]))
def test_a_rollback_takes_back_the_last_runs_and_can_be_undone(
    scores: list[float | None], count: int, direction: str
) -> None:
    before = sweep_of(*scores, direction=direction)
    after = apply(before, revisions.roll_back(before, count, "oops"))
    kept = max(0, len(scores) - count)
    assert [run(after, index).status for index in range(kept)] == [run(before, index).status for index in range(kept)]
    assert all(run(after, index).status is JobStatus.ROLLED_BACK for index in range(kept, len(scores)))
    assert all(run(after, index).score is None for index in range(kept, len(scores)))
    assert best(after) == best(sweep_of(*scores[:kept], direction=direction))
    assert after.sweep.trial_count == kept
    restored = apply(after, revisions.restore(after, "no, that was fine"))
    assert restored.runs == before.runs
    assert restored.sweep.best_score == before.sweep.best_score
    assert revisions.restore(restored, "again") == []


def test_rollbacks_are_undone_one_by_one_the_latest_first() -> None:
    state = sweep_of(1.0, 2.0, 3.0)
    state = apply(state, revisions.roll_back(state, 1, "one"), at=START + 1e6)
    state = apply(state, revisions.roll_back(state, 1, "two"), at=START + 2e6)
    assert best(state) == (ids.run_id(SWEEP, 0), 1.0)
    state = apply(state, revisions.restore(state, "back"))
    assert best(state) == (ids.run_id(SWEEP, 1), 2.0)
    state = apply(state, revisions.restore(state, "back"))
    assert best(state) == (ids.run_id(SWEEP, 2), 3.0)


def test_runs_under_way_are_not_rolled_back() -> None:
    state = state_of([sweep_created(), *run_events(0), *run_events(1)[:4]])
    assert [decision.run_id for decision in revisions.roll_back(state, 5, "all")] == [ids.run_id(SWEEP, 0)]


def test_an_amended_direction_finds_the_best_anew() -> None:
    state = sweep_of(1.0, 3.0, 2.0)
    assert best(state)[1] == 3.0
    amended = apply(state, revisions.amend(state, {"direction": "minimize"}))
    assert amended.sweep.config.direction == "minimize"
    assert best(amended) == (ids.run_id(SWEEP, 0), 1.0)


def a_run(index: int, metrics: dict[str, float], metric: str) -> list[Event]:
    """A run that reported these and was judged by one of them."""
    events = run_events(index, score=1.0)
    bodies: list[ev.Body] = []
    for event in events:
        body = event.body
        if isinstance(body, ev.MetricsReported):
            body = ev.MetricsReported(metrics=metrics)
        if isinstance(body, ev.RunCompleted):
            body = ev.RunCompleted(score=metrics[metric]) if metric in metrics else ev.RunFailed(reason="no metric")
        bodies.append(body)
    return [replace(event, body=body) for event, body in zip(events, bodies, strict=True)]


def test_an_amended_metric_judges_all_results_anew() -> None:
    events = [
        *a_run(0, {"reward": 1.0, "loss": 9.0}, "reward"),
        *a_run(1, {"reward": 2.0}, "reward"),
        *a_run(2, {"loss": 5.0}, "reward"),
    ]
    state = state_of([sweep_created(), *events])
    assert [run(state, index).status for index in range(3)] == ["COMPLETED", "COMPLETED", "FAILED"]
    amended = apply(state, revisions.amend(state, {"metric": "loss", "direction": "minimize"}))
    assert [run(amended, index).status for index in range(3)] == ["COMPLETED", "FAILED", "COMPLETED"]
    assert [run(amended, index).score for index in range(3)] == [9.0, None, 5.0]
    assert best(amended) == (ids.run_id(SWEEP, 2), 5.0)
    assert "did not report 'loss'" in run(amended, 1).failure_reasons[-1]
    back = apply(amended, revisions.amend(amended, {"metric": "reward", "direction": "maximize"}))
    assert [run(back, index).score for index in range(3)] == [1.0, 2.0, None]
    assert best(back) == best(state)


def test_a_restored_run_is_judged_by_what_counts_now() -> None:
    state = state_of([sweep_created(), *a_run(0, {"reward": 1.0, "loss": 9.0}, "reward")])
    state = apply(state, revisions.roll_back(state, 1, "oops"))
    state = apply(state, revisions.amend(state, {"metric": "loss"}))
    state = apply(state, revisions.restore(state, "back"))
    assert run(state, 0).score == 9.0
    assert best(state)[1] == 9.0


def test_an_amended_space_is_searched_from_now_on_and_what_fits_it_counts_as_tried() -> None:
    state = sweep_of(1.0)
    lr = run(state, 0).config["lr"]
    for space, tried in (({"lr": Choice([lr, 2 * lr])}, 1), ({"layers": Range(1, 3)}, 0)):
        amended = apply(state, revisions.amend(state, {"search_space": msgspec.to_builtins(SearchSpace.of(space))}))
        assert amended.sweep.config.search_space == SearchSpace.of(space)
        assert len(amended.tried) == tried


def test_only_what_goes_on_is_resumed() -> None:
    state = sweep_of(1.0)
    assert revisions.resume_sweep(state.sweep, {}) == []
    assert [type(each.body) for each in revisions.resume_sweep(state.sweep, {"max_trials": 9})] == [ev.SweepResumed]
    paused = apply(state, [Decision(body=ev.SweepPaused(reason="so"))])
    resumed = apply(paused, revisions.resume_sweep(paused.sweep, {}))
    assert (paused.sweep.status, resumed.sweep.status) == (SweepStatus.PAUSED, SweepStatus.RUNNING)
    stopping = apply(state, [Decision(body=ev.SweepStopRequested(reason="so"))])
    with pytest.raises(ConfigError, match="is being stopped"):
        revisions.resume_sweep(stopping.sweep, {})


def failed_run_with_checkpoints() -> SweepState:
    *before, exited, _ = run_events(0)
    saved = [
        replace(exited, id=f"saved-{step}", body=ev.CheckpointSaved(step=step, path="p", sha256="0", size_bytes=1))
        for step in (1, 2, 3)
    ]
    failed = replace(exited, body=ev.JobExited(outcome=Outcome.KILLED, failure=FailureKind.KILLED))
    state = state_of([sweep_created(), *before, *saved, failed])
    ended = [
        Decision(body=ev.RunFailed(reason="given up"), run_id=failed.run_id),
        Decision(body=ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done")),
    ]
    return apply(state, ended)


def test_a_failed_run_of_an_ended_sweep_goes_on_from_the_checkpoint_asked_for() -> None:
    state = failed_run_with_checkpoints()
    resumed = apply(state, revisions.resume_run(state.sweep, run(state, 0), 2))
    assert resumed.sweep.status is SweepStatus.RUNNING
    assert run(resumed, 0).status is JobStatus.PENDING
    assert [checkpoint.step for checkpoint in run(resumed, 0).usable_checkpoints] == [1, 2]
    assert run(resumed, 0).attempts(JobType.TRAIN) == 1


def test_a_run_cannot_be_resumed_from_a_checkpoint_it_does_not_have_nor_after_its_result() -> None:
    state = failed_run_with_checkpoints()
    with pytest.raises(NotFoundError, match=r"no checkpoint of step 9; it has: 1, 2, 3"):
        revisions.resume_run(state.sweep, run(state, 0), 9)
    completed = sweep_of(1.0)
    with pytest.raises(ConfigError, match="is COMPLETED"):
        revisions.resume_run(completed.sweep, run(completed, 0), None)


@pytest.mark.parametrize("end", ["stopped", "paused"])
def test_a_run_that_was_stopped_or_waits_at_a_level_can_be_wanted_after_all(end: str) -> None:
    [*before, exited, _] = a_run(0, {"reward": 1.0}, "reward")
    paused = replace(exited, body=ev.JobExited(outcome=Outcome.PAUSED))
    state = state_of([sweep_created(), *before, paused])
    if end == "stopped":
        stopped = Decision(body=ev.RunStopped(reason="others are better"), run_id=exited.run_id)
        ended = Decision(body=ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done"))
        state = apply(state, [stopped, ended])
    assert not run(state, 0).wanted
    resumed = apply(state, revisions.resume_run(state.sweep, run(state, 0), None))
    assert resumed.sweep.status is SweepStatus.RUNNING
    assert (run(resumed, 0).status, run(resumed, 0).wanted) == (JobStatus.PENDING, True)
    assert (run(resumed, 0).stop_reason, run(resumed, 0).partial_score) == (None, None)


def test_the_metric_stays_once_runs_have_come_to_levels_that_only_the_old_one_is_known_of() -> None:
    state = state_of([sweep_created(fidelity=Fidelity(maximum=9)), *a_run(0, {"reward": 1.0, "loss": 9.0}, "reward")])
    assert run(apply(state, revisions.amend(state, {"metric": "loss"})), 0).score == 9.0
    events = a_run(0, {"reward": 1.0, "loss": 9.0, "epoch": 3.0}, "reward")
    state = state_of([sweep_created(fidelity=Fidelity(maximum=9)), *events])
    with pytest.raises(
        ConfigError, match="metric: cannot change from 'reward' to 'loss' once runs have come to levels"
    ):
        revisions.amend(state, {"metric": "loss"})
    turned = apply(state, revisions.amend(state, {"direction": "minimize"}))
    assert run(turned, 0).rungs == run(state, 0).rungs


def test_the_best_is_right_after_a_rollback_an_amendment_and_an_undo() -> None:
    events = [*a_run(0, {"reward": 1.0, "loss": 0.1}, "reward"), *a_run(1, {"reward": 100.0, "loss": 0.05}, "reward")]
    state = state_of([sweep_created(), *events])
    state = apply(state, revisions.roll_back(state, 1, "oops"))
    state = apply(state, revisions.amend(state, {"metric": "loss"}))
    state = apply(state, revisions.restore(state, "back"))
    assert best(state) == (ids.run_id(SWEEP, 0), 0.1)


def test_a_run_that_failed_in_the_middle_keeps_the_last_value_of_what_counts() -> None:
    *before, exited, _ = a_run(0, {"reward": 1.0, "loss": 9.0}, "reward")
    failed = replace(exited, body=ev.JobExited(outcome=Outcome.KILLED, failure=FailureKind.KILLED))
    state = state_of([sweep_created(), *before, failed])
    ended = ev.RunFailed(reason="given up", partial_score=1.0)
    state = apply(state, [Decision(body=ended, run_id=failed.run_id)])
    state = apply(state, revisions.amend(state, {"metric": "loss"}))
    assert run(state, 0).status is JobStatus.FAILED
    assert run(state, 0).partial_score == 9.0
    assert best(state) == (None, None)


def test_a_rollback_of_nothing_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        revisions.roll_back(sweep_of(1.0), 0, "oops")
