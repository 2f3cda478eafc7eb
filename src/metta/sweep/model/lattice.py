"""All configurations of a finite space as a sequence that is never materialised.

`lattice.at(k)` computes the k-th configuration directly, so a grid of 10^12 points costs nothing until it is walked.
Where parameters are conditional, only configurations that differ are counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeAlias

from metta.sweep.model.space import Config, SearchSpace

#: For parameters before some position, the number of the value taken; of values that no condition tells apart, any.
_Branch: TypeAlias = dict[str, int]


class Lattice:
    """The configurations of a space, in order: the parameter declared last varies fastest.

    Parameters are taken in the space's `resolution_order`. Counting is fast because it goes by *blocks*, runs of values
    that no condition tells apart, and by *families*, parameters that conditions tie together: the counts of families
    multiply.

    Args:
        space: The space.
        levels: For continuous parameters, the points of [0, 1] that stand for them.
    """

    def __init__(self, space: SearchSpace, levels: Mapping[str, list[float]] | None = None) -> None:
        self._space = space
        self._values: dict[str, list[Any]] = {}
        self._blocks: dict[str, list[range]] = {}
        for name, parameter in space.parameters.items():
            if parameter.cardinality is None:
                self._values[name] = [parameter.decode(unit) for unit in (levels or {})[name]]
            self._blocks[name] = _blocks(space, name, parameter.cardinality or len(self._values[name]))
        self._order = space.resolution_order
        family = _families(space)
        count = len(self._order)
        #: For each position, where its family goes on; None at its last member.
        self._next = [
            next((later for later in range(at + 1, count) if family[self._order[later]] == family[name]), None)
            for at, name in enumerate(self._order)
        ]
        #: For each position and the end, the first member from there on of every family.
        self._heads = [
            list({family[self._order[later]]: later for later in reversed(range(at, count))}.values())
            for at in range(count + 1)
        ]
        #: For each position, the parameters that conditions of its family read from there on.
        self._read: list[frozenset[str]] = [
            frozenset().union(
                *(space.conditions[name] for name in self._order[at:] if family[name] == family[self._order[at]])
            )
            for at in range(count)
        ]
        self._counts: dict[tuple[int, tuple[tuple[str, int], ...]], int] = {}
        self.size = self._rest(0, {})

    def at(self, index: int) -> Config:
        """The configuration at `index`; raises IndexError outside `[0, size)`."""
        if not 0 <= index < self.size:
            raise IndexError(f"index {index} is outside the {self.size} configurations of the space")
        branch: _Branch = {}
        values: Config = {}
        for position, name in enumerate(self._order):
            if not self._is_active(name, branch):
                continue
            for block in self._blocks[name]:
                below = self._rest(position + 1, {**branch, name: block.start})
                if index < len(block) * below:
                    break
                index -= len(block) * below
            step, index = divmod(index, below)
            branch[name] = block.start
            values[name] = self._value(name, block[step])
        return {name: values[name] for name in self._space.parameters if name in values}

    def _value(self, name: str, choice: int) -> Any:
        if name in self._values:
            return self._values[name][choice]
        return self._space.parameters[name].value_at(choice)

    def _is_active(self, name: str, branch: _Branch) -> bool:
        return all(branch.get(parent) in accepted for parent, accepted in self._space.conditions[name].items())

    def _rest(self, position: int, branch: _Branch) -> int:
        """Number of configurations of the parameters from `position` on, given the branches taken before."""
        return math.prod(self._count(head, branch) for head in self._heads[position])

    def _count(self, position: int, branch: _Branch) -> int:
        """Number of configurations of the parameter at `position` and the later members of its family."""
        relevant = tuple((name, choice) for name, choice in branch.items() if name in self._read[position])
        known = self._counts.get((position, relevant))
        if known is not None:
            return known
        name, later = self._order[position], self._next[position]
        branches = [(1, branch)]
        if self._is_active(name, branch):
            branches = [(len(block), {**branch, name: block.start}) for block in self._blocks[name]]
        count = sum(times * (1 if later is None else self._count(later, each)) for times, each in branches)
        self._counts[position, relevant] = count
        return count


def _blocks(space: SearchSpace, name: str, size: int) -> list[range]:
    """The numbers of a parameter's values in order, cut around each that some condition names."""
    named = {
        index for conditions in space.conditions.values() for index in conditions.get(name, ()) if index is not None
    }
    cuts = sorted({0, size, *named, *(index + 1 for index in named)})
    return [range(start, stop) for start, stop in pairwise(cuts)]


def _families(space: SearchSpace) -> dict[str, frozenset[str]]:
    """For each parameter, all those that conditions tie it to, directly or not."""
    family = {name: frozenset({name}) for name in space.parameters}
    for name in space.parameters:
        merged = family[name].union(*(family[parent] for parent in space.conditions[name]))
        family.update(dict.fromkeys(merged, merged))
    return family
