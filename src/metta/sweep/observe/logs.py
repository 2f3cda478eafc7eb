"""What the jobs of a run have printed, read from their logs as these grow."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_CHUNK_BYTES = 1 << 16
#: Of a line so many bytes are seen: nobody reads more, and what is no text at all may be one line of gigabytes.
LONGEST_LINE = 1 << 14


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
        """What was added since the last call, in pieces; all of a log that was emptied since.

        Raises:
            FileNotFoundError: the log is not there, or not any more.
        """
        with self.path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)  # what is added meanwhile may be more than can be read
            if self._last is not None:
                self._read = max(0, size - self._last)
                stream.seek(self._read)
                self._read += len(stream.readline()) if self._read else 0
                self._last = None
            if self._read > size:
                self._read = 0
            stream.seek(self._read)
            while self._read < size and (chunk := stream.read(min(_CHUNK_BYTES, size - self._read))):
                self._read += len(chunk)
                yield chunk

    def skip(self, most: int) -> int:
        """Leave out what was added but for its last `most` bytes, from the beginning of a line; how much that is."""
        if self._last is not None:
            return 0
        with self.path.open("rb") as stream:
            place = stream.seek(0, os.SEEK_END) - most
            if place <= self._read:
                return 0
            stream.seek(place)
            place += len(stream.readline(LONGEST_LINE))
        skipped, self._read = place - self._read, place
        return skipped


class Lines:
    """Makes lines of pieces: each as one would see it on a terminal, without what steers one."""

    def __init__(self) -> None:
        self._rest = b""

    def of(self, pieces: Iterable[bytes]) -> Iterator[str]:
        """The lines that these pieces complete."""
        for piece in pieces:
            *whole, rest = (self._rest + piece).split(b"\n")
            self._rest = rest[rest.rfind(b"\r", 0, -1) + 1 :][: LONGEST_LINE + 1]  # what it was written over by
            yield from map(_seen, whole)

    def rest(self) -> Iterator[str]:
        """The last line, if it was not completed."""
        rest, self._rest = self._rest, b""
        if rest:
            yield _seen(rest)


def _seen(line: bytes) -> str:
    """A progress bar writes over itself: what it wrote last is what one sees."""
    seen = line.rstrip(b"\r").rpartition(b"\r")[2]
    mark = " ..." if len(seen) > LONGEST_LINE else ""
    return seen[:LONGEST_LINE].decode(errors="replace") + mark
