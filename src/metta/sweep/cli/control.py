"""Commands that change a sweep, and the one that jobs call: pause, resume, stop, rollback, report."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from metta.sweep.agent.client import ask_agent
from metta.sweep.agent.messages import JOB_VARIABLE, SOCKET_VARIABLE, Report
from metta.sweep.cli.options import JsonOption, RequiredSweepArgument, StoreOption, SweepOrRunArgument
from metta.sweep.errors import ConfigError, MetricError
from metta.sweep.model.metrics import checked
from metta.sweep.stores import open_store, store_url


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: metta sweep pause 46g3f --reason 'the cluster is needed'")(pause)
    app.command(epilog="Examples: metta sweep resume 46g3f    metta sweep resume 7kq --checkpoint 5")(resume)
    app.command(epilog="Examples: metta sweep rollback 46g3f --jobs 5    metta sweep rollback 46g3f --undo")(rollback)
    app.command(epilog="Example: metta sweep stop 46g3f")(stop)
    app.command(epilog="Example, inside a job: metta sweep report accuracy=0.93 epoch=3")(report)


ReasonOption = Annotated[str, typer.Option(help="Kept in the log.")]


def pause(sweep: RequiredSweepArgument, reason: ReasonOption = "paused by the user", store: StoreOption = None) -> None:
    """Pause a sweep: start nothing new, let running jobs finish. Its controller then ends."""
    from metta.sweep import control
    from metta.sweep.cli.addresses import find_sweep

    opened = open_store(store_url(store))
    found = find_sweep(opened, sweep)
    if control.pause(opened, found, reason):
        _say(f"sweep {found.sweep_id} is PAUSED; go on with: metta sweep resume {found.sweep_id}")
    else:
        _say(f"sweep {found.sweep_id} is {found.status}: there is nothing to pause")


def resume(  # noqa: PLR0917 (one parameter an option)
    what: SweepOrRunArgument,
    checkpoint: Annotated[
        int | None, typer.Option(metavar="STEP", help="Of a run: go on from the checkpoint of this step.")
    ] = None,
    max_trials: Annotated[int | None, typer.Option(min=1, help="A new limit.")] = None,
    max_parallel: Annotated[int | None, typer.Option(min=1, help="A new limit.")] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Run in the background; print the sweep's id.")] = False,
    store: StoreOption = None,
) -> None:
    """Let a paused, interrupted or ended sweep go on; or try a run again, from its last checkpoint or a chosen one.

    A run that was stopped early, or is paused, is then trained to its end whatever the scheduler thinks of it.
    Where no controller is at work on the sweep, this command becomes it.
    """
    from metta.sweep import control
    from metta.sweep.cli.addresses import find_run_or_sweep
    from metta.sweep.cli.run import go_on

    opened = open_store(store_url(store))
    sweep, run = find_run_or_sweep(opened, what)
    given = {"max_trials": max_trials, "max_parallel": max_parallel}
    changes = {name: value for name, value in given.items() if value is not None}
    if run is not None:
        control.resume_run(opened, run, checkpoint)
    elif checkpoint is not None:
        raise ConfigError(f"--checkpoint: {what!r} is a sweep; name one of its runs")
    control.resume(opened, sweep, changes)
    go_on(opened, sweep.sweep_id, detach=detach)


def rollback(  # noqa: PLR0917 (one parameter an option)
    sweep: RequiredSweepArgument,
    jobs: Annotated[int | None, typer.Option(min=1, help="How many of the runs that ended last.")] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Let the runs of the latest rollback count again.")] = False,
    reason: ReasonOption = "rolled back by the user",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Take back the last runs: they count as observations no more, and others take their place. All files are kept."""
    from metta.sweep import control
    from metta.sweep.cli.addresses import find_sweep
    from metta.sweep.cli.shapes import print_json

    if (jobs is None) != undo:
        raise ConfigError("give --jobs NUMBER to take runs back, or --undo to let them count again")
    opened = open_store(store_url(store))
    found = find_sweep(opened, sweep)
    events = control.restore(opened, found, reason) if jobs is None else control.roll_back(opened, found, jobs, reason)
    run_ids = list(dict.fromkeys(event.run_id for event in events if event.run_id is not None))
    if as_json:
        print_json({"sweep_id": found.sweep_id, "restored" if undo else "rolled_back": run_ids})
    elif not run_ids:
        _say(f"sweep {found.sweep_id}: there is nothing to {'restore' if undo else 'roll back'}")
    else:
        done, back = ("count again", "") if undo else ("count no more", "; undo it with --undo")
        _say(f"sweep {found.sweep_id}: {len(run_ids)} runs {done}: {', '.join(run_ids)}{back}")


def stop(sweep: RequiredSweepArgument, reason: ReasonOption = "stopped by the user", store: StoreOption = None) -> None:
    """End a sweep: cancel its running jobs; keep every result so far."""
    from metta.sweep.cli.addresses import find_sweep
    from metta.sweep.control import request_stop
    from metta.sweep.launch import drive

    opened = open_store(store_url(store))
    found = find_sweep(opened, sweep)
    if found.status.ended:
        _say(f"sweep {found.sweep_id} is {found.status} already: {found.reason}")
        return
    ended = request_stop(opened, found, reason) or drive(opened, found, resume=False).sweep
    _say(f"sweep {ended.sweep_id} {ended.status}: {ended.reason}; {ended.ended_count} runs are kept")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


def report(
    metrics: Annotated[list[str], typer.Argument(metavar="NAME=NUMBER...", help="Metrics, such as accuracy=0.93")],
) -> None:
    """Report metrics from inside a command's job, in any language; outside a sweep it only checks them."""
    address, job_id = os.environ.get(SOCKET_VARIABLE), os.environ.get(JOB_VARIABLE)
    if address:
        # What is no report ends the job, and this command with it, which has yet to say why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        message = Report(job_id=job_id or "", metrics=_parse(metrics))
    except MetricError as error:
        if address:
            ask_agent(address, Report(job_id=job_id or "", error=str(error)))
        raise
    if address:
        ask_agent(address, message)
    else:
        _say("not in a sweep: nothing to report to")


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
