"""Finding the function that a target names."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from metta.sweep.errors import TargetError
from metta.sweep.model.sweep import FunctionTarget, PickledTarget

Function = Callable[[Mapping[str, Any]], Any]


class SweepRunReached(BaseException):
    """Ends the import of a script at the point where it starts its sweep.

    A script may call `train.run()` at its top level. Importing it for a job then has to stop there: everything the
    function needs is defined by that point, and what follows belongs to the process that runs the sweep. Not an
    Exception, so that no handler in the script catches it.
    """


#: Functions found before, by module and name: in a process just forked, finding one again costs more than calling it.
_found: dict[tuple[str, str], Function] = {}

#: Modules being imported for a job or by the command line, in which `run()` must not start a sweep.
_importing: list[str] = []


def is_importing() -> bool:
    """Whether a script is being imported for what it defines, not to be run."""
    return bool(_importing)


def import_file(path: str) -> ModuleType:
    """Import a script under its own name, as if it were a module.

    Its folder comes first on the path, as when the script is run.

    Raises:
        TargetError: there is no such file.
    """
    name = Path(path).stem
    loaded = sys.modules.get(name)
    if loaded is not None and getattr(loaded, "__file__", None) != path:
        # A script may be called like a module that is in use, such as `random.py`.
        name = f"{name}@{path}"
        loaded = sys.modules.get(name)
    if loaded is not None:
        return loaded
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or not Path(path).is_file():
        raise TargetError(f"target: {path} is not a Python file that can be imported")
    folder = str(Path(path).parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return _import(spec)


def import_target_module(module: str) -> ModuleType:
    """The module that a FunctionTarget names: a dotted name or the path of a file."""
    if module.endswith(".py"):
        return import_file(module)
    if module in sys.modules:
        return sys.modules[module]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    found = _import(spec)
    package, _, name = module.rpartition(".")
    if package:
        setattr(sys.modules[package], name, found)
    return found


def _import(spec: ModuleSpec) -> ModuleType:
    """Import a module, up to the point where it starts a sweep if it does; unlike `import`, which would undo it all."""
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    _importing.append(spec.name)
    try:
        spec.loader.exec_module(module)
    except SweepRunReached:
        pass
    except BaseException:
        del sys.modules[spec.name]
        raise
    finally:
        _importing.pop()
    return module


def load_function(target: FunctionTarget | PickledTarget) -> Function:
    """The function itself.

    Raises:
        TargetError: it is not there, or not what the sweep was started with.
    """
    found = _found.get((target.module, target.name)) if isinstance(target, FunctionTarget) else None
    if found is not None:
        return found
    sys.path[:0] = [folder for folder in target.import_path if folder not in sys.path]
    if isinstance(target, PickledTarget):
        return _unpickle(target)
    found = _found[target.module, target.name] = _find(target)
    return found


def _find(target: FunctionTarget) -> Function:
    value: Any = import_target_module(target.module)
    for part in target.name.split("."):
        value = getattr(value, part, None)
    # A decorated function is found under its name as the sweep; the job runs what the decorator was given.
    value = getattr(value, "function", value)
    if not callable(value):
        raise TargetError(f"target: {target.module} has no function {target.name!r}")
    return value  # type: ignore[no-any-return]


def _unpickle(target: PickledTarget) -> Function:
    import cloudpickle

    try:
        blob = Path(target.path).read_bytes()
    except OSError as error:
        raise TargetError(f"target: the saved function {target.name!r} cannot be read: {error}") from error
    if hashlib.sha256(blob).hexdigest() != target.sha256:
        raise TargetError(f"target: {target.path} is not the function that the sweep was started with")
    return cloudpickle.loads(blob)  # type: ignore[no-any-return]
