"""From a definition to a sweep in a store with a controller at work on it, for the API and the command line alike."""

from __future__ import annotations

import hashlib
import shutil
import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import reduce
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from metta.sweep import control
from metta.sweep.agent.command import check_metrics_file, check_placeholders
from metta.sweep.agent.gpus import visible_gpus
from metta.sweep.clock import SystemClock
from metta.sweep.config import Settings, build_config
from metta.sweep.config_changes import describe_differences, differences
from metta.sweep.controller.controller import SweepController
from metta.sweep.controller.lease import is_controlled, stand_by
from metta.sweep.dispatchers.build import build_dispatcher
from metta.sweep.errors import ConfigError, LeaseHeldError, SweepError, TargetError
from metta.sweep.model.events import Event, SweepCreated, new_event
from metta.sweep.model.ids import new_sweep_id
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import (
    AMENDABLE,
    LIMITS,
    CommandTarget,
    FunctionTarget,
    PickledTarget,
    SweepConfig,
    SweepMetadata,
    SweepStatus,
    Target,
)
from metta.sweep.observe.notifications.channels import check_channels
from metta.sweep.observe.notifications.notifying import notifying
from metta.sweep.observe.tracing.spans import check_tracing, open_tracing
from metta.sweep.protocols import Observer, Store
from metta.sweep.stores import sqlite_path

#: The sweep that is rehearsed and never was.
REHEARSED = "dry-run"


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep as its author wrote it, not yet in any store."""

    settings: Settings
    target: Any
    evaluate: Any = None
    #: The name unless the settings give one.
    default_name: str
    working_directory: Path
    #: Whether the metric was found in the code, because its author named none.
    metric_is_inferred: bool = False


class Launched(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep that is in the store."""

    sweep: SweepMetadata
    #: Whether it was there before.
    resumed: bool
    #: Limits that differ from those it had.
    changes: dict[str, Any] = {}
    #: Whether to wait until no other controller is at work on it.
    standby: bool = False
    #: Whether another controller is at work on it, and was told of what has changed.
    is_elsewhere: bool = False
    #: As of Definition.
    metric_is_inferred: bool = False


def check(definition: Definition) -> None:
    """Refuse what cannot be swept, before there is a store or a folder for it.

    Raises:
        UsageError: the definition is not valid.
    """
    config = _configure(definition, definition.settings.name or definition.default_name, Path())
    check_tracing()
    check_channels(config.notify, definition.working_directory)
    gpus = config.resources.gpus
    if config.dispatcher.name == "local" and gpus > (available := len(visible_gpus())):
        raise ConfigError(f"resources.gpus: a job wants {gpus}, this machine has {available}")


def launch(store: Store, definition: Definition, *, amend: bool = False, standby: bool = False) -> Launched:
    """Find the unfinished sweep that this definition started before, or create a new one.

    Running the same thing again is how a sweep that was killed goes on. A sweep whose author gave it a name keeps that
    name to itself: once it has ended, or if it sweeps something else, the name is taken.

    Args:
        store: Where sweeps are.
        definition: What to sweep.
        amend: Whether the unfinished sweep is to take over what differs in what it searches.
        standby: Whether to wait for the sweep when another controller is at work on it.

    Raises:
        UsageError: the definition is not valid, differs from the unfinished sweep's, its name is taken, or another
            controller is at work on the sweep.
    """
    settings = definition.settings
    existing = {sweep.config.name: sweep for sweep in store.fetch_sweeps()}
    name = settings.name or definition.default_name
    sweep_id = _free_sweep_id(existing)
    config = _configure(definition, name, files_directory(store.url) / sweep_id)
    earlier = _earlier(existing, config, is_named=settings.name is not None)
    if earlier is not None:
        if settings.max_parallel is None:
            # What fits on this machine now is for new sweeps; one under way keeps what it began with.
            config = replace(config, max_parallel=earlier.config.max_parallel)
        return _resumed(store, earlier, config, amend=amend, standby=standby)
    if amend:
        raise ConfigError(f"--amend: there is no unfinished sweep of {name!r} to amend; leave it out to start one")
    if settings.name is None and name in existing:
        config = replace(config, name=_next_name(name, existing))
    created = _create(store, sweep_id, config, definition)
    return Launched(sweep=created, resumed=False, metric_is_inferred=definition.metric_is_inferred)


def first_events(definition: Definition) -> list[Event]:
    """The log with which a sweep of this definition would begin, for a rehearsal: nothing is written or created.

    It begins at time 0 and always has the same id, so that equal definitions are rehearsed equally.
    """
    config = _configure(definition, definition.settings.name or definition.default_name, Path())
    return [new_event(SweepCreated(config=config), sweep_id=REHEARSED, at=0.0, actor="user")]


def _earlier(existing: Mapping[str, SweepMetadata], config: SweepConfig, *, is_named: bool) -> SweepMetadata | None:
    """The unfinished sweep that this configuration goes on with, the same in all or at least of the same target."""
    candidates = [
        sweep
        for sweep in reversed(list(existing.values()))
        if (sweep.config.name == config.name if is_named else _is_numbered(sweep.config.name, config.name))
        and not sweep.status.ended
    ]
    differing = [(sweep, differences(sweep.config, config).keys()) for sweep in candidates]
    same = (sweep for sweep, fields in differing if not fields)
    amendable = (sweep for sweep, fields in differing if is_named or fields <= set(AMENDABLE))
    return next(same, None) or next(amendable, None)


def _resumed(store: Store, sweep: SweepMetadata, config: SweepConfig, *, amend: bool, standby: bool) -> Launched:
    found = differences(sweep.config, config)
    wanted = {limit: getattr(config, limit) for limit in LIMITS}
    differing = {limit: value for limit, value in wanted.items() if value != getattr(sweep.config, limit)}
    changes = msgspec.to_builtins(differing)
    if (found or changes) and sweep.status is SweepStatus.STOPPING:
        raise ConfigError(
            f"sweep {sweep.sweep_id} ({sweep.config.name}) is being stopped, so it cannot change any more; "
            f"bring it to its end with: metta sweep stop {sweep.sweep_id}"
        )
    if found:
        _amend(store, sweep, config, found, amend=amend)
    if standby or not is_controlled(store, sweep.sweep_id, SystemClock().now()):
        return Launched(sweep=sweep, resumed=True, changes=changes, standby=standby)
    if changes:
        control.resume(store, sweep, changes)
    if found or changes:
        return Launched(sweep=sweep, resumed=True, changes={**found, **changes}, is_elsewhere=True)
    raise LeaseHeldError(
        f"sweep {sweep.sweep_id} ({sweep.config.name}): a controller is at work on it already; "
        f"watch it with: metta sweep status {sweep.sweep_id}, or wait to take over with --standby"
    )


def _amend(store: Store, sweep: SweepMetadata, config: SweepConfig, found: Mapping[str, Any], *, amend: bool) -> None:
    lines = "".join(f"\n  {line}" for line in describe_differences(found))
    if fixed := found.keys() - set(AMENDABLE):
        raise ConfigError(
            f"sweep {sweep.sweep_id} ({sweep.config.name}) is unfinished, and another one in its "
            f"{', '.join(sorted(fixed))}:{lines}\n"
            f"choose another --name, or end it with: metta sweep stop {sweep.sweep_id}"
        )
    if not amend:
        raise ConfigError(
            f"sweep {sweep.sweep_id} ({sweep.config.name}) is unfinished, and what it searches has changed:{lines}\n"
            "go on with it under the new definition with --amend, start another with --name NAME, "
            f"or end it with: metta sweep stop {sweep.sweep_id}"
        )
    changes = {field: msgspec.to_builtins(getattr(config, field)) for field in found}
    control.amend(store, sweep, changes)


def _is_numbered(candidate: str, name: str) -> bool:
    return candidate == name or (candidate.startswith(f"{name}-") and candidate[len(name) + 1 :].isdecimal())


def _next_name(name: str, existing: dict[str, SweepMetadata]) -> str:
    number = 2
    while f"{name}-{number}" in existing:
        number += 1
    return f"{name}-{number}"


def _free_sweep_id(existing: dict[str, SweepMetadata]) -> str:
    taken = {sweep.sweep_id for sweep in existing.values()}
    while (sweep_id := new_sweep_id()) in taken:
        pass
    return sweep_id


def _configure(definition: Definition, name: str, directory: Path) -> SweepConfig:
    def described(target: Any) -> Target:
        return target if isinstance(target, CommandTarget) else describe_function(target, directory)[0]

    config = build_config(
        definition.settings,
        name=name,
        target=described(definition.target),
        evaluate=None if definition.evaluate is None else described(definition.evaluate),
        directory=directory,
        working_directory=definition.working_directory,
    )
    _check_commands(config)
    return config


def _check_commands(config: SweepConfig) -> None:
    is_shared = config.max_parallel > 1 or config.evaluate is not None
    for field, target in (("command", config.target), ("evaluate", config.evaluate)):
        if isinstance(target, CommandTarget):
            check_placeholders(field, target.argv, config.search_space)
            if target.metrics.file is not None:
                check_metrics_file(target.metrics.file, config.search_space, is_shared=is_shared)


def _create(store: Store, sweep_id: str, config: SweepConfig, definition: Definition) -> SweepMetadata:
    directory = Path(config.directory)
    try:
        directory.mkdir(parents=True)
    except OSError as error:
        raise TargetError(f"the sweep's folder {directory} cannot be made: {error.strerror}") from error
    try:
        _save_functions(definition, directory)
        now = SystemClock().now()
        store.append([new_event(SweepCreated(config=config), sweep_id=sweep_id, at=now, actor="user")])
    except SweepError:
        # Its name is taken, say, or the disk is full: nothing of a sweep that never was stays behind.
        shutil.rmtree(directory, ignore_errors=True)
        raise
    [sweep] = store.fetch_sweeps(sweep_id)
    return sweep


def _save_functions(definition: Definition, directory: Path) -> None:
    """Write down the functions that jobs cannot import."""
    for target in (definition.target, definition.evaluate):
        if target is not None and not isinstance(target, CommandTarget):
            described, blob = describe_function(target, directory)
            if isinstance(described, PickledTarget):
                try:
                    Path(described.path).write_bytes(blob)
                except OSError as error:
                    raise TargetError(f"the function cannot be saved in {directory}: {error.strerror}") from error


def files_directory(store_url: str) -> Path:
    """Where a store's sweeps have their files.

    That is the folder beside an SQLite file, called like it without the suffix; of a database server, the folder
    `sweeps` here, which all machines that work for a sweep have to share.
    """
    path = sqlite_path(store_url)
    if path is None:
        return Path("sweeps").absolute()
    return path.with_suffix("") if path.suffix else path.with_name(f"{path.name}.files")


def describe_function(function: Callable[..., Any], directory: Path) -> tuple[Target, bytes]:
    """How jobs will find the function: by its file and name where it has them, else by value (with the bytes to save).

    Raises:
        TargetError: it can neither be imported nor pickled.
    """
    module = sys.modules.get(function.__module__)
    if module is not None and _is_reachable(module, function) and (where := _address(module)) is not None:
        return FunctionTarget(module=where, name=function.__qualname__, import_path=_import_path()), b""
    return _pickled(function, directory)


def _address(module: Any) -> str | None:
    """How another process imports the module; None when it can't: a notebook, `python -c`, standard input."""
    spec = getattr(module, "__spec__", None)  # in `__main__` only where Python was started with -m
    if spec is not None and "." in spec.name:
        return str(spec.name)
    file = getattr(module, "__file__", None) or ""
    return str(Path(file).absolute()) if file.endswith(".py") else None


def _is_reachable(module: Any, function: Callable[..., Any]) -> bool:
    try:
        found = reduce(getattr, function.__qualname__.split("."), module)
    except AttributeError:
        return False
    return getattr(found, "function", found) is function


def _pickled(function: Callable[..., Any], directory: Path) -> tuple[PickledTarget, bytes]:
    import cloudpickle

    name = getattr(function, "__name__", type(function).__name__)
    try:
        blob = cloudpickle.dumps(function)
    except Exception as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        raise TargetError(
            f"target: {name} cannot be carried to other processes ({problem}); "
            "define it at the top level of a file, or open files, locks and connections inside it"
        ) from error
    digest = hashlib.sha256(blob).hexdigest()
    path = directory / f"function-{digest[:12]}.pkl"
    return PickledTarget(name=name, path=str(path), sha256=digest, import_path=_import_path()), blob


def _import_path() -> list[str]:
    """Folders that this process imports from and another one of the same Python would not, such as the script's."""
    common = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders = [Path(folder).absolute() for folder in sys.path]
    return [str(folder) for folder in folders if folder.is_dir() and not any(map(folder.is_relative_to, common))]


def drive(
    store: Store,
    sweep: SweepMetadata,
    *,
    resume: bool,
    changes: dict[str, Any] | None = None,
    on_takeover: Callable[[], None] | None = None,
    observer: Observer | None = None,
    on_stop_request: Callable[[int], None] | None = None,
) -> SweepState:
    """Run a controller for the sweep in this process until the sweep ends, or is interrupted.

    Args:
        store: The store.
        sweep: Which sweep.
        resume: Whether an ended sweep is to go on.
        changes: New values of limits.
        on_takeover: To wait until no other controller is at work on it; called when that is so.
        observer: Sees every change.
        on_stop_request: Told of each SIGINT or SIGTERM with their number so far.
    """
    clock = SystemClock()
    lease = None
    if on_takeover is not None:
        lease = stand_by(store, sweep.sweep_id, clock)
        if lease is None:
            return fold(EMPTY, store.read(sweep.sweep_id))
        on_takeover()
    told = notifying(store, sweep, clock, observer, changes or {})
    with closing(open_tracing(sweep, clock)) as tracing, told as observe:
        dispatcher = build_dispatcher(sweep.config.dispatcher, store, sweep.sweep_id, sweep.config, clock)
        controller = SweepController(store, sweep.sweep_id, dispatcher, clock, observe, lease=lease, tracing=tracing)
        if resume or changes:
            controller.resume(changes or {})
        with _stop_signals(controller, on_stop_request):
            return controller.run()


@contextmanager
def _stop_signals(controller: SweepController, on_stop_request: Callable[[int], None] | None) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can have handlers; elsewhere the caller decides what ends it
        return

    def handle(_number: int, _frame: object) -> None:
        requests = controller.wind_down()
        if on_stop_request is not None:
            on_stop_request(requests)

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
