"""Notifiers at work: beside a controller in a thread of its own, or over a store in a process of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from msgspec.structs import replace

from metta.sweep.errors import StoreAwayError, SweepError
from metta.sweep.model.events import Event
from metta.sweep.model.notify import Notify
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.notifications.notifier import Delivery, Notifier
from metta.sweep.protocols import Clock, Observer, Store

logger = logging.getLogger(__name__)

#: Where nothing happens, time passes all the same: budgets are spent, and stalls become long.
_LOOK_EVERY_S = 15.0
#: Who did not look for so long was asleep, as on a machine that was suspended. The others were as well: what they have
#: to do is not called overdue before they have had a moment for it.
ASLEEP_S = 60.0
#: However much happens, it is looked at so often.
_PAUSE_S = 1.0
#: At its end a controller's process waits so long for channels that do not take what is left to tell.
_FINISH_S = 10.0


@contextmanager
def notifying(
    store: Store, sweep: SweepMetadata, clock: Clock, observer: Observer | None, changes: Mapping[str, Any]
) -> Iterator[Observer]:
    """Tell people of the sweep while the block runs; it never waits for a channel, but for a little at its end.

    Args:
        store: Where the sweep is.
        sweep: Which sweep.
        clock: The time.
        observer: Who else is to see what happens.
        changes: Limits that the sweep is about to be given.

    Yields:
        What is to be called with what happens.

    Raises:
        UsageError: a channel cannot be opened.
        StoreError: the store cannot be read or written.
    """
    if "notify" in changes:
        notify = msgspec.convert(changes["notify"], Notify | None)
        sweep = replace(sweep, config=replace(sweep.config, notify=notify))
    background = _Background(store, sweep, clock)

    def observe(state: SweepState, events: Sequence[Event]) -> None:
        background.heed(state)
        if observer is not None:
            observer(state, events)

    try:
        yield observe
    finally:
        background.close()


class _Background:
    def __init__(self, store: Store, sweep: SweepMetadata, clock: Clock) -> None:
        self._store = store
        self._sweep_id = sweep.sweep_id
        self._notifier = Notifier(store, sweep.sweep_id, clock)
        self._notifier.open(sweep)
        self._clock = clock
        self._problem: str | None = None
        self._awake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self._thread.start()

    def heed(self, state: SweepState) -> None:
        """Something has happened."""
        if self._notifier.has_channels or state.sweep.config.notify is not None:
            self._awake.set()

    def close(self) -> None:
        self._closing.set()
        self._awake.set()
        self._thread.join(_FINISH_S)
        if self._thread.is_alive():  # a channel that does not answer
            self._warn_of_rest("a channel")

    def _run(self) -> None:
        while not self._closing.is_set():
            began = self._clock.now()
            self._awake.wait(_LOOK_EVERY_S if self._notifier.has_channels else None)
            self._awake.clear()
            self._closing.wait(_PAUSE_S)
            if self._clock.now() - began > ASLEEP_S:
                self._closing.wait(_LOOK_EVERY_S)
            self._carefully(is_last=False)
        if self._notifier.has_channels:
            self._finish()

    def _finish(self) -> None:
        """Tell what is left, with a little patience."""
        never = threading.Event()
        pause_s = _PAUSE_S
        until = time.monotonic() + _FINISH_S - _PAUSE_S  # so that it ends before nobody waits any longer
        while (left := self._carefully(is_last=True)) and (left_s := until - time.monotonic()) > 0:
            never.wait(min(pause_s, left_s))
            pause_s *= 2
        if left:
            self._warn_of_rest(", ".join(left))

    def _warn_of_rest(self, channels: str) -> None:
        logger.warning(
            "sweep %s: %s could not be told all; send it later with: metta sweep notify %s --once",
            *(self._sweep_id, channels, self._sweep_id),
        )

    def _carefully(self, *, is_last: bool) -> list[str]:
        """Look once; whatever goes wrong must not disturb the sweep. Returns who could not be told (at the end)."""
        try:
            [sweep] = self._store.fetch_sweeps(self._sweep_id)
            self._notifier.open(sweep)
            self._notifier.look(is_last=is_last)
            self._problem = None
            return self._notifier.untold() if is_last else []
        except StoreAwayError:
            return ["the channels"]  # the controller says that it is away
        except Exception as error:  # noqa: BLE001 (see above)
            problem = f"{type(error).__name__}: {error}"
            if problem != self._problem:
                logger.warning("sweep %s: nobody can be told of it: %s", self._sweep_id, problem)
            self._problem = problem
            return []


class StoreNotifier:
    """Tells people of all unfinished sweeps of a store, or of one, and of what is left to tell of those that ended.

    Args:
        store: The store.
        clock: The time.
        sweep_id: The only sweep.
        instead: Who is told, instead of those whom the sweeps name.
    """

    def __init__(
        self, store: Store, clock: Clock, *, sweep_id: str | None = None, instead: Notify | None = None
    ) -> None:
        self._store = store
        self._clock = clock
        self._sweep_id = sweep_id
        self._instead = instead
        self._notifiers: dict[str, Notifier] = {}
        #: Of ended sweeps of which all is told, the last event by then.
        self._over: dict[str, int] = {}
        self._problems: dict[str, str] = {}

    def look(self) -> list[Delivery]:
        """See what is new in the sweeps, and tell it where it is time to.

        Raises:
            StoreError: the store cannot be read.
        """
        deliveries: list[Delivery] = []
        for sweep in self._store.fetch_sweeps(self._sweep_id):
            if not sweep.status.ended or (sweep.notified and self._over.get(sweep.sweep_id) != sweep.seq):
                deliveries += self._look_at(sweep)
        return deliveries

    def _look_at(self, sweep: SweepMetadata) -> list[Delivery]:
        sweep_id = sweep.sweep_id
        if sweep_id not in self._notifiers:
            self._notifiers[sweep_id] = Notifier(self._store, sweep_id, self._clock, self._instead)
        notifier = self._notifiers[sweep_id]
        try:
            notifier.open(sweep)
            deliveries = notifier.look()
        except StoreAwayError:
            raise
        except SweepError as error:
            # One sweep whose variable is not set here, say, must not keep the others from being told of.
            if self._problems.get(sweep_id) != str(error):
                logger.warning("sweep %s: nobody can be told of it: %s", sweep_id, error)
            self._problems[sweep_id] = str(error)
            return []
        if sweep.status.ended and not deliveries and not notifier.untold():
            self._over[sweep_id] = sweep.seq
            del self._notifiers[sweep_id]
        return deliveries

    @property
    def problems(self) -> dict[str, str]:
        """Why nobody can be told of some sweeps, by their ids."""
        return self._problems
