"""Accuracy against simulated time: schedulers that stop runs early, with optimizers, beside Optuna's, on LCBench.

Eight workers train in virtual time, as long as each sweep needs to train a hundred random configurations to their end.
Regret 0 is the best accuracy known for an instance, 1 the median of random configurations, both after 52 epochs; what
counts is the best accuracy reported so far, after whatever epoch.
"""

from __future__ import annotations

import argparse
import heapq
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

# As in quality.py.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np  # noqa: E402 (it reads these when it is loaded)

if TYPE_CHECKING:
    from metta.sweep.dispatchers.simulated import Course
    from metta.sweep.model.run import JobDefinition
    from metta.sweep.model.sweep import Strategy

_WORKERS = 8
#: Epochs before the first level: after one epoch accuracies say nothing of those in the end.
GRACE = 3
#: Whole trainings of random configurations that the time of a sweep is enough for.
_TRAININGS = 100
#: Shares of that time at which regret is told, and how finely it is followed.
_SHARES = (0.1, 0.25, 0.5, 1.0)
_STEPS = 200
#: Regrets this small no longer tell contestants apart.
_SMALL = 1e-4

#: Ours: optimizer, scheduler and its options.
OURS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "random": ("random", "fifo", {}),
    "random + asha": ("random", "asha", {}),
    "random + asha, promote": ("random", "asha", {"mode": "promote"}),
    "random + hyperband": ("random", "hyperband", {}),
    "tpe + asha": ("tpe", "asha", {}),
    "bayesian": ("bayesian", "fifo", {}),
    "bayesian + asha": ("bayesian", "asha", {}),
    "bayesian + asha, promote": ("bayesian", "asha", {"mode": "promote"}),
    "bayesian + hyperband": ("bayesian", "hyperband", {}),
}
#: Optuna's TPE alone and with its pruner.
PEERS = ("Optuna TPE", "Optuna TPE + Hyperband")

#: When better and better accuracies were reported: seconds and accuracies, both ascending.
Improvements = list[tuple[float, float]]


def main() -> None:
    from _lcbench import DEVELOPMENT_INSTANCES
    from _measure import Report, parse_arguments
    from _problems import problem, reference

    parser = argparse.ArgumentParser(description=__doc__)
    names = [*OURS, *PEERS]
    parser.add_argument("--contestants", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--instances", nargs="+", help=f"of LCBench ({' '.join(DEVELOPMENT_INSTANCES)})")
    parser.add_argument("--seeds", type=int, help="sweeps of each instance by each contestant (2; 1 with --quick)")
    parser.add_argument("--jobs", type=int, default=1, help="processes (%(default)s)")
    options = parse_arguments(parser)
    options.instances = options.instances or list(DEVELOPMENT_INSTANCES[: 3 if options.quick else None])
    options.seeds = options.seeds or (1 if options.quick else 2)

    report = Report(f"Regret in simulated time, {_WORKERS} workers, {options.seeds} seeds")
    cells = [
        (contestant, instance, seed)
        for seed in range(options.seeds)
        for instance in options.instances
        for contestant in options.contestants
    ]
    curves: dict[tuple[str, str, int], np.ndarray] = {}
    own: dict[tuple[str, str, int], float] = {}
    begin = time.monotonic()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        sweeps = {pool.submit(_sweep, *cell): cell for cell in cells}
        best = {instance: reference(problem(f"lcbench-{instance}")) for instance in options.instances}
        results = {}
        for number, future in enumerate(as_completed(sweeps), start=1):
            results[sweeps[future]] = future.result()
            print(f"{number} of {len(cells)}, {time.monotonic() - begin:.0f} s: {sweeps[future]}", file=sys.stderr)
    for cell, (improvements, budget_s, own_s) in results.items():
        known = best[cell[1]]
        found = [each[0][-1][1] for other, each in results.items() if other[1] == cell[1] and each[0]]
        top = max(-known.best, *found)
        curves[cell] = _regrets(improvements, budget_s, top, top + known.median)
        own[cell] = own_s
    _show(options.contestants, curves, own, report)
    report.details = [{"cell": cell, "regret": curve.tolist()} for cell, curve in curves.items()]
    report.finish(options.json, options.folder)


def _regrets(improvements: Improvements, budget_s: float, top: float, span: float) -> np.ndarray:
    """Regret at each step of the time."""
    times = np.linspace(0, budget_s, _STEPS + 1)[1:]
    at = np.array([seconds for seconds, _ in improvements])
    regrets = np.array([1.0, *((top - accuracy) / span for _, accuracy in improvements)])
    return np.minimum(regrets[np.searchsorted(at, times, side="right")], 1.0)


def _show(
    contestants: Sequence[str],
    curves: dict[tuple[str, str, int], np.ndarray],
    own: dict[tuple[str, str, int], float],
    report: Any,
) -> None:
    from rich.console import Console
    from rich.table import Table

    means = {
        contestant: np.mean([curve for cell, curve in curves.items() if cell[0] == contestant], axis=0)
        for contestant in contestants
    }
    table = Table(title="mean regret, by the share of the time", title_justify="left")
    table.add_column("contestant")
    for share in _SHARES:
        table.add_column(f"{share:.0%}", justify="right")
    table.add_column("controller and optimizer, s", justify="right")
    for contestant, mean in means.items():
        figures = [f"{mean[int(share * _STEPS) - 1]:.4f}" for share in _SHARES]
        seconds = np.mean([each for cell, each in own.items() if cell[0] == contestant])
        table.add_row(contestant, *figures, f"{seconds:.1f}")
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)
    ours = means.get("bayesian + asha")
    if ours is None:
        return
    for contestant, mean in means.items():
        if contestant == "bayesian + asha":
            continue
        reached = np.flatnonzero(ours <= max(float(mean[-1]), _SMALL))
        share = (reached[0] + 1) / _STEPS if len(reached) else float("inf")
        report.add(
            f"share of the time in which bayesian + asha has the final regret of {contestant}", share, "", at_most=0.5
        )


def _sweep(contestant: str, instance: str, seed: int) -> tuple[Improvements, float, float]:
    """The improvements of one sweep, the virtual seconds it had, and the real ones it took."""
    budget_s = _budget_s(instance)
    own_seed = zlib.crc32(f"{instance}/{seed}".encode())
    begin = time.process_time()
    drive = _drive_optuna if contestant in PEERS else _drive_ours
    reports = drive(contestant, instance, own_seed, budget_s)
    improvements: Improvements = []
    for seconds, accuracy in sorted(reports):
        if not improvements or accuracy > improvements[-1][1]:
            improvements.append((seconds, accuracy))
    return improvements, budget_s, time.process_time() - begin


def _budget_s(instance: str) -> float:
    """In which the workers could train a hundred random configurations to their end."""
    from _lcbench import surrogate

    space = surrogate().space
    generator = np.random.default_rng(0)
    points = generator.random((_TRAININGS, len(space.dimensions)))
    whole = [float(surrogate().curve(instance, space.decode(point.tolist()))[0][-1]) for point in points]
    return sum(whole) / _WORKERS


def _model(instance: str) -> Callable[[JobDefinition], Course]:
    """Jobs as the surrogate has them; one that goes on from a checkpoint takes the time of the epochs that are left."""
    from _lcbench import surrogate
    from metta.sweep.dispatchers.simulated import Course, Report, resumed_from

    def model(job: JobDefinition) -> Course:
        seconds, accuracies = surrogate().curve(instance, job.config)
        done = resumed_from(job)
        spent = float(seconds[done - 1]) if done else 0.0
        reports = [
            Report(float(seconds[epoch - 1]) - spent, {"epoch": float(epoch), "accuracy": float(accuracies[epoch - 1])})
            for epoch in range(done + 1, len(seconds) + 1)
        ]
        return Course(reports=reports, seconds=float(seconds[-1]) - spent)

    return model


def _drive_ours(contestant: str, instance: str, seed: int, budget_s: float) -> list[tuple[float, float]]:
    from _lcbench import EPOCHS, surrogate
    from metta.sweep.controller.controller import SweepController
    from metta.sweep.dispatchers.simulated import SimulatedClock, SimulatedDispatcher, SimulatedStore
    from metta.sweep.model.events import MetricsReported, SweepCreated, new_event
    from metta.sweep.model.fidelity import Fidelity
    from metta.sweep.model.sweep import Strategy
    from metta.sweep.testing.sweeps import SWEEP, sweep_config

    optimizer, scheduler, options = OURS[contestant]
    strategy: Strategy = Strategy(optimizer=optimizer, scheduler=scheduler, scheduler_options=options)
    config = sweep_config(
        search_space=surrogate().space,
        metric="accuracy",
        strategy=strategy,
        fidelity=Fidelity(maximum=EPOCHS, grace_period=GRACE),
        seed=seed,
        max_parallel=_WORKERS,
        max_hours=budget_s / 3600,
    )
    clock = SimulatedClock()
    store = SimulatedStore(clock, reaction_s=0.1)
    store.append([new_event(SweepCreated(config=config), sweep_id=SWEEP, at=0.0, actor="user")])
    dispatcher = SimulatedDispatcher(store, SWEEP, config, clock, _model(instance), workers=_WORKERS)
    SweepController(store, SWEEP, dispatcher, clock).run()
    reported = (event for event in store.read(SWEEP) if isinstance(event.body, MetricsReported))
    return [(event.at, event.body.metrics["accuracy"]) for event in reported if event.at <= budget_s]


def _drive_optuna(contestant: str, instance: str, seed: int, budget_s: float) -> list[tuple[float, float]]:
    """Workers in virtual time: what is reported next, by whom, decides."""
    import optuna

    from _contestants import optuna_sampler, suggested
    from _lcbench import EPOCHS, surrogate

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    space = surrogate().space
    pruner = (
        optuna.pruners.HyperbandPruner(min_resource=GRACE, max_resource=EPOCHS, reduction_factor=3)
        if "Hyperband" in contestant
        else optuna.pruners.NopPruner()
    )
    study = optuna.create_study(
        direction="maximize",
        sampler=optuna_sampler("optuna-tpe", space, seed),
        pruner=pruner,
        study_name=f"study-{seed}",
    )
    reports: list[tuple[float, float]] = []
    due: list[tuple[float, int, int]] = []
    trials: dict[int, tuple[optuna.Trial, float, np.ndarray, np.ndarray]] = {}

    def begin(now: float) -> None:
        trial = study.ask()
        seconds, accuracies = surrogate().curve(instance, suggested(trial, space))
        trials[trial.number] = (trial, now, seconds, accuracies)
        heapq.heappush(due, (now + float(seconds[0]), trial.number, 1))

    for _ in range(_WORKERS):
        begin(0.0)
    while due and due[0][0] <= budget_s:
        now, number, epoch = heapq.heappop(due)
        trial, began, seconds, accuracies = trials[number]
        accuracy = float(accuracies[epoch - 1])
        reports.append((now, accuracy))
        trial.report(accuracy, epoch)
        if epoch == EPOCHS:
            study.tell(trial, accuracy)
        elif trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            heapq.heappush(due, (began + float(seconds[epoch]), number, epoch + 1))
            continue
        del trials[number]
        begin(now)
    return reports


if __name__ == "__main__":
    main()
