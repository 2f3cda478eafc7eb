"""An analysis as a document: Markdown, and HTML that needs no other file and no network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from metta.sweep.analysis.summary import Analysis
from metta.sweep.display.analysis import (
    convergence_rows,
    cost_rows,
    failure_text,
    headline,
    importance_note,
    interactions,
    interval,
    percent,
)
from metta.sweep.display.views import counts_text, duration, number
from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import SweepMetadata

if TYPE_CHECKING:
    from metta.sweep.analysis.figures import Reports

#: A table of a report: its headings and its rows.
Rows = Sequence[Sequence[str]]


def markdown(sweep: SweepMetadata, found: Analysis) -> str:
    """The analysis as Markdown, tables and no figures."""
    lines = [f"# {_markdown_text(headline(sweep))}", "", _markdown_text(counts_text(sweep).plain), ""]
    for title, headings, rows, note in _sections(sweep, found):
        lines += [f"## {title}", ""]
        if rows:
            lines += [_markdown_row(headings), _markdown_row(["---"] * len(headings)), *map(_markdown_row, rows), ""]
        if note:
            lines += [_markdown_text(note), ""]
    return "\n".join(lines).rstrip() + "\n"


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_markdown_text, cells))} |"


def _markdown_text(text: str) -> str:
    """The text itself, whatever of Markdown or HTML it may look like."""
    for character in "\\`*_{}[]<>#|":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())


def html(sweep: SweepMetadata, runs: Sequence[RunInfo], found: Analysis, reports: Reports | None = None) -> str:
    """The analysis as one HTML file, with figures to zoom into; Plotly's script is part of the file.

    Args:
        sweep: Which sweep.
        runs: All of its runs.
        found: What `analyse` says of them.
        reports: What runs reported on their way, for the figure of intermediate values.

    Raises:
        MissingExtraError: Plotly is not installed.
    """
    from metta.sweep.analysis import figures

    drawn = [figures.history(sweep, runs)]
    if found.importance is not None:
        drawn.append(figures.importances(found.importance))
    if found.best:
        drawn += [figures.parallel_coordinates(sweep, runs), figures.slices(sweep, runs, found.importance)]
    pair = figures.best_pair(sweep, found.importance)
    if pair is not None and found.best:
        drawn.append(figures.contour(sweep, runs, *pair))
    if reports or sweep.config.fidelity is not None:
        drawn.append(figures.intermediate_values(sweep, runs, reports))
    if sweep.config.fidelity is not None:
        drawn.append(figures.rungs(sweep, runs))
    drawn.append(figures.timeline(sweep, runs))
    parts = [
        figure.to_html(full_html=False, include_plotlyjs=number_ == 0, config={"displaylogo": False})
        for number_, figure in enumerate(drawn)
    ]
    tables = "".join(
        f"<h2>{escape(title)}</h2>{_html_table(headings, rows)}<p>{escape(note)}</p>"
        for title, headings, rows, note in _sections(sweep, found)
    )
    return _PAGE.format(
        title=escape(sweep.config.name),
        headline=escape(headline(sweep)),
        counts=escape(counts_text(sweep).plain),
        tables=tables,
        figures="".join(f"<section>{part}</section>" for part in parts),
    )


def _html_table(headings: Sequence[str], rows: Rows) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _sections(sweep: SweepMetadata, found: Analysis) -> list[tuple[str, Sequence[str], Rows, str]]:
    """Title, headings, rows and a note of each."""
    names = sweep.config.search_space.dimensions
    best = [
        [
            run.run_id,
            number(run.score),
            duration(run.cost),
            *(number(run.config[name]) if name in run.config else "-" for name in names),
        ]
        for run in found.best
    ]
    shares, note = [], found.importance_note or ""
    if found.importance is not None:
        shares = [
            [" with ".join(share.parameters), percent(share.share), interval(share)]
            for share in [*found.importance.parameters, *interactions(found.importance)]
        ]
        note = importance_note(found.importance, sweep)
    failures = [
        [str(each.attempts), str(each.runs), str(each.failed_runs), duration(each.seconds), failure_text(each)]
        for each in found.failures
    ]
    bottlenecks = [[percent(each.share), str(each)] for each in found.bottlenecks]
    return [
        ("Best runs", ["run", sweep.config.metric, "cost", *names], best, "" if best else "No completed run yet."),
        ("Importance", ["parameters", "share", "interval"], shares, note),
        ("Convergence", ["what", "value"], convergence_rows(found.convergence, sweep), ""),
        ("Failures", ["attempts", "runs", "failed", "lost", "what"], failures, "" if failures else "None."),
        ("Bottlenecks", ["share of time", "what"], bottlenecks, "" if bottlenecks else "None."),
        ("Cost", ["what", "value"], cost_rows(found.cost), ""),
    ]


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; color: #222; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.1rem; margin-top: 2rem; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .15rem 1rem .15rem 0; border-bottom: 1px solid #eee; vertical-align: top; }}
p {{ color: #666; }}
</style>
</head>
<body>
<h1>{headline}</h1>
<p>{counts}</p>
{tables}
{figures}
</body>
</html>
"""
