"""The best score so far, as a sweep spends runs and compute."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

import msgspec

from metta.sweep.analysis.comparable import in_order_of_end
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.sweep import SweepConfig


class Improvement(msgspec.Struct, frozen=True, kw_only=True):
    """A run that was better than all before it."""

    run_id: str
    score: float
    #: How many runs had ended by then, this one included, and the compute seconds of all of them.
    runs: int
    cost: float
    #: When it ended, in seconds since the epoch.
    at: float


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """How a sweep came to its best score: a staircase."""

    improvements: tuple[Improvement, ...] = ()
    #: All runs that ended, and their compute seconds.
    runs: int = 0
    cost: float = 0.0

    def after_runs(self, runs: int) -> float | None:
        """The best of the first so many runs to end; None where none of them has a result."""
        return self._before(bisect_right([each.runs for each in self.improvements], runs))

    def after_cost(self, cost: float) -> float | None:
        """The best that had ended when so many compute seconds were spent."""
        return self._before(bisect_right([each.cost for each in self.improvements], cost))

    def _before(self, count: int) -> float | None:
        return self.improvements[count - 1].score if count else None

    @property
    def best(self) -> float | None:
        """The last and best score."""
        return self._before(len(self.improvements))


def curve_of(config: SweepConfig, runs: Iterable[RunInfo]) -> Curve:
    """The curve of a sweep. Runs that failed or were stopped count as spent; only results count as found."""
    return extended(Curve(), config, in_order_of_end(runs))


def extended(curve: Curve, config: SweepConfig, ended: Iterable[RunInfo]) -> Curve:
    """The curve with more runs, in the order in which they ended."""
    improvements = list(curve.improvements)
    count, cost = curve.runs, curve.cost
    sign = 1.0 if config.direction == "maximize" else -1.0
    for run in ended:
        count, cost = count + 1, cost + run.cost
        if run.status is not JobStatus.COMPLETED or run.score is None:
            continue
        if not improvements or sign * run.score > sign * improvements[-1].score:
            at = run.ended_at or run.created_at
            improvements.append(Improvement(run_id=run.run_id, score=run.score, runs=count, cost=cost, at=at))
    return Curve(improvements=tuple(improvements), runs=count, cost=cost)
