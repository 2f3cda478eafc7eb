"""Every combination of values, in order, never materialised."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from itertools import islice

from metta.sweep.model import ids
from metta.sweep.model.lattice import Lattice
from metta.sweep.model.parameters import LogNormal, Normal
from metta.sweep.model.run import RunInfo
from metta.sweep.model.space import SearchSpace
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers.options import check_count
from metta.sweep.protocols import History, Suggestion


class GridOptimizer:
    """Walks the grid; the parameter declared last varies fastest.

    Suggestion k is point k while the sweep stays what it was. Where an amendment has moved the points, or a rollback in
    a finite space has freed some, those that were tried are passed over, and the walk goes on at the first after the
    last.

    Args:
        levels: Number of values that stand for each continuous parameter: evenly spaced on its own scale, ends
        included;
            for normal distributions the middles of that many equally likely parts. Five, as is common for a coarse
            grid.
    """

    def __init__(self, levels: int = 5) -> None:
        check_count("grid", "levels", levels)
        self._levels = levels
        self._lattice: Lattice | None = None
        self._lattice_of: SearchSpace | None = None
        #: Keys of points of the lattice, by number: passing over a point again costs no decoding.
        self._keys: dict[int, bytes] = {}
        self._earlier = _EarlierConfigurations()

    def check(self, config: SweepConfig) -> None:
        """Every space has a grid."""

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        lattice = self._lattice_for(history.config.search_space)
        return [
            Suggestion(config=lattice.at(index), reasons=(f"grid point {index + 1} of {lattice.size}",))
            for index in islice(self._untried(history, lattice), n)
        ]

    def _untried(self, history: History, lattice: Lattice) -> Iterator[int]:
        """Numbers of the points left, from the one on at which an unchanged sweep stands."""
        space = history.config.search_space
        tried: Container[bytes] = history.tried
        if space.cardinality is None:
            tried = self._earlier.keys(history)
        elif len(history.tried) >= lattice.size:
            return
        for step in range(lattice.size):
            index = (history.count + step) % lattice.size
            if index not in self._keys:
                self._keys[index] = space.key(lattice.at(index))
            if self._keys[index] not in tried:
                yield index

    def _lattice_for(self, space: SearchSpace) -> Lattice:
        if self._lattice is None or self._lattice_of is not space:
            self._lattice = Lattice(space, {name: self._units(space, name) for name in space.dimensions})
            self._lattice_of = space
            self._keys = {}
        return self._lattice

    def _units(self, space: SearchSpace, name: str) -> list[float]:
        if self._levels == 1 or isinstance(space.parameters[name], Normal | LogNormal):
            return [(level + 0.5) / self._levels for level in range(self._levels)]
        return [level / (self._levels - 1) for level in range(self._levels)]


class _EarlierConfigurations:
    """Keys of the configurations of all runs, for infinite spaces, of which a history keeps none.

    A history that holds the very configuration that was the last of another one goes on from it: then only what is new
    is looked at.
    """

    def __init__(self) -> None:
        self._keys: set[bytes] = set()
        self._last: RunInfo | None = None

    def keys(self, history: History) -> set[bytes]:
        """As `History.tried` in finite spaces, those that were rolled back included."""
        new = self._new(history.runs)
        if new is None:
            self._keys, self._last, new = set(), None, history.runs.values()
        for run in new:
            self._keys.add(history.config.search_space.key(run.config))
            if self._last is None or run.index > self._last.index:
                self._last = run
        return self._keys

    def _new(self, runs: Mapping[str, RunInfo]) -> Iterable[RunInfo] | None:
        """The runs since the last time; None where this is another history, so that all are new."""
        last = self._last
        if last is None or last.run_id not in runs or runs[last.run_id].config is not last.config:
            return None
        run_ids = [ids.run_id(last.sweep_id, index) for index in range(last.index + 1, len(runs))]
        return [runs[run_id] for run_id in run_ids] if all(run_id in runs for run_id in run_ids) else None
