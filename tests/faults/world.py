"""A real sweep in real processes, with a hand on the kill switch of each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import psutil

from metta.sweep.agent.location import read_address
from metta.sweep.errors import StoreError
from metta.sweep.model.events import RunCompleted
from metta.sweep.model.run import JobState, JobStatus, RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.protocols import Store
from metta.sweep.stores import open_store
from processes import kill_all_in, processes_in
from waiting import wait_until

#: A trial leaves a line behind each time it is executed, takes a moment, and starts a child that would outlive it.
TARGET = """
    import os, pathlib, subprocess, time
    from metta.sweep import LogUniform, Range, current_run, report_metrics, sweep

    @sweep(
        search_space={{"lr": LogUniform(1e-4, 1e-1), "width": Range(1, 64)}},
        metric="score", max_trials={max_trials}, max_parallel={max_parallel}, seed=7, name="faults",
    )
    def train(config):
        with open({executions!r}, "a") as executions:
            executions.write(current_run().job_id + "\\n")
        subprocess.Popen(["sleep", "300"])
        for epoch in range(3):
            time.sleep({seconds} / 3)
            report_metrics({{"score": config["lr"] * epoch, "epoch": epoch}})
"""


class World:
    """One sweep in one folder; each method is something that happens to it."""

    def __init__(self, folder: Path, *, max_trials: int, max_parallel: int = 4, seconds: float = 0.1) -> None:
        self.folder = folder
        self.max_trials = max_trials
        self.url = f"sqlite:///{folder}/sweeps.db"
        self.executions = folder / "executions.txt"
        self.target = folder / "target.py"
        self.target.write_text(
            textwrap.dedent(TARGET).format(
                max_trials=max_trials, max_parallel=max_parallel, executions=str(self.executions), seconds=seconds
            )
        )
        self.controller: subprocess.Popen[bytes] | None = None
        self._store: Store | None = None

    def start_controller(self) -> None:
        command = [sys.executable, "-m", "metta.sweep.cli", "sweep", "run", str(self.target), "--store", self.url]
        with (self.folder / "controller.log").open("ab") as log:
            self.controller = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)

    def kill_controller(self) -> None:
        assert self.controller is not None
        self.controller.kill()
        self.controller.wait()

    def run_to_the_end(self) -> int:
        if self.controller is None or self.controller.poll() is not None:
            self.start_controller()
        assert self.controller is not None
        return self.controller.wait(timeout=180)

    @property
    def store(self) -> Store:
        if self._store is None:
            wait_until(self._has_sweep, what="the creation of the sweep")
        assert self._store is not None
        return self._store

    def _has_sweep(self) -> bool:
        if self._store is None and (self.folder / "sweeps.db").exists():
            try:
                self._store = open_store(self.url)
            except StoreError:  # the controller is just creating it
                return False
        return self._store is not None and bool(self._store.fetch_sweeps())

    @property
    def sweep_id(self) -> str:
        self.store  # noqa: B018 (waits for the sweep)
        wait_until(self._has_sweep, what="the creation of the sweep")
        return self.store.fetch_sweeps()[0].sweep_id

    @property
    def seq(self) -> int:
        return self.store.fetch_sweeps()[0].seq if self.store.fetch_sweeps() else 0

    def wait_for_events(self, count: int) -> None:
        """Until so many more events are in the log, or the sweep is over."""
        goal = self.seq + count
        wait_until(lambda: self.seq >= goal or self.is_over(), what=f"event {goal}")

    def is_over(self) -> bool:
        return self.controller is not None and self.controller.poll() is not None

    def agent_pid(self) -> int | None:
        address = read_address(self.store.fetch_sweeps()[0].config.directory)
        if address is None or not psutil.pid_exists(address.pid):
            return None
        return address.pid

    def running(self) -> list[RunInfo]:
        runs = self.store.fetch_runs(self.sweep_id, statuses=[JobStatus.IN_TRAINING])
        return [run for run in runs if run.open_job is not None and run.open_job.state is JobState.RUNNING]

    def kill_a_trial(self, pick: int) -> bool:
        """Kill one running trial; False when it was gone before it could be hit."""
        running = self.running()
        if not running:
            return False
        job = running[pick % len(running)].open_job
        assert job is not None
        assert job.pid is not None
        try:
            os.kill(job.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def state(self) -> SweepState:
        return fold(EMPTY, self.store.read(self.sweep_id))

    def check(self) -> SweepState:
        """What must hold whatever was killed: all runs ended, none lost, none counted twice, nothing left running."""
        state = self.state()
        assert len(state.runs) == self.max_trials
        assert sorted(run.index for run in state.runs.values()) == list(range(self.max_trials))
        assert all(run.status.ended for run in state.runs.values()), state.sweep.counts
        completions = Counter(
            event.run_id for event in self.store.read(self.sweep_id) if isinstance(event.body, RunCompleted)
        )
        assert set(completions.values()) <= {1}
        assert len(completions) == state.sweep.counts.get(JobStatus.COMPLETED, 0)
        assert self.store.fetch_sweeps() == [state.sweep]
        assert {run.run_id: run for run in self.store.fetch_runs(self.sweep_id)} == dict(state.runs)
        wait_until(lambda: not self.processes(), what="the end of all processes")
        return state

    def processes(self) -> list[psutil.Process]:
        return processes_in(self.folder)

    def executed(self) -> list[str]:
        return self.executions.read_text().split()

    def close(self) -> None:
        if self.controller is not None and self.controller.poll() is None:
            self.controller.kill()
            self.controller.wait()
        kill_all_in(self.folder)
        if self._store is not None:
            self._store.close()
