"""The agent: takes jobs from controllers, runs them through the fork server, writes what happens to the store.

It is a session of its own, so it outlives the controller that started it; the next controller finds it by the file that
it keeps in the sweep's folder. It ends when nothing runs and nobody needs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from metta.sweep.agent import messages as msg
from metta.sweep.agent.jobs import Jobs
from metta.sweep.agent.recorder import Recorder
from metta.sweep.agent.spans import JobSpans
from metta.sweep.errors import MetricError, StoreError
from metta.sweep.model.events import Event
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.tracing.spans import NO_TRACING, Tracing
from metta.sweep.protocols import Clock, Heartbeat
from metta.sweep.stores.spooled import SpooledStore

logger = logging.getLogger(__name__)

HEARTBEAT_EVERY_S = 5.0
#: Without jobs and without a controller, wait this long for one before ending.
_IDLE_EXIT_S = 15.0
#: The same with events that the store does not take: the next agent finds them on the disk and delivers them.
_UNDELIVERED_EXIT_S = 3600.0
#: How often it looks whether it is still of use, and can still be found.
_LOOK_EVERY_S = 0.1
_BACKLOG = 64
#: A store that can be reached is reached in this time.
_CONNECT_S = 2.0
#: A request names all jobs of a step, each with its checkpoints.
_LONGEST_REQUEST = 1 << 28

_decode_request = msgspec.json.Decoder(msg.Request).decode


class Agent:
    """Runs jobs of one sweep on this machine.

    Args:
        store: Where events go; it may be away for as long as it likes.
        sweep: The sweep, for its targets and limits.
        socket_path: Where it listens for controllers.
        clock: The time.
        tracing: Told what becomes of the jobs.
    """

    def __init__(
        self,
        store: SpooledStore,
        sweep: SweepMetadata,
        socket_path: Path,
        clock: Clock,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._store = store
        self._sweep_id = sweep.sweep_id
        self._socket_path = socket_path
        self._clock = clock
        self._host = socket.gethostname()
        self._controllers = 0
        self._leaving = False
        self._idle_since = clock.monotonic()
        self._spans = JobSpans(tracing)
        self._recorder = Recorder(
            store, sweep.sweep_id, f"agent@{self._host}", clock, self._on_refused, on_added=self._spans.observe
        )
        self._jobs = Jobs(sweep.config, self._host, socket_path, self._recorder, clock, spans=self._spans)

    # ------------------------------------------------------------------------------------------------ lifetime

    async def run(self, on_ready: Callable[[], object]) -> None:
        """Serve until nothing runs and nobody needs it; `on_ready` is called once it can be talked to."""
        self._jobs.start()
        # While the fork server imports what the jobs need; a store that is away is no reason to wait.
        await asyncio.wait([asyncio.create_task(asyncio.to_thread(self._store.connect))], timeout=_CONNECT_S)
        self._server: asyncio.Server | None = None
        works = (self._recorder.run(), self._beat(), self._jobs.run(), self._listen(on_ready))
        tasks = {asyncio.create_task(work) for work in works}
        try:
            while not self._is_useless():
                done, _ = await asyncio.wait(tasks, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()  # none of them ends but by an error, which then ends the agent
        finally:
            for task in tasks:
                task.cancel()
            if self._server is not None:
                self._server.close()
            self._socket_path.unlink(missing_ok=True)
            await self._recorder.finish()
            # Or it would seem to have fallen silent over the jobs that it had when it last gave one.
            await self._give_sign_of_life()
            self._jobs.close()
            self.abandon("the agent ended")

    def abandon(self, reason: str) -> None:
        """Say of all jobs that run, in their spans, that nothing more will be known of them."""
        self._spans.abandon(reason)

    def _is_useless(self) -> bool:
        if self._jobs.held or (self._jobs.is_tidying and not self._recorder.busy):
            self._idle_since = self._clock.monotonic()
            return False
        idle_s = self._clock.monotonic() - self._idle_since
        if self._recorder.busy:
            return not self._controllers and not self._recorder.unsaved and idle_s > _UNDELIVERED_EXIT_S
        return self._leaving or (not self._controllers and idle_s > _IDLE_EXIT_S)

    async def _listen(self, on_ready: Callable[[], object]) -> None:
        """Listen for controllers, and again when somebody has cleaned up the temporary folder."""
        self._server = await self._open_server()
        on_ready()
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            if not self._socket_path.exists():
                with suppress(OSError):  # there is no room for it just now; the next time, perhaps
                    anew = await self._open_server()
                    self._server.close()
                    self._server = anew
                    logger.warning("the socket %s was removed, and is there again", self._socket_path)

    async def _open_server(self) -> asyncio.Server:
        self._socket_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return await asyncio.start_unix_server(
            self._serve_client, self._socket_path, limit=_LONGEST_REQUEST, backlog=_BACKLOG
        )

    async def _beat(self) -> None:
        while True:
            was_idle = not self._jobs.held
            await self._give_sign_of_life()
            due = self._clock.monotonic() + HEARTBEAT_EVERY_S
            # Whoever has just started a sweep looks at once, and is to see its jobs.
            while self._clock.monotonic() < due and not (was_idle and self._jobs.held):
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _give_sign_of_life(self) -> None:
        beat = Heartbeat(
            sweep_id=self._sweep_id,
            host=self._host,
            pid=os.getpid(),
            at=self._clock.now(),
            jobs=len(self._jobs.held),
            gpus=self._jobs.gpu_loads,
        )
        with suppress(StoreError):  # the store has said in the log that it is away
            await asyncio.to_thread(self._store.beat, beat)

    def _on_refused(self, event: Event) -> None:
        self._jobs.refuse(event)

    # ------------------------------------------------------------------------- controllers, and children of jobs

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_controller = False
        try:
            while line := await reader.readline():
                request = _decode_request(line)
                if not is_controller and not isinstance(request, msg.Report | msg.KeepCheckpoint):
                    is_controller = True
                    self._controllers += 1
                writer.write(msg.encode_line(self._answer(request)))
                await writer.drain()
        except (ConnectionError, msgspec.MsgspecError, ValueError):
            logger.exception("a client's connection ended in an error")
        finally:
            self._controllers -= is_controller
            self._idle_since = self._clock.monotonic()
            writer.close()

    def _answer(self, request: msg.Request) -> msg.Reply:
        if isinstance(request, msg.Report | msg.KeepCheckpoint):
            return self._answer_job(request)
        if isinstance(request, msg.Dispatch):
            self._leaving = False
            for definition in request.jobs:
                self._jobs.take(definition)
        elif isinstance(request, msg.AskStanding):
            return msg.Reply(known=[job_id for job_id in request.job_ids if self._jobs.knows(job_id)])
        elif isinstance(request, msg.AskHeld):
            return msg.Reply(known=self._jobs.held)
        elif isinstance(request, msg.Cancel):
            for job_id in request.job_ids:
                self._jobs.cancel(job_id, request.outcome, request.reason)
        else:
            self._leaving = True
        return msg.Reply()

    def _answer_job(self, request: msg.Report | msg.KeepCheckpoint) -> msg.Reply:
        if request.job_id not in self._jobs.held:
            return msg.Reply(error=f"job {request.job_id} is not running")
        if isinstance(request, msg.Report):
            try:
                self._jobs.report(request.job_id, request.metrics, request.error)
            except MetricError as error:
                return msg.Reply(error=str(error))
        else:
            self._jobs.keep_checkpoint(request.job_id, request.saved)
        return msg.Reply()
