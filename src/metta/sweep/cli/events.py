"""`metta sweep events` and `metta sweep why`: what happened, and why."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Annotated

import typer

from metta.sweep.cli.absences import Absences
from metta.sweep.cli.options import JsonOption, RunArgument, RunOption, StoreOption, SweepArgument
from metta.sweep.cli.output import end_with_reader
from metta.sweep.model.events import Event
from metta.sweep.stores import open_reader, store_url

#: Of what is followed, so much of the past is shown for a start.
_PAST = 10


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: metta sweep events 46g3f -f --type 'job_*'")(events)
    app.command(epilog="Example: metta sweep why 7kq")(why)


def _complete_type(incomplete: str) -> list[str]:
    from metta.sweep.observe.streams import EVENT_TYPES

    return [name for name in EVENT_TYPES if name.startswith(incomplete)]


def events(  # noqa: PLR0917 (one parameter an option)
    sweep: SweepArgument = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help=f"Show the last {_PAST}, then what comes, until the sweep has ended.")
    ] = False,
    run: RunOption = None,
    types: Annotated[
        list[str] | None,
        typer.Option(
            "--type",
            metavar="TYPE",
            autocompletion=_complete_type,
            help="Only events of this type, such as run_created; 'job_*' for all that begin so. May be repeated.",
        ),
    ] = None,
    tail: Annotated[int | None, typer.Option(min=0, metavar="N", help="Of the past, the last N only.")] = None,
    after: Annotated[int | None, typer.Option(min=0, metavar="SEQ", help="Only events after this number.")] = None,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for scripts, an object a line.")] = False,
) -> None:
    """Show what happened in a sweep, in order: every decision with its reasons, every job, every report."""
    from metta.sweep.cli.addresses import find_run, find_sweep
    from metta.sweep.observe import streams

    opened = open_reader(store_url(store))
    found = find_sweep(opened, sweep)
    run_id = None if run is None else find_run(opened, f"{found.sweep_id}/{run}").run_id
    selection = streams.Selection.of(types or (), run_id)
    seq, begin = found.seq, after or 0
    if tail is None and after is None and follow:
        tail = _PAST
    if tail is None:
        past: Iterable[Event] = streams.select(opened, found.sweep_id, selection, after=begin, until=seq)
    else:
        past = streams.last(opened, found.sweep_id, selection, tail, after=begin, until=seq)
    show = _print_json if as_json else _printer()
    for event in past:
        show(event)
    sys.stdout.flush()
    if not follow:
        return
    end_with_reader()
    absences = Absences()
    for event in streams.follow(
        opened, found.sweep_id, selection, after=max(seq, begin), on_away=absences.away, on_back=absences.there
    ):
        show(event)
        sys.stdout.flush()


def _printer() -> Callable[[Event], None]:
    from metta.sweep.display.events import print_event
    from metta.sweep.display.views import console

    screen = console()
    return lambda event: print_event(event, screen)


def _print_json(event: Event) -> None:
    import msgspec

    from metta.sweep.cli.shapes import event_shape

    sys.stdout.write(msgspec.json.encode(event_shape(event)).decode() + "\n")


def why(run: RunArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Say why each decision about a run was taken: why it was suggested, started, stopped, retried, or failed."""
    from metta.sweep.cli.addresses import find_run, find_sweep
    from metta.sweep.observe.explanations import explain

    opened = open_reader(store_url(store))
    found = find_run(opened, run)
    explanations = list(explain(opened.read(found.sweep_id, run_id=found.run_id)))
    if as_json:
        from metta.sweep.cli.shapes import explanation_shape, print_json

        print_json(
            {
                "run_id": found.run_id,
                "sweep_id": found.sweep_id,
                "status": found.status.value,
                "decisions": [explanation_shape(each) for each in explanations],
            }
        )
        return
    from metta.sweep.display.events import why_view
    from metta.sweep.display.views import console

    console().print(why_view(found, find_sweep(opened, found.sweep_id), explanations))
