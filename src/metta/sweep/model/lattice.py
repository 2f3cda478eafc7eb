"""All configurations of a finite space as a sequence that is never materialised.

`lattice.at(k)` computes the k-th configuration directly, so a grid of 10^12 points costs nothing until it is walked. Where
parameters are conditional, only configurations that differ are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metta.sweep.model.space import Config, SearchSpace


class Lattice:
    """The configurations of a space, in order: the parameter declared last varies fastest.

    Args:
        space: The space.
        levels: For continuous parameters, the points of [0, 1] that stand for them.
    """

    def __init__(self, space: SearchSpace, levels: Mapping[str, list[float]] | None = None) -> None:
        self._space = space
        self._values: dict[str, list[Any]] = {}
        self._sizes: dict[str, int] = {}
        for name, parameter in space.parameters.items():
            if parameter.cardinality is None:
                self._values[name] = [parameter.decode(unit) for unit in (levels or {})[name]]
            self._sizes[name] = parameter.cardinality or len(self._values[name])
        self._order = space.resolution_order
        #: Only parameters that conditions read need to be branched on when counting; the others multiply.
        self._branching = {parent for parameter in space.parameters.values() for parent in parameter.when}
        self._counts: dict[tuple[int, tuple[tuple[str, int], ...]], int] = {}
        self.size = self._count(0, ())

    def at(self, index: int) -> Config:
        """The configuration at `index`; raises IndexError outside `[0, size)`."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside the {self.size} configurations of the space")
        branch: tuple[tuple[str, int], ...] = ()
        values: Config = {}
        for position, name in enumerate(self._order):
            if not self._space.is_active(name, values):
                continue
            if name in self._branching:
                choice = 0
                while index >= (below := self._count(position + 1, (*branch, (name, choice)))):
                    index -= below
                    choice += 1
                branch = (*branch, (name, choice))
            else:
                choice, index = divmod(index, self._count(position + 1, branch))
            values[name] = self._value(name, choice)
        return {name: values[name] for name in self._space.parameters if name in values}

    def _value(self, name: str, choice: int) -> Any:
        if name in self._values:
            return self._values[name][choice]
        return self._space.parameters[name].value_at(choice)

    def _count(self, position: int, branch: tuple[tuple[str, int], ...]) -> int:
        """Number of configurations of the parameters from `position` on, given the branches taken before."""
        if position == len(self._order):
            return 1
        known = self._counts.get((position, branch))
        if known is not None:
            return known
        name = self._order[position]
        if not self._space.is_active(name, {parent: self._value(parent, choice) for parent, choice in branch}):
            count = self._count(position + 1, branch)
        elif name in self._branching:
            count = sum(self._count(position + 1, (*branch, (name, choice))) for choice in range(self._sizes[name]))
        else:
            count = self._sizes[name] * self._count(position + 1, branch)
        self._counts[position, branch] = count
        return count
