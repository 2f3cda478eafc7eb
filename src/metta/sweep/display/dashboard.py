"""A sweep under way, as it fits on a terminal: what matters most on top, and what does not fit left out."""

from __future__ import annotations

from textwrap import wrap
from typing import NamedTuple

from msgspec.structs import replace
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from metta.sweep.analysis.tally import Tally
from metta.sweep.display.gauges import bar, sparkline
from metta.sweep.display.machines import machine_lines
from metta.sweep.display.runs import under_way_table
from metta.sweep.display.views import (
    budget_rows,
    config_text,
    counts_text,
    duration,
    eta_text,
    failures_text,
    go_on_command,
    number,
    printable,
    status_text,
    strategy_text,
)
from metta.sweep.model.run import JobStatus, JobType
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.model.waiting import WITH_JOB
from metta.sweep.observe.watching import Signs
from metta.sweep.schedulers.completion import Completion
from metta.sweep.schedulers.workload import progress_of

#: Of the names at the left.
_MARGIN = 10
_BAR, _LEAST_BAR = 24, 8
_SPARKLINE, _LEAST_SPARKLINE = 32, 8
#: Runs that ended last shown at most.
_ENDED = 8
#: Counted as jobs.
_AT_WORK = {JobStatus.IN_TRAINING, JobStatus.IN_EVAL}
#: Rows of the table that other things make room for.
_LEAST_ROWS = 5


class View(NamedTuple):
    """All that is shown."""

    state: SweepState
    tally: Tally
    signs: Signs
    #: When it is expected to have ended.
    end: Completion | None
    now: float
    #: Why what is shown is not up to date.
    away: str | None = None


class Dashboard:
    """Draws a view to the size that the terminal has when it is drawn; every line fits."""

    def __init__(self, view: View) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """See rich."""
        # Room at the right for the ^C that a terminal echoes, and below for the cursor: on a full line, or screen, it
        # would wrap and shift all that is shown.
        width, height = max(20, options.max_width - 4), max(3, console.height - 1)
        yield Group(*draw(self._view, width, height))


def draw(view: View, width: int, height: int) -> list[RenderableType]:
    """Lines, and a table at the end, which together are no higher than this."""
    sweep = view.state.sweep
    needed = [_title(view), _progress(view, width), *_reason(view, width), *_troubles(view)]
    needed += [*_best(view, width), *_runs(view)]
    more = [*_failures(view), *_budget(view), *machine_lines(view.signs, view.state, view.now, width - _MARGIN)]
    running, ended = view.state.waiting_for(*WITH_JOB), view.tally.recent[: -_ENDED - 1 : -1]
    least = min(_LEAST_ROWS, len(running) + len(ended))
    room = height - len(needed) - (least + 1 if least else 0)
    lines = [*needed, *more[: max(0, room)]]
    room -= len(lines) - len(needed)
    if (best := view.state.best) is not None and room > 0:
        lines.insert(len(needed) - 1, _named("", Text(config_text(best.config), style="dim")))
        room -= 1
    drawn: list[RenderableType] = [_fitted(line, width) for line in lines[:height]]
    if least and height - len(lines) > 1:
        is_airy = room > 0
        drawn += [Text()] * is_airy
        rows = height - len(lines) - is_airy - 1
        drawn.append(under_way_table(sweep, running, ended, now=view.now, width=width, rows=rows))
    return drawn


def _fitted(line: Text, width: int) -> Text:
    printable(line).rstrip()
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line


def _named(name: str, *parts: Text | str | tuple[str, str]) -> Text:
    return Text.assemble((f"{name:<{_MARGIN}}", "dim"), *parts)


def _title(view: View) -> Text:
    sweep = view.state.sweep
    config = sweep.config
    line = Text.assemble((f"{config.name} ({sweep.sweep_id}) ", "bold"), status_text(sweep.status))
    return line.append(f"  {strategy_text(config.strategy)}, {config.direction} {config.metric}", style="dim")


def _progress(view: View, width: int) -> Text:
    sweep = view.state.sweep
    limit = sweep.config.max_trials
    line = Text(f"{sweep.ended_count}/{limit} runs" if limit else f"{sweep.ended_count} runs", style="bold")
    share = progress_of(view.state)
    if share is not None:
        if (hours := sweep.config.max_hours) is not None and not sweep.status.ended:
            share = min(1.0, max(share, (view.now - sweep.created_at) / (hours * 3600)))
        line.append(f"  {share:.0%}", style="not bold")
    time_left = _time(view)
    if line.cell_len + len(time_left) > width - _LEAST_BAR - 4:
        time_left = time_left.partition(" (")[0]
    line.append(f"  {time_left}", style="not bold")
    if share is None:
        return line
    room = min(_BAR, max(_LEAST_BAR, width - line.cell_len - 2))
    return bar(share, room, "green" if sweep.status.ended else "cyan").append("  ").append_text(line)


def _time(view: View) -> str:
    sweep = view.state.sweep
    if sweep.ended_at is not None and sweep.status.ended:
        return f"took {duration(sweep.ended_at - sweep.created_at)}"
    return "" if sweep.status is not SweepStatus.RUNNING else left_text(view.end, view.now)


def left_text(end: Completion | None, now: float) -> str:
    """The time that is left, and between which it lies with the probability of the estimate."""
    if end is None:
        return f"left {eta_text(None, now)}"
    expected, low, high = (eta_text(at, now) for at in (end.expected, end.low, end.high))
    return f"left {expected}" if low == high else f"left {expected} ({low} to {high})"


def _reason(view: View, width: int) -> list[Text]:
    """Why the sweep is paused, ending or ended, in no more than two lines."""
    sweep = view.state.sweep
    if not sweep.reason:
        return []
    lines = wrap(sweep.reason, width - _MARGIN, max_lines=2, placeholder=" …")
    return [_named("" if number_of_line else "because", line) for number_of_line, line in enumerate(lines)]


def _troubles(view: View) -> list[Text]:
    sweep = view.state.sweep
    if view.away is not None:
        return [Text(f"the store is away, waiting for it: {view.away}", style="yellow")]
    if sweep.status.ended:
        return []
    if sweep.status is SweepStatus.PAUSED:
        return [Text(f"go on with: {go_on_command(sweep)}", style="yellow")]
    if not view.signs.is_controlled:
        return [Text(f"no controller is at work: {go_on_command(sweep)}", style="yellow")]
    return []


def _best(view: View, width: int) -> list[Text]:
    best, curve = view.state.best, view.tally.curve
    if best is None or best.score is None:
        return []
    places = {each.run_id: each.runs for each in curve.improvements}
    found = f", run {places[best.run_id]} of {curve.runs}" if best.run_id in places else ""
    line = _named("best", (f"{number(best.score)}", "bold green"), f" by {best.run_id}{found}  ")
    room = min(_SPARKLINE, width - line.cell_len)
    has_steps = len(curve.improvements) > 1 and room >= _LEAST_SPARKLINE
    return [line.append(sparkline(curve, room) if has_steps else "", style="green")]


def _runs(view: View) -> list[Text]:
    sweep = view.state.sweep
    line = _named("runs")
    if sweep.status.ended:
        return [line.append_text(counts_text(sweep))]
    line.append(running_text(view.state), style="bold")
    others = {status: count for status, count in sweep.counts.items() if status not in _AT_WORK}
    return [line.append("; ").append_text(counts_text(replace(sweep, counts=others))) if others else line]


def running_text(state: SweepState) -> str:
    """How many of the jobs that may run at one time do."""
    config = state.sweep.config
    jobs = [state.runs[run_id].open_job for what in WITH_JOB for run_id in state.waiting[what]]
    evaluating = sum(job is not None and job.type is JobType.EVAL for job in jobs)
    training = f"{len(jobs) - evaluating} of {config.max_parallel} running"
    return training if config.evaluate is None else f"{training}, {evaluating} of {config.max_parallel_eval} evaluating"


def _failures(view: View) -> list[Text]:
    failures = view.tally.failures
    return [_named("failures", Text(failures_text(failures), style="red"))] if failures else []


def _budget(view: View) -> list[Text]:
    state = view.state
    jobs = (state.runs[run_id].open_job for what in WITH_JOB for run_id in state.waiting[what])
    begun = [job.started_at for job in jobs if job is not None and job.started_at is not None]
    cost = state.sweep.cost + sum(max(0.0, view.now - at) for at in begun)
    parts = "; ".join(f"{name} {value}" for name, value in budget_rows(state.sweep, cost, view.now))
    return [_named("used", parts)]
