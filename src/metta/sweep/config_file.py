"""Sweeps in YAML and TOML files, with the line of every mistake, and their JSON Schema for editors."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import msgspec
import yaml
from msgspec.structs import replace

from metta.sweep.config import SweepFile, check_metrics, parse_command, parse_notify, parse_settings
from metta.sweep.config_defaults.inference import infer_from_file
from metta.sweep.config_space import KINDS, parse_space
from metta.sweep.errors import ConfigError, FieldError

SUFFIXES = {".yaml", ".yml", ".toml"}


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2: in the 1.1 of the base class `1e-4` is a string, `16:9` the integer 969, `on` is true."""


_SCALARS = {
    "tag:yaml.org,2002:bool": r"(true|True|TRUE|false|False|FALSE)$",
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9]\d*)$|0o[0-7]+$|0x[0-9a-fA-F]+$",
    "tag:yaml.org,2002:float": (
        r"[-+]?((\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]?\d+)$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _SCALARS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789tTfF"))


class _Dumper(yaml.SafeDumper):
    """Quotes whatever this loader, or one of YAML 1.1, would not read as the text that it is."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {
    first: [*yaml.SafeDumper.yaml_implicit_resolvers.get(first, []), *_Loader.yaml_implicit_resolvers.get(first, [])]
    for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
}


def dump(values: Mapping[str, Any] | Sequence[Any]) -> str:
    """YAML that `load` reads as these values."""
    # Lists in a line, as people write them; keys in the order in which they come.
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


class Loaded(NamedTuple):
    """A sweep's file."""

    settings: SweepFile
    #: Whether the metric was found in the code, because the file names none.
    metric_is_inferred: bool


def load(path: Path) -> SweepFile:
    """As `load_with_origin`, of which it is the first part."""
    return load_with_origin(path).settings


def load_with_origin(path: Path) -> Loaded:
    """Read a sweep's file.

    Raises:
        ConfigError: the file is missing, is not YAML or TOML, or a field in it is not valid; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    values, lines = _parse_toml(path, text) if path.suffix == ".toml" else _parse_yaml(path, text)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a sweep is a mapping of keys to values, got {type(values).__name__}")
    is_inferred = values.get("metric") is None
    try:
        settings = cast(SweepFile, parse_settings({**values, "metric": "?"} if is_inferred else values, SweepFile))
        parse_space(settings.search_space)
        if (settings.command is None) == (settings.function is None):
            raise FieldError(("command",), "give either command or function, and not both")
        if settings.command is not None:
            parse_command("command", settings.command)
        if settings.evaluate is not None:
            parse_command("evaluate", settings.evaluate)
        check_metrics(settings.metrics)
        parse_notify(settings.notify)
        if is_inferred:
            said = settings.direction if "direction" in values else None
            settings = replace(settings, **infer_from_file(settings, path.absolute().parent, said)._asdict())
    except FieldError as error:
        raise ConfigError(f"{_place(path, error.path, lines)}: {error}") from error
    return Loaded(settings, is_inferred)


def _place(path: Path, field: tuple[str, ...], lines: Mapping[tuple[str, ...], int]) -> str:
    """`file:line` of the innermost part of the field that the file has."""
    for length in range(len(field), 0, -1):
        if (line := lines.get(field[:length])) is not None:
            return f"{path}:{line}"
    return str(path)


def _parse_yaml(path: Path, text: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    try:
        root = yaml.compose(text, Loader=_Loader)
        _refuse_circles(root, (), set())
        values = yaml.load(text, Loader=_Loader)  # noqa: S506 (it is a SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ConfigError(f"{path}{line}: is not valid YAML: {problem}") from error
    except RecursionError as error:
        raise ConfigError(f"{path}: is nested too deeply; a sweep's settings have a few levels") from error
    lines: dict[tuple[str, ...], int] = {}
    for field, line_number in _lines_of(root, (), set()):
        if field in lines:
            raise ConfigError(f"{path}:{line_number}: {'.'.join(field)}: is given twice, first in line {lines[field]}")
        lines[field] = line_number
    return values, lines


def _refuse_circles(node: yaml.Node | None, around: tuple[yaml.Node, ...], known: set[yaml.Node]) -> None:
    """Raise an error for a value that an alias puts within itself; `known` are nodes in which there is none."""
    if node in around:
        problem = "an alias stands within the value that it names; write the value out"
        raise yaml.constructor.ConstructorError(problem=problem, problem_mark=around[-1].start_mark)
    if not isinstance(node, yaml.CollectionNode) or node in known:
        return
    for child in node.value:
        for part in child if isinstance(node, yaml.MappingNode) else (child,):
            _refuse_circles(part, (*around, node), known)
    known.add(node)


def _lines_of(
    node: yaml.Node | None, path: tuple[str, ...], seen: set[yaml.Node]
) -> Iterator[tuple[tuple[str, ...], int]]:
    # Where a value stands a second time, by an alias, its fields have the line of the alias.
    if isinstance(node, yaml.MappingNode) and node not in seen:
        seen.add(node)
        for key, value in node.value:
            here = (*path, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _lines_of(value, here, seen)


def _parse_toml(path: Path, text: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error
    # The standard parser keeps no positions; the first line that assigns a key, or opens its table, is where to look.
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if match := re.match(r"\s*(\[?)\s*([\w.-]+)\s*[\]=]", line):
            path_in_table = tuple(match[2].split("."))
            table = path_in_table if match[1] else table
            lines.setdefault(table if match[1] else (*table, *path_in_table), number)
    return values, lines


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of a sweep's file."""
    [reference], definitions = msgspec.json.schema_components([SweepFile], ref_template="#/$defs/{name}")
    definitions["SweepFile"]["required"].remove("metric")  # it may be found in the code
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
    # The same rule as `config_space._misspelt_kind`: what looks like a parameter is no group of parameters.
    group = {
        "allOf": [{"$ref": "#/$defs/SearchSpace"}],
        "propertyNames": {"not": {"enum": [*KINDS, "when"]}},
        "properties": {"step": {"type": "object"}, "log": {"type": "object"}},
        "not": {"maxProperties": 1, "additionalProperties": {"type": "array"}},
    }
    entry = {"anyOf": [{"$ref": "#/$defs/Parameter"}, {"$ref": "#/$defs/Group"}, {"not": {"type": "object"}}]}
    space = {"type": "object", "additionalProperties": entry, "minProperties": 1}
    return {"Parameter": parameter, "Group": group, "SearchSpace": space}
