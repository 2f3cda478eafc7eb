"""`metta sweep notify`: tells people of sweeps from outside of their controllers."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from metta.sweep.cli.completion import complete_sweep
from metta.sweep.cli.options import JsonOption, StoreOption
from metta.sweep.errors import ConfigError
from metta.sweep.stores import open_store, store_url

if TYPE_CHECKING:
    from metta.sweep.model.notify import Notify
    from metta.sweep.observe.notifications.notifier import Delivery
    from metta.sweep.observe.notifications.notifying import StoreNotifier
    from metta.sweep.protocols import Store

#: What is new in the sweeps is looked for this often: nobody reads a message sooner.
_LOOK_EVERY_S = 5.0
#: On a machine that wakes up controllers need a moment to show that they live.
_AFTER_SLEEP_S = 15.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Examples: metta sweep notify --test --channel '$SLACK_URL'    metta sweep notify --once")(
        notify
    )


def notify(  # noqa: PLR0917 (one parameter an option)
    sweep: Annotated[
        str | None,
        typer.Argument(
            metavar="SWEEP",
            autocompletion=complete_sweep,
            help="Id, unique prefix or name. Default: all unfinished ones.",
        ),
    ] = None,
    channel: Annotated[
        list[str] | None,
        typer.Option(
            "--channel",
            metavar="'$NAME'|FILE",
            help="Tell this one instead of those that the sweeps name: a variable or file with URLs of Apprise. "
            "May be repeated.",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look once and send what is due, for cron.")] = False,
    test: Annotated[bool, typer.Option("--test", help="Send a test message, and say who took it.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell people what happens in all unfinished sweeps, or in one, until Ctrl-C: also that nobody is at work on it.

    A sweep with channels is told of by its own controller while that lives; of the two one sends at a time.
    """
    from metta.sweep.config import parse_notify

    instead = parse_notify(channel) if channel else None
    if test:
        _send_test(sweep, instead, store=store, as_json=as_json)
        return
    opened = open_store(store_url(store))
    notifier = _open(opened, sweep, instead)
    if not once:
        _watch(opened, notifier, as_json=as_json)
        return
    deliveries = notifier.look()
    _print(deliveries, as_json=as_json)
    for sweep_id, problem in notifier.problems.items():
        sys.stderr.write(f"sweep {sweep_id}: nobody can be told of it: {problem}\n")
    if notifier.problems or any(delivery.problem for delivery in deliveries):
        raise typer.Exit(1)


def _open(store: Store, address: str | None, instead: Notify | None) -> StoreNotifier:
    """Refuse where nobody would be told of anything: a job of cron that does nothing is not noticed."""
    from metta.sweep.cli.addresses import find_sweep
    from metta.sweep.clock import SystemClock
    from metta.sweep.observe.notifications.channels import check_channels, default_notify
    from metta.sweep.observe.notifications.notifying import StoreNotifier

    sweeps = store.fetch_sweeps() if address is None else [find_sweep(store, address)]
    check_channels(instead, Path.cwd())
    if instead is None and default_notify() is None and all(sweep.config.notify is None for sweep in sweeps):
        raise ConfigError(f"nobody is to be told of {'any sweep' if address is None else address}; {_WAYS}")
    only = None if address is None else sweeps[0].sweep_id
    return StoreNotifier(store, SystemClock(), sweep_id=only, instead=instead)


_WAYS = "give --channel '$NAME', set METTA_SWEEP_NOTIFY, or let the sweep name its channels by `notify`"


def _watch(store: Store, notifier: StoreNotifier, *, as_json: bool) -> None:
    import threading
    import time

    from metta.sweep.cli.absences import Absences
    from metta.sweep.errors import StoreAwayError
    from metta.sweep.observe.notifications.notifying import ASLEEP_S

    never = threading.Event()
    absences = Absences()
    sys.stderr.write("telling people of the sweeps; Ctrl-C ends it\n")
    while True:
        try:
            deliveries = notifier.look()
            _print(deliveries, as_json=as_json, is_list=False)
            absences.there()
        except StoreAwayError as error:
            absences.away(error)
        began = time.time()
        never.wait(_LOOK_EVERY_S)
        if time.time() - began > ASLEEP_S:
            never.wait(_AFTER_SLEEP_S)


def _send_test(address: str | None, instead: Notify | None, *, store: str | None, as_json: bool) -> None:
    from metta.sweep.observe.notifications.channels import open_channels
    from metta.sweep.observe.notifications.notices import Message

    wanted, folder = _wanted(address, instead, store)
    message = Message(
        title="metta sweep: a test",
        body="This channel takes messages about sweeps.\nSent by: metta sweep notify --test",
    )
    results = [(channel, channel.send(message)) for channel in open_channels(wanted, folder)]
    if as_json:
        from metta.sweep.cli.shapes import print_json

        print_json([{"channel": each.name, "service": each.service, "problem": why} for each, why in results])
    else:
        for each, why in results:
            sys.stdout.write(f"{each.name} ({each.service}): {'took it' if why is None else f'failed: {why}'}\n")
    if any(why is not None for _, why in results):
        raise typer.Exit(1)


def _wanted(address: str | None, instead: Notify | None, store: str | None) -> tuple[Notify, Path]:
    """Whom to test: those given, else those of the sweep, else those of METTA_SWEEP_NOTIFY."""
    from metta.sweep.cli.addresses import find_sweep
    from metta.sweep.observe.notifications.channels import default_notify

    if instead is not None:
        return instead, Path.cwd()
    if address is not None:
        config = find_sweep(open_store(store_url(store)), address).config
        if config.notify is not None:
            return config.notify, Path(config.working_directory)
    by_default = default_notify()
    if by_default is None:
        raise ConfigError(f"nobody is to be told of anything; {_WAYS}")
    return by_default, Path.cwd()


def _print(deliveries: Iterable[Delivery], *, as_json: bool, is_list: bool = True) -> None:
    if as_json:
        _print_json([_shape(delivery) for delivery in deliveries], is_list=is_list)
        return
    for each in deliveries:
        what = "told" if each.problem is None else "could not be told"
        why = "" if each.problem is None else f": {each.problem}"
        sys.stdout.write(f"{each.channel} {what} of sweep {each.sweep_id}: {each.message.title}{why}\n")
    sys.stdout.flush()


def _print_json(shapes: list[dict[str, Any]], *, is_list: bool) -> None:
    """One list where that is all; an object a line where more will follow."""
    import msgspec

    if is_list:
        from metta.sweep.cli.shapes import print_json

        print_json(shapes)
        return
    for shape in shapes:
        sys.stdout.write(msgspec.json.encode(shape).decode() + "\n")
    sys.stdout.flush()


def _shape(delivery: Delivery) -> dict[str, Any]:
    return {
        "sweep_id": delivery.sweep_id,
        "channel": delivery.channel,
        "title": delivery.message.title,
        "body": delivery.message.body,
        "problem": delivery.problem,
    }
