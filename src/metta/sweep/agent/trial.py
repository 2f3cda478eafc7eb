"""The inside of a job's process: take an assignment, call the user's function, say how it went."""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from metta.sweep import session
from metta.sweep.agent import failures
from metta.sweep.agent.failures import Verdict
from metta.sweep.agent.messages import Assignment, Finished, Measured, encode_line, lines_of
from metta.sweep.agent.targets import load_function
from metta.sweep.errors import MetricError
from metta.sweep.model.run import Outcome
from metta.sweep.model.sweep import CommandTarget

_decode = msgspec.json.Decoder(Assignment).decode


def serve(link: socket.socket, *, reuse: bool) -> None:
    """Work off assignments from the agent: one, or as many as come."""
    process_id = os.getpid()
    for line in lines_of(link):
        assignment = _decode(line)
        verdict = _perform(assignment, link, reuse=reuse)
        _flush()
        if os.getpid() != process_id:
            os._exit(0)  # a child that the function forked has come back from it; the result is the parent's to tell
        link.sendall(encode_line(Finished(verdict=verdict)))
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


def _perform(assignment: Assignment, link: socket.socket, *, reuse: bool) -> Verdict:
    if reuse:
        try:
            redirect_output(assignment.log)
        except OSError as error:
            return failures.of_start(error)
    os.environ.update(assignment.env)
    return _call(assignment, link)


def _call(assignment: Assignment, link: socket.socket) -> Verdict:
    assert not isinstance(assignment.target, CommandTarget)
    current = session.Session(
        assignment.context,
        lambda metrics: link.sendall(encode_line(Measured(metrics=metrics))),
        lambda note: link.sendall(encode_line(note)),
    )
    session.enter(current)
    process_id = os.getpid()
    try:
        function = load_function(assignment.target)
        result = function(session.RunConfig.of(assignment.config))
        if os.getpid() == process_id:
            _report_result(current, assignment.target.name, result)
    except BaseException as error:  # noqa: BLE001 (whatever ends the user's code is the run's failure)
        # The log may be on the disk whose being full is the failure.
        with suppress(OSError, ValueError):
            traceback.print_exc()
        return failures.of_exception(error)
    finally:
        session.enter(None)
    return Verdict(Outcome.SUCCEEDED) if current.error is None else failures.of_exception(current.error)


def _report_result(current: session.Session, name: str, result: object) -> None:
    if result is None:
        return
    if not isinstance(result, Mapping):
        raise MetricError(
            f"{name}() returned {type(result).__name__} {result!r:.80}; return a dict of metrics, or nothing"
        )
    current.report(result)
