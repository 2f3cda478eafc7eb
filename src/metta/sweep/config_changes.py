"""What differs between a sweep as it is and as its author now has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from metta.sweep.model.space import SearchSpace
from metta.sweep.model.sweep import AMENDABLE, FunctionTarget, PickledTarget, SweepConfig, Target


def differences(left: SweepConfig, right: SweepConfig) -> dict[str, tuple[Any, Any]]:
    """What makes two configurations search different things: by field, the two values.

    Where there are none, one may go on where the other stopped. Limits may differ, and so may the seed and the bytes of
    a pickled function, which change from process to process.
    """

    def identity(target: Target | None, config: SweepConfig) -> Any:
        if isinstance(target, FunctionTarget):
            return target.module, target.name
        if isinstance(target, PickledTarget):
            return target.name
        return target and (target, config.working_directory)  # the same command elsewhere is another program

    pairs = {name: (getattr(left, name), getattr(right, name)) for name in (*AMENDABLE, "isolation", "dispatcher")}
    pairs |= {
        name: (identity(getattr(left, name), left), identity(getattr(right, name), right))
        for name in ("target", "evaluate")
    }
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def all_differences(left: SweepConfig, right: SweepConfig) -> dict[str, tuple[Any, Any]]:
    """In what two sweeps differ at all, limits and seeds included: by field, the two values; for people to read.

    Names and folders of files, which always differ, do not count.
    """
    found = differences(left, right)
    own = {"name", "directory", "target", "evaluate", *found}
    pairs = {name: (getattr(left, name), getattr(right, name)) for name in SweepConfig.__struct_fields__}
    rest = {name: pair for name, pair in pairs.items() if name not in own and pair[0] != pair[1]}
    return {**found, **rest}


def describe_differences(found: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """A line for each difference, those of search spaces by parameter."""
    lines: list[str] = []
    for name, (old, new) in found.items():
        if isinstance(old, SearchSpace) and isinstance(new, SearchSpace):
            for parameter in dict.fromkeys([*old.parameters, *new.parameters]):
                before, after = old.parameters.get(parameter), new.parameters.get(parameter)
                if before != after:
                    lines.append(f"search_space.{parameter}: {before or 'absent'} -> {after or 'absent'}")
            # Conditions are drawn and grids walked in the order of the parameters.
            if not lines:
                lines.append("search_space: the order of its parameters")
        else:
            lines.append(f"{name}: {_shown(old)} -> {_shown(new)}")
    return lines


def _shown(value: Any) -> str:
    return msgspec.json.encode(value).decode() if isinstance(value, msgspec.Struct) else str(value)
