"""How good the suggestions are: normalised regret after 25, 50 and 100 evaluations, ours and peers'.

Regret 0 is the best score known for a problem, 1 the median of random configurations. Besides regret the tables have
mean ranks, the optimizer's own processor time, and how many evaluations it takes to get where Optuna's Gaussian process
is after the last one.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything loads them: a numerical library with threads of its own would take the other processes' cores.
for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[_variable] = "1"

if TYPE_CHECKING:
    from _contestants import Trace
    from _kept import Cell, Kept
    from _problems import Reference

_SUITE_TITLES = {"lcbench": "LCBench", "synthetic": "Synthetic functions", "training": "Training with scikit-learn"}


def main() -> None:
    from _contestants import Trace, version
    from _kept import Kept
    from _measure import Report, parse_arguments
    from _outcome import Outcome
    from _problems import names, problem
    from _regret import best_so_far, improved

    options = parse_arguments(_parser())
    _fill_in(options)
    contestants = list(dict.fromkeys([*options.against, *options.optimizers]))
    problems = names(options.problems, options.instances)
    kept = Kept(options.peers, {name: problem(name).fingerprint() for name in problems}, Trace, version)
    known = frozenset(kept.traces)
    plan = _plan(contestants, problems, options)
    if options.recorded:
        plan = [cell for cell in plan if cell in known or cell.contestant in options.optimizers]

    report = Report(f"Quality of suggestions, number of seeds: {options.seeds}")
    traces = _measure_all(plan, problems, kept, options)
    references = improved(kept.references, traces)
    curves = {
        cell: best_so_far(problem(cell.problem), trace, options.budgets[-1], references[cell.problem])
        for cell, trace in traces.items()
    }
    for parallel in options.parallel:
        for suite, title in _SUITE_TITLES.items():
            cells = [cell for cell in traces if cell.parallel == parallel and problem(cell.problem).suite == suite]
            if not cells:
                continue
            outcome = Outcome.of(contestants, cells, curves, traces, options.budgets)
            name = f"{title}, {parallel} at a time"
            outcome.show(name, {cell.contestant for cell in known.intersection(cells)})
            for optimizer in options.optimizers:
                outcome.judge(optimizer, name, report, has_goals=suite == "lcbench" and parallel == 1)
    report.details = {
        "references": references,
        "searches": [
            {"cell": cell, "own_seconds": trace.own_seconds, "regret": curves[cell].tolist()}
            for cell, trace in traces.items()
        ],
    }
    report.finish(options.json, options.folder)


def _parser() -> argparse.ArgumentParser:
    from _contestants import BASELINE, PEERS
    from _lcbench import DEVELOPMENT_INSTANCES
    from _problems import SUITES

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--optimizers",
        nargs="*",
        metavar="NAME[,OPTION=VALUE...]",
        help="of this package, by their registered names (bayesian)",
    )
    parser.add_argument("--against", nargs="*", choices=[BASELINE, *PEERS], help="baseline and peers (all)")
    parser.add_argument("--problems", nargs="+", help=f"suites ({', '.join(SUITES)}) or single problems (all)")
    parser.add_argument("--instances", nargs="+", help=f"of LCBench ({' '.join(DEVELOPMENT_INSTANCES)})")
    parser.add_argument("--seeds", type=int, help="searches of each problem by each optimizer (5; 2 with --quick)")
    parser.add_argument(
        "--parallel", type=int, nargs="+", default=[1], help="runs on their way at one time; tables for each (1)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes, with one thread each (%(default)s)")
    parser.add_argument(
        "--peers",
        type=Path,
        metavar="FILE",
        help="keep what the baseline and the peers did here, and use what is there",
    )
    parser.add_argument(
        "--recorded",
        action="store_true",
        help="measure no peer: leave out what is not in the file, and compare the rest",
    )
    return parser


def _fill_in(options: argparse.Namespace) -> None:
    """What depends on `--quick`."""
    from _contestants import BASELINE, MARK, PEERS, missing, our_optimizer
    from _lcbench import DEVELOPMENT_INSTANCES
    from _problems import SUITES

    options.budgets = (25, 50) if options.quick else (25, 50, 100)
    if options.optimizers is None:
        options.optimizers = ["bayesian"]
    for optimizer in options.optimizers:
        our_optimizer(optimizer)
    if options.against is None:
        # A Gaussian process of Optuna's takes most of an hour; short versions have it only where it is kept.
        options.against = [BASELINE, *PEERS]
        if options.quick and options.peers is None:
            options.against.remove(MARK)
    for peer in options.against:
        if not options.recorded and (lack := missing(peer)):
            raise SystemExit(f"{peer}: {lack}; name the others with --against, or take it from a file with --recorded")
    options.seeds = options.seeds or (2 if options.quick else 5)
    options.instances = options.instances or list(DEVELOPMENT_INSTANCES[: 3 if options.quick else None])
    options.problems = options.problems or (["lcbench", "synthetic"] if options.quick else list(SUITES))


def _plan(contestants: Sequence[str], problems: Sequence[str], options: argparse.Namespace) -> list[Cell]:
    """All searches, seed by seed: what there is after a part of them covers all problems."""
    from _contestants import MARK
    from _kept import Cell

    cells = [
        Cell(contestant, name, seed, parallel)
        for parallel in options.parallel
        for seed in range(options.seeds)
        for contestant in contestants
        for name in problems
    ]
    # The slowest peer comes last in each seed.
    return sorted(cells, key=lambda cell: (cell.parallel, cell.seed, cell.contestant == MARK))


def _measure_all(
    plan: Sequence[Cell], problems: Sequence[str], kept: Kept[Trace], options: argparse.Namespace
) -> dict[Cell, Trace]:
    """The traces of all cells; what regret is measured by goes to `kept`."""
    from _contestants import label

    evaluations = options.budgets[-1]
    keepable = set(options.against)
    traces = {
        cell: kept.traces[cell]
        for cell in plan
        if cell.contestant in keepable and cell in kept.traces and len(kept.traces[cell].scores) >= evaluations
    }
    missing = [cell for cell in plan if cell not in traces]
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
        references = {pool.submit(_reference, name): name for name in problems if name not in kept.references}
        searches = {pool.submit(_search, cell, evaluations): cell for cell in missing}
        for future in _finished([*references, *searches]):
            if future in references:
                print(f"{references[future]}, what regret is measured by", file=sys.stderr)
                kept.keep_reference(references[future], future.result())
                continue
            cell = searches[future]
            traces[cell] = future.result()
            print(f"{cell.problem}, seed {cell.seed}, {label(cell.contestant)}", file=sys.stderr)
            if cell.contestant in keepable:
                kept.keep_trace(cell, traces[cell])
    return traces


def _finished(futures: Sequence[Future[Any]]) -> Iterator[Future[Any]]:
    """As they end, saying on the standard error how far it is."""
    begin = time.monotonic()
    for number, future in enumerate(as_completed(futures), start=1):
        print(f"{number} of {len(futures)}, {time.monotonic() - begin:.0f} s: ", end="", file=sys.stderr)
        yield future


def _search(cell: Cell, evaluations: int) -> Trace:
    from _contestants import search
    from _problems import problem

    return search(cell.contestant, problem(cell.problem), cell.seed, evaluations, cell.parallel)


def _reference(name: str) -> Reference:
    from _problems import problem, reference

    return reference(problem(name))


if __name__ == "__main__":
    main()
