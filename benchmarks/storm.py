"""A storm: short runs with a kill -9 at random every second, and a database that crashes every ten seconds.

Controller, agents and trials are hit in turn as chance will have it; what is dead is started again as an operator, or a
supervisor, would start it. When it is over, every run has to have ended, once, with one result.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

#: Leaves a line behind each time it is executed.
TARGET = """
    import time
    from metta.sweep import LogUniform, current_run, report_metrics, sweep

    @sweep(
        search_space={{"lr": LogUniform(1e-4, 1e-1)}}, metric="score", max_trials={runs}, max_parallel={parallel},
        seed=7, name="storm", max_retries=20, retry_delay_seconds=0.2,
    )
    def train(config):
        with open("executions", "a") as executions:
            executions.write(current_run().job_id + "\\n")
        for epoch in range(3):
            time.sleep({seconds} / 3)
            report_metrics({{"score": config["lr"] * (epoch + 1)}})
"""


class Storm:
    """One sweep in the open.

    Args:
        folder: Where the sweep works.
        url: Its store.
        seed: Of the chances.
    """

    def __init__(self, folder: Path, url: str, seed: int) -> None:
        self.folder, self.url = folder, url
        self.kills: Counter[str] = Counter()
        self.starts: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self.controller: subprocess.Popen[bytes] | None = None

    def keep_running(self) -> bool:
        """Start the controller when there is none; False when it has brought the sweep to its end."""
        if self.controller is not None:
            code = self.controller.poll()
            if code is None:
                return True
            if code == 0 or self._has_ended():
                return False
            # Killed by us; or started while the database was down, or found its lease taken.
            self.starts["after a kill" if code < 0 else f"after exit code {code}"] += 1
        command = [sys.executable, "-m", "metta.sweep.cli", "sweep", "run", "storm.py", "--store", self.url]
        with (self.folder / "controller.log").open("ab") as log:
            self.controller = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log)
        return True

    def _has_ended(self) -> bool:
        """Whether the sweep is over all the same: a controller may be hit when it has just written that."""
        from metta.sweep.errors import StoreError
        from metta.sweep.stores import open_reader

        try:
            with closing(open_reader(self.url)) as store:
                return any(sweep.status.ended for sweep in store.fetch_sweeps())
        except StoreError:
            return False

    def strike(self) -> None:
        """One controller, agent or trial is hit by kill -9."""
        victims = self._victims()
        kinds = [kind for kind in victims if victims[kind]]
        if kinds:
            kind = self._chance.choice(kinds)
            with suppress(ProcessLookupError):
                os.kill(self._chance.choice(victims[kind]), signal.SIGKILL)
                self.kills[kind] += 1

    def _victims(self) -> dict[str, list[int]]:
        import psutil

        found: dict[str, list[int]] = {"controller": [], "agent": [], "trial": []}
        if self.controller is not None and self.controller.poll() is None:
            found["controller"].append(self.controller.pid)
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if Path(process.cwd()) != self.folder:
                    continue
                arguments = process.cmdline()
                if "metta.sweep.agent" in arguments:
                    found["agent"].append(process.pid)
                elif "metta.sweep.agent.forkserver" in arguments:
                    found["trial"] += [child.pid for child in process.children()]
        return found

    def still_there(self) -> int:
        """Processes that have outlived the sweep."""
        import psutil

        count = 0
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                count += Path(process.cwd()) == self.folder and process.status() != psutil.STATUS_ZOMBIE
        return count


def weather(storm: Storm, server: Any, options: argparse.Namespace) -> float:
    """Let it rage until the sweep has ended; returns the seconds that took."""
    begin = time.monotonic()
    next_kill, next_crash = begin + options.kill_every, begin + options.crash_every
    crashes = 0
    while storm.keep_running():
        now = time.monotonic()
        if now - begin > options.timeout:
            raise SystemExit(f"the sweep has not ended after {options.timeout} s; see {storm.folder}/controller.log")
        if now >= next_kill:
            storm.strike()
            next_kill = now + options.kill_every
        if server is not None and now >= next_crash:
            server.stop("immediate")
            time.sleep(options.down)
            server.start()
            crashes += 1
            next_crash = time.monotonic() + options.crash_every
        time.sleep(0.02)
    storm.kills["database"] = crashes
    return time.monotonic() - begin


def verdict(storm: Storm, runs: int) -> dict[str, int]:
    """What the log says of it, and what the trials themselves have written down."""
    from metta.sweep.model.events import JobGranted, RunCompleted
    from metta.sweep.model.run import JobState, JobStatus
    from metta.sweep.model.state import EMPTY, fold
    from metta.sweep.stores import open_store

    with closing(open_store(storm.url)) as store:
        [sweep] = store.fetch_sweeps()
        events = list(store.read(sweep.sweep_id))
        state = fold(EMPTY, events)
        differing = len(store.projection_differences(sweep.sweep_id))
    completions = Counter(event.run_id for event in events if isinstance(event.body, RunCompleted))
    granted = {event.job_id for event in events if isinstance(event.body, JobGranted)}
    executed = Counter((storm.folder / "executions").read_text().split())
    jobs = [job for run in state.runs.values() for job in run.jobs]
    return {
        "runs ended": sum(run.status.ended for run in state.runs.values()),
        "runs completed": state.sweep.counts.get(JobStatus.COMPLETED, 0),
        "runs lost": runs - len(state.runs),
        "runs beyond those asked for": max(0, len(state.runs) - runs),
        "observations twice": sum(count - 1 for count in completions.values()),
        "attempts executed twice": sum(count - 1 for count in executed.values()),
        "attempts executed without a grant": len(executed.keys() - granted),
        "rows that differ from the log": differing,
        "attempts": len(jobs),
        "attempts lost with their agent": sum(job.state is JobState.LOST for job in jobs),
        "attempts killed": sum(job.failure == "killed" for job in jobs),
        "events": len(events),
    }


def main() -> None:
    from _measure import Report, parse_arguments, scratch_folder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, help="of the sweep (1000; 60 with --quick)")
    parser.add_argument("--parallel", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=0.3, help="what a trial takes (%(default)s)")
    parser.add_argument("--kill-every", type=float, default=1.0, help="seconds (%(default)s)")
    parser.add_argument("--crash-every", type=float, default=10.0, help="seconds between crashes of the database")
    parser.add_argument("--down", type=float, default=0.5, help="seconds that it stays down (%(default)s)")
    parser.add_argument("--sqlite", action="store_true", help="an SQLite store, which has no server to crash")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=1800.0, help="give up after so many seconds")
    options = parse_arguments(parser)
    runs = options.runs or (60 if options.quick else 1000)

    database = "SQLite" if options.sqlite else "PostgreSQL"
    report = Report(f"{runs} runs of {options.seconds} s, {options.parallel} at a time, in a storm, on {database}")
    with scratch_folder(options.folder) as scratch, closing(_Server(options.sqlite, scratch)) as server:
        folder = scratch.resolve()
        text = textwrap.dedent(TARGET).format(runs=runs, parallel=options.parallel, seconds=options.seconds)
        (folder / "storm.py").write_text(text)
        storm = Storm(folder, server.url, options.seed)
        try:
            seconds = weather(storm, server.process, options)
            found = verdict(storm, runs)
            deadline = time.monotonic() + 30
            while storm.still_there() and time.monotonic() < deadline:
                time.sleep(0.1)
            found["processes left"] = storm.still_there()
        finally:
            if storm.controller is not None:
                storm.controller.kill()

    report.add("the sweep took", seconds, "s")
    for kind, count in sorted(storm.kills.items()):
        report.add(f"kill -9: {kind}" if kind != "database" else "crashes of the database", count, "times")
    for why, count in sorted(storm.starts.items()):
        report.add(f"controller started again {why}", count, "times")
    for name, value in found.items():
        goal = {"at_most": 0} if name in _MUST_BE_ZERO else {"at_least": runs} if name == "runs ended" else {}
        report.add(name, value, "", **goal)
    report.finish(options.json, options.folder)
    if any(figure.met is False for figure in report.figures):
        raise SystemExit(1)


class _Server:
    """The database, with a process of its own or without one."""

    def __init__(self, sqlite: bool, folder: Path) -> None:
        self.process: Any = None
        self.url = f"sqlite:///{folder.resolve()}/sweeps.db"
        if not sqlite:
            # The server that the tests start.
            sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
            from postgresql import PostgresqlServer

            self.process = PostgresqlServer()
            self.process.execute("CREATE DATABASE storm")
            self.url = self.process.url("storm")

    def close(self) -> None:
        if self.process is not None:
            self.process.remove()


_MUST_BE_ZERO = {
    "runs lost",
    "runs beyond those asked for",
    "observations twice",
    "attempts executed twice",
    "attempts executed without a grant",
    "rows that differ from the log",
    "processes left",
}

if __name__ == "__main__":
    main()
