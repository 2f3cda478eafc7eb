"""Sweeps as they look after days of training, written straight to a store."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.run import JobType, Outcome
from metta.sweep.model.space import Choice, LogUniform, Range, SearchSpace, Uniform
from metta.sweep.model.sweep import CommandTarget, SweepConfig, SweepStatus
from metta.sweep.protocols import Store

SWEEP = "bench"
_START = 1_700_000_000.0
#: Metrics reports of a run, so that its whole life is ten events.
_REPORTS = 4
_BATCH_RUNS = 100


def sweep_config(folder: Path, name: str = "benchmark") -> SweepConfig:
    """Six parameters, as people have."""
    return SweepConfig(
        name=name,
        target=CommandTarget(argv=["train"]),
        search_space=SearchSpace.of(
            {
                "trainer.optimizer.lr": LogUniform(1e-5, 1e-1),
                "trainer.optimizer.momentum": Uniform(0.0, 1.0),
                "trainer.batch_size": Range(16, 512),
                "model.layers": Range(1, 8),
                "model.activation": Choice(["relu", "tanh", "gelu"]),
                "model.dropout": Uniform(0.0, 0.5),
            }
        ),
        metric="accuracy",
        seed=7,
        max_parallel=8,
        directory=str(folder / "files"),
        working_directory=str(folder),
    )


def created(folder: Path) -> Event:
    """The first event."""
    return new_event(ev.SweepCreated(config=sweep_config(folder)), sweep_id=SWEEP, at=_START, actor="user")


def life_of(index: int) -> list[Event]:
    """All events of a run, an hour long: created, granted, dispatched, started, four reports, exited, completed."""
    choose = random.Random(index)
    run_id = ids.run_id(SWEEP, index)
    job_id = ids.job_id(run_id, JobType.TRAIN, 1)
    begin = _START + 450.0 * index

    def event(body: Body, at: float, actor: str, *, of_job: bool = True) -> Event:
        return new_event(body, sweep_id=SWEEP, at=at, actor=actor, run_id=run_id, job_id=job_id if of_job else None)

    config = {
        "trainer.optimizer.lr": 10 ** choose.uniform(-5, -1),
        "trainer.optimizer.momentum": choose.random(),
        "trainer.batch_size": choose.randint(16, 512),
        "model.layers": choose.randint(1, 8),
        "model.activation": choose.choice(["relu", "tanh", "gelu"]),
        "model.dropout": choose.uniform(0.0, 0.5),
    }
    controller, agent = "controller@node-1", "agent@node-1"
    reasons = (f"random draw {index}", "7 of 8 train slots are taken")
    log = f"/data/sweeps/{SWEEP}/runs/{run_id}/train-1.log"
    accuracy = choose.random()
    measured: list[dict[str, float]] = [
        {"accuracy": accuracy * (epoch + 1) / _REPORTS, "loss": choose.random(), "epoch": float(epoch)}
        for epoch in range(_REPORTS)
    ]
    reports = [
        event(ev.MetricsReported(metrics=metrics), begin + 800 * (number + 1), agent)
        for number, metrics in enumerate(measured)
    ]
    done = ev.JobExited(
        outcome=Outcome.SUCCEEDED, seconds=3600.0, exit_code=0, cpu_seconds=3500.0, memory_peak_bytes=1 << 30
    )
    return [
        event(ev.RunCreated(index=index, config=config, reasons=reasons), begin, controller, of_job=False),
        event(ev.JobGranted(job_type=JobType.TRAIN, attempt=1), begin, controller),
        event(ev.JobDispatched(dispatcher="local"), begin, controller),
        event(ev.JobStarted(host="node-1", pid=4321, log=log), begin, agent),
        *reports,
        event(done, begin + 3600, agent),
        event(ev.RunCompleted(score=accuracy), begin + 3601, controller, of_job=False),
    ]


def write_sweep(store: Store, folder: Path, runs: int, *, ended: bool = True) -> None:
    """A sweep of so many completed runs, ten events each."""
    store.append([created(folder)])
    lives: Iterator[list[Event]] = map(life_of, range(runs))
    while batch := list(chain.from_iterable(islice(lives, _BATCH_RUNS))):
        store.append(batch)
    if ended:
        body = ev.SweepEnded(status=SweepStatus.COMPLETED, reason=f"max_trials = {runs} is reached")
        store.append([new_event(body, sweep_id=SWEEP, at=_START + 450.0 * runs, actor="controller@node-1")])
