"""TARGET of `metta sweep run`: files, functions and sweep files as definitions of sweeps."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

from metta.sweep.agent.targets import import_file, import_target_module
from metta.sweep.api import Sweep
from metta.sweep.config import Settings, SweepFile, parse_command, parse_settings
from metta.sweep.config_file import SUFFIXES, load_with_origin
from metta.sweep.errors import SweepError, TargetError, did_you_mean
from metta.sweep.launch import Definition
from metta.sweep.model.sweep import CommandTarget


def load_definition(target: str, overrides: dict[str, Any]) -> Definition:
    """The sweep that TARGET names, with options from the command line instead of its own.

    Raises:
        UsageError: it names nothing that can be swept.
    """
    if Path(target).suffix in SUFFIXES:
        return _from_file(Path(target), overrides)
    where, _, name = target.partition(":")
    module = _import(where, Path.cwd())
    return _find_sweep(module, where, name or None).definition(overrides)


def _from_file(path: Path, overrides: dict[str, Any]) -> Definition:
    file, metric_is_inferred = load_with_origin(path)
    folder = path.absolute().parent
    settings = _with_overrides(file, overrides)
    if file.command is not None:
        target: Any = CommandTarget(argv=parse_command("command", file.command), metrics=file.metrics)
    else:
        assert file.function is not None
        target = _function(file.function, folder)
    evaluate: Any = None
    if isinstance(file.evaluate, str) and ":" in file.evaluate and " " not in file.evaluate:
        evaluate = _function(file.evaluate, folder)
    elif file.evaluate is not None:
        evaluate = CommandTarget(argv=parse_command("evaluate", file.evaluate), metrics=file.metrics)
    return Definition(
        settings=settings,
        target=target,
        evaluate=evaluate,
        default_name=path.stem,
        working_directory=folder,
        metric_is_inferred=metric_is_inferred,
    )


def _with_overrides(file: SweepFile, overrides: dict[str, Any]) -> Settings:
    fields = Settings.__struct_fields__
    return parse_settings({**{field: getattr(file, field) for field in fields}, **overrides})


def _function(address: str, folder: Path) -> Any:
    where, colon, name = address.partition(":")
    if not colon:
        raise TargetError(f"function: {address!r} names no function; write file.py:function or package.module:function")
    module = _import(where, folder)
    found = getattr(module, name, None)
    if not callable(found):
        raise TargetError(f"function: {where} has no function {name!r}; {did_you_mean(name, _functions(module))}")
    return found.function if isinstance(found, Sweep) else found


def _import(where: str, folder: Path) -> ModuleType:
    """The module in that file of the folder, or of that name, where those of the folder come first."""
    try:
        # What it prints on being imported must not get between the output of --json.
        with redirect_stdout(sys.stderr):
            if where.endswith(".py"):
                path = folder / where
                if not path.is_file():
                    raise TargetError(f"target: there is no file {where}")
                return import_file(str(path))
            if not where or os.sep in where:
                raise TargetError(f"target: {where!r} is neither a .py, .yaml or .toml file nor a module")
            sys.path.insert(0, str(folder))
            return import_target_module(where)
    except SweepError as error:
        place = _place_in(where, error)
        if place is None:
            raise
        raise TargetError(f"{place}: {error}") from error
    except (Exception, SystemExit) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise TargetError(f"target: {where} cannot be imported: {problem}{_last_line(error)}") from error


def _last_line(error: BaseException) -> str:
    """Where in the user's code it happened; nothing when it is the import itself that failed."""
    ours = str(Path(__file__).parent.parent)
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(("<", ours))
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""


def _place_in(file: str, error: SweepError) -> str | None:
    """`file:line` of the statement that was refused, if it is one of the file's."""
    path = str(Path(file).absolute())
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{file}:{lines[-1]}" if lines else None


def _find_sweep(module: ModuleType, where: str, name: str | None) -> Sweep:
    sweeps = {key: value for key, value in vars(module).items() if isinstance(value, Sweep)}
    if name is not None:
        found = vars(module).get(name)
        if isinstance(found, Sweep):
            return found
        if found is not None:
            raise TargetError(
                f"target: {name!r} in {where} is not decorated with @sweep, so its search space is unknown"
            )
        raise TargetError(f"target: {where} has no sweep {name!r}; {did_you_mean(name, sweeps)}")
    distinct = {id(value): key for key, value in sweeps.items()}
    if len(distinct) == 1:
        return next(iter(sweeps.values()))
    if not distinct:
        raise TargetError(f"target: {where} has no function decorated with @sweep")
    raise TargetError(f"target: {where} has several sweeps; name one: {', '.join(f'{where}:{key}' for key in sweeps)}")


def _functions(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
