"""What holds the runs of a sweep up."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from metta.sweep.analysis.bottlenecks import sweep_bottlenecks
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event
from metta.sweep.model.run import RunInfo
from metta.sweep.model.run_metrics import BottleneckKind
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.model.usage import JobUsage
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import SWEEP


def runs(*usages: JobUsage | None) -> list[RunInfo]:
    """Runs of an hour that used so much."""
    events: list[Event] = [sweep_created()]
    for index, usage in enumerate(usages):
        for event in run_events(index):
            is_end = isinstance(event.body, ev.JobExited)
            events.append(replace(event, body=replace(event.body, usage=usage)) if is_end else event)
    numbered = [replace(event, seq=seq) for seq, event in enumerate(events, start=1)]
    return sorted(fold(EMPTY, numbered).runs.values(), key=lambda run: run.index)


SWAPS = JobUsage(seconds=3600, looks=9, swap_peak_bytes=1 << 30)
WAITS = JobUsage(seconds=3600, looks=9, cpu_seconds=3000, cpu_wait=0.5)
BOTH = JobUsage(seconds=3600, looks=9, cpu_seconds=3000, cpu_wait=0.7, swap_peak_bytes=1 << 30)
FINE = JobUsage(seconds=3600, looks=9, cpu_seconds=3000, cpu_wait=0.0)


def test_each_kind_is_named_once_with_how_many_runs_it_concerns_the_most_first() -> None:
    found = sweep_bottlenecks(runs(SWAPS, WAITS, BOTH, FINE, SWAPS, None))
    assert [(each.kind, each.runs, each.measured) for each in found] == [
        (BottleneckKind.SWAP, 3, 5),
        (BottleneckKind.CPU, 2, 5),
    ]
    assert found[0].share == pytest.approx(0.6)
    assert found[0].run_id in {ids.run_id(SWEEP, index) for index in (0, 2, 4)}
    assert str(found[1]).startswith("too few processors: 2 of 5 runs; in ")


def test_without_runs_or_measurements_there_is_nothing_to_say() -> None:
    assert sweep_bottlenecks([]) == []
    assert sweep_bottlenecks(runs(None, None)) == []
