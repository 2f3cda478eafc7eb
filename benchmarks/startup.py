"""How long a person waits before anything happens: whole processes, from exec to exit."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from _measure import Report, parse_arguments, scratch_folder
from _sweeps import SWEEP, write_sweep
from metta.sweep.stores import STORE_VARIABLE, open_store


class Process(NamedTuple):
    """What one process took."""

    wall_ms: float
    #: Does not count what others do on a busy machine.
    cpu_ms: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000, help="runs of the sweep that is shown (%(default)s)")
    options = parse_arguments(parser)
    rounds = 3 if options.quick else 15
    report = Report(f"Whole processes, median of {rounds}; a finished sweep of {options.runs:,} runs")
    with scratch_folder(options.folder) as folder:
        url = f"sqlite:///{folder / 'sweeps.db'}"
        store = open_store(url, create=True)
        write_sweep(store, folder, options.runs)
        store.close()
        optuna_url = _optuna_study(folder, trials=20 if options.quick else 100)
        _fill(report, measure(_commands(optuna_url), rounds, {STORE_VARIABLE: url}))
    report.finish(options.json, options.folder)


def _commands(optuna_url: str) -> Mapping[str, Sequence[str]]:
    python = [sys.executable, "-c"]
    metta, optuna = [_script("metta"), "sweep"], [_script("optuna"), "--storage", optuna_url]
    return {
        "bare": [*python, "pass"],
        "import": [*python, "import metta.sweep"],
        "names": [*python, "from metta.sweep import LogUniform, report_metrics, sweep"],
        "import optuna": [*python, "import optuna"],
        "status": [*metta, "status", SWEEP],
        "status --json": [*metta, "status", SWEEP, "--json"],
        "status --runs --json": [*metta, "status", SWEEP, "--runs", "--json"],
        "best --top 5": [*metta, "best", SWEEP, "--top", "5"],
        "list": [*metta, "list"],
        "list --json": [*metta, "list", "--json"],
        "--help": [*metta, "--help"],
        "optuna best-trial": [*optuna, "best-trial", "--study-name", SWEEP],
        "optuna studies": [*optuna, "studies"],
    }


def _script(name: str) -> str:
    """The command as users have it: of the environment that runs this."""
    return str(Path(sys.executable).with_name(name))


def _optuna_study(folder: Path, trials: int) -> str:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = f"sqlite:///{folder / 'optuna.db'}"
    study = optuna.create_study(storage=url, study_name=SWEEP)
    space = {"x": optuna.distributions.FloatDistribution(0.0, 1.0)}
    study.add_trials(
        optuna.trial.create_trial(params={"x": 0.5}, distributions=space, value=float(number))
        for number in range(trials)
    )
    return url


def measure(
    commands: Mapping[str, Sequence[str]], rounds: int, environment: Mapping[str, str]
) -> dict[str, list[Process]]:
    """All in turn, round after round, so that noise meets all alike; a first round warms up and is not counted."""
    measured: dict[str, list[Process]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            process = _run(command, {**os.environ, **environment})
            if number:
                measured[name].append(process)
    return measured


def _run(command: Sequence[str], environment: Mapping[str, str]) -> Process:
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            errors.seek(0)
            said = errors.read().decode(errors="replace")
            raise SystemExit(f"{' '.join(command)} ended with code {process.returncode}: {said}")
    return Process(seconds * 1e3, (usage.ru_utime + usage.ru_stime) * 1e3)


def _fill(report: Report, measured: Mapping[str, Sequence[Process]]) -> None:
    wall = {name: median(one.wall_ms for one in processes) for name, processes in measured.items()}
    bare = wall["bare"]
    report.add(
        "import metta.sweep",
        wall["import"] - bare,
        "ms",
        at_most=100,
        peer="import optuna:",
        peer_value=wall["import optuna"] - bare,
        note=f"beyond a bare python, which takes {bare:.0f} ms",
    )
    report.add(
        "from metta.sweep import sweep, ...",
        wall["names"] - bare,
        "ms",
        at_most=100,
        peer="import optuna:",
        peer_value=wall["import optuna"] - bare,
        note="the names that a training script uses",
    )
    peers = {"best --top 5": "optuna best-trial", "list": "optuna studies"}
    for name in ("status", "status --json", "status --runs --json", "best --top 5", "list", "list --json", "--help"):
        peer = peers.get(name)
        processor = median(one.cpu_ms for one in measured[name])
        least = min(one.wall_ms for one in measured[name])
        report.add(
            f"metta sweep {name}",
            wall[name],
            "ms",
            at_most=400,
            peer=f"{peer}:" if peer else None,
            peer_value=wall[peer] if peer else None,
            note=f"{processor:.0f} ms of processor; the fastest took {least:.0f} ms",
        )


if __name__ == "__main__":
    main()
