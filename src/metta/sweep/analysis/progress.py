"""How far a sweep is."""

from __future__ import annotations

from metta.sweep.model.sweep import SweepMetadata


def estimate_end(sweep: SweepMetadata, now: float) -> float | None:
    """When the sweep will have ended, in seconds since the epoch: the runs still to do at the pace of those done.

    None when nothing has ended yet or the sweep has no `max_trials`; in a sweep that is over, when it ended.
    """
    if sweep.status.ended:
        return sweep.ended_at
    limit = sweep.config.max_trials
    done = sweep.ended_count
    if limit is None or not done:
        return None
    seconds_per_run = sweep.cost / done
    return now + (limit - done) * seconds_per_run / sweep.config.max_parallel
