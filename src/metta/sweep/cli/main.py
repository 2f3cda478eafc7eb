"""The `metta` command and its group `sweep`."""

from __future__ import annotations

import gc
import sys
from typing import Annotated

import typer

from metta.sweep.cli import (
    analysis,
    backup,
    checkpoints,
    control,
    debug,
    doctor,
    events,
    exchange,
    inspect,
    logs,
    notify,
    replay,
    run,
    serve_metrics,
)
from metta.sweep.cli.output import ensure_output, leave_closed_pipe, leave_unencodable, leave_unwritable
from metta.sweep.errors import StoreError, SweepError, UsageError

app = typer.Typer(name="metta", no_args_is_help=True, help="Tools for training.", rich_markup_mode=None)
sweep = typer.Typer(no_args_is_help=True, help="Hyperparameter sweeps that survive kill -9.", rich_markup_mode=None)
app.add_typer(sweep, name="sweep")
for commands in (
    run,
    inspect,
    logs,
    events,
    replay,
    analysis,
    control,
    checkpoints,
    doctor,
    debug,
    backup,
    exchange,
    serve_metrics,
    notify,
):
    commands.register(sweep)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"metta-sweep {version('metta-sweep')}")
        raise typer.Exit


@app.callback()
def _metta(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point: errors in one line, exit code 2 where typing something else helps, 1 otherwise."""
    # Imports allocate much and leave no garbage: looking for it at the default threshold is a tenth of a short command.
    gc.set_threshold(100_000)
    ensure_output()
    try:
        try:
            app()
        finally:
            sys.stdout.flush()
    except SweepError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2 if isinstance(error, UsageError | StoreError) else 1) from None
    except BrokenPipeError:
        leave_closed_pipe()
    except OSError as error:
        leave_unwritable(error)
    except UnicodeEncodeError as error:
        leave_unencodable(error)
    except SystemExit as leaving:
        if isinstance(leaving.__context__, BrokenPipeError):  # caught by Typer, which makes it a failure
            leave_closed_pipe()
        raise
    except KeyboardInterrupt:
        raise SystemExit(130) from None
