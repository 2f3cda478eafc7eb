"""Which runs of a sweep can be compared, and by what value of its metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.sweep import SweepConfig


class Comparable(msgspec.Struct, frozen=True, kw_only=True):
    """Runs that were all trained alike, each with its value at that point."""

    #: How far they were trained, in the sweep's resource; None for whole trainings.
    level: float | None
    runs: tuple[RunInfo, ...]
    values: tuple[float, ...]


def comparable(config: SweepConfig, runs: Iterable[RunInfo]) -> Comparable:
    """The runs of a sweep that say something about its parameters, at the highest level that says it of most of them.

    Where runs are stopped early, those that were not are no sample of the space any more: they are the best of those
    before, and among them a parameter that decided who went on seems to make no difference. So what counts is the value
    at the highest level that at least half of the runs came to, which may be the end of training. The values of runs
    that did not come there do not compare and are left out, as are runs that go on from another's weights: what they
    reached is not the work of their own configuration.
    """
    own = [run for run in runs if run.parent is None and run.status is not JobStatus.ROLLED_BACK]
    whole = [run for run in own if run.status is JobStatus.COMPLETED and run.score is not None]
    begun = [run for run in own if run.rungs or run.score is not None]
    if config.fidelity is None or 2 * len(whole) >= len(begun):
        return Comparable(level=None, runs=tuple(whole), values=tuple(run.score or 0.0 for run in whole))
    for level in reversed(config.fidelity.levels):
        there = [(run, value) for run in begun if (value := value_at(run, level)) is not None]
        if 2 * len(there) >= len(begun):
            return Comparable(
                level=level, runs=tuple(run for run, _ in there), values=tuple(value for _, value in there)
            )
    return Comparable(level=None, runs=tuple(whole), values=tuple(run.score or 0.0 for run in whole))


def value_at(run: RunInfo, level: float) -> float | None:
    """What a run had reached when it came to this level; None when it did not."""
    return next((rung.value for rung in run.rungs if rung.level == level), None)


def best_first(config: SweepConfig, runs: Iterable[RunInfo]) -> list[RunInfo]:
    """The runs with a result, best first; of equal scores the earlier."""
    scored = [run for run in runs if run.status is JobStatus.COMPLETED and run.score is not None]
    sign = -1.0 if config.direction == "maximize" else 1.0
    return sorted(scored, key=lambda run: (sign * (run.score or 0.0), run.ended_at or 0.0, run.index))


def in_order_of_end(runs: Iterable[RunInfo]) -> Sequence[RunInfo]:
    """The runs that have ended and were not taken back, in the order in which they did."""
    ended = [run for run in runs if run.status.ended and run.status is not JobStatus.ROLLED_BACK]
    return sorted(ended, key=lambda run: (run.ended_at or run.created_at, run.index))
