"""`metta sweep ...` as a person types it: a process of its own in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Store
from metta.sweep.stores import STORE_VARIABLE, open_store
from processes import kill_all_in, processes_in
from waiting import wait_until

#: A sweep of four runs, two at a time. Each writes down that it was executed and waits while there is a file `hold`.
TARGET = """
    import time
    from pathlib import Path
    from metta.sweep import LogUniform, current_run, sweep

    @sweep(search_space={"lr": LogUniform(1e-4, 1e-1)}, metric="score", max_trials=4, max_parallel=2, seed=7)
    def train(config):
        with open("executions", "a") as executions:
            executions.write(current_run().run_id + "\\n")
        print("training", current_run().run_id)
        while Path("hold").exists():
            time.sleep(0.01)
        print("trained")
        return {"score": config["lr"]}
"""


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The message of a command that was refused: one line, nothing else, exit code 2."""
        assert (self.code, self.out) == (2, ""), self
        [line] = self.err.splitlines()
        assert line.startswith("error: "), line
        return line.removeprefix("error: ")


class Running:
    """A command that is still at work."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out, self._err = out, err

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def wait(self) -> Result:
        return Result(self.process.wait(timeout=60), self.out, self.err)


class CommandLine:
    """Calling it runs `metta sweep` with these arguments; `prefix` comes before the whole command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started: list[Running] = []
        self._store: Store | None = None

    def __call__(self, *arguments: str, prefix: Sequence[str] = (), **environment: str) -> Result:
        done = subprocess.run(
            [*prefix, *_command(arguments)],
            cwd=self.folder,
            env=_environment(environment),
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Result(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode())

    def start(self, *arguments: str) -> Running:
        out, err = (self.folder / f"{len(self._started)}.{stream}" for stream in ("out", "err"))
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                _command(arguments), cwd=self.folder, env=_environment({}), stdout=out_file, stderr=err_file
            )
        self._started.append(Running(process, out, err))
        return self._started[-1]

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(text))
        return path

    def files(self) -> set[Path]:
        return set(self.folder.rglob("*")) - set(self.folder.rglob("__pycache__*")) - set(self.folder.rglob("*.pyc"))

    # ------------------------------------------------------------------------------------- the sweep of TARGET

    def start_held(self, *options: str) -> Running:
        """Start the sweep of TARGET and keep its first two runs from ending."""
        self.write("train.py", TARGET)
        (self.folder / "hold").touch()
        running = self.start("run", "train.py", *options)
        wait_until(lambda: len(self.executions()) == 2 and len(self._training()) == 2, what="two runs in training")
        return running

    def release(self) -> None:
        (self.folder / "hold").unlink()

    def suspend(self, running: Running) -> None:
        """Stop a controller where it holds no lock on the store: nobody could write to the file before it goes on."""
        while True:
            os.kill(running.process.pid, signal.SIGSTOP)
            with closing(sqlite3.connect(self.folder / "sweeps.db", timeout=0, isolation_level=None)) as connection:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                    return
                except sqlite3.OperationalError:  # or the agent has it
                    os.kill(running.process.pid, signal.SIGCONT)

    def executions(self) -> list[str]:
        path = self.folder / "executions"
        return path.read_text().split() if path.exists() else []

    def _training(self) -> list[RunInfo]:
        return [run for run in self.runs() if run.open_job is not None and run.open_job.pid is not None]

    # ------------------------------------------------------------------------------------------------- results

    @property
    def store(self) -> Store:
        if self._store is None:
            self._store = open_store(str(self.folder / "sweeps.db"))
        return self._store

    def latest(self) -> SweepMetadata:
        return self.store.fetch_sweeps()[-1]

    def runs(self) -> list[RunInfo]:
        """Those of the latest sweep."""
        return self.store.fetch_runs(self.latest().sweep_id)

    def wait_for_the_end_of_all_processes(self) -> None:
        wait_until(lambda: not processes_in(self.folder), what="the end of all processes")

    def close(self) -> None:
        for running in self._started:
            running.process.kill()
            running.process.wait()
        kill_all_in(self.folder)
        if self._store is not None:
            self._store.close()


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "metta.sweep.cli", "sweep", *arguments]


def _environment(changes: dict[str, str]) -> dict[str, str]:
    return {**{name: value for name, value in os.environ.items() if name != STORE_VARIABLE}, **changes}
