"""How long a person waits before anything happens: whole processes, from exec to exit."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from _measure import Report, parse_arguments, scratch_folder
from _sweeps import SWEEP, write_sweep

from metta.sweep.stores import STORE_VARIABLE, open_store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000, help="runs of the sweep that is shown (%(default)s)")
    options = parse_arguments(parser)
    rounds = 3 if options.quick else 15
    with scratch_folder(options.folder) as folder:
        url = f"sqlite:///{folder / 'sweeps.db'}"
        store = open_store(url, create=True)
        write_sweep(store, folder, options.runs)
        store.close()
        optuna_url = _optuna_study(folder, trials=20 if options.quick else 100)
        times = _median_times(_commands(optuna_url), rounds, {STORE_VARIABLE: url})
    _report(times, f"Whole processes, median of {rounds}; a finished sweep of {options.runs:,} runs", options)


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


def _median_times(
    commands: Mapping[str, Sequence[str]], rounds: int, environment: Mapping[str, str]
) -> dict[str, float]:
    """Milliseconds of each. All in turn, round after round, so that noise meets all alike; the first round warms up."""
    run = _runner({**os.environ, **environment})
    for command in commands.values():
        run(command)
    measured = [{name: run(command) for name, command in commands.items()} for _ in range(rounds)]
    return {name: median(one[name] for one in measured) for name in commands}


def _runner(environment: Mapping[str, str]) -> Callable[[Sequence[str]], float]:
    def run(command: Sequence[str]) -> float:
        begin = time.perf_counter()
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        return (time.perf_counter() - begin) * 1e3

    return run


def _report(times: Mapping[str, float], title: str, options: argparse.Namespace) -> None:
    report = Report(title)
    bare = times["bare"]
    report.add(
        "import metta.sweep",
        times["import"] - bare,
        "ms",
        at_most=100,
        peer="import optuna:",
        peer_value=times["import optuna"] - bare,
        note=f"beyond a bare python, which takes {bare:.0f} ms",
    )
    report.add(
        "from metta.sweep import LogUniform, ...",
        times["names"] - bare,
        "ms",
        peer="import optuna:",
        peer_value=times["import optuna"] - bare,
        note="the names that a training script uses, beyond a bare python",
    )
    peers = {"best --top 5": "optuna best-trial", "list": "optuna studies"}
    for name in ("status", "status --json", "best --top 5", "list", "list --json"):
        peer = peers.get(name)
        report.add(
            f"metta sweep {name}",
            times[name],
            "ms",
            at_most=400,
            peer=f"{peer}:" if peer else None,
            peer_value=times[peer] if peer else None,
        )
    report.add("metta sweep status --runs --json", times["status --runs --json"], "ms", note="every run of it")
    report.add("metta sweep --help", times["--help"], "ms")
    report.finish(options.json, options.folder)


if __name__ == "__main__":
    main()
