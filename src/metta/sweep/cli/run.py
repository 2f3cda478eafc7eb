"""`metta sweep run`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metta.sweep.cli.completion import complete_strategy
from metta.sweep.cli.options import JsonOption, ResumeOption, StoreOption
from metta.sweep.errors import ConfigError, LeaseHeldError
from metta.sweep.model.run import JobStatus
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.protocols import Store
from metta.sweep.stores import STORE_VARIABLE, open_reader, open_store, store_url

if TYPE_CHECKING:
    from metta.sweep.launch import Launched

#: Starts that a dry run shows.
_STEPS = 10


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: metta sweep run examples/digits_mlp.py --max-trials 20 --max-parallel 2")(run)


def run(  # noqa: PLR0917 (one parameter an option)
    target: Annotated[
        str | None,
        typer.Argument(metavar="TARGET", help="file.py, file.py:function, package.module:function, or sweep.yaml"),
    ] = None,
    resume: ResumeOption = None,
    store: StoreOption = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep. Default: that of the file.")] = None,
    max_trials: Annotated[int | None, typer.Option(help="Runs in all.")] = None,
    max_parallel: Annotated[int | None, typer.Option(help="Runs at one time.")] = None,
    strategy: Annotated[
        str | None,
        typer.Option(autocompletion=complete_strategy, help="What to try next: random, grid, sobol, ..."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Root of all randomness.")] = None,
    notify: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'$NAME'|FILE",
            help="Tell this channel of failures, new bests, the end: a variable or file with URLs of Apprise. "
            "May be repeated.",
        ),
    ] = None,
    amend: Annotated[
        bool, typer.Option("--amend", help="Let an unfinished sweep take over a changed space, metric or direction.")
    ] = False,
    standby: Annotated[
        bool, typer.Option("--standby", help="If another controller is at work, wait and take over when it is gone.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background; print the sweep's id.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show which jobs would be started; run nothing, write nothing.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option(min=1, help="With --dry-run: how many starts to show. Default: 10.")
    ] = None,
    log: Annotated[
        str | None,
        typer.Option(
            metavar="text|json",
            autocompletion=lambda: ["text", "json"],
            help="Log what happens, a line each, instead of showing progress. Default: what METTA_SWEEP_LOG says.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run a sweep, or go on with it: run the same command again after a kill, and nothing is lost.

    Ctrl-C once: start nothing new and let running jobs finish. Twice: cancel them.
    """
    from metta.sweep.launch import check, launch
    from metta.sweep.observe.log_lines import LOG_VARIABLE, check_logging

    overrides: dict[str, Any] = {
        "name": name,
        "max_trials": max_trials,
        "max_parallel": max_parallel,
        "strategy": strategy,
        "seed": seed,
        "notify": notify or None,
    }
    given = {key: value for key, value in overrides.items() if value is not None}
    if log is not None:
        os.environ[LOG_VARIABLE] = log  # for the sweep's agent, and a controller in the background
    check_logging()
    if (target is None) == (resume is None):
        raise ConfigError("give a TARGET to sweep or --resume SWEEP, and not both")
    if resume is not None and notify:
        given["notify"] = _notify_change(notify)
    if dry_run or steps is not None:
        _check_dry_run(is_wanted=dry_run, others={"--amend": amend, "--standby": standby, "--detach": detach})
        _rehearse(target, resume, given, store=store, steps=steps or _STEPS, as_json=as_json)
        return
    if resume is not None:
        if amend:
            raise ConfigError("--amend: needs a TARGET that says what the sweep is to search from now on")
        opened = open_store(store_url(store))
        launched = _resumed(opened, resume, given, standby=standby)
    else:
        from metta.sweep.cli.target import load_definition

        assert target is not None
        definition = load_definition(target, given)
        check(definition)
        opened = open_store(store_url(store), create=True)
        launched = launch(opened, definition, amend=amend, standby=standby)
    _drive(opened, launched, detach=detach, as_json=as_json)


def _drive(store: Store, launched: Launched, *, detach: bool, as_json: bool) -> None:
    """Be the sweep's controller, here or in the background; ends the command with the exit code of the sweep."""
    from metta.sweep.display.progress import run_with_progress
    from metta.sweep.observe.log_lines import configure_logging, wanted_format
    from metta.sweep.observe.tracing.spans import check_tracing

    if launched.is_elsewhere:
        what = f"sweep {launched.sweep.sweep_id} ({launched.sweep.config.name})"
        sys.stderr.write(f"{what}: the controller at work on it goes on with the new {', '.join(launched.changes)}\n")
        return
    check_tracing()
    if detach:
        _detach(store, launched)
        _print_started(launched, as_json)
        return
    if (form := wanted_format()) is not None:
        configure_logging(form)
    state = run_with_progress(store, launched, show=form is None)
    if as_json:
        _print_state(state)
    raise typer.Exit(_exit_code(state))


def _check_dry_run(*, is_wanted: bool, others: Mapping[str, bool]) -> None:
    if not is_wanted:
        raise ConfigError("--steps: says how many starts a --dry-run shows; give that, too, or leave it out")
    if wrong := [option for option, is_given in others.items() if is_given]:
        raise ConfigError(f"{wrong[0]}: a --dry-run runs and changes nothing; leave one of the two out")


def _rehearse(
    target: str | None, resume: str | None, given: dict[str, Any], *, store: str | None, steps: int, as_json: bool
) -> None:
    """Show what would be started, of a new sweep or of one in the store, which is only looked at."""
    from metta.sweep.cli.debug import print_rehearsal

    if resume is not None:
        from metta.sweep.cli.addresses import find_sweep

        opened = open_reader(store_url(store))
        sweep = find_sweep(opened, resume)
        _check_changes(given)
        print_rehearsal(list(opened.read(sweep.sweep_id)), steps, resume=given, as_json=as_json)
        return
    from metta.sweep.cli.target import load_definition
    from metta.sweep.launch import check, first_events

    assert target is not None
    definition = load_definition(target, given)
    check(definition)
    has_drawn_seed = definition.settings.seed is None
    print_rehearsal(first_events(definition), steps, has_drawn_seed=has_drawn_seed, as_json=as_json)


def go_on(store: Store, sweep_id: str, *, detach: bool) -> None:
    """Be the controller of a sweep that is to go on, unless there is one."""
    from metta.sweep.clock import SystemClock
    from metta.sweep.controller.lease import is_controlled
    from metta.sweep.launch import Launched

    if is_controlled(store, sweep_id, SystemClock().now()):
        sys.stderr.write(f"sweep {sweep_id} goes on; watch it with: metta sweep status {sweep_id}\n")
        return
    [sweep] = store.fetch_sweeps(sweep_id)
    _drive(store, Launched(sweep=sweep, resumed=True), detach=detach, as_json=False)


def _resumed(store: Store, address: str, given: dict[str, Any], *, standby: bool) -> Launched:
    from msgspec import to_builtins

    from metta.sweep.cli.addresses import find_sweep
    from metta.sweep.clock import SystemClock
    from metta.sweep.controller.lease import is_controlled
    from metta.sweep.launch import Launched

    sweep = find_sweep(store, address)
    _check_changes(given)
    if not standby and is_controlled(store, sweep.sweep_id, SystemClock().now()):
        raise LeaseHeldError(
            f"sweep {sweep.sweep_id}: a controller is at work on it already; wait to take over with --standby, "
            f"or change its limits with: metta sweep resume {sweep.sweep_id}"
        )
    changes = {limit: value for limit, value in given.items() if value != to_builtins(getattr(sweep.config, limit))}
    return Launched(sweep=sweep, resumed=True, changes=changes, standby=standby)


def _notify_change(channels: list[str]) -> dict[str, Any]:
    """The channels as a limit that changes."""
    import msgspec

    from metta.sweep.config import parse_notify
    from metta.sweep.observe.notifications.channels import check_channels

    parsed = parse_notify(channels)
    check_channels(parsed, Path.cwd())
    shape: dict[str, Any] = msgspec.to_builtins(parsed)
    return shape


def _check_changes(given: Mapping[str, Any]) -> None:
    """Refuse options that do not go with --resume."""
    from metta.sweep.model.sweep import LIMITS

    for option, value in given.items():
        if option == "notify":
            continue
        if option not in LIMITS:
            raise ConfigError(f"--{option}: a sweep under way cannot change it; allowed with --resume are its limits")
        if value < 1:
            raise ConfigError(f"--{option.replace('_', '-')}: expected at least 1, got {value}")


def _detach(store: Store, launched: Launched) -> None:
    """Start a controller that outlives this terminal."""
    from metta.sweep import control

    sweep = launched.sweep
    if launched.changes:
        # Not as options: some limits have none.
        control.resume(store, sweep, launched.changes)
    arguments = ["--resume", sweep.sweep_id, *(["--standby"] if launched.standby else [])]
    with (Path(sweep.config.directory) / "controller.log").open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-P", "-m", "metta.sweep.cli", "sweep", "run", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, STORE_VARIABLE: store.url},
            start_new_session=True,
        )


def _print_started(launched: Launched, as_json: bool) -> None:
    if as_json:
        from metta.sweep.cli.shapes import print_json

        print_json({"sweep_id": launched.sweep.sweep_id, "name": launched.sweep.config.name})
        return
    sys.stdout.write(f"{launched.sweep.sweep_id}\n")
    sys.stderr.write(f"runs in the background; watch it with: metta sweep status {launched.sweep.sweep_id}\n")


def _print_state(state: SweepState) -> None:
    import time

    from metta.sweep.cli.shapes import print_json, sweep_shape

    best = state.runs[state.sweep.best_run_id] if state.sweep.best_run_id is not None else None
    print_json(sweep_shape(state.sweep, best, now=time.time(), controlled=False))


def _exit_code(state: SweepState) -> int:
    """0 when the sweep ended with a result, 1 when without one or paused by failures, 130 when it can just go on."""
    sweep = state.sweep
    if not sweep.status.ended:
        return 1 if sweep.status is SweepStatus.PAUSED and (sweep.same_failures or sweep.dispatch_failures) else 130
    return 0 if sweep.counts.get(JobStatus.COMPLETED) else 1
