"""What runs wait for, as the fold keeps it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import FailureKind, JobType, Outcome
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.waiting import WITH_JOB, WITHOUT_JOB, WaitsFor, waits_for
from metta.sweep.testing import random_history, sweep_created
from metta.sweep.testing.sweeps import SWEEP

RUN = ids.run_id(SWEEP, 0)

CREATED = [ev.RunCreated(index=0, config={"lr": 0.01})]
GRANTED = [*CREATED, ev.JobGranted(job_type=JobType.TRAIN, attempt=1, until=1.0)]
RUNNING = [*GRANTED, ev.JobStarted(host="node", pid=1, log="log")]
TRAINED = [*RUNNING, ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=1.0)]
EVALUATING = [
    *TRAINED,
    ev.JobGranted(job_type=JobType.EVAL, attempt=1),
    ev.JobStarted(host="node", pid=1, log="log"),
]
PAUSED = [*RUNNING, ev.JobExited(outcome=Outcome.PAUSED, seconds=1.0)]
FAILED = [*RUNNING, ev.JobExited(outcome=Outcome.FAILED, seconds=1.0, failure=FailureKind.USER_ERROR, error="no")]
RETRIED = [*FAILED, ev.RunRetryScheduled(retry_at=99.0, retry_count=1, reason="again")]
GIVEN_UP = ev.RunStopRequested(reason="others are better")


def after(bodies: Sequence[ev.Body]) -> SweepState:
    """A sweep with one run to which this happened."""
    events: list[Event] = [sweep_created(fidelity=Fidelity(maximum=9))]
    job_type = JobType.TRAIN
    for body in bodies:
        job = None
        if isinstance(body, ev.JobGranted):
            job_type = body.job_type
        if not isinstance(body, ev.RunCreated | ev.RunStopRequested | ev.RunRetryScheduled | ev.RunRequeued):
            job = ids.job_id(RUN, job_type, 1)
        events.append(new_event(body, sweep_id=SWEEP, at=0.0, actor="test", run_id=RUN, job_id=job))
    return fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(events, start=1)])


@pytest.mark.parametrize(
    ("bodies", "expected"),
    [
        (CREATED, WaitsFor.TRAIN_SLOT),
        (GRANTED, WaitsFor.DISPATCH),
        ([*GRANTED, GIVEN_UP], WaitsFor.DISPATCH),
        ([*GRANTED, ev.JobDispatched(dispatcher="local")], WaitsFor.TRAINING),
        (RUNNING, WaitsFor.TRAINING),
        ([*RUNNING, GIVEN_UP], WaitsFor.STOP),
        ([*RUNNING, GIVEN_UP, ev.JobExited(outcome=Outcome.STOPPED, seconds=1.0)], WaitsFor.VERDICT),
        (TRAINED, WaitsFor.EVAL_SLOT),
        (EVALUATING, WaitsFor.EVALUATION),
        ([*EVALUATING, ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=1.0)], WaitsFor.VERDICT),
        (PAUSED, WaitsFor.PROMOTION),
        (FAILED, WaitsFor.VERDICT),
        (RETRIED, WaitsFor.RETRY),
        ([*RETRIED, ev.RunRequeued(reason="its wait is over")], WaitsFor.TRAIN_SLOT),
        ([*RUNNING, ev.JobLost(reason="nobody knows it")], WaitsFor.TRAIN_SLOT),
        ([*RUNNING, ev.JobExited(outcome=Outcome.CANCELLED, seconds=1.0)], None),
    ],
)
def test_what_a_run_waits_for_follows_from_what_happened_to_it(
    bodies: Sequence[ev.Body], expected: WaitsFor | None
) -> None:
    state = after(bodies)
    assert waits_for(state.runs[RUN]) is expected
    assert state.unfinished.get(RUN) is expected
    assert [what for what, group in state.waiting.items() if RUN in group] == ([] if expected is None else [expected])


def test_a_paused_run_that_the_user_wants_waits_for_nobody_but_a_slot() -> None:
    run = after(PAUSED).runs[RUN]
    assert waits_for(replace(run, wanted=True)) is WaitsFor.TRAIN_SLOT


@given(seed=st.integers(0, 1000))
def test_each_unfinished_run_waits_for_one_thing_and_those_with_a_job_for_something_about_it(seed: int) -> None:
    history = random_history(seed, length=80)
    state = fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(history, start=1)])
    unfinished = sorted((run for run in state.runs.values() if not run.status.ended), key=lambda run: run.index)
    assert state.waiting_for(*WaitsFor) == unfinished
    assert state.waiting_for(*WITH_JOB) == [run for run in unfinished if run.open_job is not None]
    assert state.waiting_for(*WITHOUT_JOB) == [run for run in unfinished if run.open_job is None]
    assert state.count_waiting(*WITH_JOB) == len(state.waiting_for(*WITH_JOB))
    for what in WaitsFor:
        assert state.all_wait_for(what) == all(waits_for(run) is what for run in unfinished)
