"""`metta sweep doctor`: what is wrong with a store and its sweeps, and mending it."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metta.sweep.cli.completion import complete_sweep
from metta.sweep.cli.options import JsonOption, StoreOption
from metta.sweep.errors import ConfigError, DamagedStoreError
from metta.sweep.stores import display_url, open_reader, open_store, store_url

if TYPE_CHECKING:
    from metta.sweep.cli.examination import Examination
    from metta.sweep.controller.validator import Issue
    from metta.sweep.protocols import Reader
    from metta.sweep.stores.recovery import RecoveryReport


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog="Example: metta sweep doctor 46g3f --fix. Exit code 0: healthy, or all is mended; 1: issues remain."
    )(doctor)


def doctor(  # noqa: PLR0917 (options come by name)
    sweep: Annotated[
        str | None,
        typer.Argument(
            metavar="SWEEP", autocompletion=complete_sweep, help="Id, unique prefix or name. Default: all sweeps."
        ),
    ] = None,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what can be mended; the log tells what was done.")] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="Also hash checkpoints and compare indices; takes its time.")
    ] = False,
    recover: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Make a new store of what can be read of this damaged one."),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where the recovered store goes. Default: FILE.recovered.db beside it."),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a store and its sweeps: file, log, tables, runs, controller, agents, checkpoints, disk."""
    if recover is not None:
        if sweep is not None or fix or thorough:
            raise ConfigError("--recover: makes a new store of a whole file; it goes with --to and --json alone")
        _recover(recover, to, as_json=as_json)
        return
    if to is not None:
        raise ConfigError("--to: names the file of a recovered store; it goes with --recover FILE alone")
    url = store_url(store)
    report = _Report(url, fix=fix)
    try:
        report.look(sweep, thorough=thorough)
    except DamagedStoreError as error:
        report.is_damaged(error)
    report.show(as_json=as_json)
    if not report.is_healthy:
        raise typer.Exit(1)


class _Report:
    """What was found in a store, as it grows."""

    def __init__(self, url: str, *, fix: bool) -> None:
        from metta.sweep.stores import sqlite_path

        self._url = url
        self._fix = fix
        self._path = sqlite_path(url)
        self._store_issues: list[Issue] = []
        self._sweeps: list[tuple[Examination, tuple[Issue, ...]]] = []

    @property
    def is_healthy(self) -> bool:
        return not self._store_issues and all(found.is_healthy for found, _ in self._sweeps)

    def look(self, address: str | None, *, thorough: bool) -> None:
        from metta.sweep.cli.examination import examine, store_issues
        from metta.sweep.clock import SystemClock

        clock = SystemClock()
        with closing(open_reader(self._url)) as reader:
            if self._path is not None:
                self._store_issues += store_issues(self._path, thorough=thorough)
            sweep_ids = _addressed(reader, address)
            if not self._fix or self._store_issues:
                for sweep_id in sweep_ids:
                    self._sweeps.append((examine(reader, sweep_id, now=clock.now(), thorough=thorough), ()))
                return
        from metta.sweep.cli.treatment import treat

        with closing(open_store(self._url)) as store:
            for sweep_id in sweep_ids:
                treatment = treat(store, sweep_id, clock, thorough=thorough)
                self._sweeps.append((treatment.after, treatment.mended))

    def is_damaged(self, error: DamagedStoreError) -> None:
        from metta.sweep.cli.examination import damaged_store

        self._store_issues.append(damaged_store(str(error), self._path))

    def show(self, *, as_json: bool) -> None:
        if as_json:
            from metta.sweep.cli.shapes import print_json

            print_json(self._shape())
            return
        from metta.sweep.display.health import health_view
        from metta.sweep.display.views import console

        screen = console()
        name = display_url(self._url)
        screen.print(health_view(f"store {name}", {"store": ("", self._store_issues)}))
        for found, mended in self._sweeps:
            areas = {area.value: (fact, _within(found, area)) for area, fact in found.facts.items()}
            screen.print(health_view(f"sweep {found.sweep_id} ({found.name or 'unreadable'})", areas))
            for issue in mended:
                screen.print(f"mended: {issue.job_id or issue.run_id or ''} {issue.problem} -> {issue.remedy}")
        screen.print(self._summary(), style="bold")

    def _summary(self) -> str:
        from metta.sweep.cli.treatment import is_mendable

        issues = [*self._store_issues, *(issue for found, _ in self._sweeps for issue in found.issues)]
        serious = sum(issue.is_serious for issue in issues)
        mended = sum(len(done) for _, done in self._sweeps)
        parts = [f"{mended} mended"] if mended else []
        left = " left" if self._fix else ""
        parts.append(f"{serious} issue{'s' * (serious > 1)}{left}" if serious else "healthy")
        if (mendable := sum(map(is_mendable, issues))) and not self._fix:
            parts.append(f"--fix mends {mendable}")
        return ", ".join(parts)

    def _shape(self) -> dict[str, Any]:
        return {
            "store": display_url(self._url),
            "healthy": self.is_healthy,
            "issues": [_issue_shape(issue) for issue in self._store_issues],
            "sweeps": [
                {
                    "sweep_id": found.sweep_id,
                    "name": found.name,
                    "healthy": found.is_healthy,
                    "facts": {area.value: fact for area, fact in found.facts.items()},
                    "issues": [_issue_shape(issue) for issue in found.issues],
                    "mended": [_issue_shape(issue) for issue in mended],
                }
                for found, mended in self._sweeps
            ],
        }


def _addressed(reader: Reader, address: str | None) -> list[str]:
    from metta.sweep.cli.addresses import find_sweep

    if address is not None:
        try:
            return [find_sweep(reader, address).sweep_id]
        except DamagedStoreError:
            return [address]  # with a row of the table of sweeps gone bad, it may still be the whole id of a sound log
    try:
        return [found.sweep_id for found in reader.fetch_sweeps()]
    except DamagedStoreError as error:
        raise DamagedStoreError(
            f"{error}; where the logs are sound, metta sweep doctor SWEEP --fix, with the whole id, writes its row anew"
        ) from error


def _within(found: Examination, area: str) -> list[Issue]:
    from metta.sweep.cli.examination import area_of

    return [issue for issue in found.issues if area_of(issue) == area]


def _issue_shape(issue: Issue) -> dict[str, Any]:
    from metta.sweep.cli.treatment import is_mendable

    return {
        "kind": issue.kind.value,
        "run_id": issue.run_id,
        "job_id": issue.job_id,
        "problem": issue.problem,
        "remedy": issue.remedy,
        "serious": issue.is_serious,
        "mendable": is_mendable(issue),
    }


# ------------------------------------------------------------------------------------------------------------ recovery


def _recover(damaged: Path, target: Path | None, *, as_json: bool) -> None:
    from metta.sweep.cli.backup import ProgressLine
    from metta.sweep.stores.recovery import recover

    if not damaged.is_file():
        raise ConfigError(f"--recover: there is no file {damaged}; name the file of the damaged store")
    target = target or damaged.with_name(f"{damaged.stem}.recovered.db")
    report = recover(damaged, target, on_progress=ProgressLine())
    if as_json:
        from metta.sweep.cli.shapes import print_json

        print_json(report)
    else:
        _show_recovery(report)
    sys.stderr.write(f"what could be read is in {target}; look into it with: metta sweep list --store {target}\n")
    if report.lost_sweeps or not all(sweep.is_whole for sweep in report.sweeps):
        raise typer.Exit(1)


def _show_recovery(report: RecoveryReport) -> None:
    from metta.sweep.display.health import recovery_table
    from metta.sweep.display.views import console

    screen = console()
    screen.print(recovery_table(report))
    for sweep in report.sweeps:
        for left_out in sweep.left_out:
            screen.print(f"left out of {sweep.sweep_id}: {left_out}")
    for lost in report.lost_sweeps:
        screen.print(f"lost: {lost}", style="red")
    if not report.is_verified:
        screen.print("the store is of a version without hashes: what was read may be wrong", style="yellow")
