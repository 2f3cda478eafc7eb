"""Sample sweeps: a configuration, the events of a run's life, and histories at random."""

from __future__ import annotations

import random
from typing import Any

from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.run import JobInfo, JobState, JobStatus, JobType, Outcome, RunInfo
from metta.sweep.model.space import LogUniform, SearchSpace
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import CommandTarget, SweepConfig, SweepStatus

SWEEP = "sw33p"
START = 1_700_000_000.0


def sweep_config(**fields: Any) -> SweepConfig:
    """A valid configuration; `fields` replace those that matter to a test."""
    defaults: dict[str, Any] = {
        "name": "demo",
        "target": CommandTarget(argv=["train"]),
        "search_space": SearchSpace.of({"lr": LogUniform(1e-5, 1e-1)}),
        "metric": "reward",
        "seed": 7,
        "max_parallel": 4,
        "directory": "/sweeps/demo",
        "working_directory": "/code",
    }
    return SweepConfig(**{**defaults, **fields})


def sweep_created(sweep_id: str = SWEEP, *, at: float = START, **fields: Any) -> Event:
    """The first event of a sweep with this configuration."""
    return new_event(ev.SweepCreated(config=sweep_config(**fields)), sweep_id=sweep_id, at=at, actor="user")


def run_events(
    index: int,
    *,
    sweep_id: str = SWEEP,
    score: float | None = 1.0,
    at: float = START,
    config: dict[str, Any] | None = None,
) -> list[Event]:
    """The whole life of a run, an hour long; the first events of it alone make a run that is still on its way.

    Args:
        index: Which run of its sweep.
        sweep_id: Which sweep.
        score: Its reward; None for a run that fails because it reported none.
        at: When it was created.
        config: Its configuration.

    Returns:
        Run created, job granted, dispatched, started, metrics reported (not without a score), job exited, run
        completed.
    """
    run_id = ids.run_id(sweep_id, index)
    job_id = ids.job_id(run_id, JobType.TRAIN, 1)

    def event(body: Body, *, of_job: bool = True, at: float = at) -> Event:
        return new_event(body, sweep_id=sweep_id, at=at, actor="test", run_id=run_id, job_id=job_id if of_job else None)

    end: Body = ev.RunFailed(reason="reward was not reported") if score is None else ev.RunCompleted(score=score)
    return [
        event(ev.RunCreated(index=index, config=config or {"lr": 0.01}, reasons=("sample",)), of_job=False),
        event(ev.JobGranted(job_type=JobType.TRAIN, attempt=1, reasons=("sample",))),
        event(ev.JobDispatched(dispatcher="local")),
        event(ev.JobStarted(host="node", pid=4321, log="log")),
        *([] if score is None else [event(ev.MetricsReported(metrics={"reward": score}), at=at + 1800)]),
        event(ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=3600.0), at=at + 3600),
        event(end, of_job=False, at=at + 3600),
    ]


def random_history(seed: int, length: int = 60, *, sweep_id: str = SWEEP) -> list[Event]:
    """The log of a sweep in which anything happens that may: losses, retries, stops, resumptions.

    Equal for equal arguments, but for the ids of the events.
    """
    choose = random.Random(seed)  # noqa: S311 (a test keeps no secrets)
    history = [sweep_created(sweep_id, direction=choose.choice(["maximize", "minimize"]))]
    state = fold(EMPTY, [replace(history[0], seq=1)])
    while len(history) < length:
        event = _next_event(choose, state, at=START + len(history))
        state = fold(state, [replace(event, seq=state.seq + 1)])
        history.append(event)
    return history


def _next_event(choose: random.Random, state: SweepState, at: float) -> Event:
    """Something that may happen now: to the sweep, to a new run, or to one that is on its way or was cancelled."""
    sweep_id = state.sweep.sweep_id
    runs = [run for run in state.runs.values() if run.status not in {JobStatus.COMPLETED, JobStatus.FAILED}]
    run_id: str | None = None
    job_id: str | None = None
    body: Body
    if state.sweep.status.ended or choose.random() < (0.05 if state.unfinished else 0.4):
        body = _sweep_body(choose, state)
    elif not runs or choose.random() < 0.1:
        body = ev.RunCreated(index=len(state.runs), config={"lr": choose.uniform(1e-5, 1e-1)})
        run_id = ids.run_id(sweep_id, len(state.runs))
    else:
        run = choose.choice(sorted(runs, key=lambda run: run.index))
        body, job_id = _job_step(choose, run.open_job) if run.open_job else _run_step(choose, run)
        run_id = run.run_id
    return new_event(body, sweep_id=sweep_id, at=at, actor="test", run_id=run_id, job_id=job_id)


def _sweep_body(choose: random.Random, state: SweepState) -> Body:
    if state.sweep.status.ended:
        return ev.SweepResumed(changes={"max_trials": choose.randint(10, 99)})
    bodies: list[Body] = [
        ev.ControllerStarted(host="node", pid=1, fence=1, version="0"),
        ev.ControllerStopped(reason="interrupted"),
        ev.SweepStopRequested(reason="the user asked"),
    ]
    if not state.unfinished:
        bodies += [ev.SweepEnded(status=SweepStatus.STOPPED, reason="the user asked")] * 2
    return choose.choice(bodies)


def _job_step(choose: random.Random, job: JobInfo) -> tuple[Body, str]:
    steps: list[Body] = [ev.JobLost(reason="its agent is gone"), ev.JobDispatched(dispatcher="local")]
    if job.state is JobState.RUNNING:
        # Quarters of a second add up exactly, in whatever order.
        outcome, seconds = choose.choice([Outcome.SUCCEEDED, choose.choice(list(Outcome))]), choose.randint(0, 9) / 4
        steps += [ev.MetricsReported(metrics={"reward": choose.gauss(0, 1)})] * 3
        steps += [ev.JobExited(outcome=outcome, seconds=seconds)] * 3
    else:
        steps += [ev.JobStarted(host="node", pid=4321, log="log")] * 3
    return choose.choice(steps), job.job_id


def _run_step(choose: random.Random, run: RunInfo) -> tuple[Body, str | None]:
    if run.status is JobStatus.CANCELLED:
        return ev.RunRequeued(reason="it was interrupted"), None
    if run.status is JobStatus.EVAL_DONE_NOT_COMPLETED or choose.random() < 0.2:
        ends: list[Body] = [ev.RunFailed(reason="no reward"), ev.RunCancelled(reason="the user asked")]
        if run.status is not JobStatus.PENDING:
            ends.append(ev.RunCompleted(score=choose.gauss(0, 1)))
        return choose.choice(ends), None
    job_type = JobType.TRAIN if run.status is JobStatus.PENDING else JobType.EVAL
    attempt = run.attempts(job_type) + 1
    return ev.JobGranted(job_type=job_type, attempt=attempt), ids.job_id(run.run_id, job_type, attempt)
