"""A sweep under way in plain lines, where there is no terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from metta.sweep.analysis.comparable import in_order_of_end
from metta.sweep.display.dashboard import left_text, running_text
from metta.sweep.display.views import config_text, counts_text, duration, go_on_command, number
from metta.sweep.model.events import Event, RunRetryScheduled
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepMetadata, SweepStatus
from metta.sweep.observe.wording import one_line, value_text
from metta.sweep.schedulers.completion import Completion


def news_lines(before: SweepState, state: SweepState, events: Sequence[Event]) -> Iterator[str]:
    """A line for each run that these events ended, and for each that is to be tried again.

    Args:
        before: The sweep before the events; the empty state where that is not known.
        state: After them.
        events: What happened.
    """
    for event in events:
        if isinstance(event.body, RunRetryScheduled) and event.run_id is not None:
            failure = state.runs[event.run_id].failure_reasons[-1]
            yield one_line(f"{event.run_id} RETRYING {failure}; {event.body.reason}")
    touched = dict.fromkeys(event.run_id for event in events if event.run_id is not None)
    ended = in_order_of_end(
        state.runs[run_id]
        for run_id in touched
        if run_id not in state.unfinished and not (run_id in before.runs and run_id not in before.unfinished)
    )
    first = state.sweep.ended_count - len(ended) + 1
    for position, run in enumerate(ended, start=first):
        yield _run_line(run, state.sweep, position)


def _run_line(run: RunInfo, sweep: SweepMetadata, position: int) -> str:
    limit = f"/{sweep.config.max_trials}" if sweep.config.max_trials else ""
    if run.status is JobStatus.STOPPED:
        result = _reached(run, sweep)
    elif run.score is not None:
        result = f"{sweep.config.metric}={number(run.score)}"
    else:
        result = "; ".join(run.failure_reasons[-1:])
    best = "" if sweep.best_score is None else f" (best {number(sweep.best_score)}, {sweep.best_run_id})"
    return one_line(f"[{position}{limit}] {run.run_id} {run.status} {duration(run.cost)} {result}{best}")


def _reached(run: RunInfo, sweep: SweepMetadata) -> str:
    """What a run had come to when it was stopped."""
    metric, fidelity = sweep.config.metric, sweep.config.fidelity
    value = "" if run.partial_score is None else f"{metric}={number(run.partial_score)} "
    where = "" if fidelity is None or run.progress is None else f"at {fidelity.resource} {run.progress:g}"
    return f"{value}{where}".rstrip()


def progress_line(state: SweepState, end: Completion | None, now: float) -> str:
    """Where a sweep stands."""
    sweep = state.sweep
    limit = f"/{sweep.config.max_trials}" if sweep.config.max_trials else ""
    best = "" if sweep.best_score is None else f"; best {number(sweep.best_score)} ({sweep.best_run_id})"
    left = "" if end is None or sweep.status is not SweepStatus.RUNNING else f"; {left_text(end, now)}"
    return f"[{sweep.ended_count}{limit}] {sweep.status}: {running_text(state)}; {counts_text(sweep)}{best}{left}"


def summary(state: SweepState) -> str:
    """What came of a sweep, or why it goes on no more, and what to type then."""
    sweep = state.sweep
    if sweep.status is SweepStatus.PAUSED:
        return f"sweep {sweep.sweep_id} is PAUSED: {value_text(sweep.reason)}\ngo on with: {go_on_command(sweep)}"
    if not sweep.status.ended:
        return f"sweep {sweep.sweep_id} is interrupted; go on with: {go_on_command(sweep)}"
    best = ""
    if sweep.best_run_id is not None:
        run = state.runs[sweep.best_run_id]
        best = f"\nbest: {run.run_id} {one_line(sweep.config.metric)}={number(run.score)} {config_text(run.config)}"
    return f"sweep {sweep.sweep_id} {sweep.status}: {value_text(sweep.reason)} ({counts_text(sweep)}){best}"
