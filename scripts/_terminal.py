"""Commands in a real terminal, tmux's, and in a pipe; what is wrong with how they behave is told."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory
from typing import NamedTuple

from _sample import wait_until

WIDTH, HEIGHT = 80, 40
#: What a pipe is not to carry: everything below a space, but for tabs and ends of lines.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_PATIENCE_S = 20.0


class Shown(NamedTuple):
    """What one saw."""

    text: str
    code: int
    seconds: float


class Terminal:
    """One window of a tmux of its own, with one command in it at a time.

    Args:
        folder: Where commands are executed.
        environment: Their variables.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._home = TemporaryDirectory(prefix="tmux-")  # the paths of sockets have to be short
        self._socket = str(Path(self._home.name) / "socket")
        self._code_file = folder / "exit-code"
        self._environment = dict(environment)
        # Without a session the server would end; the options are for all that follow.
        self._tmux("new-session", "-d", "-s", "base", "-x", str(WIDTH), "-y", str(HEIGHT), "cat")
        for option in ("remain-on-exit on", "remain-on-exit-format ''", "history-limit 20000"):
            name, value = option.split()
            self._tmux("set-option", "-g", name, value.strip("'"))

    def run(
        self, command: str, *, until: str | None = None, keys: Sequence[str] = (), shows_end: bool = False
    ) -> Shown:
        """Execute a shell command.

        Args:
            command: What is typed.
            until: Of a command that does not end by itself: what is to be on the screen, a regular expression. What
                is shown is the screen at that moment.
            keys: What is pressed then, as tmux calls it; `@...` waits for a screen with that.
            shows_end: Whether the screen is shown that is there in the end.

        Returns:
            What was shown, the exit code, and the seconds it took, or took
            to end after the last key.

        Raises:
            TimeoutError: it does not end, or does not show that.
        """
        begin = time.monotonic()
        self._code_file.unlink(missing_ok=True)
        # Ctrl-C is for the command. What tmux itself knows of exit codes comes late, or never.
        shell = f"trap : INT; bash -o pipefail -c {quote(command)}; echo $? > {quote(str(self._code_file))}"
        self._tmux("new-window", "-d", "-t", "base:1", "-c", str(self._folder), shell)
        try:
            text = None
            if until is not None:
                self._await(until, command)
                text = self._screen()
                for key in keys:
                    self._press(key, command)
                begin = time.monotonic()
            wait_until(lambda: self._code() is not None, f"the end of: {command}\n{self._screen()}", _PATIENCE_S)
            seconds = time.monotonic() - begin
            is_ended = text is None or shows_end
            return Shown(self._screen() if is_ended else text, self._code() or 0, seconds)
        finally:
            self._tmux("kill-window", "-t", "base:1")

    def _press(self, key: str, command: str) -> None:
        if key.startswith("@"):
            self._await(key[1:], command)
        else:
            self._tmux("send-keys", "-t", "base:1", key)

    def _await(self, pattern: str, command: str) -> None:
        def is_there() -> bool:
            return re.search(pattern, self._screen()) is not None

        try:
            wait_until(lambda: is_there() or self._code() is not None, pattern, _PATIENCE_S)
        except TimeoutError as error:
            raise TimeoutError(f"{command}: {error}; on the screen is:\n{self._screen()}") from None
        if not is_there():
            raise TimeoutError(f"{command}: it ended without showing {pattern}; on the screen is:\n{self._screen()}")

    def _screen(self) -> str:
        """All lines, also those above the screen; wrapped ones as one line."""
        captured = self._tmux("capture-pane", "-p", "-J", "-S", "-", "-t", "base:1")
        return "\n".join(line.rstrip() for line in captured.splitlines()).rstrip() + "\n"

    def _code(self) -> int | None:
        """None before the end."""
        is_dead = self._tmux("display-message", "-p", "-t", "base:1", "#{pane_dead}").strip() == "1"
        return int(self._code_file.read_text()) if is_dead else None

    def _tmux(self, *arguments: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, "-f", "/dev/null", *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def close(self) -> None:
        """End the server and what runs in it."""
        self._tmux("kill-server")
        self._home.cleanup()


def pipe(command: str, folder: Path, environment: Mapping[str, str]) -> Shown:
    """Execute a shell command whose output nobody sees; what it says on standard error comes last."""
    begin = time.monotonic()
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    return Shown(done.stdout + done.stderr, done.returncode, time.monotonic() - begin)


def faults(shown: Shown, *, code: int, most_s: float, widest: int | None) -> list[str]:
    """What is wrong with it, if anything; `widest` is the number of columns, None for lines that are to be whole."""
    found = []
    if "Traceback (most recent call last)" in shown.text:
        found.append("a traceback")
    if shown.code != code:
        found.append(f"exit code {shown.code} instead of {code}")
    if shown.seconds > most_s:
        found.append(f"{shown.seconds:.1f} s, more than {most_s:g} s")
    if control := _CONTROL.search(shown.text):
        found.append(f"the control character {control[0]!r}")
    too_wide = [line for line in shown.text.splitlines() if widest is not None and len(line) > widest]
    return found + [f"a line of {len(line)} columns: {line}" for line in too_wide[:1]]
