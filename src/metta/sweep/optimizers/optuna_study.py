"""A sweep's history as a study of Optuna."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler
from optuna.trial import Trial, TrialState, create_trial

from metta.sweep.errors import ConfigError, SearchSpaceError
from metta.sweep.model.parameters import Choice, Constant, LogUniform, Parameter, Range, Uniform
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.space import Config
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.model.trail import Trail
from metta.sweep.optimizers.sampling import rng
from metta.sweep.protocols import History

#: Optuna holds numbers as floats, among which larger integers have gaps.
_LARGEST_EXACT_INTEGER = 2**53


class OptunaStudy:
    """A study in memory that tells a history, as far as it has followed it.

    Trials stand for runs. What was suggested last stands in the study as well, and has to turn up in the history next.

    Args:
        config: The sweep's.
        new_sampler: Makes the sampler for the suggestion of an index, from the sweep's seed and that index.
        replays: Whether samplers have to be asked again for runs that are told, as they were at the time.
    """

    def __init__(self, config: SweepConfig, new_sampler: Callable[[int, int], BaseSampler], *, replays: bool) -> None:
        self._config, self._new_sampler, self._replays = config, new_sampler, replays
        self._space = config.search_space
        self._terms = {name: _Term(parameter) for name, parameter in self._space.parameters.items()}
        # Always minimised, so that the direction makes no difference to any sampler.
        self._study = optuna.create_study(study_name=config.name, direction="minimize")
        self._count = 0
        self._seen: Trail | None = None
        #: Trials by run; None for runs that are no configurations of the space.
        self._numbers: dict[str, int | None] = {}
        self._ended: set[str] = set()
        #: The latest suggestions and their trials, by the indices of the runs to come.
        self._expected: dict[int, tuple[Config, int]] = {}

    def follow(self, history: History) -> bool:
        """Bring the study up to date; False where it tells another history, or what has changed since."""
        fields = ("search_space", "direction", "seed", "partial_results")
        if any(getattr(history.config, field) != getattr(self._config, field) for field in fields):
            return False
        entries = _entries(history.trail, self._seen)
        if entries is None:
            return False
        last = {run_id: at for at, run_id in enumerate(entries)}
        for at, run_id in enumerate(entries):
            run = history.runs[run_id]
            if run_id not in self._numbers and not self._create(run):
                return False
            if last[run_id] == at and not self._change(run):
                return False
        self._seen = history.trail
        return not self._expected

    def ask(self, index: int) -> tuple[Config, int]:
        """What the sampler suggests for run `index`, and the trial that stands for it.

        Raises:
            ConfigError: it is no configuration of the sweep's space.
        """
        self._study.sampler = self._new_sampler(self._config.seed, index)
        trial = self._study.ask()
        self._count += 1
        values: Config = {}
        for name in self._space.resolution_order:
            if self._space.is_active(name, values):
                values[name] = self._terms[name].suggest(trial, name)
        config = {name: values[name] for name in self._space.parameters if name in values}
        try:
            self._space.check(config)
        except SearchSpaceError as error:
            sampler = type(self._study.sampler).__name__
            raise ConfigError(
                f"strategy: Optuna's {sampler} suggests what is outside the sweep's search_space: {error}; use another "
                "sampler, or options that stay inside"
            ) from error
        return config, trial.number

    def rehearse(self, count: int) -> None:
        """Have the sampler suggest something after `count` made-up trials; the study is of no other use then.

        They end one by one, and beside the last suggestion one is still running.
        """
        generator = rng(self._config.seed, 0)
        for index in range(count):
            if self._replays:
                _, number = self.ask(index)
            else:
                number = self.add(self._space.decode(generator.random(len(self._space.dimensions)).tolist()))
            self._tell(number, float(index))
        for index in (count, count + 1):
            self.ask(index)

    def add(self, config: Config) -> int:
        """A running trial that the sampler was not asked for."""
        trial = create_trial(
            state=TrialState.RUNNING,
            params={
                name: self._terms[name].term(value) for name, value in config.items() if self._terms[name].distribution
            },
            distributions={
                name: distribution for name in config if (distribution := self._terms[name].distribution) is not None
            },
        )
        self._study.add_trial(trial)
        self._count += 1
        return self._count - 1

    def expect(self, index: int, config: Config, number: int) -> None:
        """Run `index` will have this configuration; trial `number` stands for it."""
        self._expected[index] = (config, number)

    def abandon(self, number: int) -> None:
        """No run comes of this trial."""
        self._tell(number, None)

    def _create(self, run: RunInfo) -> bool:
        if self._expected:
            config, number = self._expected.pop(run.index, (None, -1))
            self._numbers[run.run_id] = number
            return config == run.config
        try:
            self._space.check(run.config)
        except SearchSpaceError:
            self._numbers[run.run_id] = None
            return True
        if self._replays:
            asked, number = self.ask(run.index)
            if asked == run.config:
                self._numbers[run.run_id] = number
                return True
            self.abandon(number)
        self._numbers[run.run_id] = self.add(run.config)
        return True

    def _change(self, run: RunInfo) -> bool:
        """What stands told cannot be taken back, nor have the latest suggestions seen what has come between."""
        if run.run_id in self._ended:
            return False
        if not run.status.ended:
            return True
        if self._expected:
            return False
        self._ended.add(run.run_id)
        number = self._numbers[run.run_id]
        if number is not None:
            self._tell(number, self._score(run))
        return True

    def _score(self, run: RunInfo) -> float | None:
        score = run.score if run.status is JobStatus.COMPLETED else None
        is_partial = run.status is JobStatus.FAILED and self._config.partial_results
        if is_partial or run.status is JobStatus.STOPPED:
            score = run.partial_score
        return -score if score is not None and self._config.direction == "maximize" else score

    def _tell(self, number: int, score: float | None) -> None:
        # Samplers that have seen all of a finite space try to stop a loop that is not there; the trial is told anyway.
        with suppress(RuntimeError):
            self._study.tell(number, score, state=TrialState.FAIL if score is None else TrialState.COMPLETE)


def _entries(trail: Trail | None, seen: Trail | None) -> list[str] | None:
    """All ids entered after `seen`, oldest first; None where `seen` is no part of this trail."""
    until = 0 if seen is None else seen.length
    entries: list[str] = []
    while trail is not None and trail.length > until:
        entries.append(trail.run_id)
        trail = trail.earlier
    return entries[::-1] if trail is seen else None


class _Term:
    """A parameter in Optuna's terms: choices by number, for they may be anything; normal ones by their quantiles."""

    def __init__(self, parameter: Parameter) -> None:
        self._parameter = parameter
        self._count = parameter.cardinality
        #: Whether Optuna's values are the parameter's own.
        self._is_plain = isinstance(parameter, Uniform | LogUniform) or (
            isinstance(parameter, Range) and (self._count is None or _are_exact_integers(parameter))
        )
        #: None for a constant, which Optuna need not know.
        self.distribution = _distribution(parameter)

    def suggest(self, trial: Trial, name: str) -> Any:
        """What the trial's sampler suggests, as a value of the parameter."""
        distribution = self.distribution
        if distribution is None:
            return self._parameter.value_at(0)
        if isinstance(distribution, CategoricalDistribution):
            return self._parameter.value_at(int(trial.suggest_categorical(name, distribution.choices) or 0))
        if isinstance(distribution, IntDistribution):
            low, high, step = distribution.low, distribution.high, distribution.step
            number = trial.suggest_int(name, low, high, step=step, log=distribution.log)
            return number if self._is_plain else self._parameter.value_at(number)
        assert isinstance(distribution, FloatDistribution)
        unit = trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
        if self._is_plain:
            return unit
        # Several units may stand for one value. The trial keeps the one that it would be told with after a restart.
        value = self._parameter.decode(unit)
        trial.storage.set_trial_param(trial._trial_id, name, self.term(value), distribution)
        return value

    def term(self, value: Any) -> Any:
        """A value as Optuna has it."""
        if self._is_plain:
            return value
        return self._parameter.encode(value) if self._count is None else self._parameter.index_of(value)


def _distribution(parameter: Parameter) -> BaseDistribution | None:
    distribution: BaseDistribution | None = None
    if isinstance(parameter, Choice):
        distribution = CategoricalDistribution(range(parameter.cardinality))
    elif isinstance(parameter, Uniform | LogUniform):
        log = isinstance(parameter, LogUniform)
        distribution = FloatDistribution(float(parameter.low), float(parameter.high), log=log)
    elif isinstance(parameter, Range):
        distribution = _distribution_of_range(parameter)
    elif not isinstance(parameter, Constant):
        distribution = FloatDistribution(0.0, 1.0)
    return distribution


def _distribution_of_range(parameter: Range) -> BaseDistribution:
    if parameter.cardinality is None:
        return FloatDistribution(float(parameter.low), float(parameter.high), log=parameter.log)
    if _are_exact_integers(parameter):
        lowest, highest = (int(parameter.value_at(index)) for index in (0, parameter.cardinality - 1))
        return IntDistribution(lowest, highest, log=parameter.log, step=int(parameter.step or 1))
    return IntDistribution(0, parameter.cardinality - 1)


def _are_exact_integers(parameter: Range) -> bool:
    """Whether Optuna can hold the values as they are."""
    ends = (parameter.value_at(0), parameter.value_at((parameter.cardinality or 1) - 1))
    return all(isinstance(end, int) and abs(end) <= _LARGEST_EXACT_INTEGER for end in ends)
