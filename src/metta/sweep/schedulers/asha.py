"""Asynchronous successive halving: most runs are stopped, or wait, early; the best of each level go on.

Li et al. (2020), "A System for Massively Parallel Hyperparameter Tuning" (ASHA), in its two variants: `promote`,
algorithm 2 of the paper, and `stop`, which needs no checkpoints.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from math import ceil
from typing import Literal, get_args

from metta.sweep.errors import ConfigError, did_you_mean
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobStatus, JobType
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.model.waiting import WaitsFor
from metta.sweep.protocols import CreateRuns, StartJob, StopRun, Wish
from metta.sweep.schedulers.slots import Slots
from metta.sweep.schedulers.standings import Arrival, Standings
from metta.sweep.schedulers.stopping import Stopping, check_levels

Mode = Literal["stop", "promote"]


def bracket_sizes(fidelity: Fidelity, brackets: int) -> tuple[int, ...]:
    """How many of a round of runs go into each bracket; each is judged from one level later on than the one before.

    Those of Hyperband (Li et al. 2018, algorithm 1): n_s = ceil((s_max + 1) / (s + 1) * eta^s), s the number of levels
    at which a bracket is judged.
    """
    most = len(fidelity.levels)
    judged = [most - bracket for bracket in range(brackets)]
    return tuple(ceil((most + 1) / (s + 1) * fidelity.reduction_factor**s - 1e-9) for s in judged)


class AshaScheduler:
    """Keeps every slot busy, and of those that come to a level lets the best `1 / reduction_factor` go on.

    Args:
        mode: `stop` decides about a run when it comes to a level, by those that came before, and stops it on its way.
            `promote` lets every run wait at the level with its checkpoint, and trains on whatever is among the best of
            all that ever came there.
        brackets: Where runs may do badly at first and well in the end: the second of several brackets is not judged at
            the first level, the third not at the second either. Runs go into brackets in turn, as many as in Hyperband.

    Raises:
        ConfigError: an option is not valid.
    """

    def __init__(self, *, mode: Mode = "stop", brackets: int = 1) -> None:
        if mode not in get_args(Mode):
            raise ConfigError(f"strategy: mode cannot be {mode!r}; {did_you_mean(str(mode), get_args(Mode))}")
        if not isinstance(brackets, int) or isinstance(brackets, bool) or brackets < 1:
            raise ConfigError(f"strategy: brackets is a whole number from 1, got {brackets!r}")
        self._mode = mode
        self._brackets: int | None = brackets
        self._sizes: tuple[int, ...] = ()
        self._fidelity: Fidelity | None = None
        self._standings = Standings(self._bracket_of)
        self._stopping = Stopping(self._standings, self._against)

    def check(self, config: SweepConfig) -> None:
        """See `Scheduler.check`."""
        check_levels(config)
        fidelity = config.fidelity
        assert fidelity is not None
        if self._brackets is not None and self._brackets > len(fidelity.levels) + 1:
            raise ConfigError(
                f"strategy: brackets is at most {len(fidelity.levels) + 1}, one more than there are levels, "
                f"got {self._brackets}"
            )

    def schedule(self, state: SweepState, capacity: int | None) -> list[Wish]:
        """See `Scheduler.schedule`."""
        fidelity = state.sweep.config.fidelity
        assert fidelity is not None, "`check` has seen to that"
        if fidelity != self._fidelity:
            self._fidelity = fidelity
            self._sizes = bracket_sizes(fidelity, self._brackets or len(fidelity.levels) + 1)
        if self._mode == "stop":
            return self._stopping.schedule(state, capacity)
        self._standings.keep_up(state)
        return self._promoting(state, capacity, fidelity)

    def _bracket_of(self, index: int) -> int:
        """Runs fill one bracket after the other, and then the first again."""
        place = index % sum(self._sizes)
        for bracket, size in enumerate(self._sizes):
            if place < size:
                return bracket
            place -= size
        raise AssertionError("the sizes add up")

    def _against(self, arrival: Arrival, config: SweepConfig) -> str | None:
        """Why a run is to be stopped where it has come to; None for those that go on."""
        if arrival.number < arrival.bracket:
            return None
        assert config.fidelity is not None
        best = max(1, int(arrival.total / config.fidelity.reduction_factor + 1e-9))
        if arrival.place <= best:
            return None
        return (
            f"at {config.fidelity.resource} {arrival.rung.level:g} its {config.metric} {arrival.rung.value:.6g} was "
            f"number {arrival.place} of {arrival.total}; the best {best} go on"
        )

    # --------------------------------------------------------------------------------------------------- promoting

    def _promoting(self, state: SweepState, capacity: int | None, fidelity: Fidelity) -> list[Wish]:
        slots = Slots(state, capacity)
        wishes: list[Wish] = [*slots.fill()]
        for number in reversed(range(len(fidelity.levels))):
            for bracket in range(min(number + 1, len(self._sizes))):
                for run_id, reason in self._promotable(state, bracket, number, fidelity):
                    if not slots.free(JobType.TRAIN):
                        return wishes
                    wishes.append(_onwards(run_id, number + 1, fidelity, reason))
                    slots.take(JobType.TRAIN)
        wishes += self._created(state, slots, fidelity)
        if not wishes and not slots.are_trials_left and state.all_wait_for(WaitsFor.PROMOTION):
            if not state.sweep.counts.get(JobStatus.COMPLETED):
                return self._farthest(state, fidelity)
            reason = f"not among the best 1 / {fidelity.reduction_factor:g} of its level, and no run is to come"
            wishes += [StopRun(run_id=run.run_id, reason=reason) for run in slots.paused]
        return wishes

    def _farthest(self, state: SweepState, fidelity: Fidelity) -> list[Wish]:
        """The best of those that have come farthest goes on where there were too few for anybody to come to the end."""
        reason = "the best of the highest level goes on: no run has been trained to its end, and none is to come"
        for number in reversed(range(len(fidelity.levels))):
            brackets = (self._standings.staying(bracket, number) for bracket in range(len(self._sizes)))
            if waiting := [entry for entries in brackets for entry in entries]:
                return [_onwards(min(waiting).run_id, number + 1, fidelity, reason)]
        return []

    def _promotable(
        self, state: SweepState, bracket: int, number: int, fidelity: Fidelity
    ) -> Iterator[tuple[str, str]]:
        """Those of a level that wait and are among its best, best first, each with the reason."""
        entries = self._standings.at(bracket, number)
        best = int(len(entries) / fidelity.reduction_factor + 1e-9)
        level = f"{fidelity.resource} {fidelity.levels[number]:g}"
        for entry in self._standings.staying(bracket, number):
            place = bisect_left(entries, entry) + 1
            if place > best:
                return
            if state.unfinished.get(entry.run_id) is WaitsFor.PROMOTION:
                yield entry.run_id, f"number {place} of {len(entries)} at {level}; the best {best} go on"

    def _created(self, state: SweepState, slots: Slots, fidelity: Fidelity) -> list[CreateRuns]:
        """New runs, together as long as they are to come to the same level."""
        wishes: list[CreateRuns] = []
        for index in range(state.sweep.run_count, state.sweep.run_count + slots.new):
            bracket = self._bracket_of(index)
            until = _level(bracket, fidelity)
            count = 1
            if wishes and wishes[-1].until == until:
                count += wishes.pop().count
            wishes.append(CreateRuns(count=count, reasons=(slots.reason, f"bracket {bracket}"), until=until))
        return wishes


def _onwards(run_id: str, number: int, fidelity: Fidelity, reason: str) -> StartJob:
    return StartJob(run_id=run_id, type=JobType.TRAIN, reasons=(reason,), until=_level(number, fidelity))


def _level(number: int, fidelity: Fidelity) -> float | None:
    """The level of this number; None for a whole training."""
    return fidelity.levels[number] if number < len(fidelity.levels) else None


class HyperbandScheduler(AshaScheduler):
    """Asynchronous Hyperband: ASHA with as many brackets as there are levels, and one that is never judged.

    Li et al. (2018), "Hyperband", for the sizes of the brackets; they are filled in turn and halved asynchronously.

    Args:
        mode: As of `AshaScheduler`.

    Raises:
        ConfigError: an option is not valid.
    """

    def __init__(self, *, mode: Mode = "stop") -> None:
        super().__init__(mode=mode)
        self._brackets = None
