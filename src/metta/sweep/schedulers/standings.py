"""Who has come to which level of training, and how each did there among those that had come there before."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import Rung, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import Direction
from metta.sweep.model.trail import Trail


class Entry(NamedTuple):
    """A run at a level; sorts by value, of equal ones the earlier first."""

    #: Such that less is better.
    value: float
    seq: int
    run_id: str


class Arrival(NamedTuple):
    """A run's coming to a level."""

    run: RunInfo
    rung: Rung
    bracket: int
    #: Of the level, from 0.
    number: int
    #: Its place among those of its bracket that had come to the level before, from 1, and their number, it included.
    place: int
    total: int


class Standings:
    """All levels of a sweep, kept up with what changes in it: only a cache, a new one comes to the same.

    Args:
        bracket_of: The bracket of the run of this index: only runs of one bracket are compared.
    """

    def __init__(self, bracket_of: Callable[[int], int]) -> None:
        self._bracket_of = bracket_of
        self._key: tuple[Fidelity | None, Direction] | None = None
        self._trail: Trail | None = None
        self._forget()

    def _forget(self) -> None:
        self._known: dict[str, int] = {}
        #: By bracket and number of the level.
        self._levels: dict[tuple[int, int], list[Entry]] = {}
        self._staying: dict[tuple[int, int], list[Entry]] = {}
        #: Of each run that stays at a level, which one, and as what.
        self._places: dict[str, tuple[tuple[int, int], Entry]] = {}

    def keep_up(self, state: SweepState) -> tuple[Sequence[Arrival], bool]:
        """What is new since the last call, in the order in which it came, and whether that is all there ever was."""
        config = state.sweep.config
        key = (config.fidelity, config.direction)
        changed = None
        if key == self._key and self._trail is not None and state.trail is not None:
            changed = state.trail.since(self._trail)
        is_anew = changed is None
        if changed is None:
            self._forget()
            changed = [] if state.trail is None else state.trail.since(None) or []
        self._key, self._trail = key, state.trail
        runs, maximize = [state.runs[run_id] for run_id in changed], config.direction == "maximize"
        for run in runs:
            self._move(run, maximize)
        return self._taken(runs, maximize), is_anew

    def _move(self, run: RunInfo, maximize: bool) -> None:
        if (place := self._places.pop(run.run_id, None)) is not None:
            entries = self._staying[place[0]]
            del entries[bisect_left(entries, place[1])]
        if not run.status.ended and len(run.rungs) > run.inherited:
            level = (self._bracket_of(run.index), len(run.rungs) - 1)
            entry = _entry(run, run.rungs[-1], maximize)
            insort(self._staying.setdefault(level, []), entry)
            self._places[run.run_id] = (level, entry)

    def _taken(self, runs: Iterable[RunInfo], maximize: bool) -> list[Arrival]:
        new = [
            (rung, number, run)
            for run in runs
            for number, rung in enumerate(run.rungs)
            if number >= self._known.get(run.run_id, run.inherited)
        ]
        self._known.update((run.run_id, len(run.rungs)) for _, _, run in new)
        arrivals = []
        for rung, number, run in sorted(new, key=lambda each: (each[0].seq, each[1])):
            bracket = self._bracket_of(run.index)
            entries = self._levels.setdefault((bracket, number), [])
            entry = _entry(run, rung, maximize)
            place = bisect_right(entries, entry) + 1
            insort(entries, entry)
            arrivals.append(Arrival(run, rung, bracket, number, place, len(entries)))
        return arrivals

    def at(self, bracket: int, number: int) -> Sequence[Entry]:
        """Everyone of a bracket who came to this level, best first."""
        return self._levels.get((bracket, number), [])

    def staying(self, bracket: int, number: int) -> Sequence[Entry]:
        """Those of them who have come no further and have not ended, best first."""
        return self._staying.get((bracket, number), [])


def _entry(run: RunInfo, rung: Rung, maximize: bool) -> Entry:
    return Entry(-rung.value if maximize else rung.value, rung.seq, run.run_id)
