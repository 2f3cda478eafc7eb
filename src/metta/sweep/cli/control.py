"""Commands that change a sweep, and the one that jobs call: stop, report."""

from __future__ import annotations

import os
import socket
import sys
from typing import Annotated

import msgspec
import typer

from metta.sweep.agent.messages import JOB_VARIABLE, SOCKET_VARIABLE, Reply, Report, encode_line
from metta.sweep.cli.options import RequiredSweepArgument, StoreOption
from metta.sweep.errors import ConfigError, DispatchError, MetricError
from metta.sweep.model.metrics import checked
from metta.sweep.stores import open_store, store_url

_ANSWER_TIMEOUT_S = 30.0


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: metta sweep stop 46g3f")(stop)
    app.command(epilog="Example, inside a job: metta sweep report accuracy=0.93 epoch=3")(report)


def stop(
    sweep: RequiredSweepArgument,
    reason: Annotated[str, typer.Option(help="Kept in the log.")] = "stopped by the user",
    store: StoreOption = None,
) -> None:
    """End a sweep: cancel its running jobs; keep every result so far."""
    from metta.sweep.cli.addresses import find_sweep
    from metta.sweep.launch import request_stop

    opened = open_store(store_url(store))
    found = find_sweep(opened, sweep)
    if found.status.ended:
        sys.stderr.write(f"sweep {found.sweep_id} is {found.status} already: {found.reason}\n")
        return
    ended = request_stop(opened, found, reason)
    sys.stderr.write(f"sweep {ended.sweep_id} {ended.status}: {ended.reason}; {ended.ended_count} runs are kept\n")


def report(
    metrics: Annotated[list[str], typer.Argument(metavar="NAME=NUMBER...", help="Metrics, such as accuracy=0.93")],
) -> None:
    """Report metrics from inside a command's job, in any language; outside a sweep it only checks them."""
    address, job_id = os.environ.get(SOCKET_VARIABLE), os.environ.get(JOB_VARIABLE)
    try:
        message = Report(job_id=job_id or "", metrics=_parse(metrics))
    except MetricError as error:
        if address:
            _send(address, Report(job_id=job_id or "", error=str(error)))
        raise
    if address:
        _send(address, message)
    else:
        sys.stderr.write("not in a sweep: nothing to report to\n")


def _parse(pairs: list[str]) -> dict[str, float]:
    values: dict[str, float] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise ConfigError(f"metrics are NAME=NUMBER, got {pair!r}")
        try:
            values[name] = float(text)
        except ValueError:
            raise MetricError(f"metric {name!r} must be a number, got {text!r}") from None
    return checked(values)


def _send(address: str, message: Report) -> None:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_ANSWER_TIMEOUT_S)
            connection.connect(address)
            connection.sendall(encode_line(message))
            line = connection.makefile("rb").readline()
    except OSError as error:
        raise DispatchError(f"the sweep's agent does not answer at {address}: {error}") from error
    reply = msgspec.json.decode(line, type=Reply)
    if reply.error is not None:
        raise DispatchError(reply.error)
