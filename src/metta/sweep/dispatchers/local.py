"""Jobs on this machine, through the sweep's agent, which is started when it is not running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from metta.sweep.agent import messages as msg
from metta.sweep.agent.agent import HEARTBEAT_EVERY_S
from metta.sweep.agent.gpus import visible_gpus
from metta.sweep.agent.location import read_address
from metta.sweep.errors import DispatchError
from metta.sweep.model.run import JobDefinition, Outcome
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Clock, Placement, Standing, Store
from metta.sweep.stores import STORE_VARIABLE

#: An agent that starts imports the store and listens: half a second, ten on a machine that is swamped.
_START_TIMEOUT_S = 30.0
_ANSWER_TIMEOUT_S = 10.0
#: An agent that neither answers nor beats for so long hangs, and is replaced.
_HUNG_AFTER_S = 6 * HEARTBEAT_EVERY_S

_decode_reply = msgspec.json.Decoder(msg.Reply).decode


class LocalDispatcher:
    """See `protocols.Dispatcher`.

    Args:
        store: The sweep's store; the agent writes to it too.
        sweep_id: The sweep.
        config: Its configuration.
        clock: The time.
    """

    name = "local"

    def __init__(self, store: Store, sweep_id: str, config: SweepConfig, clock: Clock) -> None:
        self._store = store
        self._sweep_id = sweep_id
        self._config = config
        self._clock = clock
        self._connection: socket.socket | None = None
        self._received = b""
        self._gpus = len(visible_gpus()) if config.resources.gpus else 0
        if config.resources.gpus > self._gpus:
            raise DispatchError(
                f"resources.gpus: a job wants {config.resources.gpus} GPUs, this machine has {self._gpus}"
            )

    def capacity(self) -> int | None:
        """See `Dispatcher.capacity`: processors are shared, GPUs are not."""
        per_job = self._config.resources.gpus
        return self._gpus // per_job if per_job else None

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        """See `Dispatcher.dispatch`."""
        if self._connection is None and not self._connect():
            self._start_agent()
        self._ask(msg.Dispatch(jobs=list(jobs)))
        return {job.job_id: Placement(dispatcher=self.name) for job in jobs}

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        """See `Dispatcher.standing`."""
        if self._connection is None and not self._connect():
            return dict.fromkeys(job_ids, Standing.LOST)
        try:
            known = set(self._ask(msg.AskStanding(job_ids=list(job_ids))).known)
        except DispatchError:
            # It died, which the next call finds out by failing to connect, or it hangs.
            self._kill_hung_agent()
            return dict.fromkeys(job_ids, Standing.UNKNOWN)
        return {job_id: Standing.KNOWN if job_id in known else Standing.LOST for job_id in job_ids}

    def held(self) -> list[str]:
        """See `Dispatcher.held`."""
        if self._connection is None and not self._connect():
            return []
        return self._ask(msg.AskHeld()).known

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        """See `Dispatcher.cancel`."""
        if self._connection is not None or self._connect():
            with suppress(DispatchError):  # whatever became of the agent, the next `standing` tells
                self._ask(msg.Cancel(job_ids=list(job_ids), outcome=outcome, reason=reason))

    def close(self) -> None:
        """See `Dispatcher.close`."""
        if self._connection is not None:
            with suppress(DispatchError):
                self._ask(msg.Leave())
        self._disconnect()

    # ----------------------------------------------------------------------------------------------- connection

    def _connect(self) -> bool:
        address = read_address(self._config.directory)
        if address is None:
            return False
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_ANSWER_TIMEOUT_S)
        try:
            connection.connect(address.socket)
        except OSError:
            connection.close()
            return False
        self._connection = connection
        self._received = b""
        return True

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(self, request: msg.Request) -> msg.Reply:
        assert self._connection is not None
        try:
            self._connection.sendall(msg.encode_line(request))
            while b"\n" not in self._received:
                chunk = self._connection.recv(1 << 16)
                if not chunk:
                    raise ConnectionResetError("the agent closed the connection")
                self._received += chunk
        except OSError as error:
            self._disconnect()
            raise DispatchError(f"the agent of sweep {self._sweep_id} does not answer: {error}") from error
        line, self._received = self._received.split(b"\n", 1)
        return _decode_reply(line)

    # --------------------------------------------------------------------------------------------- agent process

    def _start_agent(self) -> None:
        log = Path(self._config.directory) / "agent.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("ab") as output:
                # Returns when the agent is ready to be talked to.
                subprocess.run(
                    # Safe path (-P): a `socket.py` of the user's in the working folder is not meant for the agent.
                    [sys.executable, "-P", "-m", "metta.sweep.agent", self._sweep_id],
                    # Not an argument: those of a process can be read by everybody, and a URL may hold a password.
                    env={**os.environ, STORE_VARIABLE: self._store.url},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self._config.working_directory,
                    timeout=_START_TIMEOUT_S,
                    check=True,
                )
        except subprocess.SubprocessError as error:
            last = log.read_text(errors="replace").strip().rsplit("\n", 1)[-1]
            raise DispatchError(f"the agent did not start: {last:.300}; all that it said is in {log}") from error
        if not self._connect():
            raise DispatchError(f"the agent ended right after it had started; what it said is in {log}")

    def _kill_hung_agent(self) -> None:
        address = read_address(self._config.directory)
        beats = [beat for beat in self._store.fetch_heartbeats(self._sweep_id) if address and beat.pid == address.pid]
        if beats and self._clock.now() - beats[0].at > _HUNG_AFTER_S and beats[0].host == socket.gethostname():
            with suppress(ProcessLookupError):
                os.kill(beats[0].pid, signal.SIGKILL)
