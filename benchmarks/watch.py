"""What watching a sweep costs: processor time of a refresh of `metta sweep status --watch`, at 1,000 and 10,000 runs.

Ten of the runs are in training, the others have ended. A refresh is everything from one picture to the next: waiting
for a change (which looks at the store every so often), reading and folding what is new, signs of life, drawing on a
terminal of 80 columns and 24 lines. Every second or third refresh also estimates the end of the sweep, which takes
longest; those are told apart.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Iterator
from contextlib import closing
from statistics import median

from rich.console import Console

from _measure import Report, parse_arguments, scratch_folder
from _sweeps import SWEEP, life_of, write_sweep
from metta.sweep.display.canvas import Canvas
from metta.sweep.display.live import Display
from metta.sweep.display.watching import take_in
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobType
from metta.sweep.observe.watching import watch
from metta.sweep.protocols import GpuLoad, Heartbeat, Store
from metta.sweep.stores import open_reader, open_store

#: Milliseconds of processor time.
_GOAL = 50
_RUNNING = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options = parse_arguments(parser)
    rounds = 4 if options.quick else 16
    report = Report(f"A refresh of status --watch, processor time, median of {rounds}; the highest in the note")
    with scratch_folder(options.folder) as folder:
        for runs in [1_000] if options.quick else [1_000, 10_000]:
            url = f"sqlite:///{folder / f'{runs}.db'}"
            with closing(open_store(url, create=True)) as store:
                write_sweep(store, folder, runs - _RUNNING, ended=False)
                _set_limits(store, runs)
                for index in range(runs - _RUNNING, runs):
                    store.append(life_of(index)[:5])
                _measure(report, store, runs, rounds)
    report.finish(options.json, options.folder)


def _set_limits(store: Store, runs: int) -> None:
    """So that there is an end to be estimated."""
    changes = {"max_trials": runs + 1_000, "max_parallel": _RUNNING}
    store.append([new_event(ev.SweepResumed(changes=changes), sweep_id=SWEEP, at=time.time(), actor="user")])


def _measure(report: Report, store: Store, runs: int, rounds: int) -> None:
    screen = Console(file=io.StringIO(), width=80, height=24, force_terminal=True, highlight=False, markup=False)
    display = Display()
    gpus = tuple(GpuLoad(index=index, utilization=0.9, memory=60 << 30, memory_whole=80 << 30) for index in range(8))
    with closing(open_reader(store.url)) as reader, Canvas(screen) as canvas:
        sights = watch(reader, SWEEP)

        def refresh() -> tuple[float, bool]:
            estimates = display.estimates
            begin = time.process_time()
            take_in(display, next(sights))
            canvas.draw(display.render())
            return (time.process_time() - begin) * 1e3, display.estimates > estimates

        first, _ = refresh()
        report.add(f"the first, {runs:,} runs", first, "ms", note="folds the whole log")
        news = _reports(runs)
        for name, events in (("nothing new", 0), ("10 new events", _RUNNING)):
            taken: dict[bool, list[float]] = {False: [], True: []}
            while min(map(len, taken.values())) < rounds:
                beat = Heartbeat(sweep_id=SWEEP, host="node-1", pid=1, at=time.time(), jobs=_RUNNING, gpus=gpus)
                store.beat(beat)
                if events:
                    store.append([next(news) for _ in range(events)])
                milliseconds, has_estimated = refresh()
                taken[has_estimated].append(milliseconds)
            for has_estimated, values in taken.items():
                report.add(
                    f"{name}{', with an estimate of the end' if has_estimated else ''}, {runs:,} runs",
                    median(values),
                    "ms",
                    at_most=_GOAL,
                    note=f"at most {max(values):.1f} ms",
                )


def _reports(runs: int) -> Iterator[Event]:
    """One run after the other reports how far it is."""
    epoch = 1
    while True:
        for index in range(runs - _RUNNING, runs):
            run_id = ids.run_id(SWEEP, index)
            body = ev.MetricsReported(metrics={"accuracy": 1 - 1 / (epoch + index % 7), "epoch": float(epoch)})
            job_id = ids.job_id(run_id, JobType.TRAIN, 1)
            yield new_event(body, sweep_id=SWEEP, at=time.time(), actor="agent@node-1", run_id=run_id, job_id=job_id)
        epoch += 1


if __name__ == "__main__":
    main()
