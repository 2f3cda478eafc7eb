"""A picture that is drawn again in its place."""

from __future__ import annotations

import io
import os
import signal

from rich.console import Console
from rich.text import Text

from metta.sweep.display.canvas import Canvas, can_draw


def screen(file: io.StringIO) -> Console:
    return Console(file=file, width=20, height=10, force_terminal=True, color_system=None)


def test_only_lines_that_have_changed_are_written_again() -> None:
    file = io.StringIO()
    with Canvas(screen(file)) as canvas:
        canvas.draw(Text("first\nsecond\nthird"))
        begun = len(file.getvalue())
        canvas.draw(Text("first\nSECOND\nthird"))
        again = file.getvalue()[begun:]
        assert ("SECOND" in again, "first" in again, "third" in again) == (True, False, False)
        assert again.count("\n") == 3
        begun = len(file.getvalue())
        canvas.draw(Text("first\nSECOND\nthird"))
        assert file.getvalue()[begun:] == ""


def test_a_picture_that_is_lower_leaves_nothing_of_the_one_before() -> None:
    file = io.StringIO()
    with Canvas(screen(file)) as canvas:
        canvas.draw(Text("first\nsecond"))
        begun = len(file.getvalue())
        canvas.draw(Text("first"))
        assert file.getvalue()[begun:] == "\x1b[?2026h\x1b[?25l\r\x1b[2A\n\x1b[J\x1b[?25h\x1b[?2026l"
        canvas.clear()
        assert file.getvalue().endswith("\r\x1b[1A\x1b[J\x1b[?25h\x1b[?2026l")


def test_after_a_change_of_size_everything_is_drawn_anew() -> None:
    file = io.StringIO()
    console = screen(file)
    with Canvas(console) as canvas:
        canvas.draw(Text("first"))
        console.width = 30
        begun = len(file.getvalue())
        canvas.draw(Text("first"))
        assert "first" in file.getvalue()[begun:]


def test_whenever_it_is_killed_the_cursor_is_seen() -> None:
    file = io.StringIO()
    with Canvas(screen(file)) as canvas:
        assert file.getvalue() == ""
        for text in ("first", "second\nthird"):
            canvas.draw(Text(text))
            assert file.getvalue().rfind("\x1b[?25h") > file.getvalue().rfind("\x1b[?25l")


def test_after_a_stop_from_the_keyboard_everything_is_drawn_anew_below() -> None:
    file = io.StringIO()
    before = signal.getsignal(signal.SIGCONT)
    with Canvas(screen(file)) as canvas:
        canvas.draw(Text("first\nsecond"))
        os.kill(os.getpid(), signal.SIGCONT)
        begun = len(file.getvalue())
        canvas.draw(Text("first\nsecond"))
        again = file.getvalue()[begun:]
        assert ("first" in again, "second" in again, "\x1b[2A" in again) == (True, True, False)
    assert signal.getsignal(signal.SIGCONT) == before


def test_a_terminal_that_cannot_move_its_cursor_is_not_drawn_on() -> None:
    def console(term: str, *, is_terminal: bool = True) -> Console:
        return Console(file=io.StringIO(), force_terminal=is_terminal, _environ={"TERM": term})

    assert can_draw(console("xterm"))
    assert not can_draw(console("dumb"))
    assert not can_draw(console("xterm", is_terminal=False))
