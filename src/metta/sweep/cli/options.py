"""Options and arguments that several commands share, with their completion."""

from __future__ import annotations

from typing import Annotated

import typer

from metta.sweep.cli.completion import complete_run, complete_run_of_sweep, complete_sweep, complete_sweep_or_run
from metta.sweep.stores import STORE_VARIABLE

StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        envvar=STORE_VARIABLE,
        show_envvar=True,
        help="Where sweeps are kept. Default: sqlite:///sweeps.db",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SweepArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SWEEP", autocompletion=complete_sweep, help="Id, unique prefix or name. Default: the latest."
    ),
]
RequiredSweepArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", autocompletion=complete_sweep, help="Id, unique prefix or name.")
]
SweepsArgument = Annotated[
    list[str], typer.Argument(metavar="SWEEP...", autocompletion=complete_sweep, help="Ids, unique prefixes or names.")
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", autocompletion=complete_run, help="Id or unique prefix, or SWEEP/RUN.")
]
SweepOrRunArgument = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP|RUN", autocompletion=complete_sweep_or_run, help="Id, unique prefix or name; or SWEEP/RUN."
    ),
]
RunOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="RUN",
        autocompletion=complete_run_of_sweep,
        help="Only this run: id or unique prefix in the sweep.",
    ),
]
TailOption = Annotated[
    str | None,
    typer.Option(
        "--tail",
        metavar="RUN",
        autocompletion=complete_run,
        help="Follow a run until it has ended: its log, its metrics, and what becomes of it.",
    ),
]
ResumeOption = Annotated[
    str | None,
    typer.Option(
        "--resume", metavar="SWEEP", autocompletion=complete_sweep, help="Go on with a sweep instead of a TARGET."
    ),
]
