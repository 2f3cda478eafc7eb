"""What a scrape by Prometheus costs, the first and later ones, of a sweep with 1,000 and 10,000 finished runs.

A run has ten events; the sweep goes on. The store has a hundred others that ended long ago, which are left out.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import psutil

from _measure import Report, parse_arguments, scratch_folder
from _sweeps import SWEEP, life_of, sweep_config, write_sweep
from metta.sweep.clock import SystemClock
from metta.sweep.model import events as ev
from metta.sweep.model.events import new_event
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.observe.prometheus.exporter import StoreCollector, exposition
from metta.sweep.protocols import Store
from metta.sweep.stores import open_reader, open_store

_OLD_SWEEPS = 100
#: Milliseconds that a scrape with nothing or little news may take.
_GOAL = 50


def main() -> None:
    gc.set_threshold(100_000)  # as the command does
    options = parse_arguments(argparse.ArgumentParser(description=__doc__))
    sizes = [1_000] if options.quick else [1_000, 10_000]
    rounds = 10 if options.quick else 50
    report = Report(f"Scrapes in one process, without HTTP; later ones: median of {rounds}")
    with scratch_folder(options.folder) as folder:
        for runs in sizes:
            store = open_store(f"sqlite:///{folder / f'{runs}.db'}", create=True)
            write_sweep(store, folder, runs, ended=False)
            _write_old_sweeps(store, folder)
            _measure_scrapes(report, store, runs, rounds)
            store.close()
    report.finish(options.json, options.folder)


def _write_old_sweeps(store: Store, folder: Path) -> None:
    for number in range(_OLD_SWEEPS):
        bodies = [
            ev.SweepCreated(config=sweep_config(folder, f"old {number}")),
            ev.SweepEnded(status=SweepStatus.STOPPED, reason="stopped by the user"),
        ]
        store.append([new_event(body, sweep_id=f"old{number}", at=1.0 + number, actor="user") for body in bodies])


def _measure_scrapes(report: Report, store: Store, runs: int, rounds: int) -> None:
    collector = StoreCollector(lambda: open_reader(store.url), SystemClock())
    gc.collect()
    before = psutil.Process().memory_info().rss
    first = _milliseconds(lambda: exposition(collector))
    memory = psutil.Process().memory_info().rss - before
    unchanged = [_milliseconds(lambda: exposition(collector)) for _ in range(rounds)]
    news = []
    for number in range(rounds):
        store.append(life_of(runs + number))
        news.append(_milliseconds(lambda: exposition(collector)))
    name = f"{runs:,} finished runs"
    size = len(exposition(collector)) / 1024
    report.add(f"first scrape, {name}", first, "ms", note=f"keeps {memory / 2**20:.0f} MiB")
    report.add(f"nothing new, {name}", median(unchanged), "ms", at_most=_GOAL, note=f"{size:.0f} KiB of text")
    report.add(f"ten new events, {name}", median(news), "ms", at_most=_GOAL)
    assert f'metta_sweep_runs_created_total{{sweep="{SWEEP}"}} {float(runs + rounds)}' in exposition(collector)


def _milliseconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return (time.perf_counter() - begin) * 1e3


if __name__ == "__main__":
    main()
