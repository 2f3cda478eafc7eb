"""The limits a user sets: when they refuse new runs, and with what words."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from metta.sweep.guards.limits import BudgetLimit, TimeLimit, TrialLimit
from metta.sweep.model.events import Event
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.protocols import Guard
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START

HOUR = 3600.0


def state_of(*events: Event, **config: object) -> SweepState:
    log = [sweep_created(**config), *events]
    return fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(log, start=1)])


def reason(guard: Guard, state: SweepState, now: float = START) -> str | None:
    refusal = guard.refuse(state, now)
    assert guard.refuse(state, now) == refusal
    return refusal.reason if refusal else None


@pytest.mark.parametrize("guard", [TrialLimit(), BudgetLimit(), TimeLimit()])
def test_without_a_limit_nothing_is_refused(guard: Guard) -> None:
    assert reason(guard, state_of(*run_events(0)), now=START + 1e9) is None


def test_trials_are_counted_when_they_start_however_they_end() -> None:
    one_failed = run_events(0, score=None)
    assert reason(TrialLimit(), state_of(*one_failed, max_trials=2)) is None
    one_more = run_events(1)[:1]
    assert reason(TrialLimit(), state_of(*one_failed, *one_more, max_trials=2)) == "max_trials: all 2 runs are done"


def test_no_trials_at_all_are_a_limit_too() -> None:
    assert reason(TrialLimit(), state_of(max_trials=0)) is not None


def test_the_budget_counts_the_time_of_all_jobs_that_ended() -> None:
    runs = [*run_events(0), *run_events(1, score=None)]  # an hour each
    assert reason(BudgetLimit(), state_of(*runs, budget_hours=2.001)) is None
    assert reason(BudgetLimit(), state_of(*runs, budget_hours=2.0)) == "budget_hours: 2 of 2 compute hours are spent"


def test_the_budget_counts_running_jobs_with_the_time_they_have_run() -> None:
    running = [*run_events(0)[:4], *run_events(1)[:4]]
    state = state_of(*running, budget_hours=1.0)
    assert reason(BudgetLimit(), state, now=START + 0.49 * HOUR) is None
    assert reason(BudgetLimit(), state, now=START + 0.5 * HOUR) == "budget_hours: 1 of 1 compute hours are spent"


def test_jobs_that_have_not_started_cost_nothing() -> None:
    waiting = [*run_events(0)[:3], *run_events(1)[:1]]
    assert reason(BudgetLimit(), state_of(*waiting, budget_hours=0.1), now=START + 100 * HOUR) is None


def test_clocks_that_disagree_give_no_time_back() -> None:
    # The job's machine is an hour ahead of ours.
    ahead = run_events(1, at=START + HOUR)[:4]
    state = state_of(*run_events(0), *ahead, budget_hours=1.0)
    assert reason(BudgetLimit(), state, now=START) is not None


def test_the_time_limit_counts_from_the_creation_of_the_sweep() -> None:
    state = state_of(max_hours=1.5)
    assert reason(TimeLimit(), state, now=START + 1.49 * HOUR) is None
    expected = "max_hours: 1.5 hours have passed since the sweep was created"
    assert reason(TimeLimit(), state, now=START + 1.5 * HOUR) == expected
