"""When will a sweep have ended? A simulation of what is left of it, in many variants, with durations as observed.

A *variant* is one guess at the distribution of durations (`durations.py`) and one draw of every duration to come. The
jobs go to the slots as the scheduler gives them out: the next one to the slot that is free first, a train job and after
it the run's eval job. A job that runs is known to take longer than it has.

Of a long way only the last stretch is simulated job by job; what comes before fills the slots evenly, with the mean of
the variant's durations and the spread that a sum of so many has. The stretch is long enough to forget that beginning,
and it is what decides how unevenly the slots come to their end.

Arrays have a row for each variant.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from metta.sweep.schedulers.durations import GUESSES, Durations, Floats
from metta.sweep.schedulers.workload import Workload

#: Jobs that each slot runs in the stretch that is simulated, and all slots together at most.
_PER_SLOT, _MOST_SIMULATED = 4, 1000
#: No job is that short; keeps quotients finite.
_SHORTEST_S = 1e-3


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """When a sweep is expected to have ended, in seconds since the epoch."""

    expected: float
    #: It ends between these with probability `level`, as likely before the one as after the other.
    low: float
    high: float
    level: float

    @property
    def at(self) -> datetime:
        """The expected end, UTC."""
        return datetime.fromtimestamp(self.expected, UTC)


def predict(work: Workload, now: float, level: float) -> Completion | None:
    """The end of what is left to do; None while no run has ended, or where nothing will end the sweep."""
    if not work.is_bounded or not work.trained_s:
        return None
    ends = simulated_ends(work)
    low, expected, high = (now + float(end) for end in np.quantile(ends, [(1 - level) / 2, 0.5, (1 + level) / 2]))
    return Completion(expected=expected, low=low, high=high, level=level)


def simulated_ends(work: Workload) -> Floats:
    """Seconds from now until the end, in each variant; the same for the same workload."""
    # Always the same numbers, so that an estimate changes only where the sweep does.
    rng = np.random.default_rng(0)
    training = Durations(work.trained_s, work.in_training_s, rng)
    has_evaluations = bool(work.evaluated_s or work.in_evaluation_s or work.unevaluated)
    # Before any evaluation has ended, nothing is known of them but that they take no longer than training.
    evaluation = Durations(work.evaluated_s or work.trained_s, work.in_evaluation_s, rng) if has_evaluations else None

    slots = _slots(training, work.in_training_s, work.train_slots)
    trained = [slots[:, : len(work.in_training_s)].copy()]
    trained.append(_assign(slots, training.draw(len(work.waiting)), release=np.asarray(work.waiting)))
    stretch = _last_stretch(work, training, evaluation, slots, rng)
    slots += stretch.begin[:, None]
    new = training.draw(int(stretch.runs.max()))
    is_counted = np.arange(new.shape[1]) < stretch.runs[:, None]
    trained.append(_assign(slots, new, last_start=np.where(is_counted, stretch.last_start[:, None], -np.inf)))
    ends = np.concatenate(trained, axis=1)
    end = np.maximum(ends.max(axis=1, initial=0.0), stretch.begin)
    if evaluation is None:
        return np.asarray(end)
    return np.asarray(np.maximum(end, _evaluated(work, evaluation, stretch.skipped, ends)))


class _Stretch(NamedTuple):
    """The last part of the way, of each variant."""

    #: Runs before it, and how long they keep each slot busy.
    skipped: Floats
    begin: Floats
    #: Runs in it, unless the last moment to start one comes first.
    runs: NDArray[np.int64]
    last_start: Floats


def _last_stretch(
    work: Workload, training: Durations, evaluation: Durations | None, slots: Floats, rng: np.random.Generator
) -> _Stretch:
    count = slots.shape[1]
    simulated = min(_PER_SLOT * count, _MOST_SIMULATED)
    mean = np.maximum(training.mean, _SHORTEST_S)
    last_start = np.full(GUESSES, np.inf if work.last_start is None else work.last_start)
    if work.compute_left_s is not None:
        # While all train slots are busy, compute is used at this rate; evaluations go on beside them.
        rate = count * (1 + (evaluation.mean / mean if evaluation is not None else 0.0))
        last_start = np.minimum(last_start, work.compute_left_s / rate)
    in_time = np.maximum(0.0, (count * last_start - slots.sum(axis=1)) / mean)
    total = np.full(GUESSES, np.inf if work.new_runs is None else float(work.new_runs))
    is_cut = in_time < total
    likely = np.minimum(in_time, total)
    # Whole rounds, or jobs that all take the same time would lose their step.
    skipped = np.where(likely > 2 * simulated, count * np.floor((likely - simulated) / count), 0.0)
    # Where time is what ends it, the number of runs until then varies and the time does not.
    noise = np.where(is_cut, 0.0, np.sqrt(skipped) * training.deviation * rng.standard_normal(GUESSES))
    begin = np.maximum(0.0, skipped * mean + noise) / count
    # Where time ends it, a few more in case that they are short; the others have all runs that are left.
    left = np.minimum(total - skipped, np.where(is_cut, 3 * simulated, np.inf))
    return _Stretch(skipped=skipped, begin=begin, runs=left.astype(np.int64), last_start=last_start)


def _evaluated(work: Workload, evaluation: Durations, skipped: Floats, trained: Floats) -> Floats:
    """When the last evaluation ends: each begins when its run is trained and a slot is free."""
    slots = _slots(evaluation, work.in_evaluation_s, work.eval_slots)
    _assign(slots, evaluation.draw(work.unevaluated))
    slots += (skipped * evaluation.mean / slots.shape[1])[:, None]
    # Runs that would come too late to start need no evaluation.
    needed = np.where(np.isfinite(trained), evaluation.draw(trained.shape[1]), 0.0)
    order = np.argsort(trained, axis=1)
    release = np.take_along_axis(np.maximum(trained, 0.0), order, 1)
    ends = _assign(slots, np.take_along_axis(needed, order, 1), release=release)
    return np.asarray(np.maximum(slots.max(axis=1), ends.max(axis=1, initial=0.0)))


def _slots(durations: Durations, running_s: list[float], count: int) -> Floats:
    """When each slot is free; there are more than `count` where more jobs than that are running."""
    running = [durations.draw_remaining(spent_s) for spent_s in running_s]
    return np.stack([*running, *[np.zeros(GUESSES)] * (count - len(running))], axis=1)


def _assign(
    slots: Floats, durations: Floats, *, release: Floats | None = None, last_start: Floats | None = None
) -> Floats:
    """Give jobs in their order to whichever slot is free first.

    Args:
        slots: When each is free; becomes when each is free after these jobs.
        durations: Variants by jobs.
        release: Moments before which jobs cannot start, of each job or variants by jobs.
        last_start: Moments at which jobs start no more, variants by jobs.

    Returns:
        When each job ends, variants by jobs; minus infinity for one that does not start.
    """
    ends = np.empty_like(durations)
    rows = np.arange(len(slots))
    for job in range(durations.shape[1]):
        slot = slots.argmin(axis=1)
        free = slots[rows, slot]
        start = free if release is None else np.maximum(free, release[..., job])
        end = start + durations[:, job]
        if last_start is not None:
            does_start = start < last_start[:, job]
            slots[rows, slot] = np.where(does_start, end, free)
            ends[:, job] = np.where(does_start, end, -np.inf)
        else:
            slots[rows, slot] = end
            ends[:, job] = end
    return ends
