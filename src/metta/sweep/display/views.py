"""Tables and lines for people."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from metta.sweep.model.run import FailureKind, JobStatus, RunInfo
from metta.sweep.model.sweep import Strategy, SweepMetadata, SweepStatus
from metta.sweep.observe.wording import one_line

RUN_STYLES = {
    JobStatus.COMPLETED: "green",
    JobStatus.RETRYING: "yellow",
    JobStatus.FAILED: "red",
    JobStatus.PAUSED: "yellow",
    JobStatus.STOPPED: "blue",
    JobStatus.CANCELLED: "yellow",
    JobStatus.ROLLED_BACK: "dim",
    JobStatus.IN_TRAINING: "cyan",
    JobStatus.IN_EVAL: "cyan",
}
# Apart from those of runs: as strings, some statuses of the two are equal.
_SWEEP_STYLES = {
    SweepStatus.COMPLETED: "green",
    SweepStatus.STOPPED: "yellow",
    SweepStatus.PAUSED: "yellow",
    SweepStatus.STOPPING: "yellow",
    SweepStatus.RUNNING: "cyan",
}
#: Wide enough for any line: scripts cut for themselves.
_PIPE_WIDTH = 10_000


def console(*, stderr: bool = False) -> Console:
    """Colour and fitting to the width only where a terminal shows it; a pipe gets whole lines."""
    stream = sys.stderr if stderr else sys.stdout
    if stream.isatty():
        return Console(stderr=stderr, highlight=False, markup=False)
    # Or variables such as FORCE_COLOR would make it a terminal, on which is drawn.
    return Console(stderr=stderr, highlight=False, markup=False, width=_PIPE_WIDTH, force_terminal=False)


def number(value: Any) -> str:
    """A value as people read it: six significant digits; on one line."""
    return f"{value:.6g}" if isinstance(value, float) else one_line(str(value))


def duration(seconds: float) -> str:
    """Such as 3.2s, 4m05s, 2h07m."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{rest:02}s"


def printable(text: Text) -> Text:
    """With blanks for what would break the line, or steer a terminal: its styles stay in their places."""
    text.plain = "".join(each if each.isprintable() else " " for each in text.plain)
    return text


def config_text(config: dict[str, Any]) -> str:
    """A configuration in one line."""
    return " ".join(f"{one_line(name)}={number(value)}" for name, value in config.items())


def status_text(status: JobStatus | SweepStatus) -> Text:
    """A status in its colour."""
    style = RUN_STYLES.get(status) if isinstance(status, JobStatus) else _SWEEP_STYLES.get(status)
    return Text(status.value, style=style or "")


def runs_table(runs: Sequence[RunInfo], sweep: SweepMetadata, screen: Console) -> Table:
    """Runs, a line each; a column for each parameter where the screen is wide enough, else one for all of them."""
    names = sweep.config.search_space.dimensions
    table = _runs_table(runs, sweep, names)
    unconstrained = screen.options.update(max_width=_PIPE_WIDTH)
    if screen.measure(table, options=unconstrained).maximum > screen.width:
        return _runs_table(runs, sweep, None)
    return table


def _runs_table(runs: Sequence[RunInfo], sweep: SweepMetadata, names: Sequence[str] | None) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("run", "status"):
        table.add_column(heading, no_wrap=True)
    for heading in (sweep.config.metric, "cost"):
        table.add_column(heading, justify="right", no_wrap=names is not None)
    for heading in names if names is not None else ("config",):
        table.add_column(one_line(heading), overflow="fold")
    for run in runs:
        values = [number(run.config[name]) if name in run.config else "-" for name in names or ()]
        shown = run.score if run.score is not None else run.metrics.get(sweep.config.metric)
        score = Text("-" if shown is None else number(shown), style="bold" if run.run_id == sweep.best_run_id else "")
        cells = values if names is not None else [config_text(run.config)]
        table.add_row(run.run_id, status_text(run.status), score, duration(run.cost), *cells)
    return table


def sweeps_table(sweeps: Iterable[SweepMetadata]) -> Table:
    """Sweeps, a line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("sweep", "name", "status", "runs", "failed", "best", "metric", "created"):
        is_number = heading in {"runs", "failed", "best"}
        is_short = heading not in {"name", "metric"}
        table.add_column(heading, justify="right" if is_number else "left", overflow="fold", no_wrap=is_short)
    sweeps = list(sweeps)
    this_year = max((datetime.fromtimestamp(sweep.created_at).year for sweep in sweeps), default=0)
    for sweep in sweeps:
        created = datetime.fromtimestamp(sweep.created_at)
        limit = sweep.config.max_trials
        table.add_row(
            sweep.sweep_id,
            sweep.config.name,
            status_text(sweep.status),
            f"{sweep.ended_count}/{limit}" if limit else str(sweep.ended_count),
            str(sweep.counts.get(JobStatus.FAILED, 0)),
            "-" if sweep.best_score is None else number(sweep.best_score),
            sweep.config.metric,
            f"{created:%m-%d %H:%M}" if created.year == this_year else f"{created:%Y-%m-%d}",
        )
    return table


def go_on_command(sweep: SweepMetadata) -> str:
    """What to type so that an unended sweep without a controller goes on its way."""
    if sweep.status is SweepStatus.STOPPING:
        return f"metta sweep stop {sweep.sweep_id}"
    if sweep.status is SweepStatus.PAUSED:
        return f"metta sweep resume {sweep.sweep_id}"
    return f"metta sweep run --resume {sweep.sweep_id}"


def counts_text(sweep: SweepMetadata) -> Text:
    """Such as `12 COMPLETED, 2 IN_TRAINING`."""
    text = Text()
    for status in JobStatus:
        if count := sweep.counts.get(status):
            text.append(", " if text else "").append(f"{count} ").append_text(status_text(status))
    return text or Text("no runs yet")


def failures_text(failures: Mapping[FailureKind | None, int]) -> str:
    """Such as `3 out_of_memory, 1 user_error`, the most frequent first."""
    by_count = sorted(failures.items(), key=lambda item: (-item[1], str(item[0])))
    return ", ".join(f"{count} {kind or 'without a result'}" for kind, count in by_count)


def budget_rows(sweep: SweepMetadata, cost: float, now: float) -> list[tuple[str, str]]:
    """Compute time, and time since the sweep was created, each with its limit; by names.

    Args:
        sweep: Which sweep.
        cost: Compute seconds used so far.
        now: The time of day.
    """
    config = sweep.config
    until = sweep.ended_at if sweep.status.ended and sweep.ended_at is not None else now
    elapsed = max(0.0, until - sweep.created_at)
    return [("compute", _used(cost, config.budget_hours)), ("time", _used(elapsed, config.max_hours))]


def _used(seconds: float, limit_hours: float | None) -> str:
    if limit_hours is None:
        return duration(seconds)
    whole = limit_hours * 3600
    return f"{duration(seconds)} of {duration(whole)} ({seconds / whole:.0%})" if whole else duration(seconds)


def eta_text(eta: float | None, now: float) -> str:
    """Time left, or a dash."""
    return "-" if eta is None else str(timedelta(seconds=max(0, round(eta - now))))


def facts(rows: Iterable[tuple[str, RenderableType]]) -> Table:
    """Names and values below each other."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, value)
    return table


def strategy_text(strategy: Strategy) -> str:
    """Who chooses, and under whom the runs are, where that is not said anyway."""
    is_plain = strategy.scheduler == Strategy().scheduler
    return strategy.optimizer if is_plain else f"{strategy.optimizer} under {strategy.scheduler}"
