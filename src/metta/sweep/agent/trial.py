"""The inside of a job's process: take an assignment, call the user's function, say how it went."""

from __future__ import annotations

import _socket
import _thread
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress

import msgspec

from metta.sweep import session
from metta.sweep.agent import failures
from metta.sweep.agent.failures import Verdict
from metta.sweep.agent.messages import Assignment, Finished, FromJob, JobMessage, Measured, Stop, ToJob, send_line
from metta.sweep.agent.targets import load_function
from metta.sweep.errors import MetricError
from metta.sweep.model.run import Outcome
from metta.sweep.model.sweep import CommandTarget


class _Speaking:
    """Lets one thread speak at a time: long messages would get mixed up."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """In a forked process: the thread that held the lock is not there."""
        # Not `threading.Lock`: what that module does after a fork would cost every trial half a millisecond.
        self.lock = _thread.allocate_lock()


_speaking = _Speaking()
os.register_at_fork(after_in_child=_speaking.renew)

_decode = msgspec.json.Decoder(ToJob).decode
#: Read at a time; a request to stop is shorter.
_CHUNK_BYTES = 1 << 14


class _Inbox:
    """What the agent says over the socket: assignments, and in the middle of one that it is to stop.

    While a job runs, what has arrived is looked at and left where it is. So neither a thread that the job before left
    behind nor a process that it forked can take away what is meant for another.
    """

    def __init__(self, link: int) -> None:
        # Not `socket.socket`: what the user imports may have replaced that, or have given all new ones a time-out.
        self._link = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM, 0, link)
        self._link.settimeout(None)
        self._read = b""

    def next_assignment(self) -> Assignment | None:
        """Wait for it; None when the agent is gone."""
        while True:
            line, end, rest = self._read.partition(b"\n")
            if not end:
                chunk = self._link.recv(_CHUNK_BYTES)
                if not chunk:
                    return None
                self._read += chunk
                continue
            self._read = rest
            message = _decode(line)
            if isinstance(message, Assignment):
                return message
            # A job was to stop that had finished meanwhile.

    def ending_of(self, job_id: str) -> session.Ending | None:
        """Whether the agent has asked this job to stop."""
        try:
            arrived = self._link.recv(_CHUNK_BYTES, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
        except OSError:  # nothing has arrived, or the agent is gone
            arrived = b""
        *lines, _ = (self._read + arrived).split(b"\n")
        for line in lines:
            message = _decode(line)
            if isinstance(message, Stop) and message.job_id == job_id:
                return message.ending
        return None

    def close(self) -> None:
        self._link.close()


def serve(link: int, *, reuse: bool) -> None:
    """Work off assignments from the agent, which is at the other end of this socket: one, or as many as come."""
    process_id = os.getpid()
    directory, environment = (os.getcwd(), dict(os.environ)) if reuse else ("", {})
    inbox = _Inbox(link)
    while (assignment := inbox.next_assignment()) is not None:
        verdict = _perform(assignment, inbox, link, reuse=reuse)
        flush_output()
        if os.getpid() != process_id:
            os._exit(0)  # a child that the function forked has come back from it; the result is the parent's to tell
        send_line(link, FromJob(job_id=assignment.context.job_id, message=Finished(verdict=verdict)))
        if not reuse:
            break
        _restore(directory, environment)
    inbox.close()


def _restore(directory: str, environment: Mapping[str, str]) -> None:
    """Let the next job find what the first one found."""
    with suppress(OSError):  # it was removed; the next job's own attempt at a file in it tells
        os.chdir(directory)
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:  # setting one costs more than looking
            os.environ[name] = value


def redirect_output(log: str) -> None:
    """Append everything that this process and its children print to the job's log; nothing may wait to be written."""
    # A process that was just forked shares its memory until it touches it, so every trial pays for each object that is
    # used here, more than for what is done with it: no `pathlib`, no context managers.
    try:
        os.mkdir(log.rpartition("/")[0])
    except FileExistsError:
        pass
    except FileNotFoundError:
        os.makedirs(os.path.dirname(log), exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _reopen_output() -> None:
    """Give this job the standard streams that a job of before closed."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        if (stream := getattr(sys, name)) is None or getattr(stream, "closed", False):
            setattr(sys, name, os.fdopen(number, "w", buffering=1, errors="backslashreplace", closefd=False))


def flush_output() -> None:
    """Have written what was printed."""
    for stream in (sys.stdout, sys.stderr):
        try:  # noqa: SIM105 (`suppress` is another thing to be touched in a process just forked)
            stream.flush()
        except Exception:  # noqa: BLE001, S110
            # The user's code may have closed it, or put something else there; what was printed is in the log, or
            # nowhere.
            pass


def _perform(assignment: Assignment, inbox: _Inbox, link: int, *, reuse: bool) -> Verdict:
    if reuse:
        try:
            redirect_output(assignment.log)
        except OSError as error:
            return failures.of_start(error)
        _reopen_output()
    for name, value in assignment.env.items():
        os.environ[name] = value
    return _call(assignment, inbox, link)


def _call(assignment: Assignment, inbox: _Inbox, link: int) -> Verdict:
    assert not isinstance(assignment.target, CommandTarget)
    job_id = assignment.context.job_id

    def tell(message: JobMessage) -> None:
        with _speaking.lock:
            send_line(link, FromJob(job_id=job_id, message=message))

    current = session.Session(
        assignment.context, lambda metrics: tell(Measured(metrics=metrics)), tell, lambda: inbox.ending_of(job_id)
    )
    session.enter(current)
    process_id = os.getpid()
    try:
        function = load_function(assignment.target)
        result = function(session.RunConfig.of(assignment.config))
        if os.getpid() == process_id:
            _report_result(current, assignment.target.name, result)
    except BaseException as error:  # noqa: BLE001 (whatever ends the user's code is the run's failure)
        if current.ending is None or not _is_stop(error):
            # The log may be on the disk whose being full is the failure, or standard error something of the user's.
            with suppress(Exception):
                traceback.print_exc()
            return failures.of_exception(error)
    finally:
        session.enter(None)
    if current.error is not None:
        return failures.of_exception(current.error)
    return Verdict(Outcome.SUCCEEDED) if current.ending is None else failures.of_ending(current.ending)


def _is_stop(error: BaseException) -> bool:
    """Whether nothing but the trial's being stopped ended the code; tasks wrap what ends them."""
    if isinstance(error, BaseExceptionGroup):
        return all(_is_stop(part) for part in error.exceptions)
    return isinstance(error, session.TrialStopped)


def _report_result(current: session.Session, name: str, result: object) -> None:
    if result is None:
        return
    if not isinstance(result, Mapping):
        raise MetricError(
            f"{name}() returned {type(result).__name__} {result!r:.80}; return a dict of metrics, or nothing"
        )
    current.report_result(result)
