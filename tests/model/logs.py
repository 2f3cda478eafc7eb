"""Logs under construction, for tests of what the fold makes of them."""

from __future__ import annotations

from typing import Any

import pytest

from metta.sweep.errors import InvalidTransition
from metta.sweep.model import events as ev
from metta.sweep.model.acquisition import Acquisition
from metta.sweep.model.events import Body, Event
from metta.sweep.model.run import FailureKind, JobType, Outcome, Parent, Rung, RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import Direction
from model.strategies import RUN_IDS, START, created, event

RUN = RUN_IDS[0]
TRAIN, EVAL = f"{RUN}.train.1", f"{RUN}.eval.1"
TRAIN_2, TRAIN_3 = f"{RUN}.train.2", f"{RUN}.train.3"

#: What happened, to which run, in which job.
Step = tuple[Body, str | None, str | None]


class Log:
    """A log under construction: numbers the events and folds them one by one."""

    def __init__(self, *steps: Step, direction: Direction = "maximize", **config: Any) -> None:
        self.events = [created(direction, **config)]
        self.state = fold(EMPTY, self.events)
        for body, run_id, job_id in steps:
            self.add(body, run_id, job_id)

    def add(self, body: Body, run_id: str | None = None, job_id: str | None = None, at: float = START) -> SweepState:
        happened = event(body, seq=self.state.seq + 1, run_id=run_id, job_id=job_id, at=at)
        self.state = fold(self.state, [happened])
        self.events.append(happened)
        return self.state

    def run(self, index: int = 0) -> RunInfo:
        return self.state.runs[RUN_IDS[index]]

    def refuses(self, body: Body, run_id: str | None = None, job_id: str | None = None) -> str:
        """The message of the refusal."""
        with pytest.raises(InvalidTransition) as caught:
            fold(self.state, [event(body, seq=self.state.seq + 1, run_id=run_id, job_id=job_id)])
        return str(caught.value)

    def add_completed(self, index: int, score: float, *, metrics: dict[str, float] | None = None) -> None:
        """A whole run."""
        run_id = RUN_IDS[index]
        job_id = f"{run_id}.train.1"
        self.add(ev.RunCreated(index=index, config={"x": index}), run_id)
        self.add(GRANT[0], run_id, job_id)
        self.add(STARTED, run_id, job_id)
        if metrics is not None:
            self.add(ev.MetricsReported(metrics=metrics), run_id, job_id)
        self.add(SUCCEED[0], run_id, job_id)
        self.add(ev.RunCompleted(score=score), run_id)

    def best(self) -> tuple[str | None, float | None]:
        return self.state.sweep.best_run_id, self.state.sweep.best_score


def offer(state: SweepState, happened: Event) -> tuple[SweepState | None, str]:
    """The state after the event, or None and the message of the refusal."""
    try:
        return fold(state, [happened]), ""
    except InvalidTransition as error:
        return None, str(error)


def crash(
    signature: str | None = None,
    failure: FailureKind = FailureKind.USER_ERROR,
    outcome: Outcome = Outcome.FAILED,
    error: str | None = None,
) -> ev.JobExited:
    """A failure that is to be decided on."""
    return ev.JobExited(outcome=outcome, failure=failure, signature=signature, error=error)


def saved(step: int, path: str = "", sha256: str = "0" * 64) -> ev.CheckpointSaved:
    return ev.CheckpointSaved(step=step, path=path or f"checkpoints/{step}", sha256=sha256, size_bytes=4096)


#: Goes on from another run, which had come to epoch 3.
PARENT = Parent(run_id=RUN_IDS[1], level=3.0, step=3, replaces=RUN_IDS[2])
RUNGS = (Rung(level=1.0, value=0.1, seq=7), Rung(level=3.0, value=0.3, seq=9))
BRANCH = (
    ev.RunCreated(
        index=0,
        config={"x": 0},
        reasons=("sample",),
        acquisition=Acquisition(acquisition_value=1.0),
        parent=PARENT,
        rungs=RUNGS,
    ),
    RUN,
    None,
)
COPY = (
    ev.CheckpointCopied(
        source=PARENT.run_id, step=3, path="checkpoints/3", sha256="0" * 64, size_bytes=4096, score=0.3
    ),
    RUN,
    TRAIN,
)
CREATE = (ev.RunCreated(index=0, config={"x": 0}), RUN, None)
GRANT = (ev.JobGranted(job_type=JobType.TRAIN, attempt=1), RUN, TRAIN)
GRANT_2 = (ev.JobGranted(job_type=JobType.TRAIN, attempt=2), RUN, TRAIN_2)
GRANT_3 = (ev.JobGranted(job_type=JobType.TRAIN, attempt=3), RUN, TRAIN_3)
DISPATCH = (ev.JobDispatched(dispatcher="local"), RUN, TRAIN)
STARTED = ev.JobStarted(host="node", pid=4321, log="train.log")
BEGIN = (STARTED, RUN, TRAIN)
BEGIN_2 = (STARTED, RUN, TRAIN_2)
BEGIN_3 = (STARTED, RUN, TRAIN_3)
SUCCEED = (ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=2.0), RUN, TRAIN)
SUCCEED_2 = (SUCCEED[0], RUN, TRAIN_2)
GRANT_EVAL = (ev.JobGranted(job_type=JobType.EVAL, attempt=1), RUN, EVAL)
BEGIN_EVAL = (STARTED, RUN, EVAL)
SUCCEED_EVAL = (ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=1.0), RUN, EVAL)
SAVE = (saved(1), RUN, TRAIN)
CRASH = (crash(error="ValueError"), RUN, TRAIN)
CRASH_2 = (crash(error="ValueError"), RUN, TRAIN_2)
CRASH_EVAL = (crash(), RUN, EVAL)
RETRY = (ev.RunRetryScheduled(retry_at=START + 60, retry_count=1, reason="it may pass"), RUN, None)
COMPLETE = (ev.RunCompleted(score=1.0), RUN, None)
PAUSE = (ev.JobExited(outcome=Outcome.PAUSED, seconds=2.0), RUN, TRAIN)
REQUEST_STOP = (ev.RunStopRequested(reason="others are better"), RUN, TRAIN)
STOP = (ev.RunStopped(reason="others are better", partial_score=1.0), RUN, None)
CANCEL = (ev.RunCancelled(reason="stopped"), RUN, None)
FAIL = (ev.RunFailed(reason="no reward"), RUN, None)
REQUEUE = (ev.RunRequeued(reason="resumed"), RUN, None)
ROLL_BACK = (ev.RunRolledBack(reason="a mistake"), RUN, None)
RESTORE = (ev.RunRestored(reason="no mistake"), RUN, None)
TRAINED = [CREATE, GRANT, DISPATCH, BEGIN, SUCCEED]
FAILING = [CREATE, GRANT, DISPATCH, BEGIN, CRASH]
