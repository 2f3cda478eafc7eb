"""A study of Optuna as a sweep: its trials become runs with a history, as if they had been tried here."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from metta.sweep.errors import ConfigError, did_you_mean
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.parameters import Choice, Constant, LogUniform, Parameter, Range
from metta.sweep.model.run import FailureKind, JobType, Outcome
from metta.sweep.model.space import SearchSpace
from metta.sweep.model.sweep import CommandTarget, Strategy, SweepConfig, SweepStatus

_ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
_ACTOR = "import"
#: By which runs tell how far they are.
_STEP = "step"


def open_study(path: Path, name: str | None) -> optuna.Study:
    """The study of this name in an SQLite file or a journal of Optuna's; the only one without a name.

    Raises:
        ConfigError: the file is neither, or it has no such study, or several.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        storage = _storage(path)
        names = optuna.get_all_study_names(storage)
    except Exception as error:  # whatever a database, or a journal that is none, may raise
        problem = " ".join(str(error).split())[:200]
        raise ConfigError(f"{path}: is no sweep file, no complete export, and no study of Optuna: {problem}") from error
    if not names:
        raise ConfigError(f"{path}: is no sweep file, no complete export, and has no study of Optuna")
    if name is None and len(names) == 1:
        [name] = names
    if name is None:
        raise ConfigError(f"{path}: has {len(names)} studies; choose one with --study: {', '.join(names)}")
    if name not in names:
        raise ConfigError(f"--study: {path} has no study {name!r}; {did_you_mean(name, names)}")
    study = optuna.load_study(study_name=name, storage=storage)
    if len(study.directions) > 1:
        raise ConfigError(f"{path}: study {name!r} has {len(study.directions)} objectives; a sweep has one metric")
    return study


def _storage(path: Path) -> Any:
    with path.open("rb") as file:
        is_sqlite = file.read(16) == b"SQLite format 3\0"
    if is_sqlite:
        with closing(sqlite3.connect(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "studies" not in tables:
            raise ValueError("it has no studies; a store is looked at with --store")
        return RDBStorage(f"sqlite:///{path}", skip_table_creation=True)
    return JournalStorage(JournalFileBackend(str(path)))


def to_events(study: optuna.Study, sweep_id: str, *, name: str | None, directory: Path) -> list[Event]:
    """The history of an ended sweep with the study's trials, without those that have not ended.

    The space is the smallest that holds what all trials were drawn from. Steps at which values were reported become the
    sweep's resource. Where Optuna does not tell the time, it is the time before.

    Args:
        study: Of one objective.
        sweep_id: The sweep's.
        name: The sweep's; else the study's.
        directory: Where the sweep would have its files.

    Raises:
        ConfigError: no trial has ended.
        SearchSpaceError: the trials make no space.
    """
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state in _ENDED]
    if not trials:
        raise ConfigError(f"study {study.study_name!r} has no trial that has ended, so there is nothing to import")
    begin = min((_at(trial.datetime_start) for trial in trials if trial.datetime_start), default=0.0)
    config = _config(study, trials, name or study.study_name, directory)
    created = new_event(ev.SweepCreated(config=config), sweep_id=sweep_id, at=begin, actor=_ACTOR)
    events = [created, *_events_of(trials, config, sweep_id, begin)]
    ended = ev.SweepEnded(
        status=SweepStatus.COMPLETED, reason=f"imported from study {study.study_name!r} of Optuna {optuna.__version__}"
    )
    events.append(new_event(ended, sweep_id=sweep_id, at=max(event.at for event in events), actor=_ACTOR))
    return events


def _config(study: optuna.Study, trials: Sequence[FrozenTrial], name: str, directory: Path) -> SweepConfig:
    steps = [step for trial in trials for step in trial.intermediate_values]
    most = max(steps, default=0)
    metric = (study.metric_names or ["value"])[0]
    return SweepConfig(
        name=name,
        # Optuna does not know what was run, so it cannot go on.
        target=CommandTarget(argv=["echo", "imported from Optuna: its study does not say what was run"]),
        search_space=_space(trials),
        metric=metric,
        direction="maximize" if study.direction is optuna.study.StudyDirection.MAXIMIZE else "minimize",
        strategy=Strategy(),
        fidelity=Fidelity(resource=_STEP, maximum=float(most)) if most > 1 and metric != _STEP else None,
        seed=0,
        max_parallel=_most_at_once(trials),
        directory=str(directory),
        working_directory=str(Path.cwd()),
    )


def _most_at_once(trials: Iterable[FrozenTrial]) -> int:
    """How many trials ran at one time at most."""
    changes = [
        (moment, change)
        for trial in trials
        for moment, change in ((trial.datetime_start, 1), (trial.datetime_complete, -1))
        if trial.datetime_start and trial.datetime_complete and moment
    ]
    return max(accumulate(change for _, change in sorted(changes)), default=1) or 1


def _space(trials: Iterable[FrozenTrial]) -> SearchSpace:
    found: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, distribution in trial.distributions.items():
            found.setdefault(name, []).append(distribution)
    return SearchSpace.of({name: _parameter(distributions) for name, distributions in found.items()})


def _parameter(distributions: Sequence[BaseDistribution]) -> Parameter:
    """The smallest parameter that holds what all of these do; Optuna lets a name be of one kind only."""
    last = distributions[-1]
    if isinstance(last, CategoricalDistribution):
        return Choice(list(last.choices)) if len(last.choices) > 1 else Constant(last.choices[0])
    numbers: Any = distributions
    low, high = min(each.low for each in numbers), max(each.high for each in numbers)
    if low == high:
        return Constant(low)
    is_log, steps = numbers[-1].log, {each.step for each in numbers}
    if is_log:
        return LogUniform(low, high) if isinstance(last, FloatDistribution) else Range(low, high, log=True)
    # Steps from different ends fall on different values.
    is_one_grid = len(steps) == 1 and all(each.low == low for each in numbers)
    return Range(low, high, step=steps.pop() if is_one_grid else None)


def _events_of(trials: Sequence[FrozenTrial], config: SweepConfig, sweep_id: str, begin: float) -> Iterator[Event]:
    """In order of time; runs are created in the order of their numbers, whatever the clocks said."""
    events: list[Event] = []
    created = begin
    for index, trial in enumerate(trials):
        created = max(created, _at(trial.datetime_start) if trial.datetime_start else created)
        events += _life(trial, index, config, sweep_id, created)
    yield from sorted(events, key=lambda event: event.at)


def _life(trial: FrozenTrial, index: int, config: SweepConfig, sweep_id: str, begin: float) -> list[Event]:
    run_id = ids.run_id(sweep_id, index)
    job_id = ids.job_id(run_id, JobType.TRAIN, 1)
    end = max(begin, _at(trial.datetime_complete) if trial.datetime_complete else begin)

    def event(body: Body, at: float, *, of_job: bool = True) -> Event:
        job = job_id if of_job else None
        return new_event(body, sweep_id=sweep_id, at=at, actor=_ACTOR, run_id=run_id, job_id=job)

    values = {step: value for step, value in sorted(trial.intermediate_values.items()) if math.isfinite(value)}
    reports: list[dict[str, float]] = [{config.metric: value, _STEP: float(step)} for step, value in values.items()]
    if trial.state is TrialState.COMPLETE and trial.value is not None:
        reports.append({config.metric: trial.value})
    last = reports[-1][config.metric] if reports else None
    exited, result = _end(trial, last, end - begin)
    # Optuna does not tell when a value was reported: evenly, as far as anybody knows.
    moments = [begin + (end - begin) * (number + 1) / len(reports) for number in range(len(reports))]
    return [
        event(
            ev.RunCreated(index=index, config=_values(trial, config), reasons=(f"trial {trial.number}",)),
            begin,
            of_job=False,
        ),
        event(ev.JobGranted(job_type=JobType.TRAIN, attempt=1), begin),
        event(ev.JobDispatched(dispatcher="optuna"), begin),
        event(ev.JobStarted(host="optuna", pid=1, log=""), begin),
        *(event(ev.MetricsReported(metrics=metrics), at) for metrics, at in zip(reports, moments, strict=True)),
        event(exited, end),
        event(result, end, of_job=False),
    ]


def _end(trial: FrozenTrial, last: float | None, seconds: float) -> tuple[ev.JobExited, Body]:
    """How its job ended, and what came of the run."""
    if trial.state is TrialState.PRUNED:
        return ev.JobExited(outcome=Outcome.STOPPED, seconds=seconds), ev.RunStopped(
            reason="pruned by Optuna", partial_score=last
        )
    if trial.state is TrialState.COMPLETE and trial.value is not None:
        return ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=seconds), ev.RunCompleted(score=trial.value)
    said = str(trial.user_attrs.get("failure", "failed in Optuna"))
    exited = ev.JobExited(outcome=Outcome.FAILED, seconds=seconds, error=said, failure=FailureKind.USER_ERROR)
    return exited, ev.RunFailed(reason=f"train failed: {said}", partial_score=last)


def _values(trial: FrozenTrial, config: SweepConfig) -> dict[str, Any]:
    return {name: trial.params[name] for name in config.search_space.parameters if name in trial.params}


def _at(moment: datetime) -> float:
    """Seconds since the epoch; Optuna keeps local time without a zone."""
    return moment.timestamp()
