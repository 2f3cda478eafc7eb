"""Standard output that nobody reads to its end, or that cannot be written."""

from __future__ import annotations

import errno
import io
import os
import select
import signal
import stat
import sys
import threading
from typing import NoReturn

#: What a shell says of a program that SIGPIPE ended.
_CLOSED_PIPE = 128 + signal.SIGPIPE
#: What becomes of writing to a full disk, over a quota, or to a broken one.
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EIO}


def ensure_output() -> None:
    """Where standard output or error was closed by who called, nobody wants to know: it goes nowhere.

    A terminal that knows fewer characters than we use shows question marks in their place.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (until the end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.isatty():
            stream.reconfigure(errors="replace")


def end_with_reader() -> None:
    """End this process when the reader of its output, `head` say, has: a command that follows may write no more.

    For commands that only look: they have nothing to bring to an end.
    """
    output = sys.stdout.fileno()
    if stat.S_ISFIFO(os.fstat(output).st_mode):
        threading.Thread(target=_await_reader, args=(output,), daemon=True).start()


def _await_reader(output: int) -> None:
    poll = select.poll()
    poll.register(output, 0)  # of the end of its reader one is told whatever one asks for
    poll.poll()
    os._exit(_CLOSED_PIPE)


def leave_closed_pipe() -> NoReturn:
    """End as SIGPIPE would end us, which we ignore for the sake of our sockets, and as quietly.

    Python must not try to flush to the pipe on its way out.
    """
    _discard()
    raise SystemExit(_CLOSED_PIPE) from None


def leave_unwritable(error: OSError) -> NoReturn:
    """Say that the output cannot be written where that is what the error is about, else raise it again."""
    if error.errno not in _UNWRITABLE or error.filename is not None:
        raise error
    sys.stderr.write(f"error: the output cannot be written: {error.strerror}; send it somewhere else\n")
    _discard()
    raise SystemExit(1) from None


def leave_unencodable(error: UnicodeEncodeError) -> NoReturn:
    """Say that the output's encoding lacks a character: programs that read it are not told something else."""
    character = error.object[error.start]
    sys.stderr.write(
        f"error: the output is in {error.encoding}, which has no {character!a}; set PYTHONUTF8=1 for UTF-8\n"
    )
    raise SystemExit(1) from None


def _discard() -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.__stdout__, sys.__stderr__):
        if stream is not None:
            os.dup2(nowhere, stream.fileno())
