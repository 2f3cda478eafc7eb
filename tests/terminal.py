"""A real terminal: tmux's, of any size, in which a command is at work."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from waiting import wait_until


class Terminal:
    """What one sees, line by line."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    @property
    def screen(self) -> str:
        return self._tmux("capture-pane", "-p", "-t", "it")

    @property
    def everything(self) -> str:
        """With what has left the screen at its top; lines that were too long for it in one."""
        return self._tmux("capture-pane", "-p", "-J", "-S", "-1000", "-t", "it")

    def wait_for(self, text: str) -> str:
        """The screen as soon as it shows this."""
        seen = ""

        def shows_it() -> bool:
            nonlocal seen
            seen = self.screen
            return text in seen

        try:
            wait_until(shows_it, what=f"{text!r} on the screen")
        except AssertionError as error:
            error.add_note(seen)
            raise
        return seen

    def press(self, key: str) -> None:
        self._tmux("send-keys", "-t", "it", key)

    def _tmux(self, *arguments: str) -> str:
        command = ["tmux", "-S", str(self._socket), "-f", "/dev/null", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout

    def open(self, command: Sequence[str], folder: Path, width: int, height: int) -> None:
        # Python's readline, in the tests' own process, sets these to another size.
        shell = f"unset COLUMNS LINES; trap : INT; {shlex.join(command)}; echo ended with $?; exec cat"
        size = ["-x", str(width), "-y", str(height)]
        self._tmux("new-session", "-d", "-s", "it", *size, "-c", str(folder), "sh", "-c", shell)

    def close(self) -> None:
        self._tmux("kill-server")


@contextmanager
def terminal(command: Sequence[str], folder: Path, *, width: int = 80, height: int = 24) -> Iterator[Terminal]:
    """The command in a terminal of this size; says what code it has ended with."""
    with TemporaryDirectory(prefix="tmux-") as short:  # the paths of sockets have to be
        opened = Terminal(Path(short) / "socket")
        opened.open(command, folder, width, height)
        try:
            yield opened
        finally:
            opened.close()
