"""A real sweep in real processes, with a hand on the kill switch of each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import psutil

from metta.sweep.agent.location import read_address
from metta.sweep.errors import StoreAwayError, StoreError
from metta.sweep.model.events import Body, RunCompleted, StateRepaired
from metta.sweep.model.run import JobInfo, JobState, JobStatus, RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Reader
from metta.sweep.stores import STORE_VARIABLE, open_reader
from processes import kill_all_in, processes_in
from waiting import wait_until

#: A trial leaves a line behind each time it is executed, and starts a child that would outlive it.
TARGET = """\
import ctypes, os, pathlib, random, signal, subprocess, sys, time
from metta.sweep import LogUniform, Range, current_run, load_checkpoint, report_metrics, save_checkpoint, sweep


def wait_for(name):
    while not pathlib.Path(name).exists():
        time.sleep(0.01)


@sweep(search_space={"lr": LogUniform(1e-4, 1e-1), "width": Range(1, 64)}, metric="score", seed=7, SETTINGS)
def train(config):
    run = current_run()
    attempt = int(run.job_id.rpartition(".")[2])
    with open("executions", "a") as executions:
        executions.write(f"{run.job_id} {os.getpid()}\\n")
    runs = [line.partition(".")[0] for line in pathlib.Path("executions").read_text().splitlines()]
    number = list(dict.fromkeys(runs)).index(run.run_id)
    subprocess.Popen(["sleep", "300"])
BODY
"""
#: It reports three times and takes a moment.
BODY = """
for epoch in range(3):
    time.sleep(SECONDS / 3)
    report_metrics({"score": config["lr"] * epoch, "epoch": epoch})
"""

_Kind = TypeVar("_Kind", bound=Body)


class World:
    """One sweep in one folder; each method is something that happens to it, or a look at it.

    Args:
        folder: Where everything is; made unless it is there.
        max_trials: Of the sweep.
        seconds: How long a trial takes.
        url: Of the store; a file in the folder without it.
        body: What a trial does instead. It knows `config`, `run`, which `attempt` of it this is, and its `number`: how
            many runs were executed before it for the first time. `wait_for` waits for a file in the folder.
        name: Of the sweep.
        settings: More settings of the sweep.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_trials: int,
        seconds: float = 0.1,
        url: str | None = None,
        body: str | None = None,
        name: str = "faults",
        **settings: object,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.max_trials = max_trials
        self.name = name
        self.url = url or f"sqlite:///{folder}/sweeps.db"
        self.target = folder / "target.py"
        settings = {"retry_delay_seconds": 0.2, "same_error_limit": 0, "max_parallel": 4, **settings}
        settings |= {"name": name, "max_trials": max_trials}
        spelled = ", ".join(f"{setting}={value!r}" for setting, value in settings.items())
        body = textwrap.dedent(BODY.replace("SECONDS", str(seconds)) if body is None else body)
        self.target.write_text(TARGET.replace("SETTINGS", spelled).replace("BODY", textwrap.indent(body, "    ")))
        self.controllers: list[subprocess.Popen[bytes]] = []
        self._reader: Reader | None = None
        self._sweep_id: str | None = None

    # ------------------------------------------------------------------------------------------- what happens to it

    def start_controller(self, *options: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        command = [*prefix, *self._command("run", str(self.target), *options)]
        with (self.folder / "controller.log").open("ab") as log:
            process = subprocess.Popen(command, cwd=self.folder, env=self._environment(), stdout=log, stderr=log)
        self.controllers.append(process)
        return process

    @property
    def controller(self) -> subprocess.Popen[bytes]:
        """The one that was started last."""
        return self.controllers[-1]

    def kill_controller(self) -> None:
        self.controller.kill()
        self.controller.wait()

    def kill_agent(self) -> None:
        pid = self.agent_pid()
        assert pid is not None, "there is no agent to kill"
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: self.agent_pid() != pid, what="the agent's death")

    def kill_everything(self) -> None:
        """Controllers, agent, jobs: as if the machine had lost its power."""

        def is_empty() -> bool:
            # Whoever is not dead yet may start another one.
            kill_all_in(self.folder)
            return all(controller.poll() is not None for controller in self.controllers) and not self.processes()

        wait_until(is_empty, what="the end of all processes")

    def kill_a_trial(self, pick: int) -> bool:
        """Kill one running trial; False when it was gone before it could be hit."""
        jobs = self.running()
        if not jobs:
            return False
        pid = jobs[pick % len(jobs)].pid
        assert pid is not None
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def run_to_the_end(self) -> int:
        """Wait for the controller, a new one unless one is at work; returns its exit code."""
        if not self.controllers or self.is_over():
            self.start_controller()
        return self.controller.wait(timeout=180)

    def signal(self, name: str) -> None:
        """Let the trials go on that wait for this file."""
        (self.folder / name).touch()

    # ------------------------------------------------------------------------------------------------ a look at it

    @property
    def said(self) -> str:
        """By the controllers."""
        return (self.folder / "controller.log").read_text()

    @property
    def agent_said(self) -> str:
        return (self.files / "agent.log").read_text()

    def metta(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`metta sweep ...` as a user calls it."""
        return subprocess.run(
            self._command(*arguments),
            cwd=self.folder,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def doctor(self, *options: str) -> list[dict[str, Any]]:
        """What `metta sweep doctor` finds wrong, in the store and in the sweep."""
        result = self.metta("doctor", *options, "--json")
        assert result.returncode in {0, 1}, result
        report = json.loads(result.stdout)
        assert report["healthy"] is (result.returncode == 0)
        return [*report["issues"], *(issue for sweep in report["sweeps"] for issue in sweep["issues"])]

    def _command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "metta.sweep.cli", "sweep", *arguments]

    def _environment(self) -> dict[str, str]:
        return {**os.environ, STORE_VARIABLE: self.url, "COLUMNS": "200"}

    @property
    def store(self) -> Reader:
        wait_until(self._has_sweep, what="the creation of the sweep")
        assert self._reader is not None
        return self._reader

    def _has_sweep(self) -> bool:
        if self._reader is None:
            try:
                reader = open_reader(self.url)
            except StoreError:  # it is just being created, or away
                return False
            found = [sweep.sweep_id for sweep in reader.fetch_sweeps() if sweep.config.name == self.name]
            if not found:
                reader.close()
                return False
            self._reader, self._sweep_id = reader, found[0]
        return True

    def reopen(self) -> None:
        """Look at the store afresh: its file is another one now."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def sweep(self) -> SweepMetadata:
        [sweep] = self.store.fetch_sweeps(self.sweep_id)
        return sweep

    @property
    def sweep_id(self) -> str:
        if self._sweep_id is None:
            wait_until(self._has_sweep, what="the creation of the sweep")
        assert self._sweep_id is not None
        return self._sweep_id

    @property
    def files(self) -> Path:
        """The sweep's own folder."""
        return self.folder / "sweeps" / self.sweep_id

    def runs(self, *statuses: JobStatus) -> list[RunInfo]:
        return self.store.fetch_runs(self.sweep_id, statuses=statuses or None)

    def running(self) -> list[JobInfo]:
        jobs = [run.open_job for run in self.runs(JobStatus.IN_TRAINING)]
        return [job for job in jobs if job is not None and job.state is JobState.RUNNING]

    def ended(self) -> int:
        return self.sweep.ended_count

    def wait_for_events(self, count: int) -> None:
        """Until so many more events are in the log, or the sweep is over."""
        goal = self.sweep.seq + count
        wait_until(
            lambda: self.store.wait_for_change(self.sweep_id, goal - 1, 0.1) or self.is_over(), what=f"event {goal}"
        )

    def is_over(self) -> bool:
        return self.controller.poll() is not None

    def agent_pid(self) -> int | None:
        address = read_address(str(self.files))
        if address is None:
            return None
        with suppress(psutil.NoSuchProcess):
            # Whose turn it is to bury it may take its time.
            if psutil.Process(address.pid).status() != psutil.STATUS_ZOMBIE:
                return address.pid
        return None

    def bodies(self, kind: type[_Kind]) -> list[_Kind]:
        """Of all events of this kind."""
        return [event.body for event in self.store.read(self.sweep_id) if isinstance(event.body, kind)]

    def state(self) -> SweepState:
        return fold(EMPTY, self.store.read(self.sweep_id))

    def executions(self) -> list[tuple[str, int]]:
        """Job and process of each execution of the trials' code."""
        path = self.folder / "executions"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(job_id, int(pid)) for job_id, pid in map(str.split, lines)]

    def executed(self) -> list[str]:
        """Jobs whose code was executed, as often as it was."""
        return [job_id for job_id, _ in self.executions()]

    def wait_for_silence(self) -> None:
        """Until nothing was written for a second."""
        while self.store.wait_for_change(self.sweep_id, self.sweep.seq, 1.0):
            pass

    def processes(self) -> list[psutil.Process]:
        return processes_in(self.folder)

    # ------------------------------------------------------------------------------------------------------ the end

    def check(self, *, is_history_whole: bool = True) -> SweepState:
        """What must hold whatever happened: nothing lost, nothing counted twice, nothing left running, all healthy."""
        state = self.state()
        assert len(state.runs) == self.max_trials
        assert sorted(run.index for run in state.runs.values()) == list(range(self.max_trials))
        assert all(run.status.ended for run in state.runs.values()), state.sweep.counts
        completions = Counter(
            event.run_id for event in self.store.read(self.sweep_id) if isinstance(event.body, RunCompleted)
        )
        assert set(completions.values()) <= {1}
        completed = {run_id for run_id, run in state.runs.items() if run.status is JobStatus.COMPLETED}
        mended = {event.run_id for event in self.store.read(self.sweep_id) if isinstance(event.body, StateRepaired)}
        assert completed - mended <= completions.keys() <= completed
        assert self.sweep == state.sweep
        assert {run.run_id: run for run in self.runs()} == dict(state.runs)
        granted = {job.job_id for run in state.runs.values() for job in run.jobs}
        assert set(self.executed()) <= granted or not is_history_whole
        wait_until(lambda: not self.processes(), what="the end of all processes")
        assert [issue for issue in self.doctor() if issue["serious"]] == []
        return state

    def close(self) -> None:
        for controller in self.controllers:
            controller.kill()
            controller.wait()
        kill_all_in(self.folder)
        if self._reader is not None:
            with suppress(StoreAwayError):
                self._reader.close()


MakeWorld: TypeAlias = Callable[..., World]
