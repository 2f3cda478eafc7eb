"""The agent's end of its fork server: starts it, talks to it, and says when it is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from metta.sweep.agent import failures
from metta.sweep.agent.forkserver import PACKET_BYTES
from metta.sweep.agent.messages import ForkReply, ForkRequest, JobReply, Prepare, Prepared, Spawn, SpawnFailed
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.stores import STORE_VARIABLE

logger = logging.getLogger(__name__)

#: What the store is reached with is not for the jobs.
_SECRET_VARIABLES = (STORE_VARIABLE, "PGPASSWORD", "PGPASSFILE")
#: A fork server that has closed its socket and does not end is stuck in the user's code.
_END_TIMEOUT_S = 5.0
#: Numerical libraries start a thread a core each; parallel jobs would then thrash.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "RAYON_NUM_THREADS",
)

_decode: Callable[[bytes], ForkReply] = msgspec.json.Decoder(ForkReply).decode


class ForkServerProcess:
    """A running fork server.

    Args:
        config: The sweep, for what to import and where.
        loop: Where replies are waited for.
        on_ready: Called once all imports are done; to be asked for anything before that only makes requests queue.
        on_reply: Called with each reply about a process.
        on_death: Called once with the exit code when the process is gone without having been closed.
    """

    def __init__(
        self,
        config: SweepConfig,
        loop: asyncio.AbstractEventLoop,
        on_ready: Callable[[], None],
        on_reply: Callable[[JobReply], None],
        on_death: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_ready = on_ready
        self._on_reply = on_reply
        self._on_death = on_death
        self.is_ready = False
        self._unsent: deque[tuple[ForkRequest, socket.socket | None]] = deque()
        #: Whether the loop tells when it takes more.
        self._is_waiting = False
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._link, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PACKET_BYTES)
        self._link.setblocking(False)
        self._process = subprocess.Popen(
            # Safe path (-P): what the jobs import from, their targets say.
            [sys.executable, "-P", "-m", "metta.sweep.agent.forkserver", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=_environment(config),
            cwd=config.working_directory,
        )
        theirs.close()
        self.send(Prepare(targets=[target for target in (config.target, config.evaluate) if target is not None]))
        loop.add_reader(self._link, self._receive)

    def send(self, request: ForkRequest, *, link: socket.socket | None = None) -> None:
        """Send a request as soon as it takes one, with a socket for the process that it starts; that is closed here."""
        self._unsent.append((request, link))
        if len(self._unsent) == 1:
            self._flush()

    def close(self) -> None:
        """End it, and everything it started."""
        if not self.is_ready:
            self._process.kill()  # imports may take for ever, and have started nothing
        self._shut()

    def _shut(self) -> None:
        if self._link.fileno() < 0:
            return
        self._loop.remove_reader(self._link)
        self._loop.remove_writer(self._link)
        self._link.close()
        for _, link in self._unsent:
            if link is not None:
                link.close()
        self._process.wait()

    def _flush(self) -> None:
        """Send what waits, as far as it goes without waiting."""
        while self._unsent:
            request, link = self._unsent[0]
            try:
                socket.send_fds(self._link, [msgspec.json.encode(request)], [link.fileno()] if link is not None else [])
            except BlockingIOError:
                self._is_waiting = True
                self._loop.add_writer(self._link, self._flush)
                return
            except ConnectionError:
                logger.warning("the fork server is gone; its jobs go with it")
            except OSError as error:
                if not isinstance(request, Spawn):
                    raise
                # Its command line is longer than a packet, say.
                self._loop.call_soon(self._on_reply, SpawnFailed(key=request.key, verdict=failures.of_start(error)))
            self._unsent.popleft()
            if link is not None:
                link.close()
        if self._is_waiting:
            self._is_waiting = False
            self._loop.remove_writer(self._link)

    def _receive(self) -> None:
        while True:
            try:
                packet = self._link.recv(PACKET_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                packet = b""
            if not packet:
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_END_TIMEOUT_S)
                self._process.kill()
                self._shut()
                self._on_death(self._process.returncode)
                return
            reply = _decode(packet)
            if isinstance(reply, Prepared):
                self.is_ready = True
                self._on_ready()
            else:
                self._on_reply(reply)


def _environment(config: SweepConfig) -> dict[str, str]:
    """What all jobs of the sweep find in their environment."""
    environment = {name: value for name, value in os.environ.items() if name not in _SECRET_VARIABLES}
    environment |= dict.fromkeys(_THREAD_VARIABLES, str(max(1, config.resources.cpus)))
    # Logs are followed while the job runs, so a Python command should not hold its output back.
    environment.setdefault("PYTHONUNBUFFERED", "1")
    if not environment.keys() & {"VIRTUAL_ENV", "CONDA_PREFIX"}:
        # Called as `.venv/bin/metta` with no environment activated: a command's `python` should be that one's too.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    return environment
