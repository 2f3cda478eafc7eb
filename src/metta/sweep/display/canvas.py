"""A picture on a terminal that is drawn again and again in its place, without flickering.

Lines that are as they were are left alone, and the others written over; rich's `Live` erases all of them first, which
shows where the way to the terminal is slow. Nothing above the picture is touched.
"""

from __future__ import annotations

import signal
from types import TracebackType

from rich.console import Console, RenderableType

_UP, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[{}A", "\x1b[K", "\x1b[J"
#: Terminals that know the first of each show what is between them at once; others ignore it. The cursor is hidden only
#: meanwhile, so that it is seen after whatever may end, or stop, this process between two pictures.
_BEGIN, _END = "\x1b[?2026h\x1b[?25l", "\x1b[?25h\x1b[?2026l"


def can_draw(screen: Console) -> bool:
    """Whether it is a terminal on which the cursor can be moved."""
    return screen.is_terminal and not screen.is_dumb_terminal


class Canvas:
    """Where the picture is; the cursor waits in the line below it. Leaving it leaves the last picture there.

    Args:
        screen: A terminal.
    """

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._lines: list[str] = []
        self._size = screen.size

    def __enter__(self) -> Canvas:
        # While it was stopped, by Ctrl-Z say, others have written to the terminal.
        self._on_continue = signal.signal(signal.SIGCONT, lambda *_: self._leave())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGCONT, self._on_continue)

    def draw(self, picture: RenderableType) -> None:
        """Put this in the place of the picture before; its lines have to fit."""
        with self._screen.capture() as capture:
            self._screen.print(picture)
        lines = capture.get().splitlines()
        size = self._screen.size
        if (lines, size) == (self._lines, self._size):
            return
        # A terminal of another size has moved the lines, and perhaps broken them.
        known = self._lines if size == self._size else []
        written = [_UP.format(len(self._lines)) if self._lines else "", "" if known else _REST_OF_SCREEN]
        for place, line in enumerate(lines):
            is_known = place < len(known) and known[place] == line
            written.append("\n" if is_known else f"{line}{_REST_OF_LINE}\n")
        if len(lines) < len(self._lines):
            written.append(_REST_OF_SCREEN)
        self._write("".join(written))
        self._lines, self._size = lines, size

    def clear(self) -> None:
        """Take the picture away, so that something can be printed in its place."""
        if self._lines:
            self._write(_UP.format(len(self._lines)) + _REST_OF_SCREEN)
        self._lines = []

    def _leave(self) -> None:
        self._lines = []

    def _write(self, text: str) -> None:
        self._screen.file.write(f"{_BEGIN}\r{text}{_END}")
        self._screen.file.flush()
