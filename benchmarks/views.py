"""How long one waits for a view of a large sweep: whole processes, from exec to exit, at 1,000 and 10,000 runs.

The sweeps have ended and hold ten events a run; their scores are noise, of which `analyze` grows its largest trees. The
importance alone, without the process around it, is beside that of Optuna's fANOVA on the same 1,000 runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from statistics import median

from _measure import Report, parse_arguments, scratch_folder
from _sweeps import SWEEP, write_sweep
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Reader
from metta.sweep.stores import STORE_VARIABLE, open_reader, open_store
from startup import measure

#: Milliseconds that each may take.
_GOALS = {
    "status": 500,
    "best --top 5": 500,
    "events --tail 20": 500,
    "analyze": 5_000,
    "analyze --html": None,
    "export --format csv": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", help="of each sweep (1,000 10,000; 1,000 with --quick)")
    options = parse_arguments(parser)
    sizes = options.runs or ([1_000] if options.quick else [1_000, 10_000])
    rounds = 3 if options.quick else 7
    report = Report(f"Whole processes, median of {rounds}; finished sweeps")
    with scratch_folder(options.folder) as folder:
        for runs in sizes:
            url = f"sqlite:///{folder / f'{runs}.db'}"
            store = open_store(url, create=True)
            write_sweep(store, folder, runs)
            store.close()
            _measure_views(report, folder, url, runs, rounds)
        _measure_importance(report, f"sqlite:///{folder / f'{sizes[0]}.db'}", 1 if options.quick else 3)
    report.finish(options.json, options.folder)


def _measure_views(report: Report, folder: Path, url: str, runs: int, rounds: int) -> None:
    metta = [str(Path(sys.executable).with_name("metta")), "sweep"]
    commands = {name: [*metta, name.split()[0], SWEEP, *name.split()[1:]] for name in _GOALS}
    commands["analyze --html"].append(str(folder / "report.html"))
    measured = measure(commands, rounds, {STORE_VARIABLE: url})
    for name, goal in _GOALS.items():
        processor = median(one.cpu_ms for one in measured[name])
        report.add(
            f"{name}, {runs:,} runs",
            median(one.wall_ms for one in measured[name]),
            "ms",
            at_most=goal,
            note=f"{processor:.0f} ms of processor",
        )


def _measure_importance(report: Report, url: str, rounds: int) -> None:
    from metta.sweep.analysis.comparable import comparable
    from metta.sweep.analysis.importance import importance

    store = open_reader(url)
    [sweep] = store.fetch_sweeps()
    compared = comparable(sweep.config, store.fetch_runs(sweep.sweep_id))
    taken = []
    for _ in range(rounds + 1):  # the first imports scikit-learn
        begin = time.perf_counter()
        importance(sweep.config.search_space, compared, maximize=True)
        taken.append(time.perf_counter() - begin)
    report.add(
        f"importance alone, {len(compared.values):,} runs",
        median(taken[1:]) * 1e3,
        "ms",
        peer="Optuna's fANOVA:",
        peer_value=_optunas_importance(store, sweep) * 1e3,
        note="64 trees each; interactions included, which Optuna leaves out",
    )


def _optunas_importance(store: Reader, sweep: SweepMetadata) -> float:
    """Seconds."""
    import optuna

    from metta.sweep.exchange.optuna_export import to_optuna

    path = Path(store.url.removeprefix("sqlite:///")).with_suffix(".optuna.db")
    to_optuna(sweep, store.fetch_runs(sweep.sweep_id), path)
    study = optuna.load_study(study_name=sweep.config.name, storage=f"sqlite:///{path}")
    study.get_trials()  # reads them, and keeps them
    begin = time.perf_counter()
    optuna.importance.get_param_importances(study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0))
    return time.perf_counter() - begin


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
