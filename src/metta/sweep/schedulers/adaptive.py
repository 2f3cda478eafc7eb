"""First come, first served, watching the search: how much to explore, whether it is over, when it will be."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from metta.sweep.errors import ConfigError, did_you_mean
from metta.sweep.model.run import JobStatus, Observation, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import Direction, SweepConfig
from metta.sweep.model.trail import Trail
from metta.sweep.protocols import CreateRuns, Finish, Wish
from metta.sweep.schedulers.completion import Completion, predict
from metta.sweep.schedulers.convergence import Plateau
from metta.sweep.schedulers.fifo import FifoScheduler
from metta.sweep.schedulers.workload import progress_of, workload_of

#: Where in a sweep its phases stand, as the part of its limits that is used.
PHASES = {"early": 0.0, "middle": 0.5, "convergence": 1.0}
#: Whoever has more patience than that does not want to stop.
_LONGEST_PATIENCE = 1_000_000
#: How much to explore at the beginning of a sweep and at its end, as the founding document has it.
_FIRST_EXPLORATION, _LAST_EXPLORATION = 0.8, 0.2


class AdaptiveScheduler:
    """Runs jobs as `FifoScheduler` does, lets the optimizer explore less and less, and may end a search on a plateau.

    The exploration goes in a straight line from 0.8 at the beginning to 0.2 where the limits of the sweep are reached,
    and is 0.5 in a sweep without limits.

    Args:
        stop_when_converged: Whether the sweep ends when `detect_convergence` says so. If a run that is under way by
            then brings an improvement after all, the search goes on.
        patience: A search that makes a relevant improvement more rarely than once in so many evaluations is not worth
            going on with.
        tolerance: An improvement is relevant when it is more than this part of what the search has gained over a good
            early run; see `convergence.py`.
        false_stop_rate: Upper bound on the probability that a search which is worth it is ever stopped.

    Raises:
        ConfigError: an option is not valid.
    """

    def __init__(
        self,
        *,
        stop_when_converged: bool = False,
        patience: int = 10,
        tolerance: float = 0.01,
        false_stop_rate: float = 0.1,
    ) -> None:
        if not isinstance(stop_when_converged, bool):
            raise _refused("stop_when_converged", "true or false", stop_when_converged)
        if not isinstance(patience, int) or isinstance(patience, bool) or not 2 <= patience <= _LONGEST_PATIENCE:
            raise _refused("patience", f"a whole number from 2 to {_LONGEST_PATIENCE}", patience)
        if not _is_number(tolerance) or not 0 <= tolerance <= 1:
            raise _refused("tolerance", "a number from 0 to 1", tolerance)
        if not _is_number(false_stop_rate) or not 0 < false_stop_rate <= 0.5:
            raise _refused("false_stop_rate", "a number above 0, up to 0.5", false_stop_rate)
        self._stops = stop_when_converged
        self._patience = patience
        self._tolerance = tolerance
        self._false_stop_rate = false_stop_rate
        self._fifo = FifoScheduler()
        self._followed: _Followed | None = None

    def check(self, config: SweepConfig) -> None:
        """Every sweep can be run so."""

    def schedule(self, state: SweepState, capacity: int | None) -> list[Wish]:
        """See `Scheduler.schedule`."""
        wishes = self._fifo.schedule(state, capacity)
        reason = self._convergence(state) if self._stops else None
        if reason is not None:
            return [*(wish for wish in wishes if not isinstance(wish, CreateRuns)), Finish(reason=reason)]
        rate = self._exploration(state)
        return [
            CreateRuns(count=wish.count, reasons=(*wish.reasons, f"exploration at {rate:.2f}"), exploration=rate)
            if isinstance(wish, CreateRuns)
            else wish
            for wish in wishes
        ]

    def adjust_exploration(self, phase: str) -> float:
        """How much an optimizer is to explore, from 0 to 1, in the "early", "middle" or "convergence" phase of a sweep.

        Raises:
            ConfigError: there is no such phase.
        """
        if phase not in PHASES:
            raise ConfigError(f"phase: there is no phase {phase!r}; {did_you_mean(phase, PHASES)}")
        return _exploration_at(PHASES[phase])

    def detect_convergence(self, observations: list[Observation], direction: Direction = "maximize") -> bool:
        """Whether a search has reached a plateau.

        Args:
            observations: In the order in which they were made.
            direction: Whether higher scores are better, or lower ones.
        """
        return self._plateau(_oriented(each.score, direction) for each in observations).is_reached

    def predict_completion_time(
        self, state: SweepState, now: float, *, level: float = 0.8, capacity: int | None = None
    ) -> Completion | None:
        """When the sweep will have ended: all of its runs, or what its hours allow, even if it may converge before.

        Args:
            state: The sweep.
            now: Seconds since the epoch.
            level: Probability of the interval.
            capacity: How many jobs there is room for, where that is less than the sweep's `max_parallel`.

        Returns:
            The end and an interval around it. None while no run has ended, or without a limit of any kind.
        """
        sweep = state.sweep
        if sweep.status.ended and sweep.ended_at is not None:
            return Completion(expected=sweep.ended_at, low=sweep.ended_at, high=sweep.ended_at, level=level)
        return predict(workload_of(state, now, capacity), now, level)

    def _plateau(self, scores: Iterable[float] = ()) -> Plateau:
        plateau = Plateau(self._patience, self._tolerance, self._false_stop_rate)
        for score in scores:
            plateau.add(score)
        return plateau

    def _exploration(self, state: SweepState) -> float:
        progress = progress_of(state)
        return _exploration_at(PHASES["middle"] if progress is None else progress)

    def _convergence(self, state: SweepState) -> str | None:
        """Why the search is to end, or None."""
        followed = self._followed
        if followed is None or not followed.keep_up(state):
            followed = self._followed = _Followed(self._plateau())
            followed.keep_up(state)
        plateau = followed.plateau
        if not plateau.is_reached:
            return None
        return (
            f"converged: none of the last {plateau.stagnation} of {plateau.count} evaluations was better by more than "
            f"{plateau.least_improvement:.3g} (patience {self._patience}, false_stop_rate {self._false_stop_rate:g})"
        )


class _Followed:
    """The test of one sweep, kept up with what changes in it; only a cache: a new one comes to the same."""

    def __init__(self, plateau: Plateau) -> None:
        self.plateau = plateau
        self._trail: Trail | None = None
        self._counted: set[str] = set()
        self._config: SweepConfig | None = None

    def keep_up(self, state: SweepState) -> bool:
        """Take in what is new; False where a new one has to begin at the beginning.

        Scores count in the order of the trail, each run where it was last entered. So a run that counts and is entered
        again, because it was rolled back or judged anew, changes the order of all after it.
        """
        config = state.sweep.config
        known = self._config
        if known is not None and (known.direction, known.partial_results) != (config.direction, config.partial_results):
            return False
        changed = state.trail.since(self._trail) if state.trail is not None else []
        if changed is None or (state.trail is None and self._trail is not None):
            return False
        if not self._counted.isdisjoint(changed):
            return False
        self._config, self._trail = config, state.trail
        for run_id in changed:
            score = _score(state.runs[run_id], config)
            if score is not None:
                self._counted.add(run_id)
                self.plateau.add(_oriented(score, config.direction))
        return True


def _score(run: RunInfo, config: SweepConfig) -> float | None:
    """What a run counts for in the test: the same as for `History.observations`."""
    if run.status is JobStatus.COMPLETED:
        return run.score
    return run.partial_score if run.status is JobStatus.FAILED and config.partial_results else None


def _oriented(score: float, direction: Direction) -> float:
    return -score if direction == "maximize" else score


def _exploration_at(progress: float) -> float:
    # Weighted, so that rounding leads beyond neither end.
    return _FIRST_EXPLORATION * (1 - progress) + _LAST_EXPLORATION * progress


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refused(name: str, allowed: str, value: Any) -> ConfigError:
    return ConfigError(f"strategy.scheduler_options.{name}: expected {allowed}, got {value!r}")
