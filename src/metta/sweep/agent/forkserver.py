"""A small process that holds the user's imports and forks the jobs.

The standard library has a fork server too (`multiprocessing.forkserver`); this one exists because a trial then costs a
third of the time (benchmarks/fork.py), because it can tell how a process ended and what it used (`wait4`), and because
every job becomes a session of its own that is killed whole. It has one thread and does nothing but fork, signal and
reap: forking is safe only in a process without other threads.

It ends, and all its jobs with it, when the agent's end of its socket closes. Jobs die with it in turn
(PR_SET_PDEATHSIG), so that whichever of the processes is killed, none is left behind.
"""

from __future__ import annotations

import atexit
import gc
import os
import select
import signal
import socket
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from metta.sweep.agent import failures
from metta.sweep.agent.descendants import adopt_orphans, die_with_parent, end_descendants
from metta.sweep.agent.messages import (
    Exited,
    ForkReply,
    ForkRequest,
    Prepare,
    Prepared,
    SetupFailed,
    Signal,
    Spawn,
    Spawned,
    SpawnFailed,
)
from metta.sweep.agent.targets import load_function
from metta.sweep.agent.trial import flush_output, redirect_output, serve
from metta.sweep.model.sweep import CommandTarget, Target

#: One packet holds one message, environment included.
PACKET_BYTES = 1 << 20
#: When memory runs out, the kernel shall kill a job rather than the agent or the controller (from -1000 to 1000).
_OOM_SCORE = 500
#: In which the kernel counts what a process read and wrote (getrusage(2)).
_BLOCK_BYTES = 512

_decode = msgspec.json.Decoder(ForkRequest).decode
#: The function beneath the one that turns numbers into enums and back, for which every trial would pay.
_set_handler = getattr(signal.signal, "__wrapped__", signal.signal)


class ForkServer:
    """Serves one agent over a packet socket."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._link.set_inheritable(False)
        self._pids: dict[str, int] = {}
        self._keys: dict[int, str] = {}
        # A child's end interrupts the wait for the agent's next message by a byte in this pipe.
        self._wakeup, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        # Grandchildren that outlive their job become ours to reap.
        adopt_orphans()
        _prefer_as_victim()

    def run(self) -> None:
        """Serve until the agent is gone, then kill what is left."""
        poll = select.poll()
        poll.register(self._link, select.POLLIN)
        poll.register(self._wakeup, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._wakeup:
                    with suppress(BlockingIOError):
                        os.read(self._wakeup, 4096)
                    self._reap()
                elif not self._serve():
                    self._kill_all()
                    return

    def _serve(self) -> bool:
        """Handle one message; False when the agent is gone."""
        try:
            packet, descriptors, _, _ = socket.recv_fds(self._link, PACKET_BYTES, 1)
        except ConnectionError:
            return False
        if not packet:
            return False
        request = _decode(packet)
        if isinstance(request, Prepare):
            _prepare(request.targets)
            self._send(Prepared())
        elif isinstance(request, Signal):
            self._signal(request)
        else:
            self._spawn(request, descriptors)
        return True

    def _signal(self, request: Signal) -> None:
        pid = self._pids.get(request.key)
        if pid is None:
            return
        with suppress(PermissionError):  # it has become another user's, by sudo say
            try:
                os.killpg(pid, request.signal)
            except ProcessLookupError:
                os.kill(pid, request.signal)  # it has not got to its setsid yet; until we reap it, the id is its own

    def _spawn(self, request: Spawn, descriptors: list[int]) -> None:
        try:
            pid = os.fork()
            if pid == 0:
                self._become_job(request, descriptors)
        except OSError as error:
            self._send(SpawnFailed(key=request.key, verdict=failures.of_start(error)))
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self._pids[request.key] = pid
        self._keys[pid] = request.key
        self._send(Spawned(key=request.key, pid=pid))

    def _become_job(self, request: Spawn, descriptors: list[int]) -> NoReturn:
        code = 1
        try:
            parent = os.getppid()
            die_with_parent()
            if os.getppid() != parent:
                os._exit(1)  # the fork server died before the line above took effect
            os.setsid()
            signal.set_wakeup_fd(-1)
            _set_handler(signal.SIGCHLD, signal.SIG_DFL)
            os.close(self._wakeup)
            self._set_up(request)
            os.close(self._link.fileno())
            serve(descriptors[0], reuse=request.reuse)
            atexit._run_exitfuncs()
            code = 0
        except BaseException:  # noqa: BLE001 (whatever the user's code raises ends here)
            traceback.print_exc()
        finally:
            # Not sys.exit: the stack below belongs to the fork server.
            flush_output()
            os._exit(code)

    def _set_up(self, request: Spawn) -> None:
        """Make this process the job's; a command is executed."""
        try:
            redirect_output(request.log)
            os.chdir(request.cwd)
            if request.env:
                os.environ.update(request.env)
            if request.argv is not None:
                _execute(request.argv)
        except (OSError, ValueError) as error:
            verdict = failures.of_start(error)
            self._send(SetupFailed(key=request.key, verdict=verdict))
            with suppress(OSError):
                print(f"metta sweep: {verdict.error}", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(127)

    def _reap(self) -> None:
        while True:
            try:
                # Look without reaping: until the leader is reaped, its id cannot belong to another process group.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            key = self._keys.pop(ended.si_pid, None)
            if key is not None:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(ended.si_pid, signal.SIGKILL)
                del self._pids[key]
            _, status, usage = os.wait4(ended.si_pid, 0)
            if key is not None:
                code = os.waitstatus_to_exitcode(status)
                self._send(
                    Exited(
                        key=key,
                        exit_code=code if code >= 0 else None,
                        signal=-code if code < 0 else None,
                        cpu_seconds=usage.ru_utime + usage.ru_stime,
                        memory_peak_bytes=usage.ru_maxrss * 1024,
                        read_bytes=usage.ru_inblock * _BLOCK_BYTES,
                        written_bytes=usage.ru_oublock * _BLOCK_BYTES,
                    )
                )

    def _send(self, reply: ForkReply) -> None:
        # A broken link is seen by the next read of it, which ends the server.
        with suppress(BrokenPipeError, ConnectionError):
            self._link.send(msgspec.json.encode(reply))

    def _kill_all(self) -> None:
        for pid in self._keys:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, signal.SIGKILL)
        # What a job put into sessions of their own becomes ours, once its parents are gone.
        end_descendants()


def _prefer_as_victim() -> None:
    """Once, for all jobs to inherit; of processes so marked the kernel takes the largest, which a job is."""
    with suppress(OSError):  # lowering it, where all of us have a higher one, takes a privilege
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))


def _prepare(targets: list[Target]) -> None:
    """Import what the jobs will need. A failure is left for the job to meet again, and to report as its own."""
    for target in targets:
        if not isinstance(target, CommandTarget):
            try:
                load_function(target)
            except BaseException:  # noqa: BLE001 (a script may raise anything when imported)
                traceback.print_exc()
    # What a job found waiting to be written, it would write to its own log.
    flush_output()
    # Objects that exist by now are never freed in a job; keeping the collector off them keeps their pages shared.
    gc.collect()
    gc.freeze()


def _execute(argv: list[str]) -> NoReturn:
    try:
        os.execvp(argv[0], argv)  # noqa: S606 (no shell on purpose: arguments arrive as they are)
    except OSError as error:
        raise OSError(error.errno, error.strerror, argv[0]) from None


def main(descriptor: int) -> None:
    """Serve the agent whose socket was inherited under this number."""
    if sys.stdout is not None:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    ForkServer(socket.socket(fileno=descriptor)).run()


if __name__ == "__main__":
    main(int(sys.argv[1]))
