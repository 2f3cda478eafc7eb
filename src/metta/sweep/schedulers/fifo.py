"""First come, first served: keep every slot busy, evaluate what is trained, end when nothing is left."""

from __future__ import annotations

from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import CreateRuns, Wish
from metta.sweep.schedulers.slots import Slots


class FifoScheduler:
    """Runs at most `max_parallel` train jobs and `max_parallel_eval` eval jobs, oldest runs first.

    Eval jobs come before new training where capacity is shared, so that results, and the best so far, are known early.
    """

    def check(self, config: SweepConfig) -> None:
        """Every sweep can be run so."""

    def schedule(self, state: SweepState, capacity: int | None) -> list[Wish]:
        """See `Scheduler.schedule`."""
        slots = Slots(state, capacity)
        # Whatever paused a run, another strategy of before perhaps: here all are trained to their end.
        wishes: list[Wish] = [*slots.fill(), *slots.resume(slots.paused)]
        if slots.new > 0:
            wishes.append(CreateRuns(count=slots.new, reasons=(slots.reason,)))
        return wishes
