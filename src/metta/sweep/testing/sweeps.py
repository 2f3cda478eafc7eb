"""Sample sweeps: a configuration, the events of a run's life, and histories at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from metta.sweep.errors import InvalidTransition
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.run import JobType, Outcome
from metta.sweep.model.space import LogUniform, SearchSpace
from metta.sweep.model.state import EMPTY, fold
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
    """The log of a sweep in which anything happens that may: losses, retries, stops, resumptions. Depends on `seed` alone."""
    choose = random.Random(seed)  # noqa: S311 (a test needs no secrets)
    history = [sweep_created(sweep_id, direction=choose.choice(["maximize", "minimize"]))]
    state = fold(EMPTY, [_numbered(history[0], 1)])
    at = START
    while len(history) < length:
        at += choose.random()
        index = choose.randrange(len(state.runs) + 1)
        run_id = ids.run_id(sweep_id, index)
        run = state.runs.get(run_id)
        body = choose.choice(_SWEEP_BODIES if choose.random() < 0.05 else _RUN_BODIES)(choose, index)
        job_type, attempt = JobType.TRAIN, 1
        if run is not None and isinstance(body, ev.JobGranted):
            job_type, attempt = body.job_type, run.attempts(body.job_type) + 1
            body = ev.JobGranted(job_type=job_type, attempt=attempt)
        elif run is not None and run.jobs:
            job_type, attempt = run.jobs[-1].type, run.jobs[-1].attempt
        is_job = isinstance(body, _OF_JOBS)
        event = new_event(
            body,
            sweep_id=sweep_id,
            at=at,
            actor="test",
            run_id=run_id if is_job or isinstance(body, _OF_RUNS) else None,
            job_id=ids.job_id(run_id, job_type, attempt) if is_job else None,
        )
        try:
            state = fold(state, [_numbered(event, state.seq + 1)])
        except InvalidTransition:
            continue
        history.append(event)
    return history
