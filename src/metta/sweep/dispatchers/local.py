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
from metta.sweep.agent.location import has_spooled, is_served, read_address
from metta.sweep.errors import DispatchError
from metta.sweep.model.run import JobDefinition, Outcome
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Clock, Placement, Standing, Store
from metta.sweep.stores import STORE_VARIABLE

#: An agent that starts imports the store and listens: half a second, ten on a machine that is swamped.
_START_TIMEOUT_S = 30.0
#: Less than what is left of the controller's lease when it is renewed: who waits for an answer must not lose the sweep.
_ANSWER_TIMEOUT_S = 5.0
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
        try:
            if self._connection is None and not self._connect():
                if is_served(self._config.directory):
                    # Its socket's file was removed, and will be there again; or it is leaving, and not done yet.
                    return dict.fromkeys(job_ids, Standing.UNKNOWN)
                if not has_spooled(self._config.directory):
                    elsewhere = self._at_work_elsewhere(job_ids)
                    return {job_id: Standing.UNKNOWN if job_id in elsewhere else Standing.LOST for job_id in job_ids}
                try:
                    self._start_agent()
                except DispatchError:
                    return dict.fromkeys(job_ids, Standing.UNKNOWN)
            known = set(self._ask(msg.AskStanding(job_ids=list(job_ids))).known)
        except DispatchError:
            # It died, which the next call finds out by failing to connect, or it hangs.
            self._kill_hung_agent()
            return dict.fromkeys(job_ids, Standing.UNKNOWN)
        return {job_id: Standing.KNOWN if job_id in known else Standing.LOST for job_id in job_ids}

    def _at_work_elsewhere(self, job_ids: Sequence[str]) -> set[str]:
        """Jobs that controllers on other machines have started there, where an agent still shows signs of life."""
        here, now = socket.gethostname(), self._clock.now()
        beats = self._store.fetch_heartbeats(self._sweep_id)
        alive = {beat.host for beat in beats if beat.host != here and abs(now - beat.at) < _HUNG_AFTER_S}
        if not alive:
            return set()
        run_ids = {job_id.partition(".")[0] for job_id in job_ids}
        jobs = (run.open_job for run in self._store.fetch_runs(self._sweep_id, run_ids=run_ids))
        return {job.job_id for job in jobs if job is not None and job.host in alive}

    def held(self) -> list[str]:
        """See `Dispatcher.held`: none when the agent is gone, and its jobs with it.

        Raises:
            DispatchError: there is an agent, and it does not answer.
        """
        while self._connection is not None or self._connect():
            try:
                return self._ask(msg.AskHeld()).known
            except DispatchError as error:
                # It ended, or is ending; is there another one?
                if not isinstance(error.__cause__, ConnectionError):
                    raise
        return []

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        """See `Dispatcher.cancel`."""
        with suppress(DispatchError):  # whatever became of the agent, the next `standing` tells
            if self._connection is not None or self._connect():
                self._ask(msg.Cancel(job_ids=list(job_ids), outcome=outcome, reason=reason))

    def close(self) -> None:
        """See `Dispatcher.close`."""
        if self._connection is not None:
            with suppress(DispatchError):
                self._ask(msg.Leave())
        self._disconnect()

    # ----------------------------------------------------------------------------------------------- connection

    def _connect(self) -> bool:
        """Whether there is an agent.

        Raises:
            DispatchError: that cannot be told: it has no ear left for us, or we no more files to open.
        """
        address = read_address(self._config.directory)
        if address is None:
            return False
        try:
            self._connection = _connected(address.socket)
        except (FileNotFoundError, ConnectionRefusedError):
            return False  # nobody listens there
        except OSError as error:
            raise DispatchError(f"the agent of sweep {self._sweep_id} cannot be reached: {error}") from error
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
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
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
        except OSError as error:
            raise DispatchError(f"the agent cannot be started: {error}") from error
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


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(_ANSWER_TIMEOUT_S)
        connection.connect(path)
    except OSError:
        connection.close()
        raise
    return connection
