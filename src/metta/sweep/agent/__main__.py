"""`python -m metta.sweep.agent SWEEP`: the agent as a process. Started by the local dispatcher, not by users."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import closing

import msgspec
import psutil

from metta.sweep.agent.agent import Agent
from metta.sweep.agent.descendants import adopt_orphans
from metta.sweep.agent.location import AgentAddress, address_file, belongs_to, new_socket_path, spool_file
from metta.sweep.agent.messages import SOCKET_VARIABLE
from metta.sweep.clock import SystemClock
from metta.sweep.errors import UsageError
from metta.sweep.model.run import JobStatus
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.log_lines import LogFormat, configure_logging, wanted_format
from metta.sweep.observe.tracing.spans import NO_TRACING, Tracing, open_tracing
from metta.sweep.stores import open_reader, open_store, store_url
from metta.sweep.stores.spooled import SpooledStore

logger = logging.getLogger(__name__)

_SWITCH_INTERVAL_S = 0.0005


def main(sweep_id: str) -> int:
    """Bring the sweep's agent on this machine to life, unless there is one; returns when it can be talked to.

    The agent itself is a process of its own session that nobody has to wait for.
    """
    ready, tell = os.pipe()
    if os.fork():
        os.close(tell)
        return 0 if os.read(ready, 1) else 1
    os.close(ready)
    os.setsid()
    adopt_orphans()
    # The thread that writes to the store computes as well; what jobs do need not wait five milliseconds for it.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    configure_logging(wanted_format() or LogFormat.TEXT)
    _serve(sweep_id, lambda: os.write(tell, b"1"))
    return 0


def _serve(sweep_id: str, on_ready: Callable[[], object]) -> None:
    url = store_url()
    with closing(open_reader(url)) as reader:
        [sweep] = reader.fetch_sweeps(sweep_id)
    # Closed after the lock is given back: who takes spans may keep this agent waiting, and nobody else by it.
    with closing(_tracing(sweep)) as tracing, address_file(sweep.config.directory).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_ready()  # another agent serves this sweep here
            return
        with closing(SpooledStore(lambda: open_store(url), spool_file(sweep.config.directory))) as store:
            # Before anybody can ask for a predecessor's jobs, the log has what it still had to say of them.
            while store.pending:
                store.deliver()
            _kill_leftovers(url, sweep)
            socket_path = new_socket_path(url, sweep_id)
            address = AgentAddress(pid=os.getpid(), socket=str(socket_path))
            lock.truncate(0)
            lock.write(msgspec.json.encode(address).decode())
            lock.flush()
            agent = Agent(store, sweep, socket_path, SystemClock(), tracing)
            asyncio.run(_run(agent, tracing, on_ready))


def _tracing(sweep: SweepMetadata) -> Tracing:
    """What is asked for, as far as it can be had: who started the sweep has been told, and jobs matter more."""
    try:
        return open_tracing(sweep, SystemClock())
    except UsageError as error:
        logger.warning("no spans are made of the jobs: %s", error)
        return NO_TRACING


async def _run(agent: Agent, tracing: Tracing, on_ready: Callable[[], object]) -> None:
    def terminate() -> None:
        agent.abandon("the agent was terminated")
        tracing.close()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    if tracing is not NO_TRACING:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminate)
    await agent.run(on_ready)


_UNENDED = [status for status in JobStatus if not status.ended]


def _kill_leftovers(url: str, sweep: SweepMetadata) -> None:
    """Kill what jobs of an agent that died left behind: processes that outlived both it and its fork server.

    Whoever started this agent is spared, as it may have been started in a job's shell: this agent is to serve it.
    """
    with closing(open_reader(url)) as reader:
        unended = [run.open_job for run in reader.fetch_runs(sweep.sweep_id, statuses=_UNENDED)]
    sessions = {job.pid: job.started_at for job in unended if job and job.pid and job.started_at}
    this = psutil.Process()
    spared = {this.pid, *(parent.pid for parent in this.parents())}
    for process in psutil.process_iter():
        if process.pid in spared:
            continue
        try:
            started_at = sessions.get(os.getsid(process.pid))
            # Process ids are used again: ours began no earlier than their job (give or take the clock's granularity).
            is_in_session = started_at is not None and process.create_time() > started_at - 2
            # What a job has put into a session of its own is known by the agent that it found in its environment; the
            # only one that lives is this one, which has started nothing yet.
            if is_in_session or belongs_to(process.environ().get(SOCKET_VARIABLE, ""), url, sweep.sweep_id):
                process.kill()
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue  # it ended while we looked, or is not ours


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
