"""A sweep in a folder of its own, whose jobs run in a real agent."""

from __future__ import annotations

import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from metta.sweep.agent.location import read_address
from metta.sweep.clock import SystemClock
from metta.sweep.controller.controller import SweepController
from metta.sweep.dispatchers.local import LocalDispatcher
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import new_event
from metta.sweep.model.run import JobDefinition, JobType, RetryPolicy, RunInfo
from metta.sweep.model.space import Range, SearchSpace
from metta.sweep.model.sweep import CommandTarget, FunctionTarget, SweepConfig
from metta.sweep.protocols import Store
from metta.sweep.stores import open_store
from processes import kill_all_in, processes_in
from waiting import wait_until

SWEEP = "abcde"


class Bench:
    """A store with one sweep in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(f"sqlite:///{folder}/sweeps.db", create=True)
        self.config: SweepConfig | None = None
        self.dispatchers: list[LocalDispatcher] = []

    def function(self, body: str) -> FunctionTarget:
        path = self.folder / "target.py"
        path.write_text(textwrap.dedent(body))
        return FunctionTarget(module=str(path), name="train")

    def create(self, target: Any, **settings: Any) -> SweepConfig:
        defaults = {
            "name": "bench",
            "target": target,
            "search_space": SearchSpace.of({"x": Range(1, 1_000_000)}),
            "metric": "score",
            "seed": 1,
            "max_parallel": 2,
            "max_trials": 1,
            "grace_s": 0.2,
            "retry": RetryPolicy(max_retries=0, retry_delay_seconds=0),
            "directory": str(self.folder / "files"),
            "working_directory": str(self.folder),
        }
        self.config = SweepConfig(**{**defaults, **settings})
        Path(self.config.directory).mkdir(exist_ok=True)
        created = ev.SweepCreated(config=self.config)
        self.store.append([new_event(created, sweep_id=SWEEP, at=time.time(), actor="user")])
        return self.config

    def dispatcher(self) -> LocalDispatcher:
        assert self.config is not None
        self.dispatchers.append(LocalDispatcher(self.store, SWEEP, self.config, SystemClock()))
        return self.dispatchers[-1]

    def run(self, target: Any, **settings: Any) -> list[RunInfo]:
        self.create(target, **settings)
        state = SweepController(self.store, SWEEP, self.dispatcher(), SystemClock()).run()
        return sorted(state.runs.values(), key=lambda run: run.index)

    def grant(
        self, index: int = 0, config: Mapping[str, Any] | None = None, *, until: float | None = None
    ) -> JobDefinition:
        assert self.config is not None
        values = {"x": 1} if config is None else dict(config)
        run_id = ids.run_id(SWEEP, index)
        job_id = ids.job_id(run_id, JobType.TRAIN, 1)
        bodies: list[tuple[ev.Body, str | None]] = [
            (ev.RunCreated(index=index, config=values), None),
            (ev.JobGranted(job_type=JobType.TRAIN, attempt=1, until=until), job_id),
        ]
        self.store.append(
            [
                new_event(body, sweep_id=SWEEP, at=time.time(), actor="test", run_id=run_id, job_id=job)
                for body, job in bodies
            ]
        )
        return JobDefinition(
            job_id=job_id,
            run_id=run_id,
            sweep_id=SWEEP,
            type=JobType.TRAIN,
            attempt=1,
            config=values,
            resources=self.config.resources,
            until=until,
        )

    def exits(self, target: Any, configs: Sequence[Mapping[str, Any]], **settings: Any) -> list[ev.JobExited]:
        """How one job each ends, without a controller that would try it again."""
        self.create(target, **settings)
        jobs = [self.grant(index, config) for index, config in enumerate(configs)]
        self.dispatcher().dispatch(jobs)
        return [self.exit_of(job) for job in jobs]

    def exit(self, target: Any, **settings: Any) -> ev.JobExited:
        """How one job ends."""
        [exited] = self.exits(target, [{"x": 1}], **settings)
        return exited

    def exit_of(self, job: JobDefinition) -> ev.JobExited:
        """How it ends, once it has."""
        wait_until(lambda: job.job_id in self._exits(), what=f"the end of {job.job_id}")
        return self._exits()[job.job_id]

    def _exits(self) -> dict[str | None, ev.JobExited]:
        return {event.job_id: event.body for event in self.store.read(SWEEP) if isinstance(event.body, ev.JobExited)}

    def the_run(self) -> RunInfo:
        return self.store.fetch_runs(SWEEP)[0]

    def log(self, run: RunInfo) -> str:
        assert run.jobs[-1].log is not None
        return Path(run.jobs[-1].log).read_text(errors="replace")

    def agent_pid(self) -> int:
        assert self.config is not None
        address = read_address(self.config.directory)
        assert address is not None
        return address.pid

    def processes(self) -> list[psutil.Process]:
        return processes_in(self.folder)

    def executing(self, argument: str) -> list[psutil.Process]:
        """Live processes whose last argument this is."""
        found = []
        for process in self.processes():
            with suppress(psutil.Error):
                if process.cmdline()[-1:] == [argument]:
                    found.append(process)
        return found

    def close(self) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.close()
        self.store.close()
        kill_all_in(self.folder)


def shell(script: str) -> CommandTarget:
    return CommandTarget(argv=["bash", "-c", script])


def python(script: str) -> CommandTarget:
    return CommandTarget(argv=[sys.executable, "-c", textwrap.dedent(script)])
