"""A sweep as it goes on, seen from outside of its controller: its state, kept up with the log, and signs of life."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from metta.sweep.controller.lease import is_controlled
from metta.sweep.errors import NotFoundError, StoreAwayError
from metta.sweep.model.events import Event
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.streams import looks
from metta.sweep.protocols import Heartbeat, Reader

#: Looks follow each other no faster, so that a busy sweep is not a load on who watches it.
_SHORTEST_LOOK_S = 0.25


class Signs(NamedTuple):
    """Signs of life."""

    #: The last of each agent that ever worked for the sweep.
    heartbeats: Sequence[Heartbeat] = ()
    #: Whether a controller is at work.
    is_controlled: bool = True


class Sight(NamedTuple):
    """One look at a sweep."""

    state: SweepState
    #: What is new since the look before.
    events: Sequence[Event]
    signs: Signs
    #: Why it is not up to date.
    away: StoreAwayError | None


def present(reader: Reader, sweep_id: str) -> SweepMetadata:
    """A sweep that was there before.

    Raises:
        NotFoundError: the store was replaced by one without it.
        StoreError: the store cannot be read.
    """
    for sweep in reader.fetch_sweeps(sweep_id):
        return sweep
    raise NotFoundError(f"sweep {sweep_id} is not in the store any more; see: metta sweep list")


def signs_of_life(reader: Reader, sweep_id: str, now: float) -> Signs:
    """Who is at work on a sweep."""
    return Signs(reader.fetch_heartbeats(sweep_id), is_controlled(reader, sweep_id, now))


def watch(reader: Reader, sweep_id: str) -> Iterator[Sight]:
    """Look at a sweep whenever something has happened and once a second, until it has ended.

    The first look folds the whole log; later ones take time in proportion to what is new. An absence of the store is
    waited out.

    Raises:
        NotFoundError: the store was replaced by one without the sweep.
        StoreError: the store cannot be read.
    """
    state, signs = EMPTY, Signs()
    for events, away in looks(reader, sweep_id, after=0):
        began = time.monotonic()
        state = fold(state, events)
        if away is None:
            with suppress(StoreAwayError):
                present(reader, sweep_id)
                signs = signs_of_life(reader, sweep_id, time.time())
        if state.metadata is not None:
            yield Sight(state, events, signs, away)
            if state.sweep.status.ended:
                return
        threading.Event().wait(max(0.0, _SHORTEST_LOOK_S - (time.monotonic() - began)))
