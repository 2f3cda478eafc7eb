"""Where a sweep stands, and all about one run, for people."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from rich.console import Console, Group, RenderableType
from rich.text import Text

from metta.sweep.analysis.progress import estimate_end
from metta.sweep.display.run_metrics import metrics_rows
from metta.sweep.display.views import (
    RUN_STYLES,
    budget_rows,
    config_text,
    counts_text,
    duration,
    eta_text,
    facts,
    failures_text,
    go_on_command,
    number,
    printable,
    runs_table,
    status_text,
    strategy_text,
)
from metta.sweep.model.events import Event, reasons_of
from metta.sweep.model.run import Checkpoint, FailureKind, JobInfo, JobStatus, Parent, RunInfo
from metta.sweep.model.run_metrics import run_metrics
from metta.sweep.model.sweep import SweepMetadata, SweepStatus
from metta.sweep.observe.wording import one_line
from metta.sweep.protocols import Heartbeat

#: Unended runs shown before the rest is summed up.
_SHOWN = 20


def status_view(
    sweep: SweepMetadata,
    best: RunInfo | None,
    unended: Sequence[RunInfo],
    heartbeats: Sequence[Heartbeat],
    screen: Console,
    *,
    now: float,
    controlled: bool,
    failures: Mapping[FailureKind | None, int] | None = None,
    is_past: bool = False,
) -> RenderableType:
    """A sweep at a glance; one that is past does not say what could be done about it."""
    config = sweep.config
    limit = f" of {config.max_trials}" if config.max_trials else ""
    rows: list[tuple[str, RenderableType]] = [
        ("sweep", f"{sweep.sweep_id} ({config.name})"),
        ("status", _status_line(sweep, controlled, is_past=is_past)),
        ("runs", Text.assemble(f"{sweep.ended_count}{limit} ended: ", counts_text(sweep))),
        ("strategy", f"{strategy_text(config.strategy)}, {config.direction} {config.metric}"),
        *budget_rows(sweep, sweep.cost, now),
    ]
    if failures:
        rows.append(("failed by", Text(failures_text(failures), style="red")))
    if not sweep.status.ended:
        rows.append(("time left", eta_text(estimate_end(sweep, now), now)))
        rows += [
            ("agent", f"{beat.host}, pid {beat.pid}: {beat.jobs} jobs, seen {duration(now - beat.at)} ago")
            for beat in heartbeats
        ]
    if best is not None and best.score is not None:
        rows.append(("best", Text(f"{best.run_id} {config.metric}={number(best.score)}", style="bold green")))
        rows.append(("", config_text(best.config)))
    parts: list[RenderableType] = [facts(rows)]
    if unended:
        parts += [Text(), runs_table(unended[:_SHOWN], sweep, screen)]
    if len(unended) > _SHOWN:
        parts.append(Text(f"... and {len(unended) - _SHOWN} more", style="dim"))
    return Group(*parts)


def _status_line(sweep: SweepMetadata, controlled: bool, *, is_past: bool) -> Text:
    line = status_text(sweep.status)
    if sweep.reason:
        line.append(f": {one_line(sweep.reason)}", style="default")
    if is_past:
        is_alone = not sweep.status.ended and not controlled
        line.append("; no controller was at work" if is_alone else "", style="yellow")
    elif sweep.status is SweepStatus.PAUSED:
        line.append(f"; go on with: {go_on_command(sweep)}", style="yellow")
    elif not sweep.status.ended and not controlled:
        line.append(f"; no controller is at work: {go_on_command(sweep)}", style="yellow")
    return line


def run_view(
    run: RunInfo, sweep: SweepMetadata, events: Sequence[Event], *, now: float | None = None
) -> RenderableType:
    """All about one run; `now` is the time of day without it."""
    now = time.time() if now is None else now
    rows: list[tuple[str, RenderableType]] = [
        ("run", f"{run.run_id}, number {run.index} of sweep {sweep.sweep_id} ({sweep.config.name})"),
        ("status", status_text(run.status)),
    ]
    if run.score is not None:
        is_best = " (the best)" if run.run_id == sweep.best_run_id else ""
        rows.append(("score", Text(f"{sweep.config.metric}={number(run.score)}{is_best}", style="bold")))
    if run.parent is not None:
        rows.append(("parent", _parent_line(run.parent, sweep)))
    if run.stop_reason is not None:
        rows.append(("stopped", Text(run.stop_reason, style=RUN_STYLES[JobStatus.STOPPED])))
    rows += [("failure", printable(Text(reason, style="red"))) for reason in run.failure_reasons]
    rows += [("config", f"{one_line(name)} = {number(value)}") for name, value in run.config.items()]
    rows += [("metric", f"{one_line(name)} = {number(value)}") for name, value in run.metrics.items()]
    rows += [("why", reason) for reason in reasons_of(events)]
    rows += [("job", _job_line(job)) for job in run.jobs]
    rows += metrics_rows(run_metrics(run, None if run.status.ended else now))
    rows += [("log", job.log) for job in run.jobs if job.log]
    rows += [("checkpoint", _checkpoint_line(checkpoint, sweep, now)) for checkpoint in run.checkpoints]
    return facts(rows)


def _parent_line(parent: Parent, sweep: SweepMetadata) -> str:
    fidelity = sweep.config.fidelity
    resource = "" if fidelity is None else f"{fidelity.resource} {parent.level:g}, "
    return f"{parent.run_id}, from {resource}step {parent.step}; in the place of {parent.replaces}"


def _checkpoint_line(checkpoint: Checkpoint, sweep: SweepMetadata, now: float) -> str:
    score = f", {sweep.config.metric}={number(checkpoint.score)}" if checkpoint.score is not None else ""
    age = duration(max(0.0, now - checkpoint.at))
    return f"step {checkpoint.step}, {_size(checkpoint.size_bytes)}{score}, saved {age} ago: {checkpoint.path}"


def _size(size_bytes: int) -> str:
    """Such as 12 B, 3.4 KiB, 5.6 GiB."""
    size, units = float(size_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.1f} {units[0]}" if size < size_bytes else f"{size_bytes} B"


def _job_line(job: JobInfo) -> str:
    until = "" if job.until is None else f" until {job.until:g}"
    line = f"{job.job_id}{until} {job.outcome or job.state}"
    if job.started_at is not None and job.ended_at is not None:
        line += f" after {duration(job.ended_at - job.started_at)}"
    return line + (f" on {job.host}, pid {job.pid}" if job.pid else "")
