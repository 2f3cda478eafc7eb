"""Runs that are stopped where they come to a level: what successive halving and median stopping have in common."""

from __future__ import annotations

from collections.abc import Callable

from metta.sweep.errors import ConfigError
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import CreateRuns, StopRun, Wish
from metta.sweep.schedulers.slots import Slots
from metta.sweep.schedulers.standings import Arrival, Standings


def check_fidelity(config: SweepConfig) -> Fidelity:
    """How far runs are trained; raises ConfigError where that is not said."""
    if config.fidelity is None:
        raise ConfigError(
            "fidelity: is missing; to stop or pause runs early it has to be known how far they are trained, "
            "such as {resource: epoch, maximum: 50}"
        )
    return config.fidelity


def check_levels(config: SweepConfig) -> None:
    """Raise ConfigError where there is no level at which runs could be compared."""
    fidelity = check_fidelity(config)
    if not fidelity.levels:
        raise ConfigError(
            f"fidelity: there is no level below the maximum ({fidelity.maximum:g}) at which to compare runs, since "
            f"grace_period is {fidelity.grace_period:g}; make it less"
        )


class Stopping:
    """Keeps every slot busy, and stops the runs that are judged against where they come to a level.

    Args:
        standings: Of the sweep.
        judge: Why a run is to be stopped where it has just come to; None for those that go on. Called for each arrival
            in order, from the first one again after `forget`.
        forget: Called before the arrivals begin anew.
    """

    def __init__(
        self,
        standings: Standings,
        judge: Callable[[Arrival, SweepConfig], str | None],
        forget: Callable[[], object] = lambda: None,
    ) -> None:
        self._standings = standings
        self._judge = judge
        self._forget = forget
        #: Runs that are to be stopped, with the reasons.
        self._losers: dict[str, str] = {}

    def schedule(self, state: SweepState, capacity: int | None) -> list[Wish]:
        """See `Scheduler.schedule`."""
        arrivals, is_anew = self._standings.keep_up(state)
        if is_anew:
            self._losers.clear()
            self._forget()
        for arrival in arrivals:
            if reason := self._judge(arrival, state.sweep.config):
                self._losers[arrival.run.run_id] = reason
        self._losers = {
            run_id: reason
            for run_id, reason in self._losers.items()
            if run_id in state.unfinished and not state.runs[run_id].wanted
        }
        stops: list[Wish] = [
            StopRun(run_id=run_id, reason=reason)
            for run_id, reason in self._losers.items()
            if state.runs[run_id].stop_reason is None
        ]
        slots = Slots(state, capacity)
        starts = [wish for wish in slots.fill() if wish.run_id not in self._losers]
        starts += slots.resume([run for run in slots.paused if run.run_id not in self._losers])
        new = [CreateRuns(count=slots.new, reasons=(slots.reason,))] if slots.new > 0 else []
        return [*stops, *starts, *new]
