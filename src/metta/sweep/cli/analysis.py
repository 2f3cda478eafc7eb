"""Commands that tell what came of sweeps: analyze, compare."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metta.sweep.cli.options import JsonOption, StoreOption, SweepArgument, SweepsArgument
from metta.sweep.errors import ConfigError
from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Reader
from metta.sweep.stores import open_reader, store_url

if TYPE_CHECKING:
    from metta.sweep.analysis.figures import Reports
    from metta.sweep.analysis.summary import Analysis


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: metta sweep analyze 46g3f --html report.html")(analyze)
    app.command(epilog="Example: metta sweep compare 46g3f 8xk2m")(compare)


def analyze(  # noqa: PLR0917 (one parameter an option)
    sweep: SweepArgument = None,
    top: Annotated[int, typer.Option(min=1, help="How many of the best runs.")] = 5,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a report with figures: one file, no network needed.")
    ] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a report in Markdown.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell what came of a sweep: best runs, what mattered, how it converged, what failed, what it cost."""
    from metta.sweep.analysis.summary import analyse
    from metta.sweep.cli.addresses import find_sweep

    opened = open_reader(store_url(store))
    found = find_sweep(opened, sweep)
    runs = opened.fetch_runs(found.sweep_id)
    analysis = analyse(found, runs, top=top)
    if html is not None or markdown is not None:
        _write_reports(opened, found, runs, analysis, html=html, markdown=markdown)
    if as_json:
        from metta.sweep.cli.shapes import analysis_shape, print_json

        print_json(analysis_shape(found, analysis))
    elif html is None and markdown is None:
        from metta.sweep.display.analysis import analysis_view
        from metta.sweep.display.views import console

        screen = console()
        screen.print(analysis_view(found, analysis, screen))


def _write_reports(
    store: Reader,
    sweep: SweepMetadata,
    runs: Sequence[RunInfo],
    analysis: Analysis,
    *,
    html: Path | None,
    markdown: Path | None,
) -> None:
    from metta.sweep.display import report

    if html is not None:
        _write("--html", html, report.html(sweep, runs, analysis, _reports(store, sweep, runs)))
    if markdown is not None:
        _write("--markdown", markdown, report.markdown(sweep, analysis))


def _reports(store: Reader, sweep: SweepMetadata, runs: Sequence[RunInfo]) -> Reports | None:
    """What the best runs reported on their way, from the log; with a fidelity the levels tell it of all runs."""
    if sweep.config.fidelity is not None:
        return None
    from metta.sweep.analysis.figures import best_runs
    from metta.sweep.model.events import MetricsReported

    metric = sweep.config.metric
    reports: dict[str, list[tuple[float, float]]] = {
        run.run_id: [] for run in best_runs(sweep, runs) if run.reports > 1
    }
    for event in store.read(sweep.sweep_id) if reports else ():
        if event.run_id in reports and isinstance(event.body, MetricsReported) and metric in event.body.metrics:
            points = reports[event.run_id]
            points.append((len(points) + 1.0, event.body.metrics[metric]))
    return reports


def _write(option: str, path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be written: {error.strerror}; name another file") from error
    sys.stderr.write(f"wrote {path}\n")


def compare(sweeps: SweepsArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Compare sweeps with the first of them: best scores at the same budget, whether it was luck, what differs."""
    from metta.sweep.analysis.comparison import compare as compare_sweeps
    from metta.sweep.cli.addresses import find_sweep
    from metta.sweep.config_changes import all_differences, describe_differences

    opened = open_reader(store_url(store))
    found = [find_sweep(opened, address) for address in sweeps]
    if len({sweep.sweep_id for sweep in found}) < max(2, len(found)):
        raise ConfigError(f"compare: give two sweeps or more, all different, got {' '.join(sweeps)}")
    compared = compare_sweeps([(sweep, opened.fetch_runs(sweep.sweep_id)) for sweep in found])
    differing = [
        (sweep.config.name, describe_differences(all_differences(found[0].config, sweep.config))) for sweep in found[1:]
    ]
    if as_json:
        from metta.sweep.cli.shapes import comparison_shape, print_json

        print_json(comparison_shape(found, compared, [lines for _, lines in differing]))
        return
    from metta.sweep.display.analysis import comparison_view
    from metta.sweep.display.views import console

    console().print(comparison_view(found, compared, differing))
