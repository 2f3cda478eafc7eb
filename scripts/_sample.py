"""The sweeps that docs/cli.md shows: trained for real, if by a program that only pretends to learn."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

from msgspec.structs import replace

from metta.sweep.cli.target import load_definition
from metta.sweep.launch import files_directory, first_events
from metta.sweep.model.events import SweepCreated, new_event
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.stores import open_reader, open_store

#: Fixed, so that the same runs have the same ids whenever the page is written.
SWEEP, OTHER = "46g3f", "8xk2m"
#: What the commands of the page find in their folder.
TRAINING = '''\
"""Pretends to train a network: quickly, or for as long as there is a file `hold`."""

import math
import os
import random
import signal
import time
from pathlib import Path

from metta.sweep import Choice, LogUniform, Uniform, current_run, report_metrics, save_checkpoint, sweep


@sweep(
    search_space={
        "lr": LogUniform(1e-4, 1e-1),
        "width": Choice([32, 64, 128]),
        "dropout": Uniform(0.0, 0.5),
    },
    metric="accuracy",
    strategy={"optimizer": "random", "scheduler": "asha"},
    fidelity={"resource": "epoch", "maximum": 9, "grace_period": 3},
    max_parallel=4,
    seed=7,
    retry={"max_retries": 1, "retry_delay_seconds": 0.1},
    same_error_limit=0,
)
def train(config):
    chance = random.Random(config["lr"])
    print(f"training {config['width']} units with lr={config['lr']:.2g}", flush=True)
    if config["lr"] > 0.07:
        raise FloatingPointError("the loss is not finite")
    if chance.random() < 0.02 and current_run().job_id.endswith(".1"):
        os.kill(os.getpid(), signal.SIGKILL)  # as a machine in need of memory does
    end = 0.94 - 0.06 * (math.log10(config["lr"]) + 2) ** 2 - 0.1 * abs(config["dropout"] - 0.2)
    end += 0.01 * math.log2(config["width"] / 32) + chance.gauss(0, 0.01)
    for epoch in range(1, 10):
        time.sleep(0.02)
        accuracy = end * (1 - math.exp(-epoch / 2))
        print(f"epoch {epoch}: accuracy {accuracy:.4f}", flush=True)
        report_metrics({"accuracy": accuracy, "epoch": epoch})
        while epoch == 2 and Path("hold").exists():
            time.sleep(0.1)
    save_checkpoint(config, step=9)
    return {"accuracy": accuracy}
'''
_PATIENCE_S = 600.0


class _Chat(BaseHTTPRequestHandler):
    """Takes every message, as a chat does."""

    def do_POST(self) -> None:
        """Take one."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the same)
        """Say nothing of it."""


class Sample:
    """A folder with a store of two sweeps: one with a long history and runs under way, and a smaller one.

    Args:
        folder: Where; made here, it must not be there.
        finished: How many runs of the first have ended.
        running: How many of its runs are under way, in processes that wait.
    """

    def __init__(self, folder: Path, finished: int, running: int) -> None:
        self.folder = folder
        self.store = folder / "sweeps.db"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(("TMUX", "METTA"))}
        self.environment |= {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "OMP_NUM_THREADS": "1",
        }
        folder.mkdir(parents=True)
        (folder / "train.py").write_text(TRAINING)
        self._chat = HTTPServer(("127.0.0.1", 0), _Chat)
        Thread(target=self._chat.serve_forever, daemon=True).start()
        (folder / "chat").write_text(f"json://127.0.0.1:{self._chat.server_port}/\n")
        (folder / "chat").chmod(0o600)
        self._create(SWEEP, name="digits", max_trials=finished, max_parallel=running)
        self._create(OTHER, name="sobol", max_trials=max(10, finished // 20), strategy="sobol")
        for sweep_id in (SWEEP, OTHER):
            self.metta("run", "--resume", sweep_id)
        self.hold()
        self.metta("resume", SWEEP, "--max-trials", str(finished + 4 * running), "--detach")
        wait_until(lambda: len(self.waiting()) == running, f"{running} runs in training")

    def _create(self, sweep_id: str, **overrides: object) -> None:
        """A sweep of a chosen id; those that `metta sweep run` makes are random."""
        before = Path.cwd()
        os.chdir(self.folder)
        try:
            definition = load_definition("train.py", overrides)
            [first] = first_events(definition)
        finally:
            os.chdir(before)
        assert isinstance(first.body, SweepCreated)
        directory = files_directory(f"sqlite:///{self.store}") / sweep_id
        directory.mkdir(parents=True)
        target = replace(first.body.config.target, import_path=[str(self.folder)])  # and nothing of this repository
        config = replace(first.body.config, directory=str(directory), target=target)
        event = new_event(SweepCreated(config=config), sweep_id=sweep_id, at=time.time(), actor="user")
        with closing(open_store(f"sqlite:///{self.store}", create=True)) as store:
            store.append([event])

    def metta(self, *arguments: str) -> str:
        """What `metta sweep` prints; it has to succeed."""
        done = subprocess.run(
            ["metta", "sweep", *arguments],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"metta sweep {' '.join(arguments)} ended with {done.returncode}: {done.stderr}")
        return done.stdout

    def hold(self) -> None:
        """Keep trials from ending from now on."""
        (self.folder / "hold").touch()

    def release(self) -> None:
        """Let them end, and wait until no controller is at work."""
        (self.folder / "hold").unlink()
        with closing(open_reader(f"sqlite:///{self.store}")) as store:
            from metta.sweep.controller.lease import is_controlled

            wait_until(lambda: not is_controlled(store, SWEEP, time.time()), "the end of the controller")

    def best(self) -> RunInfo:
        """The best run of the first sweep."""
        with closing(open_reader(f"sqlite:///{self.store}")) as store:
            return store.fetch_runs(SWEEP, best_first=True, limit=1)[0]

    def runs(self, *statuses: JobStatus) -> list[RunInfo]:
        """The runs of the first sweep that have one of these statuses."""
        with closing(open_reader(f"sqlite:///{self.store}")) as store:
            return store.fetch_runs(SWEEP, statuses=statuses)

    def waiting(self) -> list[RunInfo]:
        """Those whose processes wait at the second epoch."""
        return [run for run in self.runs(JobStatus.IN_TRAINING) if run.metrics.get("epoch") == 2]

    def close(self) -> None:
        """End every process that was started here, and remove the folder."""
        self._chat.shutdown()
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (process / "cwd").readlink().is_relative_to(self.folder):
                    os.kill(int(process.name), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Wait for what another process is to do.

    Raises:
        TimeoutError: it did not.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(0.05)
