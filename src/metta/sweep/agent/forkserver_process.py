"""The agent's end of its fork server: starts it, talks to it, and says when it is gone."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from metta.sweep.agent.forkserver import PACKET_BYTES
from metta.sweep.agent.messages import ForkReply, ForkRequest, Prepare
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.stores import STORE_VARIABLE

logger = logging.getLogger(__name__)

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
        on_reply: Called with each reply.
        on_death: Called once with the exit code when the process is gone without having been closed.
    """

    def __init__(
        self,
        config: SweepConfig,
        loop: asyncio.AbstractEventLoop,
        on_reply: Callable[[ForkReply], None],
        on_death: Callable[[int], None],
    ) -> None:
        self._loop = loop
        self._on_reply = on_reply
        self._on_death = on_death
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._link, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PACKET_BYTES)
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
        self._link.setblocking(False)
        loop.add_reader(self._link, self._receive)

    def send(self, request: ForkRequest, *, link: socket.socket | None = None) -> None:
        """Send a request, with a socket for the process that it starts."""
        self._link.setblocking(True)
        try:
            socket.send_fds(self._link, [msgspec.json.encode(request)], [link.fileno()] if link is not None else [])
        except ConnectionError:
            logger.warning("the fork server is gone; its jobs go with it")
        finally:
            self._link.setblocking(False)

    def close(self) -> None:
        """End it, and everything it started."""
        self._loop.remove_reader(self._link)
        self._link.close()
        self._process.wait()

    def _receive(self) -> None:
        while True:
            try:
                packet = self._link.recv(PACKET_BYTES)
            except BlockingIOError:
                return
            except ConnectionError:
                packet = b""
            if not packet:
                self.close()
                self._on_death(self._process.returncode)
                return
            self._on_reply(_decode(packet))


def _environment(config: SweepConfig) -> dict[str, str]:
    """What all jobs of the sweep find in their environment."""
    environment = {name: value for name, value in os.environ.items() if name != STORE_VARIABLE}
    environment |= dict.fromkeys(_THREAD_VARIABLES, str(max(1, config.resources.cpus)))
    # Logs are followed while the job runs, so a Python command should not hold its output back.
    environment.setdefault("PYTHONUNBUFFERED", "1")
    if not environment.keys() & {"VIRTUAL_ENV", "CONDA_PREFIX"}:
        # Called as `.venv/bin/metta` with no environment activated: a command's `python` should be that one's too.
        environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    return environment
