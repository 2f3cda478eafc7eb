"""Results that outlive the script: what was measured once need not be measured again.

A file of JSON lines, written as results come in, so that those of a run that was interrupted, or is still going on,
can be used. Several processes may write and read it at the same time.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from _problems import Reference

#: What one search leaves: a structure of the script's own.
Trace = TypeVar("Trace", bound=msgspec.Struct)


class Cell(msgspec.Struct, frozen=True):
    """One search: who, where, with which seed, and how many at one time."""

    contestant: str
    problem: str
    seed: int
    parallel: int = 1


class _KeptTrace(msgspec.Struct, Generic[Trace], frozen=True, tag="trace"):
    cell: Cell
    #: Of the problem and of the peer: a result that was had with others is not used.
    fingerprint: str
    version: str
    trace: Trace


class _KeptReference(msgspec.Struct, frozen=True, tag="reference"):
    problem: str
    fingerprint: str
    reference: Reference


class Kept(Generic[Trace]):
    """The results in a file, or nowhere.

    Args:
        path: The file; it need not be there yet. None keeps nothing.
        fingerprints: Of the problems at hand, by name.
        trace: The type of what a search leaves.
        version: Of a contestant as it is installed here; None where it is not, and then any version's results count.
    """

    def __init__(
        self,
        path: Path | None,
        fingerprints: dict[str, str],
        trace: type[Trace],
        version: Callable[[str], str | None],
    ) -> None:
        self._path = path
        self._fingerprints = fingerprints
        self._version = version
        self.traces: dict[Cell, Trace] = {}
        self.references: dict[str, Reference] = {}
        decoder = msgspec.json.Decoder(_KeptTrace[trace] | _KeptReference)  # type: ignore[valid-type]
        # A line without an end is one that another process is just writing.
        lines = path.read_bytes().splitlines(keepends=True) if path and path.exists() else []
        for line in lines:
            if line.endswith(b"\n"):
                self._note(decoder.decode(line))

    def _note(self, kept: _KeptTrace[Trace] | _KeptReference) -> None:
        name = kept.problem if isinstance(kept, _KeptReference) else kept.cell.problem
        if kept.fingerprint != self._fingerprints.get(name):
            return
        if isinstance(kept, _KeptReference):
            self.references[name] = kept.reference
        elif self._version(kept.cell.contestant) in (None, kept.version):
            self.traces[kept.cell] = kept.trace

    def keep_trace(self, cell: Cell, trace: Trace) -> None:
        """Add a peer's search."""
        version = self._version(cell.contestant) or ""
        self._write(_KeptTrace(cell, self._fingerprints[cell.problem], version, trace))

    def keep_reference(self, problem: str, reference: Reference) -> None:
        """Add what regret is measured by."""
        self._write(_KeptReference(problem, self._fingerprints[problem], reference))

    def _write(self, kept: _KeptTrace[Trace] | _KeptReference) -> None:
        self._note(kept)
        if self._path is not None:
            with self._path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(msgspec.json.encode(kept) + b"\n")
