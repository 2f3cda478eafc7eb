"""What the jobs of a run have printed, read from their logs as these grow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_CHUNK_BYTES = 1 << 16


class GrowingLog:
    """A job's log, each byte of which is read once.

    Args:
        path: Where it is.
        last: How many bytes of what it has by now are read at most, from the beginning of a line; None for all.
    """

    def __init__(self, path: Path, *, last: int | None = None) -> None:
        self.path = path
        self._last = last
        self._read = 0

    def new(self) -> Iterator[bytes]:
        """What was added since the last call, in pieces.

        Raises:
            FileNotFoundError: the log is not there, or not any more.
        """
        with self.path.open("rb") as stream:
            if self._last is not None:
                self._read = max(0, stream.seek(0, os.SEEK_END) - self._last)
                stream.seek(self._read)
                self._read += len(stream.readline()) if self._read else 0
                self._last = None
            stream.seek(self._read)
            while chunk := stream.read(_CHUNK_BYTES):
                self._read += len(chunk)
                yield chunk


class Lines:
    """Makes lines of pieces: each as one would see it on a terminal, without what steers one."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, pieces: Iterable[bytes]) -> Iterator[str]:
        """The lines that these pieces complete."""
        for piece in pieces:
            *whole, self._rest = (self._rest + piece).split(b"\n")
            self._rest = self._rest[self._rest.rfind(b"\r", 0, -1) + 1 :]  # what it was written over by
            yield from map(_seen, whole)

    def rest(self) -> Iterator[str]:
        """The last line, if it was not completed."""
        rest, self._rest = self._rest, b""
        if rest:
            yield _seen(rest)


def _seen(line: bytes) -> str:
    """A progress bar writes over itself: what it wrote last is what one sees."""
    return line.decode(errors="replace").rstrip("\r").rpartition("\r")[2]
