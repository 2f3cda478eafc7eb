"""Peers in virtual time: Optuna, Ray Tune and Syne Tune.

They are objects that are asked for configurations and told accuracies. None of them starts a process or a cluster here:
what they decide is all that is taken of them. All search the same space, with the same first level, a reduction factor
of 3 and the same last epoch; everything else is as their documentation recommends it, or their default.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial
from importlib import import_module, metadata
from typing import Any, Protocol

import numpy as np

from metta.sweep.model.space import Config, LogUniform, Range, SearchSpace, Uniform

_REDUCTION_FACTOR = 3
_METRIC, _RESOURCE = "accuracy", "epoch"


class Peer(Protocol):
    """A search that may stop its trials early."""

    def start(self, number: int) -> Config:
        """The configuration of a new trial."""
        ...

    def goes_on(self, number: int, epoch: int, accuracy: float) -> bool:
        """Take in what a trial has reached, and say whether it is to be trained further. Never after its last epoch."""
        ...


def simulated(
    peer: Peer, curve: Callable[[Config], tuple[np.ndarray, np.ndarray]], workers: int, budget_s: float
) -> list[tuple[float, float]]:
    """Seconds and accuracies of all that is reported in the time, in order: what is reported next, by whom, decides.

    Args:
        peer: Searches; asked and told without delay, as if deciding took no time.
        curve: Of a configuration, the seconds since its start and the accuracies after each epoch.
        workers: Trials at one time.
        budget_s: Virtual seconds.
    """
    reports: list[tuple[float, float]] = []
    due: list[tuple[float, int, int]] = []
    trials: list[tuple[float, np.ndarray, np.ndarray]] = []

    def begin(now: float) -> None:
        number = len(trials)
        seconds, accuracies = curve(peer.start(number))
        trials.append((now, seconds, accuracies))
        heapq.heappush(due, (now + float(seconds[0]), number, 1))

    for _ in range(workers):
        begin(0.0)
    while due[0][0] <= budget_s:
        now, number, epoch = heapq.heappop(due)
        began, seconds, accuracies = trials[number]
        accuracy = float(accuracies[epoch - 1])
        reports.append((now, accuracy))
        if peer.goes_on(number, epoch, accuracy):
            heapq.heappush(due, (began + float(seconds[epoch]), number, epoch + 1))
        else:
            begin(now)
    return reports


class _Optuna:
    """Multivariate TPE through ask, report and tell, with one of its pruners."""

    def __init__(self, pruner: str, space: SearchSpace, seed: int, grace_period: int, epochs: int) -> None:
        import optuna

        from _contestants import optuna_sampler

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        options: dict[str, Any] = {"min_resource": grace_period, "reduction_factor": _REDUCTION_FACTOR}
        pruners = {
            "none": optuna.pruners.NopPruner,
            "halving": partial(optuna.pruners.SuccessiveHalvingPruner, **options),
            "hyperband": partial(optuna.pruners.HyperbandPruner, max_resource=epochs, **options),
        }
        self._study = optuna.create_study(
            direction="maximize",
            sampler=optuna_sampler("optuna-tpe", space, seed),
            pruner=pruners[pruner](),
            # Its Hyperband draws brackets by the study's name.
            study_name=f"study-{seed}",
        )
        self._pruned = optuna.trial.TrialState.PRUNED
        self._space = space
        self._epochs = epochs
        self._trials: dict[int, optuna.Trial] = {}

    def start(self, number: int) -> Config:
        from _contestants import suggested

        self._trials[number] = self._study.ask()
        return suggested(self._trials[number], self._space)

    def goes_on(self, number: int, epoch: int, accuracy: float) -> bool:
        trial = self._trials[number]
        trial.report(accuracy, epoch)
        if epoch == self._epochs:
            self._study.tell(trial, accuracy)
        elif trial.should_prune():
            self._study.tell(trial, state=self._pruned)
        else:
            return True
        del self._trials[number]
        return False


class _RayTune:
    """Its ASHA, the scheduler `AsyncHyperBandScheduler`, on random configurations.

    A uniform draw from the same space is what its own random search does; the scheduler draws nothing with one bracket.
    """

    def __init__(self, space: SearchSpace, seed: int, grace_period: int, epochs: int) -> None:
        from ray.tune.experiment import Trial
        from ray.tune.schedulers import AsyncHyperBandScheduler

        self._scheduler = AsyncHyperBandScheduler(
            time_attr=_RESOURCE,
            metric=_METRIC,
            mode="max",
            max_t=epochs,
            grace_period=grace_period,
            reduction_factor=_REDUCTION_FACTOR,
        )
        self._new_trial = partial(Trial, "training", stub=True)
        self._space = space
        self._generator = np.random.default_rng(seed)
        self._epochs = epochs
        self._trials: dict[int, Trial] = {}

    def start(self, number: int) -> Config:
        trial = self._trials[number] = self._new_trial(trial_id=str(number))
        self._scheduler.on_trial_add(None, trial)
        return self._space.decode(self._generator.random(len(self._space.dimensions)).tolist())

    def goes_on(self, number: int, epoch: int, accuracy: float) -> bool:
        trial, result = self._trials[number], {_RESOURCE: epoch, _METRIC: accuracy}
        if epoch < self._epochs and self._scheduler.on_trial_result(None, trial, result) == "CONTINUE":
            return True
        self._scheduler.on_trial_complete(None, trial, result)
        del self._trials[number]
        return False


class _SyneTune:
    """A scheduler of `legacy_baselines`: ASHA, BOHB, MOBSTER. They stop trials by default, and pause none."""

    def __init__(self, scheduler: str, space: SearchSpace, seed: int, grace_period: int, epochs: int) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.optimizer import legacy_baselines

        # It tells of each fit of its model.
        logging.getLogger("syne_tune").setLevel(logging.ERROR)
        self._scheduler = getattr(legacy_baselines, scheduler)(
            _syne_tune_space(space),
            metric=_METRIC,
            resource_attr=_RESOURCE,
            mode="max",
            max_t=epochs,
            grace_period=grace_period,
            reduction_factor=_REDUCTION_FACTOR,
            # Larger ones are refused.
            random_seed=seed % 2**31,
        )
        # It asks for a time that it does not look at.
        self._new_trial = partial(Trial, creation_time=datetime.min)
        self._trials: dict[int, Trial] = {}

    def start(self, number: int) -> Config:
        config = self._scheduler.suggest(number).config
        self._trials[number] = self._new_trial(number, config)
        self._scheduler.on_trial_add(self._trials[number])
        return config

    def goes_on(self, number: int, epoch: int, accuracy: float) -> bool:
        trial = self._trials[number]
        if self._scheduler.on_trial_result(trial, {_RESOURCE: epoch, _METRIC: accuracy}) == "CONTINUE":
            return True
        # Also after the last epoch, at which it stops the trial by itself.
        self._scheduler.on_trial_remove(trial)
        del self._trials[number]
        return False


def _syne_tune_space(space: SearchSpace) -> dict[str, Any]:
    from syne_tune import config_space

    def domain(name: str) -> Any:
        match space.parameters[name]:
            case Uniform(low=low, high=high):
                return config_space.uniform(low, high)
            case LogUniform(low=low, high=high):
                return config_space.loguniform(low, high)
            case Range(low=low, high=high, log=True):
                return config_space.lograndint(int(low), int(high))
            case Range(low=low, high=high):
                return config_space.randint(int(low), int(high))
        raise TypeError(f"{name}: LCBench has no {type(space.parameters[name]).__name__}")

    return {name: domain(name) for name in space.parameters}


#: By name what makes one, of a space, a seed, the epochs before the first level, and those of a full training.
PEERS: dict[str, Callable[[SearchSpace, int, int, int], Peer]] = {
    "Optuna TPE": partial(_Optuna, "none"),
    "Optuna TPE + halving": partial(_Optuna, "halving"),
    "Optuna TPE + Hyperband": partial(_Optuna, "hyperband"),
    "Ray Tune ASHA": _RayTune,
    "Syne Tune ASHA": partial(_SyneTune, "ASHA"),
    "Syne Tune BOHB": partial(_SyneTune, "BOHB"),
    "Syne Tune MOBSTER": partial(_SyneTune, "MOBSTER"),
}
#: Peers so slow that they come last.
SLOW = frozenset({"Syne Tune MOBSTER"})
#: By how a peer's name begins: its package, and the module that has to be there.
_SOURCES = {
    "Optuna": ("optuna", "optuna"),
    "Ray Tune": ("ray", "ray.tune.schedulers"),
    "Syne Tune": ("syne-tune", "syne_tune.optimizer.legacy_baselines"),
}


def _source(peer: str) -> tuple[str, str]:
    return next(source for beginning, source in _SOURCES.items() if peer.startswith(beginning))


def missing(peer: str) -> str | None:
    """Why a peer cannot run here, and what to do about it; None where it can."""
    package, module = _source(peer)
    try:
        import_module(module)
    except ImportError as error:
        return f"{package} cannot be imported ({error}); benchmarks/README.md says how it is installed"
    return None


def version(peer: str) -> str | None:
    """Of the peer's package; None where it is not installed."""
    try:
        return metadata.version(_source(peer)[0])
    except metadata.PackageNotFoundError:
        return None
