"""`metta sweep debug`, and what `metta sweep run --dry-run` prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from metta.sweep.cli.options import RequiredSweepArgument, StoreOption
from metta.sweep.errors import LeaseHeldError
from metta.sweep.model.events import Event, SweepCreated
from metta.sweep.stores import open_store, store_url

if TYPE_CHECKING:
    from rich.table import Table

    from metta.sweep.controller.debug import Start


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: metta sweep debug 46g3f")(debug)


def debug(sweep: RequiredSweepArgument, store: StoreOption = None) -> None:
    """Go through a sweep step by step, as its controller: Enter for a step, h for help.

    Its jobs are real. To see what would be started without running anything: metta sweep run --resume SWEEP --dry-run
    """
    from metta.sweep.cli.addresses import find_sweep
    from metta.sweep.clock import SystemClock
    from metta.sweep.controller.debug import DebugController
    from metta.sweep.controller.lease import is_controlled
    from metta.sweep.dispatchers.build import build_dispatcher
    from metta.sweep.display.views import go_on_command

    opened = open_store(store_url(store))
    found = find_sweep(opened, sweep)
    if found.status.ended:
        sys.stderr.write(f"sweep {found.sweep_id} is {found.status} already: {found.reason}\n")
        return
    clock = SystemClock()
    if is_controlled(opened, found.sweep_id, clock.now()):
        raise LeaseHeldError(
            f"sweep {found.sweep_id}: a controller is at work on it already; interrupt that one first, "
            f"or only look: metta sweep run --resume {found.sweep_id} --dry-run"
        )
    dispatcher = build_dispatcher(found.config.dispatcher, opened, found.sweep_id, found.config, clock)
    state = DebugController(opened, found.sweep_id, dispatcher, clock).step_through()
    if not state.sweep.status.ended:
        sys.stderr.write(f"go on with: {go_on_command(state.sweep)}\n")


def print_rehearsal(
    events: Sequence[Event],
    steps: int,
    *,
    resume: Mapping[str, Any] | None = None,
    has_drawn_seed: bool = False,
    as_json: bool,
) -> None:
    """Show the jobs that a sweep with this log would start next.

    Args:
        events: The log.
        steps: How many starts to show.
        resume: As of `rehearse`.
        has_drawn_seed: Whether its author gave it no seed, so that the next one like it has another.
        as_json: For scripts.
    """
    from metta.sweep.controller.debug import rehearse

    created = events[0].body
    assert isinstance(created, SweepCreated)
    seed = created.config.seed
    begun = max(event.at for event in events)
    starts = rehearse(events, steps, resume=resume)
    if as_json:
        from metta.sweep.cli.shapes import print_json

        print_json({"made_up": True, "seed": seed, "starts": [_shape(start, begun) for start in starts]})
        return
    from metta.sweep.display.views import console

    if starts:
        console().print(_table(starts, begun))
    end = "" if len(starts) == steps else f" {len(starts)} jobs and no more would be started."
    sys.stderr.write(
        f"Nothing was run or written.{end} Durations and results of the jobs are made up, and so are choices that "
        "follow from them.\n"
    )
    if has_drawn_seed:
        sys.stderr.write(f"To try these very configurations, run it with: --seed {seed}\n")


def _shape(start: Start, begun: float) -> dict[str, Any]:
    job = start.job
    return {
        "seconds": round(start.at - begun, 3),
        "run_id": job.run_id,
        "job_id": job.job_id,
        "type": job.type.value,
        "attempt": job.attempt,
        "until": job.until,
        "config": job.config,
        "reasons": list(start.reasons),
    }


def _table(starts: Sequence[Start], begun: float) -> Table:
    from rich.table import Table

    from metta.sweep.display.views import config_text, duration

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("after", justify="right", no_wrap=True)
    for heading in ("run", "job"):
        table.add_column(heading, no_wrap=True)
    for heading in ("config", "reasons"):
        table.add_column(heading, overflow="fold")
    for start in starts:
        job = start.job
        until = "" if job.until is None else f" until {job.until:g}"
        table.add_row(
            duration(start.at - begun),
            job.run_id,
            f"{job.type} {job.attempt}{until}",
            config_text(job.config),
            "; ".join(start.reasons),
        )
    return table
