"""The inside of a job's process: take an assignment, call the user's function, say how it went."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import msgspec

from metta.sweep import session
from metta.sweep.agent.messages import Assignment, Finished, Measured, encode_line, lines_of
from metta.sweep.agent.targets import load_function
from metta.sweep.errors import MetricError, TargetError
from metta.sweep.model.sweep import CommandTarget

_decode = msgspec.json.Decoder(Assignment).decode
#: Of what went wrong: exceptions may quote a whole tensor, and all of it is in the run's log.
_LONGEST_REASON = 1000


def serve(link: socket.socket, *, reuse: bool) -> None:
    """Work off assignments from the agent: one, or as many as come."""
    process_id = os.getpid()
    for line in lines_of(link):
        assignment = _decode(line)
        if reuse:
            redirect_output(assignment.log)
        os.environ.update(assignment.env)
        error = _perform(assignment, link)
        _flush()
        if os.getpid() != process_id:
            os._exit(0)  # a child that the function forked has come back from it; the result is the parent's to tell
        link.sendall(encode_line(Finished(error=error)))
        if not reuse:
            return


def redirect_output(log: str) -> None:
    """Append everything that this process and its children print to the job's log."""
    _flush()
    Path(log).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            # The user's code may have closed it; what was printed is in the log or nowhere.
            continue


def _perform(assignment: Assignment, link: socket.socket) -> str | None:
    """Run the function; returns what went wrong, in one line."""
    error = _call(assignment, link)
    return error and f"{' '.join(error.split()):.{_LONGEST_REASON}}"


def _call(assignment: Assignment, link: socket.socket) -> str | None:
    assert not isinstance(assignment.target, CommandTarget)
    current = session.Session(assignment.context, lambda metrics: link.sendall(encode_line(Measured(metrics=metrics))))
    session.enter(current)
    process_id = os.getpid()
    try:
        function = load_function(assignment.target)
        result = function(session.RunConfig.of(assignment.config))
        if os.getpid() == process_id:
            _report_result(current, assignment.target.name, result)
    except SystemExit as error:
        traceback.print_exc()
        return f"called sys.exit({'' if error.code is None else repr(error.code)}) before it returned"
    except (MetricError, TargetError) as error:
        traceback.print_exc()
        return str(error)
    except BaseException as error:  # noqa: BLE001 (whatever ends the user's code is the run's failure)
        traceback.print_exc()
        return f"{type(error).__name__}: {error}{_place(error.__traceback__)}"
    finally:
        session.enter(None)
    return None if current.error is None else str(current.error)


def _report_result(current: session.Session, name: str, result: object) -> None:
    if result is None:
        return
    if not isinstance(result, Mapping):
        raise MetricError(
            f"{name}() returned {type(result).__name__} {result!r:.80}; return a dict of metrics, or nothing"
        )
    current.report(result)


def _place(trace: TracebackType | None) -> str:
    """Where in the user's code it happened."""
    frames = traceback.extract_tb(trace)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
