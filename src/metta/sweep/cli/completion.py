"""What the shell offers when somebody presses TAB. Nothing here may print, fail, or keep them waiting."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import typer

from metta.sweep.errors import SweepError
from metta.sweep.protocols import Reader
from metta.sweep.stores import open_reader, store_url

#: After so long nothing is offered: a database that does not answer now may do so for minutes.
_PATIENCE_S = 1.0
#: Runs offered at most; of more, nobody reads the list.
_MOST_RUNS = 100

#: What is put on the line, and what some shells show beside it.
Offers = list[tuple[str, str]]


def complete_sweep(context: typer.Context, incomplete: str) -> Offers:
    """Ids of sweeps, and names for who has begun to type one."""

    def look(store: Reader) -> Offers:
        sweeps = store.fetch_sweeps()
        named = [sweep for sweep in sweeps if incomplete and sweep.config.name.startswith(incomplete)]
        return [
            *(
                (each.sweep_id, f"{each.config.name} {each.status}")
                for each in sweeps
                if each.sweep_id.startswith(incomplete)
            ),
            *((each.config.name, f"{each.sweep_id} {each.status}") for each in named),
        ]

    return _offer(context, look)


def complete_run(context: typer.Context, incomplete: str) -> Offers:
    """Ids of runs, in all sweeps; in that of `SWEEP/` where it is there already."""
    address, slash, prefix = incomplete.rpartition("/")
    return _runs(context, address if slash else None, prefix, f"{address}{slash}")


def complete_run_of_sweep(context: typer.Context, incomplete: str) -> Offers:
    """Ids of runs of the sweep that the command is about."""
    # An option that has no value yet keeps Click from telling which argument is which.
    address = context.params.get("sweep") or next(iter(context.args), "")
    return _runs(context, address, incomplete)


def complete_sweep_or_run(context: typer.Context, incomplete: str) -> Offers:
    """Both."""
    return [*complete_sweep(context, incomplete), *complete_run(context, incomplete)]


def complete_strategy(incomplete: str) -> list[str]:
    """Names of optimizers, of schedulers, and of both together."""
    from metta.sweep import registry
    from metta.sweep.config import COMBINATIONS

    names = {*registry.names("optimizers"), *registry.names("schedulers"), *COMBINATIONS}
    return sorted(name for name in names if name.startswith(incomplete))


def _runs(context: typer.Context, address: str | None, prefix: str, before: str = "") -> Offers:
    """Runs whose id has this prefix: of the sweep of this address, the latest for an empty one, all for None."""
    from metta.sweep.cli.addresses import find_sweep

    def look(store: Reader) -> Offers:
        sweep_id = None if address is None else find_sweep(store, address or None).sweep_id
        runs = store.fetch_runs(sweep_id, id_prefix=prefix, limit=_MOST_RUNS)
        return [(f"{before}{run.run_id}", f"{run.status} {'' if run.score is None else run.score}") for run in runs]

    return _offer(context, look)


def _offer(context: typer.Context, look: Callable[[Reader], Offers]) -> Offers:
    """What there is in the store; nothing where it cannot be read, or not in time."""
    # A thread, since what waits for a server is not Python; nobody but the shell is there to miss this process.
    alarm = threading.Timer(_PATIENCE_S, os._exit, [0])
    alarm.daemon = True
    alarm.start()
    try:
        return look(open_reader(store_url(context.params.get("store"))))
    except SweepError:
        return []
    finally:
        alarm.cancel()
