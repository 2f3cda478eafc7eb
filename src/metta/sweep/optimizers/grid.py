"""Every combination of values, in order, never materialised."""

from __future__ import annotations

from metta.sweep.errors import ConfigError
from metta.sweep.model.lattice import Lattice
from metta.sweep.model.parameters import LogNormal, Normal
from metta.sweep.model.space import SearchSpace
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import History, Suggestion


class GridOptimizer:
    """Walks the grid; the parameter declared last varies fastest.

    Args:
        levels: Number of values that stand for each continuous parameter: evenly spaced on its own scale, ends
        included;
            for normal distributions the middles of that many equally likely parts. Five, as is common for a coarse
            grid.
    """

    def __init__(self, levels: int = 5) -> None:
        if type(levels) is not int or levels < 1:
            raise ConfigError(f"strategy: grid needs levels to be an integer of at least 1, got {levels!r}")
        self._levels = levels
        self._lattice: Lattice | None = None
        self._lattice_of: SearchSpace | None = None

    def check(self, config: SweepConfig) -> None:
        """Every space has a grid."""

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        lattice = self._lattice_for(history.config.search_space)
        first = history.count
        return [
            Suggestion(config=lattice.at(index), reasons=(f"grid point {index + 1} of {lattice.size}",))
            for index in range(first, min(first + n, lattice.size))
        ]

    def _lattice_for(self, space: SearchSpace) -> Lattice:
        if self._lattice is None or self._lattice_of is not space:
            self._lattice = Lattice(space, {name: self._units(space, name) for name in space.dimensions})
            self._lattice_of = space
        return self._lattice

    def _units(self, space: SearchSpace, name: str) -> list[float]:
        if self._levels == 1 or isinstance(space.parameters[name], Normal | LogNormal):
            return [(level + 0.5) / self._levels for level in range(self._levels)]
        return [level / (self._levels - 1) for level in range(self._levels)]
