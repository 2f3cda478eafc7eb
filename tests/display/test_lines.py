"""The live display of a sweep on a terminal, and plain lines elsewhere."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from msgspec.structs import replace
from rich.cells import cell_len
from rich.console import Console

from metta.sweep.display.progress import Display
from metta.sweep.model import ids
from metta.sweep.model.events import Event, RunCompleted, RunFailed
from metta.sweep.model.space import Choice, LogUniform, SearchSpace
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.testing import run_events, sweep_created

SWEEP = "sw33p"


def history(ended: int, running: int, **fields: Any) -> list[Event]:
    """A sweep whose ended runs score 0, 1, 2, ..., the last of them none, and some that are still training."""
    wordy = {"lr": 0.0123456789, "trainer.optimizer.name": "something with a very long name " * 4}
    events = [sweep_created(SWEEP, **fields)]
    for index in range(ended):
        score = None if index == ended - 1 else float(index)
        events += run_events(index, sweep_id=SWEEP, score=score, config=wordy)
    for index in range(ended, ended + running):
        events += run_events(index, sweep_id=SWEEP, config=wordy, at=time.time())[:5]
    return [replace(event, seq=seq) for seq, event in enumerate(events, start=1)]


def shown(display: Display, screen: Console) -> list[str]:
    with screen.capture() as capture:
        screen.print(display.render())
    return capture.get().splitlines()


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None, highlight=False)


@pytest.mark.parametrize("width", [80, 40])
@pytest.mark.parametrize("max_trials", [20, None])
def test_the_display_fits_the_terminal_and_shows_counts_best_and_time_left(width: int, max_trials: int | None) -> None:
    space = SearchSpace.of({"lr": LogUniform(1e-5, 1e-1), "trainer.optimizer.name": Choice(["long"])})
    events = history(12, 3, max_trials=max_trials, search_space=space, metric="reward")
    screen = terminal(width)
    display = Display(screen)
    assert shown(display, screen) == ["starting ..."]
    display.observe(fold(EMPTY, events), events)
    lines = shown(display, screen)
    assert max(cell_len(line) for line in lines) <= width
    # A head, and below it no more than the last eight that ended and the three that run, however many there were.
    assert len(lines) <= 2 + 1 + 8 + 3 + (width < 80) * 2
    text = "\n".join(lines)
    best = ids.run_id(SWEEP, 10)
    assert f"best 10 ({best})" in text or width < 80
    assert "3 IN_TRAINING" in text
    assert "11 COMPLETED" in text
    if width == 80:
        # Eight hours of work for four jobs at a time, in runs that all took an hour.
        left = re.search(r"left (\d:\d\d:\d\d) to (\d:\d\d:\d\d) ", text)
        assert ("12/20" in text, left is not None) == (max_trials == 20, max_trials == 20)
        if left is None:
            assert "left - " in text
        else:
            assert "1:45:00" < left[1] <= "2:00:00" <= left[2] < "2:30:00"
        assert "3 IN_TRAINING, 11 COMPLETED, 1 FAILED" in text
        assert any(line.startswith(ids.run_id(SWEEP, 11)) and "reward was not reported" in line for line in lines)


def test_the_display_costs_the_same_however_many_runs_there_are() -> None:
    screen = terminal(80)
    heights = []
    for ended in (10, 300):
        events = history(ended, 2, max_trials=400)
        display = Display(screen)
        display.observe(fold(EMPTY, events), events)
        heights.append(len(shown(display, screen)))
    assert heights[0] == heights[1]


def observed(batches: list[list[Event]]) -> list[str]:
    """What is printed where there is no terminal."""
    output = io.StringIO()
    display = Display(Console(file=output, width=10_000, highlight=False, markup=False))
    state: SweepState = EMPTY
    for batch in batches:
        state = fold(state, batch)
        display.observe(state, batch)
    return output.getvalue().splitlines()


def test_elsewhere_each_run_that_ends_gets_a_plain_line() -> None:
    events = history(3, 1, max_trials=4)
    ends = [index + 1 for index, event in enumerate(events) if isinstance(event.body, RunCompleted | RunFailed)]
    batches = [events[start:end] for start, end in zip([0, *ends], [*ends, len(events)], strict=True)]
    first, second, third = (ids.run_id(SWEEP, index) for index in range(3))
    assert observed(batches) == [
        f"[1/4] {first} COMPLETED 1h00m reward=0 (best 0, {first})",
        f"[2/4] {second} COMPLETED 1h00m reward=1 (best 1, {second})",
        f"[3/4] {third} FAILED 1h00m reward was not reported (best 1, {second})",
    ]


def test_runs_that_end_together_are_counted_one_by_one() -> None:
    events = history(3, 0, max_trials=3)
    assert [line.split()[:2] for line in observed([events])] == [
        [f"[{index + 1}/3]", ids.run_id(SWEEP, index)] for index in range(3)
    ]
