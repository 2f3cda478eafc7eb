"""The command with which a job saves a checkpoint."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from metta.sweep.agent.messages import JOB_VARIABLE, RUN_DIRECTORY_VARIABLE, SOCKET_VARIABLE


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example, inside a job: metta sweep checkpoint model.pt --step 5")(checkpoint)


def checkpoint(
    path: Annotated[Path, typer.Argument(metavar="FILE_OR_FOLDER", exists=True, help="What to save; it is copied.")],
    step: Annotated[int, typer.Option(min=0, help="How far the training is, such as the number of the epoch.")],
) -> None:
    """Save a checkpoint from inside a command's job, in any language; outside a sweep nothing is saved.

    When the job is tried again, {checkpoint} in the command and METTA_SWEEP_CHECKPOINT in its environment are the path
    of the last one.
    """
    address, job_id = os.environ.get(SOCKET_VARIABLE), os.environ.get(JOB_VARIABLE)
    if not address or not job_id:
        sys.stderr.write("not in a sweep: nothing saved\n")
        return
    from metta.sweep import checkpoints
    from metta.sweep.agent.client import ask_agent
    from metta.sweep.agent.messages import KeepCheckpoint

    saved = checkpoints.save(Path(os.environ[RUN_DIRECTORY_VARIABLE]), path, step)
    ask_agent(address, KeepCheckpoint(job_id=job_id, saved=saved))
