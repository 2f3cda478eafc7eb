"""Events and reasons as people see them."""

from __future__ import annotations

from io import StringIO

import pytest
from msgspec.structs import replace
from rich.console import Console

from metta.sweep.display.events import event_line, print_event, why_view
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobStatus
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.observe.explanations import explain
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP


def numbered(events: list[Event]) -> list[Event]:
    return [replace(event, seq=seq) for seq, event in enumerate(events, start=1)]


def shown(event: Event, **options: bool) -> str:
    out = StringIO()
    print_event(event, Console(file=out, width=80, color_system=None, **options))  # type: ignore[arg-type]
    return out.getvalue()


@pytest.mark.parametrize("seed", range(5))
def test_a_terminal_gets_lines_that_fit_and_a_pipe_a_line_an_event(seed: int) -> None:
    for event in numbered(random_history(seed)):
        lines = shown(event, force_terminal=True).splitlines()
        assert all(len(line) <= 80 for line in lines)
        # Nothing is left out, and what goes on below stands apart from the next event.
        assert "".join(lines).replace(" ", "") == event_line(event).replace(" ", "")
        assert all(line.startswith(" " * 22) for line in lines[1:])
        assert shown(event, force_terminal=False) == f"{event_line(event)}\n"


def test_what_matters_is_coloured() -> None:
    failed = new_event(ev.RunFailed(reason="no reward"), sweep_id=SWEEP, at=START, actor="test", run_id="7kq3f")
    out = StringIO()
    print_event(failed, Console(file=out, width=80, force_terminal=True, color_system="standard", no_color=False))
    assert "\x1b[31m" in out.getvalue()


def test_reasons_fit_into_80_columns_and_are_not_said_twice_in_a_row() -> None:
    reason = "the space is explored evenly at first, by a sequence that leaves no gaps: point 17 of 32"
    created, granted, *rest = run_events(0)
    both = [replace(each, body=replace(each.body, reasons=(reason,))) for each in (created, granted)]  # type: ignore[call-arg]
    state = fold(EMPTY, numbered([sweep_created(), *both, *rest]))
    [run] = state.runs.values()
    out = StringIO()
    Console(file=out, width=80).print(why_view(run, state.sweep, explain([*both, *rest])))
    lines = out.getvalue().splitlines()
    assert lines[0].endswith(JobStatus.COMPLETED)
    assert all(len(line) <= 80 for line in lines)
    assert out.getvalue().count("the space is explored") == 1
    assert "its score is 1" in lines[-1]
