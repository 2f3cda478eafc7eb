"""The live display of a sweep, drawn to terminals of all sizes."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from display.histories import SWEEP, history, numbered
from metta.sweep.display.live import Display
from metta.sweep.model import ids
from metta.sweep.model.events import Event, SweepPaused, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.space import Choice, LogUniform, SearchSpace
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.observe.watching import Signs
from metta.sweep.protocols import GpuLoad, Heartbeat
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import START

GIB = 1 << 30
SPACE = SearchSpace.of({"lr": LogUniform(1e-5, 1e-1), "trainer.optimizer.name": Choice(["long"])})


def beat(host: str = "node", gpus: int = 0, ago: float = 1.0) -> Heartbeat:
    loads = [
        GpuLoad(index=index, utilization=0.25 * index, memory=10 * index * GIB, memory_whole=80 * GIB)
        for index in range(gpus)
    ]
    return Heartbeat(sweep_id=SWEEP, host=host, pid=1, at=time.time() - ago, jobs=2, gpus=tuple(loads))


def drawn(
    events: list[Event], *, width: int = 80, height: int = 24, signs: Signs | None = None, away: str | None = None
) -> list[str]:
    screen = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None, highlight=False
    )
    display = Display()
    display.observe(fold(EMPTY, events), events)
    display.signs = signs or Signs()
    display.away = away
    with screen.capture() as capture:
        screen.print(display.render())
    return capture.get().splitlines()


@given(
    st.integers(0, 500),
    st.integers(1, 60),
    st.sampled_from([200, 80, 60, 40, 24]),
    st.sampled_from([50, 24, 10, 5]),
    st.integers(0, 9),
    st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_whatever_happens_it_fits(
    seed: int, length: int, width: int, height: int, gpus: int, is_controlled: bool
) -> None:
    events = numbered(random_history(seed, length))
    signs = Signs([beat(f"node-{index}", gpus) for index in range(seed % 7)], is_controlled)
    lines = drawn(events, width=width, height=height, signs=signs)
    assert len(lines) < height
    assert max(map(cell_len, lines)) <= width - 4


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10)])
@pytest.mark.parametrize("max_trials", [20, None])
def test_it_says_how_far_the_sweep_is_and_what_is_best(width: int, height: int, max_trials: int | None) -> None:
    events = history(12, 3, max_trials=max_trials, search_space=SPACE)
    lines = drawn(events, width=width, height=height)
    assert lines[0].startswith(f"demo ({SWEEP}) RUNNING")
    assert f"best      10 by {ids.run_id(SWEEP, 10)}, run 11 of 12"[: width - 5] in "\n".join(lines)
    assert "3 of 4 running; 11 COMPL" in "\n".join(lines)
    if max_trials is None:
        assert lines[1] == "12 runs  left -"
        return
    # Three fifths of the way; eight hours of work for four jobs at a time, in runs that all took an hour.
    assert re.match(r"█+░+  12/20 runs  60%  left", lines[1])
    if width == 80:
        left = re.search(r"left (\d:\d\d:\d\d) \((\d:\d\d:\d\d) to (\d:\d\d:\d\d)\)", lines[1])
        assert left is not None
        assert "1:45:00" < left[2] <= left[1] <= left[3] < "2:30:00"


def test_runs_under_way_come_first_with_their_metric_against_the_best() -> None:
    fidelity = Fidelity(resource="reward", maximum=5)
    table = drawn(history(4, 2, max_trials=9, search_space=SPACE, fidelity=fidelity))
    header = next(index for index, line in enumerate(table) if line.startswith("run "))
    assert table[header].split() == ["run", "status", "reward", "vs", "best", "reward", "time", "config"]
    first, second, *ended = [line.split()[:5] for line in table[header + 1 :]]
    assert first[:5] == [ids.run_id(SWEEP, 4), "IN_TRAINING", "1", "-1", "1/5"]
    assert second[0] == ids.run_id(SWEEP, 5)
    assert [row[0] for row in ended] == [ids.run_id(SWEEP, index) for index in (3, 2, 1, 0)]
    assert [row[1:4] for row in ended[:2]] == [["FAILED", "-", "1h00m"], ["COMPLETED", "2", "best"]]
    assert "reward was not" in table[header + 3]


def test_where_more_are_running_than_there_is_room_for_their_number_is_told() -> None:
    lines = drawn(history(9, 40, max_parallel=64), height=20)
    [place] = [index for index, line in enumerate(lines) if line.startswith("+ ")]
    header = next(index for index, line in enumerate(lines) if line.startswith("run "))
    shown = place - header - 1
    assert lines[place].split() == ["+", str(40 - shown), "more"]
    assert len(lines) == 19
    assert [line.split()[1] for line in lines[place + 1 :]] == ["FAILED", "COMPLETED"]


def test_what_there_is_none_of_takes_no_room() -> None:
    lines = drawn(numbered([sweep_created(SWEEP)]))
    assert [line.split()[0] for line in lines] == ["demo", "0", "runs", "used"]


def test_budgets_failures_and_machines_are_shown_where_there_are_any() -> None:
    signs = Signs([beat("node", gpus=3), beat("gone", ago=500.0)])
    events = history(3, 1, budget_hours=10.0, max_hours=1e6)
    lines = drawn(events, signs=signs)
    text = "\n".join(lines)
    assert "failures  1 without a result" in text
    assert re.search(r"used      compute 3h00m of 10h00m \(30%\); time \d+h\d\dm of 1000000h00m \(\d+%\)", text)
    assert re.search(r"agent     node, 2 jobs, seen 1\.\ds ago", text)
    assert "gone" not in text
    [first] = [index for index, line in enumerate(lines) if line.startswith("gpus")]
    assert [line.split() for line in lines[first : first + 2]] == [
        ["gpus", "0", "░░░░░░░░", "0%", "░░░░░", "0/80G", "1", "██░░░░░░", "25%", "█░░░░", "10/80G"],
        ["2", "████░░░░", "50%", "█░░░░", "20/80G"],
    ]


def test_an_agent_that_is_silent_is_missed_where_it_has_jobs() -> None:
    """`run_events` run on a host of this name."""
    lines = drawn(history(3, 1), signs=Signs([beat("node", gpus=2, ago=500.0)]))
    assert "agent     node, 2 jobs, seen 8m20s ago" in lines
    assert not any("gpus" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"signs": Signs(is_controlled=False)}, f"no controller is at work: metta sweep run --resume {SWEEP}"),
        ({"away": "disk full"}, "the store is away, waiting for it: disk full"),
    ],
)
def test_what_keeps_it_from_going_on_stands_on_top(changes: dict[str, Any], expected: str) -> None:
    assert drawn(history(3, 1), **changes)[2] == expected


def test_a_sweep_that_was_paused_says_why_in_full_and_what_to_type() -> None:
    events = history(3, 0, max_trials=9)
    reason = "3 jobs in a row failed in the same way: ValueError: the learning rate is far too large (train.py:17)"
    paused = replace(
        new_event(SweepPaused(reason=reason), sweep_id=SWEEP, at=time.time(), actor="test"), seq=len(events) + 1
    )
    lines = drawn([*events, paused])
    assert "PAUSED" in lines[0]
    assert " ".join(part[10:] for part in lines[2:4]) == reason
    assert lines[4] == f"go on with: metta sweep resume {SWEEP}"
    assert "left" not in lines[1]


def test_it_costs_the_same_however_many_runs_there_are() -> None:
    assert len(drawn(history(10, 2, max_trials=400))) == len(drawn(history(300, 2, max_trials=400)))


def test_values_names_and_reasons_keep_to_their_lines() -> None:
    nasty = "a\nb\x1b[2J\x1bc"
    events = [sweep_created(SWEEP, metric=f"score {nasty}", max_trials=20)]
    for index in range(6):
        events += run_events(index, sweep_id=SWEEP, score=float(index), config={"lr": 0.1, f"x{nasty}": nasty})
    paused = new_event(SweepPaused(reason=nasty), sweep_id=SWEEP, at=START + 99, actor="controller@test")
    plain = drawn(numbered([*events, paused]), away=nasty, height=24)
    assert len(plain) <= 23
    assert all(each.isprintable() for line in plain for each in line)
