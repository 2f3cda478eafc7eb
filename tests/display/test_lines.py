"""A sweep in plain lines, where there is no terminal."""

from __future__ import annotations

import time

from display.histories import SWEEP, history, numbered
from metta.sweep.display.lines import news_lines, progress_line
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, RunCompleted, RunFailed, new_event
from metta.sweep.model.run import FailureKind, JobType, Outcome
from metta.sweep.model.state import EMPTY, SweepState, fold


def printed(batches: list[list[Event]]) -> list[str]:
    lines: list[str] = []
    state: SweepState = EMPTY
    for batch in batches:
        before, state = state, fold(state, batch)
        lines += news_lines(before, state, batch)
    return lines


def test_each_run_that_ends_gets_a_line() -> None:
    events = history(3, 1, max_trials=4)
    ends = [index + 1 for index, event in enumerate(events) if isinstance(event.body, RunCompleted | RunFailed)]
    batches = [events[start:end] for start, end in zip([0, *ends], [*ends, len(events)], strict=True)]
    first, second, third = (ids.run_id(SWEEP, index) for index in range(3))
    assert printed(batches) == [
        f"[1/4] {first} COMPLETED 1h00m reward=0 (best 0, {first})",
        f"[2/4] {second} COMPLETED 1h00m reward=1 (best 1, {second})",
        f"[3/4] {third} FAILED 1h00m reward was not reported (best 1, {second})",
    ]


def test_runs_that_end_together_are_counted_one_by_one() -> None:
    events = history(3, 0, max_trials=3)
    assert [line.split()[:2] for line in printed([events])] == [
        [f"[{index + 1}/3]", ids.run_id(SWEEP, index)] for index in range(3)
    ]


def test_what_happens_to_a_run_after_its_end_is_no_second_end() -> None:
    events = history(1, 0)
    run_id = ids.run_id(SWEEP, 0)
    note = new_event(ev.Noted(topic="note"), sweep_id=SWEEP, at=1.0, actor="test", run_id=run_id)
    assert len(printed([events, numbered([note], len(events) + 1)])) == 1


def test_a_run_that_is_tried_again_gets_a_line() -> None:
    events = history(0, 1)
    run_id = ids.run_id(SWEEP, 0)
    job_id = ids.job_id(run_id, JobType.TRAIN, 1)
    failed = ev.JobExited(outcome=Outcome.KILLED, error="killed by signal 9", failure=FailureKind.KILLED)
    again = ev.RunRetryScheduled(retry_at=9.0, retry_count=1, reason="attempt 1 of 3 failed")
    more = [
        new_event(failed, sweep_id=SWEEP, at=5.0, actor="test", run_id=run_id, job_id=job_id),
        new_event(again, sweep_id=SWEEP, at=6.0, actor="test", run_id=run_id),
    ]
    [line] = printed([events, numbered(more, len(events) + 1)])
    assert line == f"{run_id} RETRYING train killed: killed by signal 9; attempt 1 of 3 failed"


def test_one_line_says_where_a_sweep_stands() -> None:
    state = fold(EMPTY, history(12, 3, max_trials=20))
    best = ids.run_id(SWEEP, 10)
    assert progress_line(state, None, time.time()) == (
        f"[12/20] RUNNING: 3 of 4 running; 3 IN_TRAINING, 11 COMPLETED, 1 FAILED; best 10 ({best})"
    )
