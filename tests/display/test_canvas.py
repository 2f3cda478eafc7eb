"""A picture that is drawn again in its place."""

from __future__ import annotations

import io

from rich.console import Console
from rich.text import Text

from metta.sweep.display.canvas import Canvas


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
        assert file.getvalue()[begun:] == "\x1b[?2026h\r\x1b[2A\n\x1b[J\x1b[?2026l"
        canvas.clear()
        assert file.getvalue().endswith("\r\x1b[1A\x1b[J\x1b[?2026l")
    assert file.getvalue().endswith("\x1b[?25h")


def test_after_a_change_of_size_everything_is_drawn_anew() -> None:
    file = io.StringIO()
    console = screen(file)
    with Canvas(console) as canvas:
        canvas.draw(Text("first"))
        console.width = 30
        begun = len(file.getvalue())
        canvas.draw(Text("first"))
        assert "first" in file.getvalue()[begun:]
