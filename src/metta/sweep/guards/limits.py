"""The limits a user sets on a sweep: number of trials, compute budget, wall time."""

from __future__ import annotations

from metta.sweep.model.state import SweepState
from metta.sweep.model.waiting import WITH_JOB
from metta.sweep.protocols import Refusal


class TrialLimit:
    """No more runs than `max_trials`."""

    def refuse(self, state: SweepState, now: float) -> Refusal | None:
        """See `Guard.refuse`."""
        limit = state.sweep.config.max_trials
        if limit is None or state.sweep.trial_count < limit:
            return None
        return Refusal(reason=f"max_trials: all {limit} runs are done", ends_paused=False)


def compute_seconds(state: SweepState, now: float) -> float:
    """Wall time of all jobs so far; those that run count with the time they have run."""
    running = (run.open_job for run in state.waiting_for(*WITH_JOB))
    elapsed_s = sum(max(0.0, now - job.started_at) for job in running if job and job.started_at is not None)
    return state.sweep.cost + elapsed_s


class BudgetLimit:
    """No new run once the jobs together have used `budget_hours`; running jobs count with the time they have run."""

    def refuse(self, state: SweepState, now: float) -> Refusal | None:
        """See `Guard.refuse`."""
        limit = state.sweep.config.budget_hours
        if limit is None:
            return None
        spent_hours = compute_seconds(state, now) / 3600
        if spent_hours < limit:
            return None
        return Refusal(reason=f"budget_hours: {spent_hours:.3g} of {limit:g} compute hours are spent")


class TimeLimit:
    """No new run later than `max_hours` after the sweep was created."""

    def refuse(self, state: SweepState, now: float) -> Refusal | None:
        """See `Guard.refuse`."""
        limit = state.sweep.config.max_hours
        if limit is None or now - state.sweep.created_at < limit * 3600:
            return None
        return Refusal(reason=f"max_hours: {limit:g} hours have passed since the sweep was created")
