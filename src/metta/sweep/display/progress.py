"""A sweep's progress while its controller runs in this process: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from metta.sweep.display.views import (
    config_text,
    console,
    counts_text,
    duration,
    eta_text,
    go_on_command,
    number,
    status_text,
    strategy_text,
)
from metta.sweep.launch import Launched, drive
from metta.sweep.model.events import Event, RunRetryScheduled
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.state import EMPTY, SweepState
from metta.sweep.model.sweep import SweepMetadata, SweepStatus
from metta.sweep.protocols import Store
from metta.sweep.schedulers.completion import Completion, predict
from metta.sweep.schedulers.workload import workload_of

#: Ended runs, and running ones, shown at a time.
_SHOWN = 8
#: The end is estimated that often at most, which takes some hundredths of a second, and lies within the interval shown
#: with that probability.
_ESTIMATED_EVERY_S, _LEVEL = 2.0, 0.8


def run_with_progress(store: Store, launched: Launched, *, show: bool) -> SweepState:
    """Drive the sweep and show how it goes on standard error; returns its last state."""
    screen = console(stderr=True)
    display = Display(screen)

    def announce(line: str) -> None:
        if show:
            screen.print(line, soft_wrap=True)

    announce(_greeting(launched))

    def on_takeover() -> None:
        announce(f"took over sweep {launched.sweep.sweep_id}: no other controller is at work on it")

    def on_stop_request(requests: int) -> None:
        announce(_farewell(launched.sweep, requests))

    live = Live(get_renderable=display.render, console=screen, refresh_per_second=4, transient=True)
    with live if show and screen.is_terminal else nullcontext():
        state = drive(
            store,
            launched.sweep,
            resume=launched.resumed,
            changes=launched.changes,
            on_takeover=on_takeover if launched.standby else None,
            observer=display.observe if show else None,
            on_stop_request=on_stop_request,
        )
    announce(_summary(state))
    return state


class Display:
    """What is shown. Its cost does not depend on how many runs have ended."""

    def __init__(self, screen: Console) -> None:
        self._screen = screen
        self._state: SweepState = EMPTY
        self._recent: deque[RunInfo] = deque(maxlen=_SHOWN)
        self._end: Completion | None = None
        self._estimated_at = -math.inf

    def observe(self, state: SweepState, events: Sequence[Event]) -> None:
        """Take in what happened."""
        if not self._screen.is_terminal:
            for event in events:
                if isinstance(event.body, RunRetryScheduled) and event.run_id is not None:
                    failure = state.runs[event.run_id].failure_reasons[-1]
                    self._screen.print(f"{event.run_id} RETRYING {failure}; {event.body.reason}", soft_wrap=True)
        touched = dict.fromkeys(event.run_id for event in events if event.run_id is not None)
        known = {run.run_id for run in self._recent}
        ended = [state.runs[run_id] for run_id in touched if run_id not in state.unfinished and run_id not in known]
        before = state.sweep.ended_count - len(ended)
        for position, run in enumerate(sorted(ended, key=lambda run: run.ended_at or 0.0), start=before + 1):
            self._recent.append(run)
            if not self._screen.is_terminal:
                self._screen.print(_run_line(run, state.sweep, position), soft_wrap=True)
        self._state = state

    def render(self) -> RenderableType:
        """The live display."""
        if self._state.metadata is None:
            return Text("starting ...", style="dim")
        sweep = self._state.sweep
        running = [self._state.runs[run_id] for run_id in self._state.unfinished]
        running = sorted(running, key=lambda run: run.index)
        # Room at the right for the ^C that a terminal echoes: on a full line it would wrap and shift the display.
        width = max(20, self._screen.width - 4)
        table = Table(box=None, pad_edge=False, header_style="dim", width=width)
        for heading in ("run", "status", sweep.config.metric, "time"):
            table.add_column(heading, no_wrap=True)
        table.add_column("config", no_wrap=True, overflow="ellipsis", ratio=1)
        for run in [*list(self._recent)[-_SHOWN:], *running[:_SHOWN]]:
            table.add_row(*_run_cells(run, sweep))
        now = time.time()
        return Group(_head(sweep, self._estimate(now), now), table)

    def _estimate(self, now: float) -> Completion | None:
        if abs(now - self._estimated_at) >= _ESTIMATED_EVERY_S:
            self._end = predict(workload_of(self._state, now), now, _LEVEL)
            self._estimated_at = now
        return self._end


def _head(sweep: SweepMetadata, end: Completion | None, now: float) -> RenderableType:
    limit = sweep.config.max_trials
    line = Table.grid(padding=(0, 1))
    done = f"{sweep.ended_count}/{limit}" if limit else str(sweep.ended_count)
    cells: list[RenderableType] = [Text(done, style="bold"), f"left {_left(end, now)}"]
    if limit:
        cells.insert(0, ProgressBar(total=limit, completed=sweep.ended_count, width=24))
    if sweep.best_score is not None:
        cells.append(Text(f"best {number(sweep.best_score)} ({sweep.best_run_id})", style="bold green"))
    line.add_row(*cells)
    return Group(line, counts_text(sweep))


def _left(end: Completion | None, now: float) -> str:
    if end is None:
        return eta_text(None, now)
    low, high = eta_text(end.low, now), eta_text(end.high, now)
    return low if low == high else f"{low} to {high}"


def _run_cells(run: RunInfo, sweep: SweepMetadata) -> tuple[RenderableType, ...]:
    shown = run.score if run.score is not None else run.metrics.get(sweep.config.metric)
    since = run.open_job.started_at if run.open_job is not None else None
    spent = run.cost if since is None else max(0.0, time.time() - since)
    style = "bold green" if run.run_id == sweep.best_run_id else ""
    has_ended = run.status.ended and run.status is not JobStatus.STOPPED
    failed = run.score is None and (has_ended or run.status is JobStatus.RETRYING)
    note = "; ".join(run.failure_reasons[-1:]) if failed else run.stop_reason or config_text(run.config)
    score = Text("-" if shown is None else number(shown), style=style)
    return run.run_id, status_text(run.status), score, duration(spent), note


def _run_line(run: RunInfo, sweep: SweepMetadata, position: int) -> str:
    limit = f"/{sweep.config.max_trials}" if sweep.config.max_trials else ""
    if run.status is JobStatus.STOPPED:
        result = _reached(run, sweep)
    elif run.score is not None:
        result = f"{sweep.config.metric}={number(run.score)}"
    else:
        result = "; ".join(run.failure_reasons[-1:])
    best = "" if sweep.best_score is None else f" (best {number(sweep.best_score)}, {sweep.best_run_id})"
    return f"[{position}{limit}] {run.run_id} {run.status} {duration(run.cost)} {result}{best}"


def _reached(run: RunInfo, sweep: SweepMetadata) -> str:
    """What a run had come to when it was stopped."""
    metric, fidelity = sweep.config.metric, sweep.config.fidelity
    value = "" if run.partial_score is None else f"{metric}={number(run.partial_score)} "
    where = "" if fidelity is None or run.progress is None else f"at {fidelity.resource} {run.progress:g}"
    return f"{value}{where}".rstrip()


def _greeting(launched: Launched) -> str:
    sweep = launched.sweep
    what = f"sweep {sweep.sweep_id} ({sweep.config.name})"
    changed = "".join(f", {name} is now {value}" for name, value in launched.changes.items())
    if launched.standby:
        return f"standing by for {what} until no other controller is at work on it"
    if launched.resumed:
        return f"resuming {what}: {sweep.ended_count} runs ended before{changed}"
    config = sweep.config
    endless = not (config.max_trials or config.budget_hours or config.max_hours)
    note = "; neither trials nor hours are limited: Ctrl-C stops it" if endless else ""
    found = " (found in the code)" if launched.metric_is_inferred else ""
    return f"started {what}: {strategy_text(config.strategy)}, {config.direction} {config.metric}{found}{note}"


def _farewell(sweep: SweepMetadata, requests: int) -> str:
    resume = f"go on later with: metta sweep run --resume {sweep.sweep_id}"
    if requests == 1:
        return f"stopping: nothing new starts, running jobs finish (again to cancel them); {resume}"
    return f"cancelling the running jobs; they will be tried again; {resume}"


def _summary(state: SweepState) -> str:
    sweep = state.sweep
    if sweep.status is SweepStatus.PAUSED:
        return f"sweep {sweep.sweep_id} is PAUSED: {sweep.reason}\ngo on with: {go_on_command(sweep)}"
    if not sweep.status.ended:
        return f"sweep {sweep.sweep_id} is interrupted; go on with: {go_on_command(sweep)}"
    best = ""
    if sweep.best_run_id is not None:
        run = state.runs[sweep.best_run_id]
        best = f"\nbest: {run.run_id} {sweep.config.metric}={number(run.score)} {config_text(run.config)}"
    return f"sweep {sweep.sweep_id} {sweep.status}: {sweep.reason} ({counts_text(sweep)}){best}"
