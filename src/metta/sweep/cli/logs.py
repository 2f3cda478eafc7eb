"""`metta sweep logs`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from metta.sweep.cli.options import RunArgument, StoreOption
from metta.sweep.errors import NotFoundError
from metta.sweep.protocols import Reader
from metta.sweep.stores import open_reader, store_url

#: How often a followed log is looked at.
_LOOK_EVERY_S = 0.2
_CHUNK_BYTES = 1 << 16


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

    opened = open_reader(store_url(store))
    found = find_run(opened, run)
    printed: dict[str, int] = {}
    while True:
        current = opened.fetch_runs(found.sweep_id, run_ids=[found.run_id])[0]
        for job in current.jobs:
            if job.log is not None:
                _print_new(Path(job.log), job.job_id, printed)
        if not follow or current.status.ended or _is_over(opened, found.sweep_id):
            break
        time.sleep(_LOOK_EVERY_S)
    if not printed:
        raise NotFoundError(f"run {found.run_id} is {current.status} and has no log yet")


def _is_over(store: Reader, sweep_id: str) -> bool:
    return store.fetch_sweeps(sweep_id)[0].status.ended


def _print_new(log: Path, job_id: str, printed: dict[str, int]) -> None:
    """Copy what was added to the log since the last call, byte for byte."""
    if job_id not in printed:
        sys.stderr.write(f"==> {job_id} <==\n")
        sys.stderr.flush()
    try:
        with log.open("rb") as stream:
            stream.seek(printed.setdefault(job_id, 0))
            while chunk := stream.read(_CHUNK_BYTES):
                sys.stdout.buffer.write(chunk)
                printed[job_id] += len(chunk)
    except FileNotFoundError:
        sys.stderr.write(f"(the log {log} is gone)\n")
    sys.stdout.flush()
