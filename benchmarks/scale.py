"""The controller at scale: 10,000 runs, 1,000 at a time, in virtual time; what each of its steps costs.

The controller is the real one, and so are optimizer, scheduler, guards and fold; simulated are the jobs, the clock and
the store (`metta.sweep.dispatchers.simulated`). Each job reports once an epoch.

A *decision* is one call of `decide`: from the state of the sweep to all events that are to be written now. These may be
none, or a verdict, a new configuration and a grant for each of the runs that ended since the last call; so the time of
all calls is also given by the number of events that they decided. The first call has a run to create for every slot,
and is shown on its own; it counts like every other. A *step* is a decision and all else that the controller does in a
turn: reading the log, folding, looking for losses, writing, dispatching.

Each sweep has a process of its own. Its memory is that of the whole process at its peak: Python, numpy, the controller,
and the log of the sweep, which the simulated store keeps in the process as well.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, ParamSpec, TypeVar

import msgspec

from _measure import Report, measured_apart, parse_arguments, quantile
from metta.sweep.controller import controller as controllers
from metta.sweep.dispatchers.job_models import MadeUpJobs
from metta.sweep.dispatchers.simulated import SimulatedClock, SimulatedDispatcher, SimulatedStore
from metta.sweep.model.events import SweepCreated, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.sweep import Strategy
from metta.sweep.testing.sweeps import sweep_config

_MIB = 1 << 20
_EPOCHS = 27
_SWEEP = "scale"

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Variant(NamedTuple):
    """A scheduler, beside random configurations."""

    scheduler: str
    options: dict[str, Any]


VARIANTS = {
    "fifo": Variant("fifo", {}),
    "ASHA, stop": Variant("asha", {"mode": "stop"}),
    "ASHA, promote": Variant("asha", {"mode": "promote"}),
    "Hyperband": Variant("hyperband", {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, help="of each sweep (10,000; 1,000 with --quick)")
    parser.add_argument("--parallel", type=int, help="at a time (1,000; 100 with --quick)")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--apart", help=argparse.SUPPRESS)
    options = parse_arguments(parser)
    runs = options.runs or (1_000 if options.quick else 10_000)
    parallel = options.parallel or (100 if options.quick else 1_000)
    if options.apart is not None:
        print(json.dumps(_simulate(VARIANTS[options.apart], runs, parallel)))
        return
    report = Report(f"Simulated sweeps of {runs:,} runs, {parallel:,} at a time, {_EPOCHS} epochs each")
    for name in options.variants:
        size = ["--runs", str(runs), "--parallel", str(parallel)]
        _add(report, name, measured_apart(__file__, "--apart", name, *size))
    report.finish(options.json, options.folder)


def _add(report: Report, name: str, found: dict[str, Any]) -> None:
    report.add(
        f"{name}: a decision, median",
        found["decision_ms"],
        "ms",
        note=f"{found['decided_us']:.0f} us an event that it decided",
    )
    report.add(
        "  p99",
        found["decision_p99_ms"],
        "ms",
        at_most=50,
        note=f"the first {found['first_ms']:.0f} ms, the longest other {found['longest_ms']:.0f} ms, "
        f"{found['longest_collecting_ms']:.0f} ms of it garbage collection",
    )
    report.add("  a whole step, median", found["step_ms"], "ms", note=f"{found['steps']:,.0f} steps")
    report.add("  p99", found["step_p99_ms"], "ms")
    note = f"{found['events']:,.0f} events, {found['virtual_hours']:.1f} hours of virtual time, {found['digest']}"
    report.add("  in all", found["seconds"], "s", at_most=120, note=note)
    note = f"{found['growth_bytes'] / _MIB:.0f} MiB of it after the imports"
    report.add("  peak of resident memory", found["peak_bytes"] / _MIB, "MiB", at_most=300, note=note)


# --------------------------------------------------------------------------------- in a process of its own


class Stopwatch:
    """How long each call of a function takes, in seconds, and how much of that Python's garbage collection."""

    def __init__(self) -> None:
        self.taken: list[float] = []
        self.collecting: list[float] = []
        self._collected = self._begun = 0.0
        gc.callbacks.append(self._note_collection)

    def _note_collection(self, phase: str, _: object) -> None:
        if phase == "start":
            self._begun = time.perf_counter()
        else:
            self._collected += time.perf_counter() - self._begun

    def around(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        """The same function, timed."""

        def timed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            begin, collected = time.perf_counter(), self._collected
            try:
                return function(*args, **kwargs)
            finally:
                self.taken.append(time.perf_counter() - begin)
                self.collecting.append(self._collected - collected)

        return timed


def _simulate(variant: Variant, runs: int, parallel: int) -> dict[str, Any]:
    config = sweep_config(
        strategy=Strategy(scheduler=variant.scheduler, scheduler_options=variant.options),
        fidelity=Fidelity(maximum=_EPOCHS),
        max_trials=runs,
        max_parallel=parallel,
    )
    before = _resident_bytes("VmRSS")
    clock = SimulatedClock()
    store = SimulatedStore(clock)
    store.append([new_event(SweepCreated(config=config), sweep_id=_SWEEP, at=0.0, actor="user")])
    dispatcher = SimulatedDispatcher(store, _SWEEP, config, clock, MadeUpJobs(config, reports=_EPOCHS))
    decisions, steps = Stopwatch(), Stopwatch()
    controllers.decide = decisions.around(controllers.decide)
    controller = controllers.SweepController(store, _SWEEP, dispatcher, clock)
    controller.step = steps.around(controller.step)
    begin = time.perf_counter()
    state = controller.run()
    seconds = time.perf_counter() - begin
    peak = _resident_bytes("VmHWM")
    log = list(store.read(_SWEEP))
    longest = max(range(1, len(decisions.taken)), key=decisions.taken.__getitem__)
    assert state.sweep.ended_count == runs, f"{state.sweep.counts}: not all runs have ended"
    return {
        "decision_ms": median(decisions.taken) * 1e3,
        "decision_p99_ms": quantile(decisions.taken, 0.99) * 1e3,
        "first_ms": decisions.taken[0] * 1e3,
        "longest_ms": decisions.taken[longest] * 1e3,
        "longest_collecting_ms": decisions.collecting[longest] * 1e3,
        "decided_us": sum(decisions.taken) / sum(event.actor.startswith("controller") for event in log) * 1e6,
        "step_ms": median(steps.taken) * 1e3,
        "step_p99_ms": quantile(steps.taken, 0.99) * 1e3,
        "steps": len(steps.taken),
        "seconds": seconds,
        "events": len(log),
        "virtual_hours": clock.now() / 3600,
        "digest": hashlib.sha256(msgspec.json.encode(log)).hexdigest()[:12],
        "peak_bytes": peak,
        "growth_bytes": peak - before,
    }


def _resident_bytes(field: str) -> int:
    """From the kernel's account of this process; that of getrusage begins with the parent's peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [kibibytes] = [line.split()[1] for line in lines if line.startswith(f"{field}:")]
    return int(kibibytes) * 1024


if __name__ == "__main__":
    main()
