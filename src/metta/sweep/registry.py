"""Optimizers, schedulers and dispatchers by name, found through entry points.

A package adds one by declaring it in its own `pyproject.toml`:

    [project.entry-points."metta.sweep.optimizers"]
    my_search = "my_package:MyOptimizer"

Built-ins are registered in the same way, so nothing here knows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

from metta.sweep.errors import ConfigError, did_you_mean
from metta.sweep.protocols import Optimizer, Scheduler

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Room = Literal["optimizers", "schedulers", "dispatchers"]


@cache
def _entries(room: Room) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # a script that only decorates a function does not need it

    return {entry.name: entry for entry in entry_points(group=f"metta.sweep.{room}")}


def names(room: Room) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted(_entries(room))


def _build(room: Room, field: str, name: str, options: Mapping[str, Any]) -> object:
    entry = _entries(room).get(name)
    if entry is None:
        raise ConfigError(f"{field}: there is no {room[:-1]} {name!r}; {did_you_mean(name, names(room))}")
    try:
        part = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{field}: {name} cannot be loaded from {entry.value!r}: {error}") from error
    try:
        return cast(object, part(**options))
    except TypeError as error:
        raise ConfigError(f"{field}: {name} does not take these options {dict(options)!r}: {error}") from error


def optimizer(name: str, options: Mapping[str, Any]) -> Optimizer:
    """The optimizer of that name; raises ConfigError when there is none or it refuses the options."""
    return cast(Optimizer, _build("optimizers", "strategy", name, options))


def scheduler(name: str, options: Mapping[str, Any]) -> Scheduler:
    """The scheduler of that name; raises ConfigError when there is none or it refuses the options."""
    return cast(Scheduler, _build("schedulers", "strategy", name, options))
