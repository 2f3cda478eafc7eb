"""A run as it goes on, for people."""

from __future__ import annotations

import io
import re

import pytest
from msgspec.structs import replace
from rich.console import Console

from display.histories import SWEEP, history
from metta.sweep.display.tail import show_tail
from metta.sweep.errors import StoreAwayError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import FailureKind, Outcome
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.observe.tailing import Glance

RUN = ids.run_id(SWEEP, 2)
STATE = fold(EMPTY, history(2, 1))
AT = 1_700_000_000.0


def glance(*news: str | Event, away: StoreAwayError | None = None) -> Glance:
    sweep = replace(STATE.sweep, best_score=3.0, best_run_id="other")
    return Glance(sweep, STATE.runs[RUN], news, away)


def event(body: ev.Body) -> Event:
    return new_event(body, sweep_id=SWEEP, at=AT, actor="test", run_id=RUN, job_id=f"{RUN}.train.1")


def plain(*glances: Glance) -> list[str]:
    output = io.StringIO()
    show_tail(glances, Console(file=output, width=10_000))
    return output.getvalue().splitlines()


def test_in_a_pipe_there_are_lines_without_what_steers_a_terminal() -> None:
    lines = plain(glance("\x1b[31mred\x1b[0m", "\x07bell\x1b[2J\x1b]0;title\x1b\\ gone", "tab\there", "[not markup]"))
    assert lines == ["red", "bell gone", "tab\there", "[not markup]"]


@pytest.mark.parametrize(
    "line",
    [
        "\x1bc",
        "\x1b#8",
        "\x9b2J",
        "\x1b]0;title\x07",
        "\x1b[\x1b[2J2J",
        "\x1b[31",
        "\x1b",
        "\x1b)0\x0e",
        "\x1b%@",
        "\x1bP1$r\x1b\\",
    ],
)
def test_of_what_a_job_prints_colours_alone_reach_the_terminal(line: str) -> None:
    output = io.StringIO()
    reported = event(ev.MetricsReported(metrics={f"name\n{line}": 1.0}))
    screen = Console(file=output, width=80, force_terminal=True, color_system="standard", highlight=False)
    show_tail([glance(f"\x1b[1;31mred\x1b[0m {line}", reported)], screen)
    shown = output.getvalue().partition("\x1b[?2026h")[0]
    assert shown.startswith("\x1b[1;31mred\x1b[0m ")
    rest = re.sub(r"\x1b\[[\d;]*m", "", shown)
    assert all(each.isprintable() or each == "\n" for each in rest)
    assert rest.count("\n") == 2


def test_events_are_told_in_words_between_the_lines() -> None:
    lines = plain(
        glance(
            event(ev.JobGranted(job_type="train", attempt=1)),  # type: ignore[arg-type]
            event(ev.JobStarted(host="node", pid=7, log="log")),
            "epoch 1",
            event(ev.MetricsReported(metrics={"reward": 0.25})),
            event(ev.JobExited(outcome=Outcome.FAILED, seconds=3.0, error="boom\n", failure=FailureKind.USER_ERROR)),
            event(ev.RunRetryScheduled(retry_at=AT, retry_count=1, reason="attempt 1 of 3")),
            event(ev.RunStopped(reason="among the worse half", partial_score=0.5)),
            event(ev.RunCompleted(score=0.75)),
            event(ev.RunRolledBack(reason="by the user")),
        )
    )
    said = [line.split(" ", 2)[2] if line.startswith("-- ") else line for line in lines]
    assert said[:5] == [
        f"started {RUN}.train.1 on node, pid 7",
        "epoch 1",
        "reward=0.25",
        "failed after 3.0s: boom",
        said[4],
    ]
    assert said[4].startswith("RETRYING at ")
    assert said[5:7] == ["STOPPED reward=0.5: among the worse half", "COMPLETED reward=0.75"]
    assert said[7].startswith("run_rolled_back")


def test_an_absence_of_the_store_is_told_once() -> None:
    away = StoreAwayError("unplugged")
    assert plain(glance(), glance("a", away=away), glance(away=away), glance("b")) == [
        "-- the store is away, waiting for it: unplugged",
        "a",
        "-- the store is back",
        "b",
    ]


def test_on_a_terminal_the_last_line_says_where_the_run_stands() -> None:
    output = io.StringIO()
    screen = Console(file=output, width=80, force_terminal=True, color_system=None, highlight=False, markup=False)
    show_tail([glance("epoch 1"), glance("epoch 2")], screen)
    shown = output.getvalue()
    standing = re.search(rf"{RUN} IN_TRAINING \S+  reward 1 \(-2 against the best, 3\)", shown)
    assert standing is not None
    assert shown.index("epoch 1") < standing.start() < shown.index("epoch 2")
