"""A question to the agent from one of a job's processes."""

from __future__ import annotations

import socket

import msgspec

from metta.sweep.agent.messages import Reply, Request, encode_line
from metta.sweep.errors import DispatchError

_ANSWER_TIMEOUT_S = 30.0


def ask_agent(address: str, request: Request, timeout_s: float = _ANSWER_TIMEOUT_S) -> Reply:
    """Ask the agent that listens at this socket.

    Raises:
        DispatchError: it does not answer, or refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(address)
            connection.sendall(encode_line(request))
            line = connection.makefile("rb").readline()
    except OSError as error:
        raise DispatchError(f"the sweep's agent does not answer at {address}: {error}") from error
    if not line:
        raise DispatchError(f"the sweep's agent at {address} ended before it answered")
    reply = msgspec.json.decode(line, type=Reply)
    if reply.error is not None:
        raise DispatchError(reply.error)
    return reply
