"""Options and arguments that several commands share, with their completion."""

from __future__ import annotations

from typing import Annotated

import typer

from metta.sweep.errors import SweepError
from metta.sweep.stores import STORE_VARIABLE, open_reader, store_url


def _complete_sweep(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    try:
        sweeps = open_reader(store_url(context.params.get("store"))).fetch_sweeps()
    except SweepError:
        return []  # no store, nothing to complete
    return [(s.sweep_id, f"{s.config.name} {s.status}") for s in sweeps if s.sweep_id.startswith(incomplete)]


def _complete_run(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    try:
        runs = open_reader(store_url(context.params.get("store"))).fetch_runs(id_prefix=incomplete, limit=100)
    except SweepError:
        return []
    return [(run.run_id, f"{run.status} {run.score}") for run in runs]


def _complete_either(context: typer.Context, incomplete: str) -> list[tuple[str, str]]:
    return [*_complete_sweep(context, incomplete), *_complete_run(context, incomplete)]


StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        show_envvar=True,
        help="Where sweeps are kept. Default: sqlite:///sweeps.db",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
SweepArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="SWEEP", autocompletion=_complete_sweep, help="Id, unique prefix or name. Default: the latest."
    ),
]
RequiredSweepArgument = Annotated[
    str, typer.Argument(metavar="SWEEP", autocompletion=_complete_sweep, help="Id, unique prefix or name.")
]
SweepsArgument = Annotated[
    list[str], typer.Argument(metavar="SWEEP...", autocompletion=_complete_sweep, help="Ids, unique prefixes or names.")
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", autocompletion=_complete_run, help="Id or unique prefix, or SWEEP/RUN.")
]
SweepOrRunArgument = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP|RUN", autocompletion=_complete_either, help="Id, unique prefix or name; or SWEEP/RUN."
    ),
]
RunOption = Annotated[
    str | None,
    typer.Option(
        "--run", metavar="RUN", autocompletion=_complete_run, help="Only this run: id or unique prefix in the sweep."
    ),
]
ResumeOption = Annotated[
    str | None,
    typer.Option(
        "--resume", metavar="SWEEP", autocompletion=_complete_sweep, help="Go on with a sweep instead of a TARGET."
    ),
]
