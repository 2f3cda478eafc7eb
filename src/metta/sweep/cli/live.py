"""`metta sweep status --watch` and `--tail`: what goes on until a sweep, or a run, has ended."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import msgspec

from metta.sweep.cli.absences import Absences
from metta.sweep.cli.output import end_with_reader
from metta.sweep.cli.shapes import sweep_shape
from metta.sweep.controller.lease import is_controlled
from metta.sweep.errors import StoreAwayError
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.watching import present, watch
from metta.sweep.protocols import Reader

#: What takes longer is announced.
_LONG_S = 1.0
#: Between two objects of JSON.
_EVERY_S = 1.0


def watch_sweep(reader: Reader, sweep: SweepMetadata, *, as_json: bool) -> None:
    """Show a sweep until it has ended."""
    end_with_reader()
    if as_json:
        _print_changes(reader, sweep.sweep_id)
        return
    from metta.sweep.display.views import console
    from metta.sweep.display.watching import show_sights

    sights = watch(reader, sweep.sweep_id)
    with _announced(f"reading {sweep.seq:,} events ..."):
        first = next(sights)
    show_sights(chain([first], sights), console())


def tail_run(reader: Reader, address: str) -> None:
    """Show a run until it has ended."""
    end_with_reader()
    from metta.sweep.cli.addresses import find_run
    from metta.sweep.display.tail import show_tail
    from metta.sweep.display.views import console
    from metta.sweep.observe.tailing import tail

    show_tail(tail(reader, find_run(reader, address)), console())


@contextmanager
def _announced(line: str) -> Iterator[None]:
    """Say what takes so long, where it does."""
    timer = threading.Timer(_LONG_S, sys.stderr.write, [f"{line}\n"])
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _print_changes(reader: Reader, sweep_id: str) -> None:
    """An object as of `status --json` a line, whenever it has changed but for the estimate of the end."""
    printed: tuple[int, bool] | None = None
    absences = Absences()
    while True:
        try:
            sweep = present(reader, sweep_id)
            controlled = is_controlled(reader, sweep_id, time.time())
            if (sweep.seq, controlled) != printed:
                ids = [] if sweep.best_run_id is None else [sweep.best_run_id]
                best = next(iter(reader.fetch_runs(sweep_id, run_ids=ids)), None)
                shape = sweep_shape(sweep, best, now=time.time(), controlled=controlled)
                sys.stdout.write(msgspec.json.encode(shape).decode() + "\n")
                sys.stdout.flush()
                printed = sweep.seq, controlled
            if sweep.status.ended:
                return
            absences.there()
        except StoreAwayError as error:
            absences.away(error)
        threading.Event().wait(_EVERY_S)
