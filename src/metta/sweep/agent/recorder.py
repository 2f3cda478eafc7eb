"""The agent's way to the store: events are queued, written in order, and in batches as large as the store is slow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from metta.sweep.errors import StoreError
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.observe.log_lines import log_events
from metta.sweep.protocols import Clock
from metta.sweep.stores.spooled import SpooledStore

logger = logging.getLogger(__name__)

#: Between two attempts at a store that is away: the first pause, and the longest.
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
#: When the store takes nothing for so long, because it is away or does not answer, what waits is saved.
_PATIENCE_S = 0.5


class Recorder:
    """Writes events without making the agent wait.

    Args:
        store: Where to.
        sweep_id: The sweep they are about.
        actor: Who says so.
        clock: The time they get.
        on_refused: Called with each event that the state of the sweep does not allow; it is dropped.
        on_added: Called with each event as it is queued.
    """

    def __init__(
        self,
        store: SpooledStore,
        sweep_id: str,
        actor: str,
        clock: Clock,
        on_refused: Callable[[Event], None],
        *,
        on_added: Callable[[Event], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._sweep_id = sweep_id
        self._actor = actor
        self._clock = clock
        self._on_refused = on_refused
        self._on_added = on_added
        self._added = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()
        self._deliveries = 0

    @property
    def busy(self) -> bool:
        """Whether events wait to be written."""
        return self._store.pending

    @property
    def unsaved(self) -> int:
        """How many of them would be lost if the agent ended now."""
        return self._store.unsaved

    def add(self, body: Body, *, run_id: str, job_id: str) -> None:
        """Queue an event, stamped now."""
        event = new_event(
            body, sweep_id=self._sweep_id, at=self._clock.now(), actor=self._actor, run_id=run_id, job_id=job_id
        )
        self._store.append([event])
        self._settled.clear()
        self._added.set()
        log_events([event])
        self._on_added(event)

    async def settle(self) -> None:
        """Wait until the store has, or has refused, everything that was added."""
        while not self._settled.is_set():
            await self._settled.wait()

    async def run(self) -> None:
        """Write for ever."""
        await asyncio.gather(self._deliver(), self._save())

    async def finish(self) -> None:
        """Write what is left, if the store can be reached; else it stays on the disk for the next agent."""
        await asyncio.to_thread(self._store.save)
        with suppress(StoreError):
            while self._store.pending:
                await asyncio.to_thread(self._store.deliver)
        if self.unsaved:
            logger.error("%d events are lost: neither the store nor the spool could be written", self.unsaved)

    async def _deliver(self) -> None:
        pause_s = _SHORTEST_PAUSE_S
        while True:
            if not self._store.pending:
                self._added.clear()
                await self._added.wait()
            try:
                refused = await asyncio.to_thread(self._store.deliver)
            except StoreError:  # the store has said so in the log
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
                continue
            pause_s = _SHORTEST_PAUSE_S
            self._deliveries += 1
            for event in refused:
                self._on_refused(event)
            if not self._store.pending:
                self._settled.set()

    async def _save(self) -> None:
        while True:
            before = self._deliveries
            await asyncio.sleep(_PATIENCE_S)
            if self._store.unsaved and self._deliveries == before:
                await asyncio.to_thread(self._store.save)
