"""The search space: named parameters, their conditions, and the map to and from the unit cube.

A space is an ordered mapping of names to parameters. Nested mappings are flattened to dot paths
(`trainer.optimizer.lr`). A configuration is flat too, name to value; parameters whose conditions do not hold are absent
from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from metta.sweep.errors import SearchSpaceError, did_you_mean
from metta.sweep.model.parameters import (
    Choice,
    Constant,
    LogNormal,
    LogUniform,
    Normal,
    Parameter,
    ParameterBase,
    Range,
    Uniform,
)

if TYPE_CHECKING:
    from metta.sweep.model.lattice import Lattice

__all__ = [
    "Choice",
    "Config",
    "Constant",
    "LogNormal",
    "LogUniform",
    "Normal",
    "Parameter",
    "Range",
    "SearchSpace",
    "Uniform",
    "nest",
]

#: Names stand in tables and on command lines.
_LONGEST_NAME = 250
#: A configuration as the system holds it: parameter name (dot path) to JSON value.
Config: TypeAlias = dict[str, Any]


class SearchSpace(msgspec.Struct, frozen=True, dict=True):
    """An ordered set of parameters. Build it with `SearchSpace.of`; raises SearchSpaceError where it makes no sense."""

    parameters: dict[str, Parameter]

    @classmethod
    def of(cls, definition: Mapping[str, Any]) -> SearchSpace:
        """A space from parameters, nested mappings of them, and plain values, which become constants."""
        parameters: dict[str, Parameter] = {}
        for name, parameter in _flatten(definition):
            if name in parameters:
                raise SearchSpaceError(f"parameter {name!r} is defined twice, once by its dot path")
            parameters[name] = parameter
        return cls(parameters=parameters)

    def __post_init__(self) -> None:
        if not self.parameters:
            raise SearchSpaceError("search_space: needs at least one parameter, got none")
        self._check_names()
        for name, parameter in self.parameters.items():
            for parent_name, wanted in parameter.when.items():
                self._check_condition(name, parent_name, wanted)
        try:
            TopologicalSorter({name: parameter.when.keys() for name, parameter in self.parameters.items()}).prepare()
        except CycleError as error:
            raise SearchSpaceError(f"search_space: conditions form a circle: {' -> '.join(error.args[1])}") from None

    def _check_names(self) -> None:
        for name in self.parameters:
            parts = name.split(".")
            if not all(parts):
                raise SearchSpaceError(f"parameter {name!r}: a name is one or more words joined by single dots")
            if len(name) > _LONGEST_NAME:
                raise SearchSpaceError(
                    f"parameter {name[:40]!r}...: a name has at most {_LONGEST_NAME} characters, got {len(name)}"
                )
            for length in range(1, len(parts)):
                prefix = ".".join(parts[:length])
                if prefix in self.parameters:
                    raise SearchSpaceError(
                        f"parameter {name!r}: {prefix!r} is a parameter itself and cannot hold others"
                    )

    def _check_condition(self, name: str, parent_name: str, wanted: Any) -> None:
        parent = self.parameters.get(parent_name)
        if parent is None:
            raise SearchSpaceError(
                f"parameter {name!r}: its condition names {parent_name!r}; {did_you_mean(parent_name, self.parameters)}"
            )
        if parent.cardinality is None:
            raise SearchSpaceError(f"parameter {name!r}: its condition names {parent_name!r}, which is continuous")
        values = _alternatives(parent, wanted)
        if not values:
            raise SearchSpaceError(f"parameter {name!r}: its condition on {parent_name!r} lists no values")
        for value in values:
            if not parent.contains(value):
                raise SearchSpaceError(f"parameter {name!r}: {parent_name!r} is never {value!r}")

    @cached_property
    def dimensions(self) -> tuple[str, ...]:
        """Names of the parameters that the unit cube has an axis for: all but the constants."""
        return tuple(name for name, parameter in self.parameters.items() if not isinstance(parameter, Constant))

    @cached_property
    def resolution_order(self) -> tuple[str, ...]:
        """Names with every parameter after those that its conditions read; otherwise as declared."""
        order: list[str] = []
        placed: set[str] = set()
        while len(order) < len(self.parameters):
            for name, parameter in self.parameters.items():
                if name not in placed and placed.issuperset(parameter.when):
                    order.append(name)
                    placed.add(name)
        return tuple(order)

    @cached_property
    def cardinality(self) -> int | None:
        """Number of distinct configurations, or None when a parameter is continuous."""
        if any(parameter.cardinality is None for parameter in self.parameters.values()):
            return None
        return self.lattice.size

    @cached_property
    def lattice(self) -> Lattice:
        """All configurations of a finite space, by number."""
        from metta.sweep.model.lattice import Lattice

        return Lattice(self)

    @cached_property
    def conditions(self) -> dict[str, dict[str, frozenset[int | None]]]:
        """What each parameter's existence depends on: the numbers (`index_of`) of the values accepted, by parent.

        Numbers, because 1 and 1.0 are one value of a range and two of a choice.
        """
        return {
            name: {
                parent: frozenset(map(self.parameters[parent].index_of, _alternatives(self.parameters[parent], wanted)))
                for parent, wanted in parameter.when.items()
            }
            for name, parameter in self.parameters.items()
        }

    def is_active(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether a parameter exists, given the values of the parameters its conditions read."""
        return all(
            parent in values and self.parameters[parent].index_of(values[parent]) in accepted
            for parent, accepted in self.conditions[name].items()
        )

    def decode(self, units: Sequence[float]) -> Config:
        """The configuration at a point of the unit cube, whose axes are `dimensions`."""
        if len(units) != len(self.dimensions):
            raise SearchSpaceError(f"a point needs {len(self.dimensions)} coordinates, got {len(units)}")
        return self.completed({}, units)

    def completed(self, wanted: Mapping[str, Any], units: Sequence[float]) -> Config:
        """The configuration with these values, as far as their parameters exist in it; all else is as at the point."""
        place = dict(zip(self.dimensions, units, strict=True))
        values: Config = {}
        for name in self.resolution_order:
            if self.is_active(name, values):
                here = self.parameters[name].decode(place.get(name, 0.5))
                values[name] = wanted.get(name, here)
        return {name: values[name] for name in self.parameters if name in values}

    def encode(self, config: Mapping[str, Any]) -> list[float]:
        """The point of the unit cube that decodes to `config`; inactive axes stand at 0.5.

        Raises:
            SearchSpaceError: a parameter is missing, unknown, or outside its range.
        """
        self.check(config)
        return [self.parameters[name].encode(config[name]) if name in config else 0.5 for name in self.dimensions]

    def check(self, config: Mapping[str, Any]) -> None:
        """Raise SearchSpaceError unless `config` is a configuration of this space."""
        for name, value in config.items():
            if name not in self.parameters:
                raise SearchSpaceError(f"unknown parameter {name!r}; {did_you_mean(name, self.parameters)}")
            if not self.parameters[name].contains(value):
                raise SearchSpaceError(f"parameter {name!r}: {value!r} is outside {self.parameters[name]}")
        for name in self.parameters:
            if self.is_active(name, config) != (name in config):
                state = (
                    "is missing" if name not in config else f"does not exist where {self.parameters[name].when} fails"
                )
                raise SearchSpaceError(f"parameter {name!r} {state}")

    def key(self, config: Config) -> bytes:
        """Equal for equal configurations and for no others."""
        return msgspec.json.encode(config, order="deterministic")


def nest(config: Mapping[str, Any]) -> dict[str, Any]:
    """Dot paths as nested dictionaries: `{"a.b": 1}` becomes `{"a": {"b": 1}}`."""
    nested: dict[str, Any] = {}
    for name, value in config.items():
        *path, last = name.split(".")
        level = nested
        for part in path:
            level = level.setdefault(part, {})
        level[last] = value
    return nested


def _flatten(definition: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Parameter]]:
    for key, value in definition.items():
        if not isinstance(key, str):
            raise SearchSpaceError(f"parameter names are strings, got {key!r}")
        name = f"{prefix}{key}"
        if isinstance(value, ParameterBase):
            yield name, value  # type: ignore[misc]  # every subclass is in the union
        elif isinstance(value, Mapping):
            if not value:
                raise SearchSpaceError(f"parameter {name!r}: an empty mapping holds no parameters; use Constant({{}})")
            yield from _flatten(value, f"{name}.")
        else:
            try:
                yield name, Constant(value)
            except SearchSpaceError as error:
                raise SearchSpaceError(f"parameter {name!r}: {error}") from None


def _alternatives(parent: Parameter, wanted: Any) -> list[Any]:
    """The values a condition accepts: a list means any of them, unless the list itself is a value of the parent."""
    if isinstance(wanted, list) and not parent.contains(wanted):
        return wanted
    return [wanted]
