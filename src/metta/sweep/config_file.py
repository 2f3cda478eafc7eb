"""Sweeps in YAML and TOML files, with the line of every mistake, and their JSON Schema for editors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml

from metta.sweep.config import FieldError, SweepFile, parse_settings, parse_space
from metta.sweep.errors import ConfigError

SUFFIXES = {".yaml", ".yml", ".toml"}


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: in the 1.1 of the base class `1e-4` is a string."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def load(path: Path) -> SweepFile:
    """Read a sweep's file.

    Raises:
        ConfigError: the file is missing, is not YAML or TOML, or a field in it is not valid; names the line.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    values, lines = _parse_toml(path, text) if path.suffix == ".toml" else _parse_yaml(path, text)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a sweep is a mapping of keys to values, got {type(values).__name__}")
    try:
        settings = cast(SweepFile, parse_settings(values, SweepFile))
        parse_space(settings.search_space)
        if (settings.command is None) == (settings.function is None):
            raise FieldError(("command",), "give either command or function, and not both")
    except FieldError as error:
        raise ConfigError(f"{_place(path, error.path, lines)}: {error}") from error
    return settings


def _place(path: Path, field: tuple[str, ...], lines: Mapping[tuple[str, ...], int]) -> str:
    """`file:line` of the innermost part of the field that the file has."""
    for length in range(len(field), 0, -1):
        if (line := lines.get(field[:length])) is not None:
            return f"{path}:{line}"
    return str(path)


def _parse_yaml(path: Path, text: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    try:
        root = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 (it is a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: is not valid YAML: {getattr(error, 'problem', error)}") from error
    lines: dict[tuple[str, ...], int] = {}
    _collect_lines(root, (), lines)
    return values, lines


def _collect_lines(node: yaml.Node | None, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, str(key.value))
            lines[here] = key.start_mark.line + 1
            _collect_lines(value, here, lines)


def _parse_toml(path: Path, text: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error
    # The standard parser keeps no positions; the first line that assigns a key, or opens its table, is where to look.
    lines: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.match(r"\s*\[?\s*([\w.-]+)\s*[\]=]", line):
            lines.setdefault(tuple(match[1].split(".")), number)
    return values, lines


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a sweep's file."""
    [reference], definitions = msgspec.json.schema_components([SweepFile], ref_template="#/$defs/{name}")
    definitions["SweepFile"]["properties"]["search_space"] = {"$ref": "#/$defs/SearchSpace"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "metta.sweep sweep file",
        **reference,
        "$defs": {**definitions, **_space_schema()},
    }


def _space_schema() -> dict[str, Any]:
    bounds = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
    when = {"when": {"type": "object", "description": "Exists only where other parameters have these values."}}

    def kind(name: str, value: dict[str, Any], extra: dict[str, Any] | None = None) -> dict[str, Any]:
        properties = {name: value, **(extra or {}), **when}
        return {"type": "object", "properties": properties, "required": [name], "additionalProperties": False}

    step = {"step": {"type": "number", "exclusiveMinimum": 0}, "log": {"type": "boolean"}}
    parameter = {
        "oneOf": [
            kind("uniform", bounds),
            kind("log_uniform", bounds),
            kind("range", bounds, step),
            kind("choice", {"type": "array", "minItems": 1}),
            kind("normal", bounds),
            kind("log_normal", bounds),
            kind("constant", {}),
        ]
    }
    entry = {"anyOf": [{"$ref": "#/$defs/Parameter"}, {"$ref": "#/$defs/SearchSpace"}, {"not": {"type": "object"}}]}
    space = {"type": "object", "additionalProperties": entry, "minProperties": 1}
    return {"Parameter": parameter, "SearchSpace": space}
