"""Commands as trials: parameters into arguments, metrics out of what the program writes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from metta.sweep.errors import ConfigError, MetricError, did_you_mean
from metta.sweep.model.metrics import checked
from metta.sweep.model.sweep import MetricsSource

#: `{name}` stands for a parameter, `{{` and `}}` for braces.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([A-Za-z_][\w.]*)\}")
#: An argument of its own: all active parameters as `--name=value`.
ALL_ARGUMENTS = "{args}"
#: Placeholders that every command may use besides the parameters.
RUN_PLACEHOLDERS = ("run_id", "run_directory")
#: Read at a time, so that a program that floods its log doesn't flood the agent.
_CHUNK_BYTES = 1 << 20


def check_placeholders(field: str, arguments: Iterable[str], names: Iterable[str]) -> None:
    """Raise ConfigError when an argument names something that is no parameter."""
    known = {*names, *RUN_PLACEHOLDERS}
    for argument in arguments:
        for match in _PLACEHOLDER.finditer(argument):
            name = match[1]
            if name is not None and name not in known and argument != ALL_ARGUMENTS:
                raise ConfigError(
                    f"{field}: {argument!r} names {name!r}, which is no parameter; write {{{{ and }}}} for braces; "
                    f"{did_you_mean(name, known)}"
                )


def arguments_for(
    argv: Iterable[str], config: Mapping[str, Any], run: Mapping[str, str], names: Iterable[str]
) -> list[str]:
    """The command line of one run.

    Args:
        argv: The command with placeholders.
        config: The run's configuration; an argument that names a parameter which is inactive in it is left out.
        run: Values of RUN_PLACEHOLDERS.
        names: All parameters of the space.
    """
    inactive = set(names) - config.keys()
    arguments: list[str] = []
    for argument in argv:
        if argument == ALL_ARGUMENTS:
            arguments += [f"--{name}={_text(value)}" for name, value in config.items()]
        elif not any(match[1] in inactive for match in _PLACEHOLDER.finditer(argument)):
            arguments.append(_fill(argument, {**config, **run}))
    return arguments


def _fill(argument: str, values: Mapping[str, Any]) -> str:
    return _PLACEHOLDER.sub(lambda match: _text(values[match[1]]) if match[1] else match[0][0], argument)


def _text(value: Any) -> str:
    """A value as a command line takes it: text as it is, everything else as JSON (`true`, `[64, 64]`)."""
    return value if isinstance(value, str) else json.dumps(value)


class MetricsTail:
    """Follows the files that a command writes and finds the metrics in what was added.

    Args:
        source: What to look for.
        log: The job's log (standard output and error).
        directory: The command's working folder.
        values: Configuration and run placeholders, for the name of a metrics file.
    """

    def __init__(self, source: MetricsSource, log: Path, directory: Path, values: Mapping[str, Any]) -> None:
        parse_json = source.stdout == "json" or (source.regex is None and source.file is None)
        self._pattern = re.compile(source.regex) if source.regex else None
        self._followed: list[_Followed] = []
        if parse_json or self._pattern is not None:
            self._followed.append(_Followed(log, parse_json, self._pattern))
        if source.file is not None:
            self._followed.append(_Followed(directory / _fill(source.file, values), True, None))

    def read(self, *, final: bool = False) -> Iterator[dict[str, float]]:
        """Metrics added since the last call; with `final`, also those of a last line without an end.

        Raises:
            MetricError: a line holds a metric that is no finite number.
        """
        for followed in self._followed:
            yield from followed.read(final=final)


class _Followed:
    def __init__(self, path: Path, parse_json: bool, pattern: re.Pattern[str] | None) -> None:
        self._path = path
        self._parse_json = parse_json
        self._pattern = pattern
        self._offset = 0
        self._rest = b""
        self._found = False

    def read(self, *, final: bool) -> Iterator[dict[str, float]]:
        while True:
            try:
                with self._path.open("rb") as stream:
                    stream.seek(self._offset)
                    chunk = stream.read(_CHUNK_BYTES)
            except FileNotFoundError:
                return
            self._offset += len(chunk)
            *lines, self._rest = (self._rest + chunk).split(b"\n")
            if final and len(chunk) < _CHUNK_BYTES:
                lines.append(self._rest)
                self._rest = b""
            for line in lines:
                if metrics := self._parse(line.decode(errors="replace").strip()):
                    self._found = True
                    yield metrics
            if not final or len(chunk) < _CHUNK_BYTES:
                break
        if final and not self._found and self._offset <= _CHUNK_BYTES:
            # One object over several lines, as `json.dump(..., indent=2)` writes it.
            yield from filter(None, [self._parse(self._path.read_text(errors="replace").strip())])

    def _parse(self, line: str) -> dict[str, float] | None:
        if self._parse_json and line.startswith("{"):
            try:
                found = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                return None  # a program may print braces that are no JSON
            return _numbers(found) if isinstance(found, dict) else None
        if self._pattern is not None:
            return self._match(line)
        return None

    def _match(self, line: str) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for match in self._pattern.finditer(line) if self._pattern else ():
            pairs = match.groupdict() or {match[1]: match[2]}
            metrics |= {name: _number(name, text) for name, text in pairs.items() if text is not None}
        return checked(metrics)


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    """The numeric entries of a JSON object; programs print names and notes among their metrics."""
    numeric = {
        name: value for name, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return checked(numeric)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MetricError(f"metric {name!r} must be a number, the command printed {text!r}") from None
