"""Figures over all runs, kept up with what happens."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.analysis.tally import Tally, last_failures_of, tally, updated
from metta.sweep.model.events import Event
from metta.sweep.model.run import FailureKind, JobInfo, JobType, RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.testing import random_history, run_events, sweep_created


def numbered(events: list[Event]) -> list[Event]:
    return [replace(event, seq=seq) for seq, event in enumerate(events, start=1)]


def seen(figures: Tally) -> tuple[object, ...]:
    return figures.curve, dict(figures.failures), [run.run_id for run in figures.recent]


@given(st.integers(0, 2_000), st.lists(st.integers(1, 9), min_size=1))
@settings(deadline=None, max_examples=200)
def test_kept_up_in_any_steps_they_are_what_all_runs_say(seed: int, steps: list[int]) -> None:
    events = numbered(random_history(seed, 120))
    state = fold(EMPTY, events[:1])
    figures = tally(state)
    begin = 1
    for step in steps * 120:
        batch = events[begin : begin + step]
        if not batch:
            break
        before, state = state, fold(state, batch)
        figures = updated(figures, before, state, batch)
        begin += step
        assert seen(figures) == seen(tally(state))


def test_attempts_count_by_what_they_failed_of_and_runs_without_a_result_too() -> None:
    events = numbered(random_history(5, 400))
    state: SweepState = fold(EMPTY, events)
    failures = tally(state).failures
    kinds = [job.failure for run in state.runs.values() for job in run.jobs if job.failure is not None]
    assert {kind: count for kind, count in failures.items() if kind} == {kind: kinds.count(kind) for kind in kinds}
    assert FailureKind.NODE_LOST in failures
    state = fold(EMPTY, numbered([sweep_created(), *run_events(0, score=None)]))
    assert tally(state).failures == {None: 1}


def test_runs_that_failed_count_once_by_what_was_last() -> None:
    def run(run_id: str, *kinds: FailureKind | None) -> RunInfo:
        jobs = [
            JobInfo(job_id=f"{n}", type=JobType.TRAIN, attempt=n, granted_at=0.0, failure=kind)
            for n, kind in enumerate(kinds, 1)
        ]
        return RunInfo(sweep_id="s", run_id=run_id, index=0, config={}, created_at=0.0, jobs=tuple(jobs))

    runs = [run("a", FailureKind.NODE_LOST, FailureKind.USER_ERROR), run("b", FailureKind.USER_ERROR, None), run("c")]
    assert last_failures_of(runs) == {FailureKind.USER_ERROR: 2, None: 1}
