"""Trials per second where a trial does nothing: what a trial costs besides the training.

Every trial is granted, started, reported, ended and judged in a durable store (a commit is on the disk before anything
acts on it). Optuna does as many trials in this process, without isolation, as its documentation shows for SQLite.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any


def trivial(config: Mapping[str, Any]) -> dict[str, float]:
    return {"value": (config["x"] - 0.3) ** 2 + config["y"]}


def main() -> None:
    from _measure import Report, parse_arguments, scratch_folder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, help="trials of a sweep (1000; 200 with --quick)")
    # From a trial's end to the start of the next one in its slot it takes three durable commits and three processes,
    # some 20 ms, mostly of waiting; all slots that are due go through it together. With few slots this chain is what is
    # measured; with 16 it is the work, and more change little.
    parser.add_argument("--max-parallel", type=int, nargs="+", default=[16], help="one sweep for each number (16)")
    parser.add_argument("--rounds", type=int, help="repeat all, and show the median (3; 1 with --quick)")
    options = parse_arguments(parser)
    trials = options.trials or (200 if options.quick else 1000)
    rounds = options.rounds or (1 if options.quick else 3)
    peer_trials = min(trials, 50 if options.quick else 300)

    report = Report(f"Trivial trials per second, durable store (synchronous FULL), {trials} trials, median of {rounds}")
    sweeps: dict[tuple[str, int], list[dict[str, float]]] = defaultdict(list)
    peers: list[float] = []
    # One folder, removed at the end: ext4 avoids inodes deleted in the last minutes by looking at each of them, which
    # makes every file that a later sweep creates a hundred times as dear.
    with scratch_folder(options.folder) as folder:
        for number in range(rounds):
            for slots in options.max_parallel:
                for isolation in ("process", "reuse"):
                    sweeps[isolation, slots].append(_sweep(folder, isolation, slots, trials))
            peers.append(_optuna(folder, peer_trials))
            print(f"round {number + 1} of {rounds} done", flush=True)

    for (isolation, slots), measured in sweeps.items():
        typical = {name: median(one[name] for one in measured) for name in measured[0]}
        report.add(
            f"isolation={isolation}, max_parallel={slots}",
            typical["rate"],
            "trials/s",
            at_least=100 if isolation == "process" else 400,
            peer="Optuna, SQLite:",
            peer_value=median(peers),
            note=f"{typical['whole_rate']:.0f}/s with the warm-up of {typical['warm_up_s']:.2f} s (agent, first job)",
        )
    for (isolation, slots), measured in sweeps.items():
        for step in ("grant to start", "start to exit", "exit to verdict"):
            value = median(one[step] for one in measured)
            report.add(f"  {isolation}, {slots} parallel: {step}", value * 1e3, "ms", note="median of all trials")
    report.finish(options.json, options.folder)


def _sweep(folder: Path, isolation: str, slots: int, trials: int) -> dict[str, float]:
    """One sweep, timed by its own log."""
    from metta.sweep import Uniform, sweep
    from metta.sweep.stores import open_store

    url = f"sqlite:///{folder / f'sweeps-{time.monotonic_ns()}.db'}"
    decorate = sweep(
        search_space={"x": Uniform(0.0, 1.0), "y": Uniform(0.0, 1.0)},
        metric="value",
        isolation=isolation,
        max_parallel=slots,
        max_trials=trials,
        seed=1,
    )
    result = decorate(trivial).run(store=url, progress=False)
    completed = sum(run.score is not None for run in result.runs)
    if completed != trials:
        raise SystemExit(f"{completed} of {trials} trials completed: {result.reason}")
    store = open_store(url)
    events = list(store.read(result.sweep_id))
    [metadata] = store.fetch_sweeps(result.sweep_id)
    store.close()
    _wait_for_agent(metadata.config.directory)
    return _timing(events, trials)


def _wait_for_agent(directory: str) -> None:
    """It leaves by itself in a moment, and must not write into a folder that is being removed."""
    import psutil

    from metta.sweep.agent.location import read_address

    address = read_address(directory)
    if address is not None and psutil.pid_exists(address.pid):
        psutil.wait_procs([psutil.Process(address.pid)], timeout=30)


def _timing(events: Sequence[Any], trials: int) -> dict[str, float]:
    at: dict[str, list[float]] = defaultdict(list)
    of_run: dict[str, dict[str, float]] = defaultdict(dict)
    for event in events:
        at[event.type].append(event.at)
        if event.run_id is not None:
            of_run[event.run_id][event.type] = event.at
    begin, first, end = at["controller_started"][0], min(at["job_started"]), at["sweep_ended"][-1]

    def between(one: str, other: str) -> float:
        return median(times[other] - times[one] for times in of_run.values())

    return {
        "rate": trials / (end - first),
        "whole_rate": trials / (end - begin),
        "warm_up_s": first - begin,
        "grant to start": between("job_granted", "job_started"),
        "start to exit": between("job_started", "job_exited"),
        "exit to verdict": between("job_exited", "run_completed"),
    }


def _optuna(folder: Path, trials: int) -> float:
    """Optuna's trials per second with its SQLite storage: one process, one thread."""
    import optuna

    def objective(trial: optuna.Trial) -> float:
        config = {"x": trial.suggest_float("x", 0.0, 1.0), "y": trial.suggest_float("y", 0.0, 1.0)}
        return trivial(config)["value"]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    sampler = optuna.samplers.RandomSampler(seed=1)
    study = optuna.create_study(storage=f"sqlite:///{folder / f'optuna-{time.monotonic_ns()}.db'}", sampler=sampler)
    begin = time.perf_counter()
    study.optimize(objective, n_trials=trials, n_jobs=1)
    return trials / (time.perf_counter() - begin)


if __name__ == "__main__":
    main()
