"""Results that outlive the script: what was measured once need not be measured again.

A file of JSON lines, written as results come in, so that those of a run that was interrupted, or is still going on,
can be used. Several processes may write and read it at the same time.
"""

from __future__ import annotations

import fcntl
from pathlib import Path

import msgspec

from _contestants import Trace, version
from _problems import Reference


class Cell(msgspec.Struct, frozen=True):
    """One search: who, where, with which seed, and how many at one time."""

    contestant: str
    problem: str
    seed: int
    parallel: int = 1


class _KeptTrace(msgspec.Struct, frozen=True, tag="trace"):
    cell: Cell
    #: Of the problem and of the peer: a result that was had with others is not used.
    fingerprint: str
    version: str
    trace: Trace


class _KeptReference(msgspec.Struct, frozen=True, tag="reference"):
    problem: str
    fingerprint: str
    reference: Reference


class Kept:
    """The results in a file, or nowhere.

    Args:
        path: The file; it need not be there yet. None keeps nothing.
        fingerprints: Of the problems at hand, by name.
    """

    def __init__(self, path: Path | None, fingerprints: dict[str, str]) -> None:
        self._path = path
        self._fingerprints = fingerprints
        self.traces: dict[Cell, Trace] = {}
        self.references: dict[str, Reference] = {}
        decoder = msgspec.json.Decoder(_KeptTrace | _KeptReference)
        # A line without an end is one that another process is just writing.
        lines = path.read_bytes().splitlines(keepends=True) if path and path.exists() else []
        for line in lines:
            if line.endswith(b"\n"):
                self._note(decoder.decode(line))

    def _note(self, kept: _KeptTrace | _KeptReference) -> None:
        name = kept.problem if isinstance(kept, _KeptReference) else kept.cell.problem
        if kept.fingerprint != self._fingerprints.get(name):
            return
        if isinstance(kept, _KeptReference):
            self.references[name] = kept.reference
        elif kept.version == version(kept.cell.contestant):
            self.traces[kept.cell] = kept.trace

    def keep_trace(self, cell: Cell, trace: Trace) -> None:
        """Add a peer's search."""
        self._write(_KeptTrace(cell, self._fingerprints[cell.problem], version(cell.contestant), trace))

    def keep_reference(self, problem: str, reference: Reference) -> None:
        """Add what regret is measured by."""
        self._write(_KeptReference(problem, self._fingerprints[problem], reference))

    def _write(self, kept: _KeptTrace | _KeptReference) -> None:
        self._note(kept)
        if self._path is not None:
            with self._path.open("ab") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                file.write(msgspec.json.encode(kept) + b"\n")
