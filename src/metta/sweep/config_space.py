"""Search spaces as users write them in Python and in files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metta.sweep.errors import FieldError, SearchSpaceError, did_you_mean
from metta.sweep.model.parameters import ParameterBase
from metta.sweep.model.space import (
    Choice,
    Constant,
    LogNormal,
    LogUniform,
    Normal,
    Parameter,
    Range,
    SearchSpace,
    Uniform,
)

#: Kinds of parameters as files name them.
KINDS: dict[str, type[ParameterBase]] = {
    "uniform": Uniform,
    "log_uniform": LogUniform,
    "range": Range,
    "choice": Choice,
    "normal": Normal,
    "log_normal": LogNormal,
    "constant": Constant,
}


def parse_space(definition: Mapping[str, Any]) -> SearchSpace:
    """A search space from parameters and from the forms that files use, such as `{log_uniform: [1e-4, 1e-1]}`.

    Raises:
        FieldError: a parameter is not valid.
    """
    try:
        return SearchSpace.of(_parse_level(definition, ()))
    except SearchSpaceError as error:
        raise FieldError(("search_space",), str(error)) from error


def _parse_level(definition: Mapping[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    level: dict[str, Any] = {}
    for name, value in definition.items():
        here = (*path, str(name))
        if not isinstance(name, str):
            raise FieldError(("search_space", *here), f"names are strings, got {name!r}; put it in quotes")
        if not isinstance(value, Mapping):
            level[name] = value
        elif kinds := value.keys() & KINDS.keys():
            level[name] = _parse_parameter(here, kinds, value)
        elif (kind := _misspelt_kind(value)) is not None:
            problem = f"unknown kind of parameter {kind!r}; {did_you_mean(kind, KINDS)}"
            raise FieldError(("search_space", *here), problem)
        else:
            level[name] = _parse_level(value, here)
    return level


def _misspelt_kind(value: Mapping[Any, Any]) -> str | None:
    """What stands where a parameter's kind should, or None for a group of parameters.

    A mapping is meant as a parameter when it maps one name to a list, or has what only stands beside a kind: `when`,
    a number of `step`, a `log` that is true or false.
    """
    rest = {str(name): item for name, item in value.items() if name not in {"when", "step", "log"}}
    options = [name for name in ("step", "log") if name in value and not isinstance(value[name], Mapping)]
    is_one_list = len(rest) == 1 and all(isinstance(item, list) for item in rest.values())
    return next(iter(rest), "") if "when" in value or options or is_one_list else None


def _parse_parameter(path: tuple[str, ...], kinds: set[str], value: Mapping[str, Any]) -> Parameter:
    field = ("search_space", *path)
    if len(kinds) > 1:
        raise FieldError(field, f"is of one kind, got {' and '.join(sorted(kinds))}")
    [kind] = kinds
    arguments = value[kind]
    options = {name: option for name, option in value.items() if name != kind}
    allowed = {"when", "step", "log"} if kind == "range" else {"when"}
    for name in options:
        if name not in allowed:
            raise FieldError(field, f"unknown key {name!r} beside {kind}; {did_you_mean(name, allowed)}")
    if kind in {"choice", "constant"}:
        arguments = [arguments]
    elif not isinstance(arguments, list) or len(arguments) != 2:
        raise FieldError(field, f"{kind} takes a list of two numbers, got {arguments!r}")
    try:
        return KINDS[kind](*arguments, **options)  # type: ignore[return-value]  # every kind is in the union
    except SearchSpaceError as error:
        raise FieldError(field, str(error)) from error
