"""The event store: how fast it takes events, how fast a sweep of 10,000 runs is read back, and in how much memory.

What has a goal is measured in a fresh process. Events are those of real sweeps: six parameters, ten events a run.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import time
import tracemalloc
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from statistics import median

from _measure import Report, measured_apart, parse_arguments, quantile, scratch_folder
from _sweeps import SWEEP, created, life_of, sweep_config, write_sweep
from metta.sweep.clock import SystemClock
from metta.sweep.controller.controller import SweepController
from metta.sweep.dispatchers.local import LocalDispatcher
from metta.sweep.model.events import Event
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.protocols import Store
from metta.sweep.stores import open_store
from metta.sweep.stores.sql import SqlStore

_EVENTS_PER_RUN = 10
_SYNCHRONOUS = ("full", "normal")
_MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="runs of the large sweep (%(default)s)")
    parser.add_argument("--apart", help=argparse.SUPPRESS)
    options = parse_arguments(parser)
    if options.apart is not None:
        print(json.dumps(_APART[options.apart](options.folder)))
        return
    runs = options.runs
    report = Report(f"The event store with {runs:,} runs, {runs * _EVENTS_PER_RUN:,} events")
    with scratch_folder(options.folder) as folder:
        _appends(report, folder, singles=500 if options.quick else 2_000)
        large = folder / "large"
        _build(large, runs)
        _reading(report, large, runs, rounds=1 if options.quick else 3)
        _growth(report, folder, large, runs, lives=10 if options.quick else 100)
    report.finish(options.json, options.folder)


def _open(folder: Path, synchronous: str = "full") -> Store:
    folder.mkdir(exist_ok=True)
    store = open_store(f"sqlite:///{folder / 'sweeps.db'}?synchronous={synchronous}", create=True)
    assert isinstance(store, SqlStore)  # imported above, so that no figure holds the time of an import
    return store


def _build(folder: Path, runs: int) -> None:
    store = _open(folder, "normal")
    write_sweep(store, folder, runs, ended=False)
    store.close()


# ------------------------------------------------------------------------------------------------------ appending


def _appends(report: Report, folder: Path, singles: int) -> None:
    """Events a second, in commits of one and of a hundred."""
    for batch in (1, 100):
        count = singles * (1 if batch == 1 else 10)
        events = list(chain.from_iterable(map(life_of, range(count // _EVENTS_PER_RUN))))
        for synchronous in _SYNCHRONOUS:
            where = folder / f"append-{batch}-{synchronous}"
            store = _open(where, synchronous)
            store.append([created(where)])
            taken = _timed(store.append, [events[at : at + batch] for at in range(0, count, batch)])
            store.close()
            report.add(
                f"append, {'one by one' if batch == 1 else f'batches of {batch}'}, {synchronous.upper()}",
                count / sum(taken),
                "events/s",
                peer="bare SQLite:",
                peer_value=count / _bare_inserts(where / "bare.db", events, batch, synchronous),
                note=f"a commit takes {median(taken) * 1e3:.2f} ms, p99 {quantile(taken, 0.99) * 1e3:.2f} ms",
            )


def _timed(action: Callable[[Sequence[Event]], object], batches: Sequence[Sequence[Event]]) -> list[float]:
    taken = []
    for batch in batches:
        begin = time.perf_counter()
        action(batch)
        taken.append(time.perf_counter() - begin)
    return taken


def _bare_inserts(file: Path, events: Sequence[Event], batch: int, synchronous: str) -> float:
    """Seconds for as many rows in a table without checks, projections or indices: what SQLite itself takes."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute("CREATE TABLE events (sweep_id, seq, body, PRIMARY KEY (sweep_id, seq)) WITHOUT ROWID")
    body = bytes(150)
    begin = time.perf_counter()
    for at in range(0, len(events), batch):
        connection.execute("BEGIN IMMEDIATE")
        rows = ((SWEEP, seq, body) for seq in range(at, at + batch))
        connection.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")
    taken = time.perf_counter() - begin
    connection.close()
    return taken


def _growth(report: Report, folder: Path, large: Path, runs: int, lives: int) -> None:
    """Appending to a sweep with many runs must take as long as to one with none.

    The two take turns, so that both meet the same noise.
    """
    for synchronous in _SYNCHRONOUS:
        small = folder / f"small-{synchronous}"
        stores = {0: _open(small, synchronous), runs: _open(large, synchronous)}
        stores[0].append([created(small)])
        offsets = {count: store.fetch_sweeps(SWEEP)[0].run_count for count, store in stores.items()}
        taken: dict[int, list[float]] = {0: [], runs: []}
        for life in range(lives):
            for count, store in stores.items():
                taken[count] += _timed(store.append, [[event] for event in life_of(offsets[count] + life)])
        for store in stores.values():
            store.close()
        for name, share in (("median", 0.5), ("p99", 0.99)):
            before, after = quantile(taken[0], share), quantile(taken[runs], share)
            report.add(
                f"append of one at {runs:,} runs, {synchronous.upper()}, {name}",
                after * 1e3,
                "ms",
                # What does not grow still differs a little: in cache misses, and in the depth of the indices.
                at_most=1.3 * before * 1e3 if name == "median" else None,
                note=f"at 0 runs {before * 1e3:.2f} ms; growth {after / before:.2f}x",
            )


# -------------------------------------------------------------------------------------------------------- reading


def _reading(report: Report, folder: Path, runs: int, rounds: int) -> None:
    """Reopening a sweep, as a bare fold and as the controller that takes it up."""
    for kind, name in (("fold", "open, read and fold"), ("controller", "take up by a controller")):
        times = [measured_apart(__file__, "--apart", kind, "--folder", str(folder)) for _ in range(rounds)]
        traced = measured_apart(__file__, "--apart", f"{kind}-memory", "--folder", str(folder))
        seconds = median(one["seconds"] for one in times)
        rate = f"{runs * _EVENTS_PER_RUN / seconds:,.0f} events/s"
        process = median(one["process_seconds"] for one in times)
        report.add(name, seconds, "s", at_most=1.0, note=f"{rate}; the whole process {process:.2f} s")
        peak, kept = traced["peak_bytes"] / _MIB, traced["kept_bytes"] / _MIB
        report.add(f"  its peak of Python memory, {kind}", peak, "MiB", at_most=50, note=f"{kept:.1f} MiB are kept")
        growth = median(one["rss_growth_bytes"] for one in times) / _MIB
        report.add(f"  its peak of resident memory, {kind}", growth, "MiB", at_most=50, note="growth of the process")
    fetched = [measured_apart(__file__, "--apart", "runs", "--folder", str(folder)) for _ in range(rounds)]
    report.add(f"fetch_runs of {runs:,} runs", median(one["all"] for one in fetched), "s", note="all of them")
    report.add("  the best 10", median(one["best"] for one in fetched) * 1e3, "ms", note="by the score's index")
    _optuna_reading(report, folder, runs=min(runs, 300), ours=median(one["all"] for one in fetched) / runs)


def _optuna_reading(report: Report, folder: Path, runs: int, ours: float) -> None:
    """Optuna reads its trials back from SQLite, with as many parameters and reports."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url = f"sqlite:///{folder / 'optuna.db'}"
    study = optuna.create_study(storage=url, study_name=SWEEP)
    space = {f"p{number}": optuna.distributions.FloatDistribution(0.0, 1.0) for number in range(6)}
    reports = dict.fromkeys(range(4), 0.5)
    study.add_trials(
        optuna.trial.create_trial(
            params=dict.fromkeys(space, 0.5), distributions=space, value=0.5, intermediate_values=reports
        )
        for _ in range(runs)
    )
    begin = time.perf_counter()
    loaded = optuna.load_study(storage=url, study_name=SWEEP).get_trials(deepcopy=False)
    theirs = (time.perf_counter() - begin) / len(loaded)
    report.add(
        "fetch_runs, a run",
        ours * 1e6,
        "us",
        peer="Optuna, a trial:",
        peer_value=theirs * 1e6,
        note=f"Optuna with {runs} trials in SQLite",
    )


# --------------------------------------------------------------------------------- in a process of its own


def _fold(folder: Path) -> tuple[Store, SweepState]:
    store = _open(folder)
    return store, fold(EMPTY, store.read(SWEEP))


def _take_up(folder: Path) -> tuple[Store, SweepController]:
    store = _open(folder)
    clock = SystemClock()
    dispatcher = LocalDispatcher(store, SWEEP, sweep_config(folder), clock)
    return store, SweepController(store, SWEEP, dispatcher, clock)


def _cost(work: Callable[[Path], tuple[Store, object]], folder: Path) -> dict[str, float]:
    """Seconds, and growth of the resident memory to its peak. Imports are measured by startup.py."""
    before = _resident_bytes("VmRSS")
    begin = time.perf_counter()
    store, result = work(folder)
    seconds = time.perf_counter() - begin
    growth = _resident_bytes("VmHWM") - before
    _close(store, result)
    return {"seconds": seconds, "rss_growth_bytes": growth}


def _resident_bytes(field: str) -> int:
    """From the kernel's account of this process; that of getrusage begins with the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [kibibytes] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kibibytes) * 1024


def _memory(work: Callable[[Path], tuple[Store, object]], folder: Path) -> dict[str, float]:
    tracemalloc.start()
    store, result = work(folder)
    kept, peak = tracemalloc.get_traced_memory()
    _close(store, result)
    return {"peak_bytes": peak, "kept_bytes": kept}


def _close(store: Store, result: object) -> None:
    if isinstance(result, SweepController):
        lease = store.fetch_lease(SWEEP)
        assert lease is not None
        store.release_lease(lease)
    store.close()


def _fetch_runs(folder: Path) -> dict[str, float]:
    store = _open(folder)
    begin = time.perf_counter()
    store.fetch_runs(SWEEP)
    middle = time.perf_counter()
    store.fetch_runs(SWEEP, best_first=True, limit=10)
    end = time.perf_counter()
    store.close()
    return {"all": middle - begin, "best": end - middle}


_APART: dict[str, Callable[[Path], dict[str, float]]] = {
    "fold": lambda folder: _cost(_fold, folder),
    "fold-memory": lambda folder: _memory(_fold, folder),
    "controller": lambda folder: _cost(_take_up, folder),
    "controller-memory": lambda folder: _memory(_take_up, folder),
    "runs": _fetch_runs,
}


if __name__ == "__main__":
    main()
