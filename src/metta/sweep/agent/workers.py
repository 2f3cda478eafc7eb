"""The processes that work on jobs: started by the fork server, given their jobs, listened to until they end."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec

from metta.sweep.agent import messages as msg
from metta.sweep.agent.descendants import end_descendants
from metta.sweep.agent.forkserver_process import ForkServerProcess
from metta.sweep.agent.job import Job
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.session import Ending

logger = logging.getLogger(__name__)

#: A fork server that keeps dying (its imports exhaust memory, say) is not started more often than this in one agent's
#: life.
_MOST_RESTARTS = 5

#: What a process says is read in pieces of this size, so that one that talks without a pause does not keep the agent
#: from everything else.
_CHUNK_BYTES = 1 << 16
#: What was said before the end is read to the end, unless another process that has the socket goes on.
_MOST_LAST_CHUNKS = 64

_decode: Callable[[bytes], msg.FromJob] = msgspec.json.Decoder(msg.FromJob).decode


class Worker:
    """A process of the fork server: works on one job, or on many in turn."""

    def __init__(self, key: str, job: Job, link: socket.socket | None) -> None:
        self.key = key
        self.job: Job | None = job
        self.pid: int | None = None
        #: Our end of the socket to it; None for commands.
        self.link = link
        self._received = b""
        self._unsent = bytearray()
        #: Whether the loop tells when it takes more, and when it has something to say. Asking the loop costs more.
        self._is_waiting = self._is_heard = False

    def tell(self, message: msg.ToJob, loop: asyncio.AbstractEventLoop) -> None:
        """Give it its job, say; what it does not take at once, with thousands of checkpoints, it gets by and by."""
        self._unsent += msg.encode_line(message)
        self._send(loop)

    def _send(self, loop: asyncio.AbstractEventLoop) -> None:
        assert self.link is not None
        try:
            while self._unsent:
                del self._unsent[: self.link.send(self._unsent)]
        except BlockingIOError:
            self._is_waiting = True
            loop.add_writer(self.link, self._send, loop)
            return
        except ConnectionError:
            logger.warning("worker %s was gone before it had heard what it was told", self.key)
            self._unsent.clear()
        if self._is_waiting:
            self._is_waiting = False
            loop.remove_writer(self.link)

    def hear(self, loop: asyncio.AbstractEventLoop, on_said: Callable[[Worker], object]) -> None:
        """Have `on_said` called whenever its process has something to say."""
        if self.link is not None:
            self._is_heard = True
            loop.add_reader(self.link, on_said, self)

    def receive(self, loop: asyncio.AbstractEventLoop) -> list[bytes] | None:
        """The lines that are complete by the next chunk of what has arrived; None when there is no more of it."""
        assert self.link is not None
        try:
            chunk = self.link.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return None
        except ConnectionError:
            chunk = b""
        if not chunk:
            self._ignore(loop)
            return None
        *lines, self._received = (self._received + chunk).split(b"\n")
        return lines

    def close(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let go of the process."""
        if self.link is not None:
            self._ignore(loop)
            if self._is_waiting:
                loop.remove_writer(self.link)
            self.link.close()

    def _ignore(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._is_heard:
            self._is_heard = False
            assert self.link is not None
            loop.remove_reader(self.link)


class Supervisor(Protocol):
    """Who is told what becomes of the jobs."""

    def on_ready(self) -> None:
        """Jobs can be started."""

    def on_started(self, job: Job, worker: Worker) -> None:
        """A process works on it."""

    def on_message(self, job: Job, message: msg.JobNews) -> None:
        """Its process has something to say."""

    def on_ended(self, job: Job, exited: msg.Exited | None) -> None:
        """Its process has ended, or is done with it and goes on to other jobs."""

    def on_lost(self) -> None:
        """All jobs are gone, and how they ended nobody knows."""


class Workers:
    """All processes that work on jobs of an agent.

    Args:
        config: The sweep.
        supervisor: Whom to tell of the jobs.
    """

    def __init__(self, config: SweepConfig, supervisor: Supervisor) -> None:
        self.by_key: dict[str, Worker] = {}
        self._reuse = config.isolation == "reuse"
        self._config = config
        self._supervisor = supervisor
        self._idle: deque[Worker] = deque()
        self._spawned = 0
        self._restarts = 0

    def start(self) -> None:
        """Start the fork server."""
        self._loop = asyncio.get_running_loop()
        self._forkserver = ForkServerProcess(
            self._config, self._loop, self._supervisor.on_ready, self._on_reply, self._on_forkserver_death
        )

    @property
    def are_ready(self) -> bool:
        """Whether a job that is to be started now would start at once."""
        return self._forkserver.is_ready

    def close(self) -> None:
        """End all of them, and all that they started."""
        self._forkserver.close()

    def execute(self, job: Job, argv: list[str], environment: dict[str, str]) -> None:
        """Start a process that becomes this program."""
        self._spawn(Worker(self._new_key(), job, None), argv=argv, environment=environment)

    def call(self, job: Job, assignment: msg.Assignment) -> None:
        """Have a process call a function: one that has nothing to do, or else a new one."""
        if self._idle:
            worker = self._idle.pop()
            worker.job = job
            worker.tell(assignment, self._loop)
            self._supervisor.on_started(job, worker)
            return
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        worker = Worker(self._new_key(), job, ours)
        self._spawn(worker, theirs=theirs)
        worker.tell(assignment, self._loop)

    def stop(self, job: Job, ending: Ending) -> bool:
        """Ask the function that a job calls to come to an end; False where there is none."""
        for worker in self.by_key.values():
            if worker.job is job and worker.link is not None:
                worker.tell(msg.Stop(job_id=job.job_id, ending=ending), self._loop)
                return True
        return False

    def signal(self, job: Job, number: signal.Signals) -> None:
        """Send a signal to all processes of a job."""
        for worker in self.by_key.values():
            if worker.job is job:
                self._forkserver.send(msg.Signal(key=worker.key, signal=number))

    def _new_key(self) -> str:
        self._spawned += 1
        return f"w{self._spawned}"

    def _spawn(
        self,
        worker: Worker,
        *,
        argv: list[str] | None = None,
        environment: dict[str, str] | None = None,
        theirs: socket.socket | None = None,
    ) -> None:
        assert worker.job is not None
        request = msg.Spawn(
            key=worker.key,
            log=str(worker.job.log),
            cwd=self._config.working_directory,
            env=environment or {},
            argv=argv,
            reuse=self._reuse and argv is None,
        )
        self._forkserver.send(request, link=theirs)
        self.by_key[worker.key] = worker

    # ------------------------------------------------------------------------------------- what the fork server says

    def _on_reply(self, reply: msg.JobReply) -> None:
        worker = self.by_key[reply.key]
        if isinstance(reply, msg.Exited):
            self._on_exited(worker, reply)
            return
        assert worker.job is not None
        if isinstance(reply, msg.Spawned):
            worker.pid = reply.pid
            self._supervisor.on_started(worker.job, worker)
            # Only now: a fast job may report before the fork server has said that it exists.
            worker.hear(self._loop, self._receive)
            return
        worker.job.verdict = worker.job.verdict or reply.verdict
        if isinstance(reply, msg.SpawnFailed):
            self._on_exited(worker, None)

    def _on_exited(self, worker: Worker, exited: msg.Exited | None) -> None:
        if worker.link is not None:
            for _ in range(_MOST_LAST_CHUNKS):
                if not self._receive(worker):
                    break
        worker.close(self._loop)
        del self.by_key[worker.key]
        if worker in self._idle:
            self._idle.remove(worker)
        if worker.job is not None:
            self._supervisor.on_ended(worker.job, exited)

    def _on_forkserver_death(self, code: int) -> None:
        """All its processes died with it: forget them, and start anew."""
        logger.error("the fork server ended with code %s and %d processes", code, len(self.by_key))
        self._restarts += 1
        if self._restarts > _MOST_RESTARTS:
            raise SystemExit(f"the fork server died {self._restarts} times, last with code {code}")
        end_descendants()  # what the jobs had started outlived them, and is ours now
        for worker in self.by_key.values():
            worker.close(self._loop)
        self.by_key.clear()
        self._idle.clear()
        self._supervisor.on_lost()
        self.start()

    # ---------------------------------------------------------------------------------------- what the processes say

    def _receive(self, worker: Worker) -> bool:
        """Handle what has arrived; False when that was nothing."""
        lines = worker.receive(self._loop)
        for line in lines or ():
            try:
                said = _decode(line)
            except (msgspec.MsgspecError, ValueError):  # two of the job's processes may have written at the same time
                logger.exception("worker %s said what cannot be understood: %.200r", worker.key, line)
                continue
            if worker.job is not None and said.job_id == worker.job.job_id:
                self._handle(worker, worker.job, said.message)
        return lines is not None

    def _handle(self, worker: Worker, job: Job, message: msg.JobMessage) -> None:
        if not isinstance(message, msg.Finished):
            self._supervisor.on_message(job, message)
            return
        job.finished = message
        if self._reuse and job.verdict is None:
            worker.job = None
            self._idle.append(worker)
            self._supervisor.on_ended(job, None)
