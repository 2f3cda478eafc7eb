"""Commands as trials: parameters into arguments, metrics out of what the program writes."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from metta.sweep.errors import ConfigError, MetricError, did_you_mean
from metta.sweep.model.metrics import checked
from metta.sweep.model.space import SearchSpace
from metta.sweep.model.sweep import MetricsSource

#: `{name}` stands for a parameter, `{{` and `}}` for braces.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^\W\d][\w.-]*)\}")
#: An argument of its own: all active parameters as `--name=value`.
ALL_ARGUMENTS = "{args}"
#: Placeholders that every command may use besides the parameters.
RUN_PLACEHOLDERS = ("run_id", "run_directory")
#: The path of what to go on from; not every attempt has it. A parameter may have this name too, and is meant then.
CHECKPOINT_PLACEHOLDER = "checkpoint"
#: Read at a time, so that a program that floods its log doesn't flood the agent.
_CHUNK_BYTES = 1 << 20
#: A line that is longer tells no metrics.
_LONGEST_LINE = 1 << 20


def check_placeholders(field: str, arguments: Sequence[str], space: SearchSpace) -> None:
    """Raise ConfigError when an argument names something that is no parameter, or would leave its flag behind."""
    known = {*space.parameters, *RUN_PLACEHOLDERS, CHECKPOINT_PLACEHOLDER}
    for flag, argument in pairwise(["", *arguments]):
        for match in _PLACEHOLDER.finditer(argument):
            name = match[1]
            if name is not None and name not in known and argument != ALL_ARGUMENTS:
                raise ConfigError(
                    f"{field}: {argument!r} names {name!r}, which is no parameter; write {{{{ and }}}} for braces; "
                    f"{did_you_mean(name, known)}"
                )
            may_be_missing = name == CHECKPOINT_PLACEHOLDER
            if name in space.parameters:
                may_be_missing = bool(space.parameters[name].when)
            if may_be_missing and argument == match[0] and flag.startswith("-") and "=" not in flag:
                raise ConfigError(
                    f"{field}: {argument!r} is left out where {name!r} does not exist, and {flag!r} would stay behind; "
                    f"write both as one argument: {flag + '=' + argument!r}"
                )


def check_metrics_file(file: str, space: SearchSpace, *, is_shared: bool) -> None:
    """Raise ConfigError when not every run would have a metrics file of its own, by a name that it can tell.

    Args:
        file: The name, with placeholders.
        space: The parameters.
        is_shared: Whether several jobs run at a time.
    """
    field = "metrics.file"
    check_placeholders(field, [file], space)
    named = {match[1] for match in _PLACEHOLDER.finditer(file) if match[1]}
    if CHECKPOINT_PLACEHOLDER in named - space.parameters.keys():
        raise ConfigError(f"{field}: {file!r} names {CHECKPOINT_PLACEHOLDER!r}, which not every attempt has")
    for name in named & space.parameters.keys():
        if space.parameters[name].when:
            raise ConfigError(f"{field}: {file!r} names {name!r}, a parameter that not every run has")
    if is_shared and not named.intersection(RUN_PLACEHOLDERS):
        raise ConfigError(
            f"{field}: {file!r} is one file for runs that go on at the same time; "
            "put {run_id} or {run_directory} into its name, or set max_parallel to 1"
        )


def arguments_for(
    argv: Iterable[str], config: Mapping[str, Any], run: Mapping[str, str], names: Iterable[str]
) -> list[str]:
    """The command line of one run.

    Args:
        argv: The command with placeholders.
        config: The run's configuration; an argument that names a parameter which is inactive in it is left out.
        run: Values of RUN_PLACEHOLDERS, and of CHECKPOINT_PLACEHOLDER; without it, arguments that name it are left out.
        names: All parameters of the space.
    """
    run = {name: value for name, value in run.items() if name != CHECKPOINT_PLACEHOLDER or name not in names}
    missing = {*names, CHECKPOINT_PLACEHOLDER} - {*config, *run}
    arguments: list[str] = []
    for argument in argv:
        if argument == ALL_ARGUMENTS:
            arguments += [f"--{name}={_text(value)}" for name, value in config.items()]
        elif not any(match[1] in missing for match in _PLACEHOLDER.finditer(argument)):
            arguments.append(_fill(argument, {**config, **run}))
    return arguments


def _fill(argument: str, values: Mapping[str, Any]) -> str:
    return _PLACEHOLDER.sub(lambda match: _text(values[match[1]]) if match[1] else match[0][0], argument)


def _text(value: Any) -> str:
    """A value as a command line takes it: text as it is, everything else as JSON (`true`, `[64, 64]`)."""
    return value if isinstance(value, str) else json.dumps(value)


class MetricsTail:
    """Follows the files that a command writes and finds the metrics in what was added.

    Make it before the command starts: what a metrics file holds by then is not the command's.

    Args:
        source: What to look for.
        log: The job's log (standard output and error).
        directory: The command's working folder.
        values: Configuration and run placeholders, for the name of a metrics file.
    """

    def __init__(self, source: MetricsSource, log: Path, directory: Path, values: Mapping[str, Any]) -> None:
        parse_json = source.stdout == "json" or (source.regex is None and source.file is None)
        pattern = re.compile(source.regex) if source.regex else None
        self._followed: list[_Followed] = []
        if parse_json or pattern is not None:
            self._followed.append(_Followed(log, parse_json, pattern))
        if source.file is not None:
            self._followed.append(_Followed(directory / _fill(source.file, values), True, None))

    @property
    def behind(self) -> int:
        """How many calls of `read` what is there by now would take, beyond the one with `final`."""
        return max((followed.behind for followed in self._followed), default=0)

    def read(self, *, final: bool = False) -> Iterator[dict[str, float]]:
        """Metrics added since the last call, of one chunk at most; with `final` all, and of a last line without an end.

        Raises:
            MetricError: a line holds a metric that is no finite number, or the metrics file cannot be read.
        """
        for followed in self._followed:
            yield from followed.read(final=final)


class _Followed:
    def __init__(self, path: Path, parse_json: bool, pattern: re.Pattern[str] | None) -> None:
        self._path = path
        self._parse_json = parse_json
        self._pattern = pattern
        before = self._stat()
        #: Which file, its length and when it was written, as of before the command started.
        self._before = _signature(before)
        self._inode = before.st_ino if before else None
        self._offset = before.st_size if before else 0
        self._rest = b""
        self._is_too_long = False
        self._last: dict[str, float] = {}

    @property
    def behind(self) -> int:
        """See `MetricsTail.behind`."""
        try:
            return (self._path.stat().st_size - self._offset) // _CHUNK_BYTES
        except (OSError, ValueError):
            return 0  # reading it tells

    def read(self, *, final: bool) -> Iterator[dict[str, float]]:
        stat = self._stat()
        if stat is None or _signature(stat) == self._before:
            return
        if stat.st_size < self._offset or stat.st_ino != self._inode:
            # Written anew rather than added to.
            self._inode, self._offset, self._rest = stat.st_ino, 0, b""
        while True:
            chunk = self._read(self._offset, _CHUNK_BYTES)
            self._offset += len(chunk)
            for line in self._lines(chunk):
                yield from self._found(line)
            if not final or len(chunk) < _CHUNK_BYTES:
                break
        if final:
            yield from self._read_end()

    def _lines(self, chunk: bytes) -> list[bytes]:
        *lines, rest = (self._rest + chunk).split(b"\n")
        if self._is_too_long:
            if not lines:
                return []
            lines[0], self._is_too_long = b"", False
        if len(rest) > _LONGEST_LINE:
            # Of a progress bar all but the last state is done with; of anything else nothing is of use.
            before, bar, after = rest.rpartition(b"\r")
            lines.append(before)
            rest = bar + after
            if len(rest) > _LONGEST_LINE or not bar:
                rest, self._is_too_long = b"", True
        self._rest = rest
        return lines

    def _read_end(self) -> Iterator[dict[str, float]]:
        """What is left at the end: a line without a newline, or a file that is one JSON object.

        Such an object may have several lines, as `json.dump(..., indent=2)` writes them, and may have been written over
        an earlier one of the same length.
        """
        whole = self._read(0, _CHUNK_BYTES) if self._parse_json and self._offset <= _CHUNK_BYTES else b""
        if metrics := _parse_object(whole.decode(errors="replace").strip()):
            if metrics != self._last:
                yield metrics
        else:
            yield from self._found(self._rest)

    def _stat(self) -> os.stat_result | None:
        try:
            return self._path.stat()
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def _read(self, start: int, size: int) -> bytes:
        try:
            with self._path.open("rb") as stream:
                stream.seek(start)
                return stream.read(size)
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> MetricError:
        return MetricError(f"metrics cannot be read from {self._path}: {getattr(error, 'strerror', None) or error}")

    def _found(self, line: bytes) -> Iterator[dict[str, float]]:
        if self._pattern is None and b"{" not in line:
            return
        if metrics := self._parse(line.decode(errors="replace").rstrip()):
            self._last = metrics
            yield metrics

    def _parse(self, line: str) -> dict[str, float] | None:
        if self._parse_json:
            *bars, text = line.split("\r")
            # A progress bar on standard error has no end of line: what is printed next stands behind it.
            found = _parse_object(text[text.find("{") :] if bars else text.lstrip())
            if found is not None:
                return found
        return self._match(line) if self._pattern is not None else None

    def _match(self, line: str) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for match in self._pattern.finditer(line) if self._pattern else ():
            pairs = match.groupdict() or {match[1]: match[2]}
            metrics |= {name: _number(name, text) for name, text in pairs.items() if text is not None}
        return checked(metrics)


def _signature(stat: os.stat_result | None) -> tuple[int, int, int] | None:
    return (stat.st_ino, stat.st_size, stat.st_mtime_ns) if stat else None


def _parse_object(text: str) -> dict[str, float] | None:
    """The numbers of a JSON object; None when the text is something else. Programs print other braces too."""
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return _numbers(found) if isinstance(found, dict) else None


def _numbers(found: dict[str, Any]) -> dict[str, float]:
    """The numeric entries of a JSON object; programs print names and notes among their metrics."""
    numeric = {
        name: value for name, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for name in numeric:
        if not _is_text(name):
            raise MetricError(f"metric names must be text, got {name!r}")
    return checked(numeric)


def _is_text(name: str) -> bool:
    """Whether a name can be written to the log; JSON has escapes for halves of characters."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise MetricError(f"metric {name!r} must be a number, the command printed {text!r}") from None
