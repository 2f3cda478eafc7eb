"""The metric of a sweep whose author named none: from the code where that leaves no doubt, else asked for."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any, NamedTuple

from metta.sweep.config import SweepFile, parse_command
from metta.sweep.config_defaults.metrics import Candidate, Source, candidates, direction_of
from metta.sweep.errors import FieldError
from metta.sweep.model.sweep import Direction

#: What a sweep sees of a function; and of a command, unless its output is searched by a pattern or it writes a file.
_OF_FUNCTION = frozenset({Source.REPORTED, Source.RETURNED})
_OF_COMMAND = frozenset({Source.REPORTED, Source.WRITTEN})
_OF_PATTERN = frozenset({Source.REPORTED, Source.PRINTED})


class Inferred(NamedTuple):
    """What was found."""

    metric: str
    direction: Direction


def infer_from_function(function: Callable[..., Any], direction: Direction | None) -> Inferred:
    """The metric that a function reports or returns; `direction` is what its author said, if anything.

    Raises:
        FieldError: none is found, or there is a doubt.
    """
    try:
        code = dedent(inspect.getsource(function))
    except (OSError, TypeError):  # typed into an interpreter, say
        code = ""
    return _only(_candidates(code), _OF_FUNCTION, direction)


def infer_from_file(file: SweepFile, folder: Path, direction: Direction | None) -> Inferred:
    """The metric of what a sweep file runs, or of its evaluation where it has one; nothing is imported or executed.

    Args:
        file: What it says.
        folder: Where it is.
        direction: As `infer_from_function`.

    Raises:
        FieldError: none is found, or there is a doubt.
    """
    if file.evaluate is None:
        function, command = file.function, file.command
    elif isinstance(file.evaluate, str) and ":" in file.evaluate and " " not in file.evaluate:
        function, command = file.evaluate, None
    else:
        function, command = None, file.evaluate
    if function is not None:
        return _only(_candidates(_code_of_function(function, folder)), _OF_FUNCTION, direction)
    pattern = file.metrics.regex
    if pattern is not None and (names := list(re.compile(pattern).groupindex)):
        found = [Candidate(name=name, source=Source.PRINTED, direction=direction_of(name), line=0) for name in names]
        return _only(found, _OF_PATTERN, direction)
    code = "" if command is None else _code_of_command(command, folder)
    return _only(_candidates(code), _OF_COMMAND if pattern is None else _OF_PATTERN, direction)


def _candidates(code: str) -> list[Candidate]:
    try:
        return candidates(code)
    except (SyntaxError, ValueError, RecursionError):
        return []


def _only(found: list[Candidate], visible: frozenset[Source], direction: Direction | None) -> Inferred:
    seen = [candidate for candidate in found if candidate.source in visible]
    if not seen:
        raise FieldError(("metric",), "is missing; every sweep needs one")
    split = min(candidate.split for candidate in seen)
    likely = [candidate for candidate in seen if candidate.split is split]
    # Beside an accuracy, something of which nobody knows whether it is good is no rival.
    likely = [candidate for candidate in likely if candidate.direction is not None] or likely
    if len(likely) > 1:
        names = ", ".join(repr(candidate.name) for candidate in likely)
        raise FieldError(("metric",), f"is missing; the code has several that it could be, name one: {names}")
    [only] = likely
    best = direction or only.direction
    if best is None:
        raise FieldError(
            ("metric",), f"is missing; if it is {only.name!r}, found in the code, say so, and its direction"
        )
    return Inferred(only.name, best)


def _code_of_function(address: str, folder: Path) -> str:
    """The text of `file.py:function` or `package.module:function`; nothing where it is not found in the folder."""
    where, _, name = address.partition(":")
    path = folder / (where if where.endswith(".py") else where.replace(".", "/") + ".py")
    code = _text(path)
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return ast.get_source_segment(code, node) or ""
    return ""


def _code_of_command(command: list[str] | str, folder: Path) -> str:
    """The text of the script that a command names."""
    scripts = (folder / word for word in parse_command("command", command) if word.endswith(".py"))
    return next((_text(script) for script in scripts if script.is_file()), "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
