"""A sweep as a study of Optuna, for its dashboard and its other tools."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.trial import FrozenTrial, TrialState

from metta.sweep.errors import ConfigError
from metta.sweep.model.parameters import Choice, Constant, LogNormal, LogUniform, Normal, Parameter, Range, Uniform
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.sweep import SweepMetadata

_STATES = {
    JobStatus.COMPLETED: TrialState.COMPLETE,
    JobStatus.STOPPED: TrialState.PRUNED,
    JobStatus.FAILED: TrialState.FAIL,
}
#: Where normal distributions, which Optuna does not know, are cut off, in deviations: as in `model.parameters`.
_CUT = 5.0
#: What Optuna takes for a choice as it is.
_WORDS = (str, bool, int, float, type(None))


def to_optuna(sweep: SweepMetadata, runs: Sequence[RunInfo], path: Path) -> int:
    """Write the runs that have ended to a new SQLite file of Optuna's; returns how many that were.

    Completed runs are complete trials, those stopped early pruned ones with what they had reached at each level, and
    failed ones failed. Runs that were cancelled or taken back are left out. Optuna has no constants, so they are user
    attributes, as are the run's id, cost and other metrics.

    Raises:
        ConfigError: a parameter is none that Optuna could have.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {
        name: distribution
        for name, parameter in sweep.config.search_space.parameters.items()
        if (distribution := _distribution(name, parameter)) is not None
    }
    trials = [_trial(run, distributions) for run in runs if run.status in _STATES]
    study = optuna.create_study(
        storage=f"sqlite:///{path}", study_name=sweep.config.name, direction=sweep.config.direction
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        study.set_metric_names([sweep.config.metric])
    study.set_user_attr("metta_sweep_id", sweep.sweep_id)
    study.add_trials(trials)
    return len(trials)


def _trial(run: RunInfo, distributions: dict[str, BaseDistribution]) -> FrozenTrial:
    # A value that an amended space does not hold any more would be refused.
    params = {
        name: value
        for name, plain in run.config.items()
        if name in distributions and _holds(distributions[name], value := _word(plain))
    }
    others = {name: value for name, value in run.config.items() if name not in params}
    state = _STATES[run.status]
    values = {int(rung.level): rung.value for rung in run.rungs}
    trial = optuna.trial.create_trial(
        state=state,
        value=run.score if state is TrialState.COMPLETE else run.partial_score if state is TrialState.PRUNED else None,
        params=params,
        distributions={name: distributions[name] for name in params},
        intermediate_values=values,
        user_attrs={
            "run_id": run.run_id,
            "cost_s": run.cost,
            "metrics": run.metrics,
            **({"config": others} if others else {}),
            **({"failure": run.failure_reasons[-1]} if run.failure_reasons else {}),
        },
    )
    # As Optuna keeps them: local times without a zone.
    trial.datetime_start = datetime.fromtimestamp(run.started_at or run.created_at)
    trial.datetime_complete = datetime.fromtimestamp(run.ended_at or run.created_at)
    return trial


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    try:
        return bool(distribution._contains(distribution.to_internal_repr(value)))
    except ValueError:
        return False


def _word(value: Any) -> Any:
    return value if isinstance(value, _WORDS) else msgspec.json.encode(value).decode()


def _distribution(name: str, parameter: Parameter) -> BaseDistribution | None:
    """As near as Optuna has it; None for a constant."""
    try:
        match parameter:
            case Constant():
                return None
            case Choice():
                return CategoricalDistribution([_word(value) for value in parameter.values])
            case Uniform():
                return FloatDistribution(parameter.low, parameter.high)
            case LogUniform():
                return FloatDistribution(parameter.low, parameter.high, log=True)
            case Range():
                return _of_range(parameter)
            case Normal() | LogNormal():
                ends = parameter.decode(0.0), parameter.decode(1.0)
                return FloatDistribution(*ends, log=isinstance(parameter, LogNormal))
    except ValueError as error:
        raise ConfigError(f"export: Optuna cannot hold parameter {name!r}: {error}") from error


def _of_range(parameter: Range) -> BaseDistribution:
    if parameter.cardinality is None:
        return FloatDistribution(parameter.low, parameter.high, log=parameter.log)
    low, high = parameter.value_at(0), parameter.value_at(parameter.cardinality - 1)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=parameter.log, step=int(parameter.step or 1))
    return FloatDistribution(low, high, step=parameter.step)
