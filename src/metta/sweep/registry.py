"""Optimizers, schedulers and dispatchers by name, found through entry points.

A package adds one by declaring it in its own `pyproject.toml`:

    [project.entry-points."metta.sweep.optimizers"]
    my_search = "my_package:MyOptimizer"

Built-ins are registered in the same way, so nothing here knows them. Optimizers and schedulers are called with their
options, dispatchers with `(store, sweep_id, config, clock, **options)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, cast

from metta.sweep.errors import ConfigError, did_you_mean
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Clock, Dispatcher, Optimizer, Scheduler, Store

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

Room = Literal["optimizers", "schedulers", "dispatchers"]

#: What every optimizer and every scheduler has.
_METHODS: dict[Room, tuple[str, ...]] = {"optimizers": ("check", "suggest"), "schedulers": ("check", "schedule")}
#: What every dispatcher is called with, beside its options.
_DISPATCHER_CONTEXT = ("store", "sweep_id", "config", "clock")


@cache
def _entries(room: Room) -> dict[str, EntryPoint]:
    from importlib.metadata import entry_points  # a script that only decorates a function does not need it

    return {entry.name: entry for entry in entry_points(group=f"metta.sweep.{room}")}


def names(room: Room) -> list[str]:
    """All registered names of a kind, sorted."""
    return sorted(_entries(room))


def _load(room: Room, field: str, name: str) -> Any:
    entry = _entries(room).get(name)
    if entry is None:
        raise ConfigError(f"{field}: there is no {room[:-1]} {name!r}; {did_you_mean(name, names(room))}")
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{field}: {name} cannot be loaded from {entry.value!r}: {error}") from error


def _build(room: Room, field: str, name: str, options: Mapping[str, Any]) -> object:
    part = _load(room, field, name)
    try:
        built = cast(object, part(**options))
    except TypeError as error:
        raise _wrong_options(field, name, part, options, error) from error
    if missing := [method for method in _METHODS[room] if not callable(getattr(built, method, None))]:
        raise ConfigError(
            f"{field}: {name} is no {room[:-1]}, since {_entries(room)[name].value} has no method {missing[0]!r}; "
            f"it may be made for another version: docs/extending.md says what one has"
        )
    return built


def _wrong_options(field: str, name: str, part: Any, options: Mapping[str, Any], error: TypeError) -> ConfigError:
    known, takes_any = _options_of(part)
    unknown = [option for option in options if option not in known]
    why = str(error)
    if unknown and not takes_any:
        why = f"there is no {unknown[0]!r}; " + (did_you_mean(unknown[0], known) if known else "it has no options")
    return ConfigError(f"{field}: {name} does not take these options {dict(options)!r}: {why}")


def _options_of(part: Any) -> tuple[list[str], bool]:
    """Names of the options that a part takes, in order, and whether it takes others as well."""
    from inspect import Parameter, signature  # a script that only decorates a function does not need it

    parameters = signature(part).parameters.values()
    named = [each.name for each in parameters if each.kind in {Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY}]
    takes_any = any(each.kind is Parameter.VAR_KEYWORD for each in parameters)
    return [option for option in named if option not in _DISPATCHER_CONTEXT], takes_any


def optimizer(name: str, options: Mapping[str, Any]) -> Optimizer:
    """The optimizer of that name; raises ConfigError when there is none or it refuses the options."""
    return cast(Optimizer, _build("optimizers", "strategy", name, options))


def first_option(name: str) -> str:
    """The option that an optimizer takes first; raises ConfigError when there is no such optimizer, or it has none."""
    named, _ = _options_of(_load("optimizers", "strategy", name))
    if not named:
        raise ConfigError(f"strategy: {name} has no options; leave the colon out, and what follows it")
    return named[0]


def scheduler(name: str, options: Mapping[str, Any]) -> Scheduler:
    """The scheduler of that name; raises ConfigError when there is none or it refuses the options."""
    return cast(Scheduler, _build("schedulers", "strategy", name, options))


def check_dispatcher(field: str, name: str, options: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming the field, when there is no such dispatcher or it has no such options.

    It is not made, because only where there is a sweep it can be.
    """
    _load_dispatcher(field, name, options)


def dispatcher(
    field: str,
    name: str,
    options: Mapping[str, Any],
    *,
    store: Store,
    sweep_id: str,
    config: SweepConfig,
    clock: Clock,
) -> Dispatcher:
    """The dispatcher of that name, for a sweep.

    Raises:
        ConfigError: there is none, or it refuses the options; names the field.
        DispatchError: it cannot be had here.
    """
    part = _load_dispatcher(field, name, options)
    return cast(Dispatcher, part(store, sweep_id, config, clock, **options))


def _load_dispatcher(field: str, name: str, options: Mapping[str, Any]) -> Any:
    from inspect import signature  # as above

    part = _load("dispatchers", field, name)
    try:
        signature(part).bind(*_DISPATCHER_CONTEXT, **options)
    except TypeError as error:
        raise _wrong_options(field, name, part, options, error) from error
    return part
