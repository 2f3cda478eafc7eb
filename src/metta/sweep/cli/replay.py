"""`metta sweep replay`: a sweep as it was."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from datetime import datetime
from itertools import takewhile
from typing import Annotated

import typer

from metta.sweep.cli.options import JsonOption, StoreOption, SweepArgument
from metta.sweep.errors import ConfigError
from metta.sweep.model.events import Event
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.replay import BEGINNING, Point, Timeline, moment_at
from metta.sweep.stores import open_reader, store_url

#: How long a film takes on a terminal where nobody says how fast it is to go.
_FILM_S = 30.0
_OFFSET = re.compile(r"\+(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+(?:\.\d+)?)s)?")
_SPEED = re.compile(r"(\d+(?:\.\d*)?|\.\d+)x?", re.IGNORECASE)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: metta sweep replay 46g3f --to +10m")(replay)


def replay(  # noqa: PLR0917 (one parameter an option)
    sweep: SweepArgument = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TIME|SEQ",
            help="Show the sweep after event SEQ, or as it was at a TIME: 2026-01-31T12:00, local or with a zone, or "
            "+1h30m after it was created.",
        ),
    ] = None,
    speed: Annotated[
        str | None,
        typer.Option(
            metavar="10x",
            help=f"Play it, so many times as fast as it was. Default on a terminal: all in {_FILM_S:.0f} seconds.",
        ),
    ] = None,
    step: Annotated[bool, typer.Option("--step", help="Go through it event by event, and back: h for help.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a sweep as it was at any moment, or play it from its beginning.

    With --json the moment is an object as of `status --json`; without --to, one a line after every event.
    """
    from metta.sweep.cli.addresses import find_sweep

    if step and (as_json or speed is not None):
        raise ConfigError("--step: goes through the events by hand; leave --json and --speed out")
    factor = None if speed is None else _parse_speed(speed)
    opened = open_reader(store_url(store))
    found = find_sweep(opened, sweep)
    point = Point(seq=found.seq) if to is None else parse_point(to, found)
    events = opened.read(found.sweep_id)
    if step:
        _step(Timeline(events), found, None if to is None else point)
    elif to is not None and factor is None:
        _show(events, point, as_json=as_json)
    else:
        _play(events, point, found, factor, as_json=as_json)


def parse_point(text: str, sweep: SweepMetadata) -> Point:
    """What `--to` means.

    Raises:
        ConfigError: it is no number, time or offset, or not within the sweep.
    """
    if text.isdecimal():
        if not 1 <= int(text) <= sweep.seq:
            raise ConfigError(f"to: sweep {sweep.sweep_id} has events 1 to {sweep.seq}, got {text}")
        return Point(seq=int(text))
    at = _parse_time(text, sweep)
    if at < sweep.created_at:
        began = datetime.fromtimestamp(sweep.created_at).isoformat(timespec="seconds")
        raise ConfigError(f"to: sweep {sweep.sweep_id} was created at {began}, after {text}")
    return Point(at=at)


def _parse_time(text: str, sweep: SweepMetadata) -> float:
    if (offset := _OFFSET.fullmatch(text)) and len(text) > 1:
        days, hours, minutes, seconds = (float(part or 0) for part in offset.groups())
        return sweep.created_at + ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(
            f"to: expected the number of an event (1 to {sweep.seq}), a time such as 2026-01-31T12:00 or "
            f"2026-01-31T11:00Z, or one after the sweep's creation such as +1h30m, got {text!r}"
        ) from None


def _parse_speed(text: str) -> float:
    match = _SPEED.fullmatch(text)
    if match is None or not float(match[1]):
        raise ConfigError(f"speed: expected how many times as fast, such as 10x or 0.5x, got {text!r}")
    return float(match[1])


def _show(events: Iterable[Event], point: Point, *, as_json: bool) -> None:
    moment = moment_at(events, point)
    if as_json:
        from metta.sweep.cli.shapes import moment_shape, print_json

        print_json(moment_shape(moment))
        return
    from metta.sweep.display.replay import moment_view
    from metta.sweep.display.views import console

    screen = console()
    screen.print(moment_view(moment, screen))


def _play(events: Iterable[Event], point: Point, sweep: SweepMetadata, speed: float | None, *, as_json: bool) -> None:
    wanted: Iterable[Event] = takewhile(point.includes, events)
    if as_json:
        _print_all(wanted)
        return
    from metta.sweep.display.replay import play
    from metta.sweep.display.views import console

    screen = console()
    if speed is None and screen.is_terminal:
        known = list(wanted)
        speed = max((known[-1].at - sweep.created_at) / _FILM_S, 1e-9)
        wanted = known
    play(wanted, screen, speed)


def _print_all(events: Iterable[Event]) -> None:
    import msgspec

    from metta.sweep.cli.shapes import moment_shape

    moment = BEGINNING
    for event in events:
        moment = moment.after([event])
        sys.stdout.write(msgspec.json.encode(moment_shape(moment)).decode() + "\n")


def _step(timeline: Timeline, sweep: SweepMetadata, point: Point | None) -> None:
    from metta.sweep.display.replay import Stepper
    from metta.sweep.display.views import console

    start = 1 if point is None else timeline.last_before(point)
    Stepper(timeline, console(), lambda text: parse_point(text, sweep), start).run()
