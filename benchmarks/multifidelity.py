"""Accuracy against simulated time: schedulers that stop runs early, with optimizers, beside those of peers, on LCBench.

Eight workers train in virtual time, as long as each sweep needs to train a hundred random configurations to their end.
Regret 0 is the best accuracy known for an instance, 1 the median of random configurations, both after 52 epochs; what
counts is the best accuracy reported so far, after whatever epoch.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

# As in quality.py.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

import numpy as np  # noqa: E402 (it reads these when it is loaded)

if TYPE_CHECKING:
    from _kept import Cell, Kept
    from _multifidelity_outcome import Sweep
    from metta.sweep.dispatchers.simulated import Course
    from metta.sweep.model.run import JobDefinition
    from metta.sweep.model.sweep import Strategy

_WORKERS = 8
#: Epochs before the first level: after one epoch accuracies say nothing of those in the end.
_GRACE = 3
#: Whole trainings of random configurations that the time of a sweep is enough for.
_TRAININGS = 100

#: Ours: optimizer, scheduler and its options.
OURS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "random": ("random", "fifo", {}),
    "random + asha": ("random", "asha", {}),
    "random + asha, promote": ("random", "asha", {"mode": "promote"}),
    "random + hyperband": ("random", "hyperband", {}),
    "tpe + asha": ("tpe", "asha", {}),
    "tpe + hyperband": ("tpe", "hyperband", {}),
    "bayesian": ("bayesian", "fifo", {}),
    "bayesian + asha": ("bayesian", "asha", {}),
    "bayesian + asha, promote": ("bayesian", "asha", {"mode": "promote"}),
    "bayesian + hyperband": ("bayesian", "hyperband", {}),
}
#: Whom the goal is for, unless `--ours` names another.
_BEST = "bayesian + asha"


def main() -> None:
    from _kept import Kept
    from _measure import Report, parse_arguments
    from _multifidelity_outcome import Outcome, Sweep, references, regrets
    from _multifidelity_peers import PEERS, version
    from _problems import names, problem

    options = parse_arguments(_parser())
    _fill_in(options)
    problems = names(["lcbench"], options.instances)
    setting = f"{_WORKERS} workers, grace period {_GRACE}, {_TRAININGS} trainings"
    kept = Kept(options.peers, {name: f"{problem(name).fingerprint()}, {setting}" for name in problems}, Sweep, version)
    plan = _plan(problems, options)
    known = {cell: kept.traces[cell] for cell in plan if cell in kept.traces and cell.contestant in PEERS}

    report = Report(f"Regret in simulated time, {_WORKERS} workers, {options.seeds} seeds")
    sweeps = {**known, **_measure([cell for cell in plan if cell not in known], problems, kept, options)}
    best = references({name: kept.references[name] for name in problems}, sweeps)
    curves = {cell: regrets(sweep, best[cell.problem]) for cell, sweep in sweeps.items()}
    outcome = Outcome.of(options.contestants, curves, sweeps)
    outcome.show({cell.contestant for cell in known})
    outcome.judge(options.ours, PEERS, report)
    if options.figure is not None and outcome.instances:
        from _multifidelity_figure import draw

        draw(outcome, OURS, options.ours, options.figure)
    report.details = [
        {"cell": cell, "own_seconds": sweeps[cell].own_seconds, "regret": curve.tolist()}
        for cell, curve in curves.items()
    ]
    report.finish(options.json, options.folder)


def _parser() -> argparse.ArgumentParser:
    from _lcbench import DEVELOPMENT_INSTANCES
    from _multifidelity_peers import PEERS

    parser = argparse.ArgumentParser(description=__doc__)
    names = [*OURS, *PEERS]
    parser.add_argument(
        "--contestants",
        nargs="+",
        choices=names,
        metavar="NAME",
        help=f"{', '.join(names)} (all; peers as far as they are installed or in the file)",
    )
    parser.add_argument("--ours", choices=OURS, default=_BEST, metavar="NAME", help="who is judged (%(default)s)")
    parser.add_argument("--instances", nargs="+", help=f"of LCBench ({' '.join(DEVELOPMENT_INSTANCES)})")
    parser.add_argument("--seeds", type=int, help="sweeps of each instance by each contestant (2; 1 with --quick)")
    parser.add_argument("--jobs", type=int, default=1, help="processes, with one thread each (%(default)s)")
    parser.add_argument(
        "--peers", type=Path, metavar="FILE", help="keep what the peers did here, and use what is there"
    )
    parser.add_argument("--recorded", action="store_true", help="measure no peer: take what is in the file")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw regret against time (.svg, .png, .pdf)")
    return parser


def _fill_in(options: argparse.Namespace) -> None:
    """What depends on other options, and what would fail after hours."""
    from importlib.util import find_spec

    from _lcbench import DEVELOPMENT_INSTANCES
    from _multifidelity_peers import PEERS

    options.named = options.contestants is not None
    options.contestants = list(dict.fromkeys(options.contestants or [*OURS, *PEERS]))
    options.instances = options.instances or list(DEVELOPMENT_INSTANCES[: 3 if options.quick else None])
    options.seeds = options.seeds or (1 if options.quick else 2)
    if options.figure is not None:
        if find_spec("matplotlib") is None:
            raise SystemExit("--figure: matplotlib is not installed; pip install 'metta-sweep[benchmarks]'")
        if options.figure.suffix not in {".svg", ".png", ".pdf"}:
            raise SystemExit(f"--figure: {options.figure} ends with none of .svg, .png, .pdf")


def _plan(problems: Sequence[str], options: argparse.Namespace) -> list[Cell]:
    """All sweeps, seed by seed: what there is after a part of them covers all instances."""
    from _kept import Cell
    from _multifidelity_peers import SLOW

    cells = [
        Cell(contestant, problem, seed, _WORKERS)
        for seed in range(options.seeds)
        for contestant in options.contestants
        for problem in problems
    ]
    return sorted(cells, key=lambda cell: (cell.seed, cell.contestant in SLOW))


def _measure(
    cells: Sequence[Cell], problems: Sequence[str], kept: Kept[Sweep], options: argparse.Namespace
) -> dict[Cell, Sweep]:
    """The sweeps of these cells, without those of peers that cannot run here or are not wanted.

    What regret is measured by goes to `kept`.
    """
    from _multifidelity_peers import PEERS
    from _problems import problem, reference

    absent = _absent({cell.contestant for cell in cells if cell.contestant in PEERS}, options)
    cells = [cell for cell in cells if cell.contestant not in absent]
    sweeps: dict[Cell, Sweep] = {}
    begin = time.monotonic()
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_sweep, cell): cell for cell in cells}
        for name in problems:
            if name not in kept.references:
                kept.keep_reference(name, reference(problem(name)))
        for number, future in enumerate(as_completed(futures), start=1):
            cell = futures[future]
            sweeps[cell] = future.result()
            if cell.contestant in PEERS:
                kept.keep_trace(cell, sweeps[cell])
            seconds = time.monotonic() - begin
            print(
                f"{number} of {len(cells)}, {seconds:.0f} s: {cell.problem}, seed {cell.seed}, {cell.contestant}",
                file=sys.stderr,
            )
    return sweeps


def _absent(peers: set[str], options: argparse.Namespace) -> set[str]:
    """Of peers with sweeps that are not in the file, those that are not to be measured.

    Raises:
        SystemExit: One that was asked for by name cannot run here.
    """
    from _multifidelity_peers import missing

    if options.recorded:
        return peers
    lacks = {peer: lack for peer in sorted(peers) if (lack := missing(peer))}
    for peer, lack in lacks.items():
        print(f"{peer}: {lack}", file=sys.stderr)
    if lacks and options.named:
        raise SystemExit("leave these out of --contestants, or take them from a file with --peers FILE --recorded")
    return set(lacks)


def _sweep(cell: Cell) -> Sweep:
    """One sweep, in this process; equal cells, equal improvements."""
    from _lcbench import surrogate
    from _multifidelity_outcome import Sweep
    from _multifidelity_peers import PEERS, simulated

    instance = cell.problem.removeprefix("lcbench-")
    budget_s = _budget_s(instance)
    seed = zlib.crc32(f"{instance}/{cell.seed}".encode())
    drive: Callable[[], list[tuple[float, float]]]
    if cell.contestant in PEERS:
        from _lcbench import EPOCHS

        # A peer's imports are done when the clock starts.
        peer = PEERS[cell.contestant](surrogate().space, seed, _GRACE, EPOCHS)
        drive = partial(simulated, peer, partial(surrogate().curve, instance), _WORKERS, budget_s)
    else:
        drive = partial(_drive_ours, cell.contestant, instance, seed, budget_s)
    begin = time.process_time()
    reports = drive()
    own_seconds = time.process_time() - begin
    improvements: list[tuple[float, float]] = []
    for seconds, accuracy in sorted(reports):
        if not improvements or accuracy > improvements[-1][1]:
            improvements.append((seconds, accuracy))
    return Sweep(improvements, budget_s, own_seconds)


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
        fidelity=Fidelity(maximum=EPOCHS, grace_period=_GRACE),
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


if __name__ == "__main__":
    main()
