"""Commands that only read: list, status, show, best, schema."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated

import typer

from metta.sweep.cli.options import JsonOption, RunArgument, StoreOption, SweepArgument, TailOption
from metta.sweep.errors import ConfigError, NotFoundError
from metta.sweep.model.run import FailureKind, JobStatus, RunInfo
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Reader
from metta.sweep.stores import open_reader, store_url


class BestFormat(StrEnum):
    """How the best runs are printed."""

    TABLE = "table"
    YAML = "yaml"
    JSON = "json"
    CLI = "cli"


#: Statuses of runs that have work to do.
_UNENDED = [status for status in JobStatus if not status.ended]
#: Failed runs beyond which `status` does not say how they failed: it has to answer at once.
_MOST_FAILED = 1_000


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("list", epilog="Example: metta sweep list --json")(list_sweeps)
    app.command(epilog="Example: metta sweep status 46g3f --watch")(status)
    app.command(epilog="Example: metta sweep show 7kq")(show)
    app.command(epilog="Example: metta sweep best 46g3f --top 5")(best)
    app.command(epilog="Example: metta sweep schema > sweep.schema.json")(schema)


def list_sweeps(sweep: SweepArgument = "", store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the sweeps of the store; with SWEEP, the runs of that one."""
    from metta.sweep.cli.shapes import print_json, sweep_row_shape

    opened = open_reader(store_url(store))
    if sweep:
        _list_runs(opened, sweep, as_json)
        return
    sweeps = opened.fetch_sweeps()
    if as_json:
        best_runs = opened.fetch_runs(run_ids=[s.best_run_id for s in sweeps if s.best_run_id is not None])
        by_id = {(run.sweep_id, run.run_id): run for run in best_runs}
        print_json([sweep_row_shape(s, by_id.get((s.sweep_id, s.best_run_id or ""))) for s in sweeps])
        return
    from metta.sweep.display.views import console, sweeps_table

    console().print(sweeps_table(sweeps))


def _list_runs(store: Reader, address: str | None, as_json: bool) -> None:
    from metta.sweep.cli.addresses import find_sweep
    from metta.sweep.cli.shapes import print_json, run_shape

    sweep = find_sweep(store, address)
    runs = store.fetch_runs(sweep.sweep_id)
    if as_json:
        print_json([run_shape(run) for run in runs])
        return
    from metta.sweep.display.views import console, runs_table

    screen = console()
    screen.print(runs_table(runs, sweep, screen))


def status(  # noqa: PLR0917 (one parameter an option)
    sweep: SweepArgument = None,
    runs: Annotated[bool, typer.Option("--runs", help="Every run, a line each.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Go on showing it until it has ended; with --json an object a line.")
    ] = False,
    tail: TailOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show where a sweep stands, once or until it has ended; or follow one of its runs."""
    from metta.sweep.cli.addresses import find_sweep
    from metta.sweep.controller.lease import is_controlled

    _check_views({"--runs": runs, "--watch": watch, "--tail": tail is not None}, as_json=as_json)
    opened = open_reader(store_url(store))
    if runs:
        _list_runs(opened, sweep, as_json)
        return
    if tail is not None:
        from metta.sweep.cli.live import tail_run

        tail_run(opened, tail if sweep is None else f"{find_sweep(opened, sweep).sweep_id}/{tail}")
        return
    found = find_sweep(opened, sweep)
    if watch:
        from metta.sweep.cli.live import watch_sweep

        watch_sweep(opened, found, as_json=as_json)
        return
    now = time.time()
    controlled = is_controlled(opened, found.sweep_id, now)
    top = _best_run(opened, found)
    if as_json:
        from metta.sweep.cli.shapes import print_json, sweep_shape

        print_json(sweep_shape(found, top, now=now, controlled=controlled))
        return
    from metta.sweep.display.status import status_view
    from metta.sweep.display.views import console

    unended = opened.fetch_runs(found.sweep_id, statuses=_UNENDED)
    beats = opened.fetch_heartbeats(found.sweep_id)
    failures = _failures(opened, found)
    screen = console()
    screen.print(status_view(found, top, unended, beats, screen, now=now, controlled=controlled, failures=failures))


def _check_views(wanted: Mapping[str, bool], *, as_json: bool) -> None:
    given = [option for option, is_given in wanted.items() if is_given]
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)}: each shows something else; give one of them")
    if as_json and wanted["--tail"]:
        raise ConfigError("--tail: prints a log, which is no JSON; metta sweep events --run RUN -f --json has the rest")


def _failures(store: Reader, sweep: SweepMetadata) -> dict[FailureKind | None, int]:
    """What failed runs have failed by in the end; nothing where these are too many to look at each."""
    from metta.sweep.analysis.tally import last_failures_of

    if not 0 < sweep.counts.get(JobStatus.FAILED, 0) <= _MOST_FAILED:
        return {}
    return last_failures_of(store.fetch_runs(sweep.sweep_id, statuses=[JobStatus.FAILED]))


def _best_run(store: Reader, sweep: SweepMetadata) -> RunInfo | None:
    if sweep.best_run_id is None:
        return None
    return store.fetch_runs(sweep.sweep_id, run_ids=[sweep.best_run_id])[0]


def show(run: RunArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show one run: configuration, metrics, jobs, and why it was started."""
    from metta.sweep.cli.addresses import find_run, find_sweep

    opened = open_reader(store_url(store))
    found = find_run(opened, run)
    events = list(opened.read(found.sweep_id, run_id=found.run_id))
    if as_json:
        from metta.sweep.cli.shapes import print_json, run_detail_shape

        print_json(run_detail_shape(found, events))
        return
    from metta.sweep.display.status import run_view
    from metta.sweep.display.views import console

    console().print(run_view(found, find_sweep(opened, found.sweep_id), events))


def best(
    sweep: SweepArgument = None,
    top: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    kind: Annotated[
        BestFormat,
        typer.Option(
            "--format", help="table; yaml: the configurations; json: as --json; cli: command lines that rerun them."
        ),
    ] = BestFormat.TABLE,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the best runs of a sweep."""
    from metta.sweep.cli.addresses import find_sweep

    opened = open_reader(store_url(store))
    found = find_sweep(opened, sweep)
    runs = opened.fetch_runs(found.sweep_id, best_first=True, limit=top)
    if as_json or kind is BestFormat.JSON:
        from metta.sweep.cli.shapes import print_json, run_shape

        print_json([run_shape(run) for run in runs])
        return
    if not runs:
        raise NotFoundError(
            f"sweep {found.sweep_id} has no completed run yet; see: metta sweep status {found.sweep_id}"
        )
    if kind is not BestFormat.TABLE:
        sys.stdout.write(_best_text(found, runs, kind))
        return
    from metta.sweep.display.views import console, runs_table

    title = f"best of {found.config.name} ({found.sweep_id}), {found.config.direction} {found.config.metric}"
    screen = console()
    screen.print(title, style="italic")
    screen.print(runs_table(runs, found, screen))


def _best_text(sweep: SweepMetadata, runs: Sequence[RunInfo], kind: BestFormat) -> str:
    if kind is BestFormat.CLI:
        from metta.sweep.display.commands import rerun_command

        return "".join(f"{rerun_command(sweep.config, run)}\n" for run in runs)
    from metta.sweep.config_file import dump
    from metta.sweep.model.space import nest

    entries = [{"run_id": run.run_id, "score": run.score, "config": nest(run.config)} for run in runs]
    return dump(entries)


def schema() -> None:
    """Print the JSON Schema of sweep files, for editors."""
    from metta.sweep.cli.shapes import print_json
    from metta.sweep.config_file import json_schema

    print_json(json_schema())
