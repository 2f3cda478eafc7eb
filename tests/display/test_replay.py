"""The film of a sweep; stepping is in tests/cli/test_replay.py."""

from __future__ import annotations

from io import StringIO

import pytest
from msgspec.structs import replace
from rich.console import Console

from metta.sweep.display import replay as module
from metta.sweep.display.replay import play
from metta.sweep.model.events import Event
from metta.sweep.testing import run_events, sweep_created


class _Time:
    """A clock that goes on when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        if seconds:
            self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> _Time:
    time = _Time()
    monkeypatch.setattr(module, "time", time)
    return time


@pytest.fixture
def hour() -> list[Event]:
    """Created at once, a report after half an hour, the end after an hour."""
    return [replace(event, seq=seq) for seq, event in enumerate([sweep_created(), *run_events(0)], start=1)]


def test_a_film_takes_as_long_as_the_sweep_by_its_speed(hour: list[Event], time: _Time) -> None:
    out = StringIO()
    play(hour, Console(file=out, width=200, force_terminal=False), 360.0)
    assert time.slept == pytest.approx([5.0, 5.0])
    assert out.getvalue().splitlines()[len(hour)].startswith(f"after event {len(hour)}, ")


def test_without_a_speed_there_are_no_pauses(hour: list[Event], time: _Time) -> None:
    play(hour, Console(file=StringIO(), width=200, force_terminal=False), None)
    assert time.slept == []


def test_a_terminal_gets_a_picture_for_what_came_together(hour: list[Event], time: _Time) -> None:
    out = StringIO()
    play(hour, Console(file=out, width=80, force_terminal=True), 360.0)
    pictures = [line for line in out.getvalue().splitlines() if "after event" in line]
    numbers = [line.partition("after event ")[2].partition(",")[0] for line in pictures]
    assert list(dict.fromkeys(numbers)) == ["5", "6", "8"]
