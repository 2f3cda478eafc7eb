"""The agent's way to the store: events are queued, written in order, and in batches as large as the store is slow."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from metta.sweep.errors import InvalidTransition, StoreError
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.protocols import Clock, Store

logger = logging.getLogger(__name__)

#: Between two attempts at a store that is away.
_RETRY_S = 1.0
_LARGEST_BATCH = 500


class Recorder:
    """Writes events without making the agent wait.

    Args:
        store: Where to.
        sweep_id: The sweep they are about.
        actor: Who says so.
        clock: The time they get.
        on_refused: Called with each event that the state of the sweep does not allow; it is dropped.
    """

    def __init__(
        self, store: Store, sweep_id: str, actor: str, clock: Clock, on_refused: Callable[[Event], None]
    ) -> None:
        self._store = store
        self._sweep_id = sweep_id
        self._actor = actor
        self._clock = clock
        self._on_refused = on_refused
        self._queue: list[Event] = []
        self._added = asyncio.Event()
        self._written = asyncio.Event()
        self._written.set()

    @property
    def busy(self) -> bool:
        """Whether events wait to be written."""
        return not self._written.is_set()

    def add(self, body: Body, *, run_id: str, job_id: str) -> None:
        """Queue an event, stamped now."""
        self._queue.append(
            new_event(
                body, sweep_id=self._sweep_id, at=self._clock.now(), actor=self._actor, run_id=run_id, job_id=job_id
            )
        )
        self._written.clear()
        self._added.set()

    async def drain(self) -> None:
        """Wait until everything is written."""
        await self._written.wait()

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._added.wait()
            self._added.clear()
            while self._queue:
                batch = self._queue[:_LARGEST_BATCH]
                await self._write(batch)
                del self._queue[: len(batch)]
            self._written.set()

    async def _write(self, batch: list[Event]) -> None:
        while True:
            try:
                await asyncio.to_thread(self._store.append, batch)
                return
            except InvalidTransition as error:
                if len(batch) == 1:
                    logger.warning("the store refused %s: %s", batch[0].type, error)
                    self._on_refused(batch[0])
                    return
                # One of them does not fit: the others must not suffer for it.
                for event in batch:
                    await self._write([event])
                return
            except StoreError as error:
                logger.warning("the store is away, trying again: %s", error)
                await asyncio.sleep(_RETRY_S)
