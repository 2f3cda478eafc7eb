"""`metta sweep logs`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metta.sweep.cli.options import RunArgument, StoreOption
from metta.sweep.cli.output import end_with_reader
from metta.sweep.errors import NotFoundError
from metta.sweep.protocols import Reader
from metta.sweep.stores import open_reader, store_url

if TYPE_CHECKING:
    from metta.sweep.observe.logs import GrowingLog

#: How often a followed log is looked at.
_LOOK_EVERY_S = 0.2


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: metta sweep logs 7kq -f")(logs)


def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    store: StoreOption = None,
) -> None:
    """Print what a run's jobs have printed, attempt after attempt."""
    from metta.sweep.cli.addresses import find_run
    from metta.sweep.observe.logs import GrowingLog

    opened = open_reader(store_url(store))
    found = find_run(opened, run)
    logs_of: dict[str, GrowingLog] = {}
    gone: set[Path] = set()
    has_log = False
    if follow:
        end_with_reader()
    while True:
        current = opened.fetch_runs(found.sweep_id, run_ids=[found.run_id])[0]
        for job in current.jobs:
            if job.log is not None:
                if job.job_id not in logs_of:
                    logs_of[job.job_id] = GrowingLog(Path(job.log))
                    sys.stderr.write(f"==> {job.job_id} <==\n")
                    sys.stderr.flush()
                has_log |= _print_new(logs_of[job.job_id], gone)
        if not follow or current.status.ended or _is_over(opened, found.sweep_id):
            break
        time.sleep(_LOOK_EVERY_S)
    if not has_log:
        raise NotFoundError(f"run {found.run_id} is {current.status} and has no log yet")


def _is_over(store: Reader, sweep_id: str) -> bool:
    return store.fetch_sweeps(sweep_id)[0].status.ended


def _print_new(log: GrowingLog, gone: set[Path]) -> bool:
    """Copy what was added to the log since the last call, byte for byte; whether there is one. A loss is said once."""
    try:
        for piece in log.new():
            sys.stdout.buffer.write(piece)
    except FileNotFoundError:
        if log.path not in gone:
            sys.stderr.write(f"(the log {log.path} is gone)\n")
        gone.add(log.path)
        return False
    sys.stdout.flush()
    return True
