"""Sweeps as studies of Optuna, and studies as sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from analysis.runs import SPACE, metadata, run
from metta.sweep.errors import ConfigError
from metta.sweep.exchange.optuna_export import to_optuna
from metta.sweep.exchange.optuna_import import open_study, to_events
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.space import Choice, LogUniform, Normal, Range, SearchSpace
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.stores.memory import MemoryStore


def imported(path: Path, study: str | None = None) -> SweepState:
    events = to_events(open_study(path, study), "1mp0r", name=None, directory=path.parent)
    store = MemoryStore()
    store.append(events)
    return fold(EMPTY, store.read(events[0].sweep_id))


def runs_in(state: SweepState) -> list[RunInfo]:
    return sorted(state.runs.values(), key=lambda each: each.index)


CONFIG = {"lr": 0.01, "momentum": 0.5, "batch": 32, "layers": 3, "activation": "relu"}


def test_a_sweep_comes_back_from_a_study_with_its_results(tmp_path: Path) -> None:
    sweep = metadata(fidelity=Fidelity(resource="step", maximum=9))
    runs = [
        run(0, 0.5, config=CONFIG, rungs=[(1, 0.1), (3, 0.4)]),
        run(1, status=JobStatus.STOPPED, config=CONFIG | {"layers": 8}, rungs=[(1, 0.2)], partial_score=0.2),
        run(2, status=JobStatus.FAILED, config=CONFIG, failure_reasons=("boom",)),
        run(3, status=JobStatus.CANCELLED, config=CONFIG),
        run(4, 0.7, config=CONFIG | {"activation": "gelu", "batch": 16, "lr": 1e-5}),
    ]
    assert to_optuna(sweep, runs, tmp_path / "study.db") == 4
    state = imported(tmp_path / "study.db")
    back = runs_in(state)
    assert [each.status.value for each in back] == ["COMPLETED", "STOPPED", "FAILED", "COMPLETED"]
    assert [each.score for each in back] == [0.5, None, None, 0.7]
    assert back[1].partial_score == 0.2
    assert [each.config for each in back] == [each.config for each in runs if each.status is not JobStatus.CANCELLED]
    assert [each.cost for each in back] == pytest.approx([3600.0] * 4)
    assert [(rung.level, rung.value) for rung in back[0].rungs] == [(1, 0.1)]
    assert (state.sweep.config.metric, state.sweep.config.direction) == ("reward", "maximize")
    assert (state.sweep.status, state.sweep.best_score, state.sweep.config.name) == (SweepStatus.COMPLETED, 0.7, "demo")
    assert state.sweep.config.search_space.parameters["lr"] == LogUniform(1e-5, 1e-1)
    assert state.sweep.config.search_space.parameters["activation"] == SPACE.parameters["activation"]
    assert all(state.sweep.config.search_space.check(each.config) is None for each in back)


def test_what_optuna_does_not_know_is_carried_as_it_can_be(tmp_path: Path) -> None:
    space = SearchSpace.of(
        {"shape": Choice([[32], [64, 64]]), "noise": Normal(0.0, 1.0), "steps": Range(0.1, 0.5, step=0.1), "fixed": 5}
    )
    config = {"shape": [64, 64], "noise": -1.5, "steps": 0.3, "fixed": 5}
    to_optuna(metadata(search_space=space), [run(0, 1.0, config=config)], tmp_path / "study.db")
    [trial] = open_study(tmp_path / "study.db", None).trials
    assert trial.params == {"shape": "[64,64]", "noise": -1.5, "steps": 0.3}
    assert trial.user_attrs["config"] == {"fixed": 5}


def study_in(path: Path, **options: Any) -> optuna.Study:
    return optuna.create_study(storage=f"sqlite:///{path}", **options)


def test_a_study_whose_space_changed_becomes_the_space_that_holds_it_all(tmp_path: Path) -> None:
    study = study_in(tmp_path / "study.db", study_name="moving", direction="minimize")

    def objective(trial: optuna.Trial) -> float:
        kind = trial.suggest_categorical("kind", ["a", "b"])
        x = trial.suggest_float("x", 0, 1 + trial.number)
        trial.suggest_int("n", 1, 9, step=2)
        if kind == "b":
            trial.suggest_float("only_b", 1e-3, 1.0, log=True)
        for step in range(3):
            trial.report(x + step, step)
        if trial.number == 3:
            raise optuna.TrialPruned
        if trial.number == 4:
            raise ValueError("boom")
        return x

    study.optimize(objective, n_trials=12, catch=ValueError)
    study.ask()
    state = imported(tmp_path / "study.db")
    runs = runs_in(state)
    assert [each.status.value for each in runs] == ["COMPLETED"] * 3 + ["STOPPED", "FAILED"] + ["COMPLETED"] * 7
    assert [each.config for each in runs] == [trial.params for trial in study.trials[:12]]
    assert state.sweep.best_score == study.best_value
    space = state.sweep.config.search_space.parameters
    assert (space["x"], space["n"]) == (Range(0.0, 12.0), Range(1, 9, step=2))
    assert runs[4].failure_reasons[-1] == "train failed: failed in Optuna"
    assert runs[3].partial_score == pytest.approx(runs[3].config["x"] + 2)


def test_a_journal_is_a_study_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, study_name="kept")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    assert [each.score for each in runs_in(imported(path))] == [trial.value for trial in study.trials]


def test_a_value_that_was_fixed_anew_for_each_trial(tmp_path: Path) -> None:
    study = study_in(tmp_path / "study.db")
    made = [
        ({"x": 1.0, "n": 4}, {"x": FloatDistribution(0, 2), "n": IntDistribution(4, 4)}),
        ({"x": 2.0, "n": 5}, {"x": FloatDistribution(0, 2), "n": IntDistribution(5, 5)}),
    ]
    study.add_trials(
        [optuna.trial.create_trial(params=params, distributions=found, value=0.5) for params, found in made]
    )
    state = imported(tmp_path / "study.db")
    assert [each.config for each in runs_in(state)] == [params for params, _ in made]
    assert state.sweep.config.search_space.parameters["n"] == Range(4, 5)


def test_files_that_are_no_study_say_so(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("hello\n")
    with pytest.raises(ConfigError, match="is no sweep file, no complete export, and has no study of Optuna"):
        open_study(text, None)
    path = tmp_path / "study.db"
    study_in(path, study_name="first")
    with pytest.raises(ConfigError, match="has no trial that has ended"):
        imported(path)
    study_in(path, study_name="second", directions=["minimize", "maximize"])
    with pytest.raises(ConfigError, match=r"has 2 studies; choose one with --study: first, second"):
        open_study(path, None)
    with pytest.raises(ConfigError, match="did you mean 'first'"):
        open_study(path, "firsd")
    with pytest.raises(ConfigError, match="has 2 objectives"):
        open_study(path, "second")


def test_trial_states_are_those_of_the_runs(tmp_path: Path) -> None:
    runs = [run(0, 0.5, config=CONFIG), run(1, status=JobStatus.STOPPED, config=CONFIG, partial_score=0.1)]
    to_optuna(metadata(), runs, tmp_path / "study.db")
    assert [each.state for each in open_study(tmp_path / "study.db", "demo").trials] == [
        TrialState.COMPLETE,
        TrialState.PRUNED,
    ]
