"""Population based training: what does badly goes on with the weights of what does well, and other hyperparameters.

Jaderberg et al. (2017), "Population Based Training of Neural Networks". A *member* of the population is a series of
runs: each trains from level to level of the sweep's `Fidelity`, pausing there with a checkpoint, until it is given up
for a new run, which goes on from the checkpoint that a better one had at the same level. So all members are trained
for the same time; docs/populations.md tells what follows from that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from metta.sweep.errors import ConfigError, did_you_mean
from metta.sweep.model.run import Checkpoint, JobStatus, JobType, Parent, RunInfo
from metta.sweep.model.space import Config, SearchSpace
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import BranchRun, CreateRuns, Finish, StartJob, Wish
from metta.sweep.schedulers.exploration import perturbed
from metta.sweep.schedulers.population import DISOWNED, Population, checkpoint_at, has_paused_at, is_on_its_way_to
from metta.sweep.schedulers.slots import Slots
from metta.sweep.schedulers.standings import Arrival
from metta.sweep.schedulers.stopping import check_levels

Explore = Literal["perturb", "optimizer"]

#: More than ever ran at one time.
_LARGEST_POPULATION = 100_000
#: Runs that are alive and come to no further level.
_TRAINED = frozenset({JobStatus.TRAINING_DONE_NO_EVAL, JobStatus.IN_EVAL, JobStatus.EVAL_DONE_NOT_COMPLETED})


@dataclass(frozen=True)
class _Options:
    population: int
    quantile: float
    resample_probability: float
    factors: tuple[float, ...]
    asks: bool
    fixed: tuple[str, ...]

    @property
    def half(self) -> int:
        """So many have to have come to a level before anybody is judged there."""
        return ceil(self.population / 2)

    def count(self, total: int) -> int:
        """How many of so many are the best, and as many the worst."""
        return max(1, int(self.quantile * total + 1e-9))

    def explored(self, space: SearchSpace, config: Config, generator: np.random.Generator) -> Config:
        """A configuration near this one."""
        return perturbed(
            space,
            config,
            generator,
            factors=self.factors,
            resample_probability=self.resample_probability,
            fixed=self.fixed,
        )


class PopulationScheduler:
    """Trains a population, and at each level replaces its worst members by copies of its best with other values.

    Who comes to a level waits there until half of the population has come. Each of these is then judged among them, who
    comes later among all that came before it: nobody waits for those who are slow.

    Args:
        population: Its size. With the default of 8 and a quantile of a fourth two are replaced by two: the least at
            which the best are more than one run and its luck.
        quantile: Share of those compared that counts as the worst, and as the best: 0.25 as in Ray Tune; the truncation
            selection of the paper (section 4.1) takes 0.2. One at least.
        resample_probability: Of each value to be drawn anew rather than perturbed; 0.25 as in Ray Tune.
        perturbation: What a number is multiplied by: one of these factors (section 4.1).
        explore: `perturb`, or `optimizer`, which asks the sweep's optimizer for the values; with `pb2` that is PB2.
        fixed: Parameters whose values go with the weights, such as the size of the network.

    Raises:
        ConfigError: an option is not valid.
    """

    def __init__(
        self,
        *,
        population: int = 8,
        quantile: float = 0.25,
        resample_probability: float = 0.25,
        perturbation: Sequence[float] = (0.8, 1.2),
        explore: Explore = "perturb",
        fixed: Sequence[str] = (),
    ) -> None:
        if type(population) is not int or not 2 <= population <= _LARGEST_POPULATION:
            raise _refused("population", f"a whole number from 2 to {_LARGEST_POPULATION}", population)
        if not _is_number(quantile) or not 0 < quantile <= 0.5:
            raise _refused("quantile", "a number above 0, up to 0.5", quantile)
        if not _is_number(resample_probability) or not 0 <= resample_probability <= 1:
            raise _refused("resample_probability", "a number from 0 to 1", resample_probability)
        if not _is_list(perturbation) or not all(_is_number(factor) and 0 < factor <= 1e6 for factor in perturbation):
            raise _refused("perturbation", "a list of factors above 0, such as [0.8, 1.2]", perturbation)
        if explore not in get_args(Explore):
            words = get_args(Explore)
            raise ConfigError(f"strategy: explore cannot be {explore!r}; {did_you_mean(str(explore), words)}")
        if not isinstance(fixed, list | tuple) or not all(isinstance(name, str) for name in fixed):
            raise _refused("fixed", "a list of names of parameters", fixed)
        self._options = _Options(
            population, quantile, resample_probability, tuple(perturbation), explore == "optimizer", tuple(fixed)
        )
        self._members = Population()

    def check(self, config: SweepConfig) -> None:
        """See `Scheduler.check`."""
        check_levels(config)
        parameters = config.search_space.parameters
        for name in self._options.fixed:
            if name not in parameters:
                raise ConfigError(
                    f"strategy: fixed names {name!r}, which is no parameter; {did_you_mean(name, parameters)}"
                )

    def schedule(self, state: SweepState, capacity: int | None) -> list[Wish]:
        """See `Scheduler.schedule`."""
        self._members.keep_up(state)
        return _Turn(self._options, self._members, state, capacity).wishes()


class _Verdict(NamedTuple):
    """That a run is to be replaced, why, and by whom: the best of its level, each with the checkpoint to go on from."""

    replaced: RunInfo
    reason: str
    #: Of the level.
    number: int
    donors: list[tuple[Arrival, Checkpoint]]


class _Turn:
    """One look at the state: what each member does next, those that are behind first.

    Args:
        options: Of the scheduler.
        members: The population.
        state: The sweep.
        capacity: As of `Scheduler.schedule`.
    """

    def __init__(self, options: _Options, members: Population, state: SweepState, capacity: int | None) -> None:
        self._options = options
        self._members = members
        self._state = state
        self._config = state.sweep.config
        assert self._config.fidelity is not None, "`check` has seen to that"
        self._fidelity = self._config.fidelity
        self._slots = Slots(state, capacity)
        self._alive = [state.runs[run_id] for run_id in state.unfinished]
        self._lost = members.lost(state)
        limit = self._config.max_trials
        left = None if limit is None else max(0, limit - state.sweep.trial_count)
        missing = self._founders_missing()
        #: Members that are still to be created, and runs that may take the place of others beside them.
        self._missing = missing if left is None else min(missing, left)
        self._left = None if left is None else left - self._missing
        self._next_index = state.sweep.run_count

    def _founders_missing(self) -> int:
        missing = max(0, self._options.population - self._members.founders)
        cardinality = self._config.search_space.cardinality
        return missing if cardinality is None else min(missing, cardinality - len(self._state.tried))

    def wishes(self) -> list[Wish]:
        """All of them."""
        starts: list[Wish] = [*self._slots.fill()]
        creations: list[Wish] = []
        if new := min(self._missing, self._slots.free(JobType.TRAIN)):
            reasons = (self._slots.reason, f"{self._missing} of {self._options.population} members are to come")
            creations.append(CreateRuns(count=new, reasons=reasons, until=self._fidelity.levels[0]))
            self._slots.take(JobType.TRAIN, new)
            self._next_index += new
        branches: list[Wish] = []
        for run in self._waiting():
            if not self._slots.free(JobType.TRAIN):
                break
            if (wish := self._decided(run)) is not None:
                (branches if isinstance(wish, BranchRun) else starts).append(wish)
                self._slots.take(JobType.TRAIN)
        if not (starts or branches or creations or self._alive):
            return [Finish(reason="all members of the population have come to their end")]
        return [*creations, *branches, *starts]

    def _waiting(self) -> list[RunInfo]:
        """Who pauses or is lost, from the lowest level up; of one level the older first."""
        paused = [run for run in self._slots.paused if run.stop_reason is None and not run.wanted]
        return sorted([*paused, *self._lost], key=lambda run: (len(run.rungs), run.index))

    def _decided(self, run: RunInfo) -> BranchRun | StartJob | None:
        """What a run, or another in its place, does next; None as long as that is not known, or where it is nothing."""
        if run.status in DISOWNED:
            verdict = self._after_loss(run)
            return verdict if verdict is None else self._branched(verdict)
        number = len(run.rungs) - 1
        position = self._members.position(run, number)
        if position is None:
            return self._onwards(run, "it has no value to be judged by")
        if not self._is_decidable(number):
            return None
        pool = self._ranked(self._members.arrivals_at(number)[: max(position + 1, self._options.half)])
        place = next(place for place, each in enumerate(pool, start=1) if each.run.run_id == run.run_id)
        count = self._options.count(len(pool))
        standing = f"number {place} of {len(pool)} at {self._fidelity.resource} {self._fidelity.levels[number]:g}"
        if place <= max(1, len(pool) - count) or self._left == 0:
            return self._onwards(run, standing)
        if any(self._is_about_to_pause(each) for each in pool[:count]):
            return None
        mine = pool[place - 1].rung.value
        better = [each for each in pool[:count] if each.rung.value != mine]
        donors = self._donors(better)
        reason = f"{run.run_id} was {standing} with {self._config.metric} {mine:.6g}"
        return self._branched(_Verdict(run, reason, number, donors)) if donors else self._onwards(run, standing)

    def _after_loss(self, run: RunInfo) -> _Verdict | None:
        """Its member goes on from the last level that it had come to, or else from the first that others have."""
        number = max(0, len(run.rungs) - 1)
        arrivals = self._ranked(self._members.arrivals_at(number))
        if self._left == 0 or not arrivals or not self._is_decidable(number):
            return None
        donors = self._donors(arrivals[: self._options.count(len(arrivals))])
        what = "has failed" if run.status is JobStatus.FAILED else "was rolled back"
        return _Verdict(run, f"{run.run_id} {what}", number, donors) if donors else None

    def _is_decidable(self, number: int) -> bool:
        """Whether half of the population has come to a level, or nobody comes there any more."""
        if len(self._members.arrivals_at(number)) >= self._options.half:
            return True
        behind = (run for run in self._alive if len(run.rungs) <= number)
        return not self._missing and all(run.status in _TRAINED for run in behind)

    def _ranked(self, arrivals: Sequence[Arrival]) -> list[Arrival]:
        """Best first; of equal ones the earlier."""
        sign = -1.0 if self._config.direction == "maximize" else 1.0
        current = (each._replace(run=self._state.runs[each.run.run_id]) for each in arrivals)
        return sorted(current, key=lambda each: (sign * each.rung.value, each.rung.seq))

    def _is_about_to_pause(self, arrival: Arrival) -> bool:
        """Whether a run has said that it has come to a level, and the job that brought it there is to end yet."""
        run, level = arrival.run, arrival.rung.level
        return not run.status.ended and is_on_its_way_to(run, level) and not has_paused_at(run, level)

    def _donors(self, best: Sequence[Arrival]) -> list[tuple[Arrival, Checkpoint]]:
        owned = [each for each in best if each.run.status not in DISOWNED]
        found = [(each, checkpoint_at(each.run, each.rung.level)) for each in owned]
        return [(each, checkpoint) for each, checkpoint in found if checkpoint is not None]

    # ------------------------------------------------------------------------------------------------- what is wished

    def _branched(self, verdict: _Verdict) -> BranchRun:
        index, self._next_index = self._next_index, self._next_index + 1
        self._left = None if self._left is None else self._left - 1
        generator = _rng(self._config.seed, index)
        donor, checkpoint = verdict.donors[int(generator.integers(len(verdict.donors)))]
        parent, level, values = donor.run, donor.rung.level, donor.run.config
        reason = (
            f"{verdict.reason}; in its place a run goes on from {parent.run_id}, which had {donor.rung.value:.6g} at "
            f"{self._fidelity.resource} {level:g}"
        )
        config = self._options.explored(self._config.search_space, values, generator)
        return BranchRun(
            parent=Parent(run_id=parent.run_id, level=level, step=checkpoint.step, replaces=verdict.replaced.run_id),
            config=config,
            ask=self._options.asks,
            # As the space has them: it may have been amended since the parent was created.
            fixed={name: config[name] for name in self._options.fixed if name in config},
            reasons=(reason,),
            until=self._level(verdict.number + 1),
        )

    def _onwards(self, run: RunInfo, why: str) -> StartJob:
        progress = run.progress or 0.0
        until = next((level for level in self._fidelity.levels if level > progress), None)
        reason = f"run {run.index} goes on: {why}"
        keep = self._kept(run)
        return StartJob(run_id=run.run_id, type=JobType.TRAIN, reasons=(reason,), until=until, keep=keep)

    def _kept(self, run: RunInfo) -> tuple[int, ...]:
        """Steps of its checkpoints at the levels to which members may come, or go back to when they fail."""
        others = [each for each in (*self._alive, *self._lost) if each.run_id != run.run_id]
        lowest = 0 if self._missing else min((len(each.rungs) - 1 for each in others), default=len(run.rungs))
        own = run.rungs[max(lowest, run.inherited, 0) :]
        found = (checkpoint_at(run, rung.level) for rung in own)
        return tuple(sorted({checkpoint.step for checkpoint in found if checkpoint is not None}))

    def _level(self, number: int) -> float | None:
        """The level of this number; None for a whole training."""
        return self._fidelity.levels[number] if number < len(self._fidelity.levels) else None


def _rng(seed: int, index: int) -> np.random.Generator:
    """Of the run of this index, as optimizers draw: independent of all others and of when it is asked for."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) > 0


def _refused(name: str, allowed: str, value: Any) -> ConfigError:
    return ConfigError(f"strategy: {name} is {allowed}, got {value!r}")
