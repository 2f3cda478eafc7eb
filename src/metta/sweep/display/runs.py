"""Runs under way, and those that ended last, in one table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from metta.sweep.display.views import config_text, duration, number, printable, status_text
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.model.usage import STEP_METRICS
from metta.sweep.observe.wording import one_line

#: So many of those that ended are seen, however many are running.
_ENDED_LEAST = 2
#: Of a column; what is longer is cut.
_WIDEST = 12
_GAP = 2
#: What is left for configurations, or they are left out.
_CONFIG_LEAST = 8


class _Column(NamedTuple):
    heading: str
    cell: Callable[[RunInfo], Text]
    #: Where there is no room for all columns those with the highest go first.
    rank: int
    justify: Literal["left", "right"] = "right"


def under_way_table(
    sweep: SweepMetadata, running: Sequence[RunInfo], ended: Sequence[RunInfo], *, now: float, width: int, rows: int
) -> Table:
    """Runs that have a job, and below them those that ended last; so many rows below the heading, a line each."""
    shown_ended = min(len(ended), max(rows - len(running), min(_ENDED_LEAST, rows // 2)))
    shown_running = min(len(running), rows - shown_ended)
    hidden = len(running) - shown_running
    if hidden:
        shown_running -= 1
        hidden += 1
    shown = [*running[: max(0, shown_running)], *ended[:shown_ended]]
    columns, room = _fitting(_columns(sweep, now), shown, width)
    table = Table(box=None, pad_edge=False, header_style="dim", width=width, padding=(0, _GAP, 0, 0))
    for column in columns:
        table.add_column(column.heading, justify=column.justify, no_wrap=True, overflow="ellipsis", max_width=_WIDEST)
    with_config = room >= _CONFIG_LEAST
    table.add_column("config" if with_config else "", no_wrap=True, overflow="ellipsis", ratio=1)
    for number_of_row, run in enumerate(shown):
        if hidden and number_of_row == shown_running:
            table.add_row(Text(f"+ {hidden}", style="dim"), Text("more", style="dim"))
        table.add_row(*(column.cell(run) for column in columns), _note(run) if with_config else "")
    if hidden and shown_running == len(shown):
        table.add_row(Text(f"+ {hidden}", style="dim"), Text("more", style="dim"))
    return table


def _fitting(columns: list[_Column], runs: Sequence[RunInfo], width: int) -> tuple[list[_Column], int]:
    """As many columns as there is room for, and the room beside them."""
    widths = {
        column.heading: min(_WIDEST, max([len(column.heading), *(column.cell(run).cell_len for run in runs)])) + _GAP
        for column in columns
    }
    kept = [column for column in columns if any(column.cell(run).plain for run in runs)]
    while (room := width - sum(widths[column.heading] for column in kept)) < 0 and len(kept) > 1:
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept, room


def _columns(sweep: SweepMetadata, now: float) -> list[_Column]:
    fidelity, metric = sweep.config.fidelity, sweep.config.metric
    is_best = sweep.best_run_id

    def shown(run: RunInfo) -> Text:
        value = metric_of(run, sweep)
        return Text("-" if value is None else number(value), style="bold green" if run.run_id == is_best else "")

    return [
        _Column("run", lambda run: Text(run.run_id), 0, "left"),
        _Column("status", lambda run: status_text(run.status), 2, "left"),
        _Column(one_line(metric), shown, 1),
        _Column("vs best", lambda run: against_best(run, sweep), 4),
        _Column("step" if fidelity is None else one_line(fidelity.resource), lambda run: Text(reached(run, sweep)), 3),
        _Column("time", lambda run: Text(duration(time_of(run, now))), 5),
    ]


def metric_of(run: RunInfo, sweep: SweepMetadata) -> float | None:
    """The latest that is known of the sweep's metric."""
    if run.score is not None:
        return run.score
    return run.partial_score if run.status.ended else run.metrics.get(sweep.config.metric)


def against_best(run: RunInfo, sweep: SweepMetadata) -> Text:
    """How far the metric is from the best so far."""
    value = metric_of(run, sweep)
    if value is None or sweep.best_score is None:
        return Text()
    if run.run_id == sweep.best_run_id:
        return Text("best", style="bold green")
    return Text(f"{value - sweep.best_score:+.2g}", style="green" if sweep.is_better(value) else "")


def reached(run: RunInfo, sweep: SweepMetadata) -> str:
    """How far it has been trained, as far as it tells."""
    fidelity = sweep.config.fidelity
    if fidelity is not None:
        return "" if run.progress is None else f"{run.progress:g}/{fidelity.maximum:g}"
    step = next((run.metrics[name] for name in STEP_METRICS if name in run.metrics), None)
    return "" if step is None else f"{step:g}"


def time_of(run: RunInfo, now: float) -> float:
    """Seconds of its job so far; of all its jobs once none is open."""
    since = None if run.open_job is None else run.open_job.started_at
    return run.cost if since is None else max(0.0, now - since)


def _note(run: RunInfo) -> Text:
    """Why it has no result, where it has none; else what it tries."""
    is_stopped = run.status is JobStatus.STOPPED
    if run.failure_reasons and run.score is None and (run.status.ended or run.retry_at is not None) and not is_stopped:
        return printable(Text(run.failure_reasons[-1], style="red"))
    return Text(config_text(run.config), style="dim")
