"""Time slicing: more runs than slots share them in turn, each for a slice of its training.

Xiao et al. (2018), "Gandiva: Introspective Cluster Scheduling for Deep Learning", suspend and resume training jobs in
round robin, so that all get on and early results come early; whose turn it is, is that of the least attained service,
as in Gu et al. (2019), "Tiresias: A GPU Cluster Manager for Distributed Deep Learning".
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from metta.sweep.errors import ConfigError
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobType, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import CreateRuns, StartJob, Wish
from metta.sweep.schedulers.slots import Slots
from metta.sweep.schedulers.stopping import check_fidelity

#: Turns that runs wait for at most while all take equally long: many enough to see something of several times as many
#: configurations at once, few enough that the first of them end soon.
_RUNS_A_SLOT = 4
#: Without a length: a job that is lost loses a tenth of a training at most, and that much is soon seen of every run.
_SLICES = 10
#: A run keeps all of its jobs.
_MOST_SLICES = 1000


class TimeSliceScheduler:
    """Trains every run to its end, in slices: a run that has had one is paused, and the least trained goes on.

    Slices end at multiples of `slice`, whatever the levels of the sweep's `Fidelity`. A job that is lost in the middle
    of one goes on from its checkpoint to the end of the same slice.

    Args:
        slice: How much of the sweep's resource a run is trained before it is another's turn: epochs, say, or seconds;
            a tenth of a whole training without it.
        concurrent: How many runs share the slots; four for each of `max_parallel` without it, and never fewer than
            there are slots. A new run begins when one has ended.

    Raises:
        ConfigError: an option is not valid.
    """

    def __init__(
        self,
        *,
        slice: float | None = None,  # noqa: A002 (the term of the field)
        concurrent: int | None = None,
    ) -> None:
        if slice is not None and (not _is_number(slice) or not 0 < slice < math.inf):
            raise ConfigError(f"strategy: slice is a number above 0, of the sweep's resource, got {slice!r}")
        if concurrent is not None and (type(concurrent) is not int or concurrent < 1):
            raise ConfigError(f"strategy: concurrent is a whole number from 1, got {concurrent!r}")
        self._slice = slice
        self._concurrent = concurrent

    def check(self, config: SweepConfig) -> None:
        """See `Scheduler.check`."""
        fidelity = check_fidelity(config)
        if self._slice is None:
            return
        if self._slice >= fidelity.maximum:
            raise ConfigError(
                f"strategy: slice is less than fidelity.maximum ({fidelity.maximum:g}), got {self._slice:g}; "
                "with a whole training as its slice no run would ever be paused"
            )
        if fidelity.maximum > _MOST_SLICES * self._slice:
            raise ConfigError(
                f"strategy: slice is at least {fidelity.maximum / _MOST_SLICES:g}, got {self._slice:g}; a training of "
                f"{fidelity.maximum:g} has at most {_MOST_SLICES} slices, since each is a job"
            )

    def schedule(self, state: SweepState, capacity: int | None) -> list[Wish]:
        """See `Scheduler.schedule`."""
        config = state.sweep.config
        assert config.fidelity is not None, "`check` has seen to that"
        slices = _Slices(config.fidelity, self._slice or config.fidelity.maximum / _SLICES)
        slots = Slots(state, capacity)
        wishes: list[Wish] = [*slots.fill()]
        sharing = max(self._concurrent or _RUNS_A_SLOT * config.max_parallel, config.max_parallel)
        new = max(0, min(slots.new, sharing - len(state.unfinished)))
        cardinality = config.search_space.cardinality
        if cardinality is not None and state.unfinished:
            # Slots are not kept for runs that cannot come, nor are those that wait ended for want of others.
            new = min(new, cardinality - len(state.tried))
        if new > 0:
            # Nobody is trained less.
            wishes.append(CreateRuns(count=new, reasons=(slots.reason,), until=slices.end(0)))
            slots.take(JobType.TRAIN, new)
        in_turn = sorted(slots.paused, key=lambda run: (slices.behind(run), run.index))
        wishes += [slices.onwards(run) for run in in_turn[: slots.free(JobType.TRAIN)]]
        return wishes


class _Slices(NamedTuple):
    """Those of the runs of one sweep."""

    fidelity: Fidelity
    length: float

    def behind(self, run: RunInfo) -> int:
        """How many a run has behind it."""
        return int((run.progress or 0.0) / self.length + 1e-9)

    def end(self, count: int) -> float | None:
        """Where the slice after so many ends; None for the end of the training."""
        end = (count + 1) * self.length
        return end if end < self.fidelity.maximum * (1 - 1e-9) else None

    def onwards(self, run: RunInfo) -> StartJob:
        """The next slice of a run that waits."""
        count = self.behind(run)
        reason = f"run {run.index} is trained least of those that wait: {count} slices of {self.length:g}"
        return StartJob(run_id=run.run_id, type=JobType.TRAIN, reasons=(reason,), until=self.end(count))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
