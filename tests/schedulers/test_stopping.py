"""What all schedulers that stop runs early have in common."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobStatus, JobType, RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import Strategy
from metta.sweep.protocols import StartJob
from metta.sweep.schedulers.asha import AshaScheduler
from metta.sweep.testing.sweeps import START, SWEEP
from schedulers.halving import EPOCHS, Halving

SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("asha", {}),
    ("asha", {"mode": "promote"}),
    ("hyperband", {}),
    ("hyperband", {"mode": "promote"}),
    ("median", {"min_runs": 1}),
]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize(("scheduler", "options"), SCHEDULERS)
def test_a_stopped_run_that_the_user_wants_goes_on_to_its_end_and_is_not_judged_again(
    scheduler: str, options: dict[str, Any], fresh: bool
) -> None:
    strategy = Strategy(scheduler=scheduler, scheduler_options=options)
    halving = Halving(strategy, lambda index, epoch: epoch / 100 - index, max_parallel=1, fresh=fresh)
    state = halving.run()
    stopped = [run for run in state.runs.values() if run.status is JobStatus.STOPPED]
    worst = max(stopped, key=lambda run: run.index)
    halving.want(worst.run_id)
    before = len(halving.history)
    state = halving.run()
    since = halving.history[before:]
    assert state.runs[worst.run_id].status is JobStatus.COMPLETED
    reports = [event.body.metrics["epoch"] for event in since if isinstance(event.body, ev.MetricsReported)]
    assert reports == list(range(int(worst.progress or 0) + 1, EPOCHS + 1))
    assert [event.body.until for event in since if isinstance(event.body, ev.JobGranted)] == [None]
    others = [run for run in state.runs.values() if run.status is JobStatus.STOPPED]
    assert len(others) == len(stopped) - 1, "nobody else is brought back"


def test_what_is_left_to_evaluate_of_a_wanted_run_is_evaluated() -> None:
    """Its training came to an end before it could be stopped: what it lacks is the evaluation."""
    halving = Halving(Strategy(scheduler="asha"), lambda index, epoch: epoch / 100 - index, max_parallel=1)
    state = halving.run()
    loser = next(run for run in state.runs.values() if run.status is JobStatus.STOPPED)
    halving.want(loser.run_id)
    trained = replace(halving.state.runs[loser.run_id], status=JobStatus.TRAINING_DONE_NO_EVAL)
    history = [*halving.history, repaired(halving.state, trained)]
    state = fold(EMPTY, history)
    assert [
        (wish.run_id, wish.type) for wish in AshaScheduler().schedule(state, None) if isinstance(wish, StartJob)
    ] == [(loser.run_id, JobType.EVAL)]


def repaired(state: SweepState, run: RunInfo) -> Event:
    """An event that puts a run where it is to be."""
    body = ev.StateRepaired(problem="", before={}, after={"status": str(run.status)})
    event = new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id=run.run_id)
    return replace(event, seq=state.seq + 1)
