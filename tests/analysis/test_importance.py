"""Which parameters are found to matter."""

from __future__ import annotations

import math

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from analysis.runs import SPACE, run, runs_of
from metta.sweep.analysis.comparable import comparable
from metta.sweep.analysis.importance import Importance, importance
from metta.sweep.model.run import RunInfo
from metta.sweep.model.space import Choice, Config, Range, SearchSpace, Uniform
from metta.sweep.testing.sweeps import sweep_config


def found_in(runs: list[RunInfo], space: SearchSpace = SPACE, *, maximize: bool = True) -> Importance:
    found = importance(space, comparable(sweep_config(), runs), maximize=maximize)
    assert found is not None
    return found


def shares(found: Importance) -> dict[str, float]:
    return {each.parameters[0]: each.share for each in found.parameters}


def decades(config: Config) -> float:
    return math.log10(config["lr"])


def test_shares_of_an_additive_function_are_the_variances_of_its_terms() -> None:
    # Of uniform variables of width 4, 2 and 1: variances as 16 : 4 : 1.
    runs = runs_of(lambda config: decades(config) + 2 * config["momentum"] + (config["layers"] - 1) / 8, 1500)
    found = shares(found_in(runs))
    assert found["lr"] == pytest.approx(16 / 21, abs=0.05)
    assert found["momentum"] == pytest.approx(4 / 21, abs=0.05)
    assert found["layers"] == pytest.approx(1 / 21, abs=0.03)
    assert found["batch"] < 0.01 > found["activation"]


def test_what_matters_only_together_is_found_as_an_interaction() -> None:
    runs = runs_of(lambda config: (config["momentum"] - 0.5) * (decades(config) + 3), 1500)
    found = found_in(runs)
    top = found.interactions[0]
    assert set(top.parameters) == {"lr", "momentum"}
    assert top.share > 0.5 > max(shares(found).values())
    assert top.low <= top.share <= top.high


#: Without a logarithm: Optuna takes the mean over lr itself, not over its logarithm, and so answers another question.
LINEAR = SearchSpace.of(
    {
        "weight": Uniform(-2.0, 2.0),
        "momentum": Uniform(0.0, 1.0),
        "batch": Range(16, 512),
        "layers": Range(1, 8),
        "activation": Choice(["relu", "tanh", "gelu"]),
    }
)


@pytest.mark.parametrize("seed", range(3))
def test_it_agrees_with_optunas_fanova(seed: int) -> None:
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        "weight": optuna.distributions.FloatDistribution(-2.0, 2.0),
        "momentum": optuna.distributions.FloatDistribution(0.0, 1.0),
        "batch": optuna.distributions.IntDistribution(16, 512),
        "layers": optuna.distributions.IntDistribution(1, 8),
        "activation": optuna.distributions.CategoricalDistribution(["relu", "tanh", "gelu"]),
    }
    runs = runs_of(
        lambda config: (
            -abs(config["weight"])
            + 1.5 * config["momentum"]
            + 0.1 * config["layers"]
            + 0.8 * (config["activation"] == "relu")
        ),
        250,
        LINEAR,
        seed,
    )
    study = optuna.create_study(direction="maximize")
    study.add_trials(
        [optuna.trial.create_trial(params=each.config, distributions=distributions, value=each.score) for each in runs]
    )
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=seed)
    theirs = optuna.importance.get_param_importances(study, evaluator=evaluator)
    mine = shares(found_in(runs, LINEAR))
    assert spearmanr([mine[name] for name in theirs], list(theirs.values())).statistic > 0.9
    # Optuna scales its shares so that their sum is 1.
    whole = sum(mine.values())
    assert [mine[name] / whole for name in theirs] == pytest.approx(list(theirs.values()), abs=0.06)


def test_a_conditional_parameter_stands_for_nothing_but_itself() -> None:
    space = SearchSpace.of(
        {"optimizer": Choice(["adam", "sgd"]), "momentum": Uniform(0.0, 1.0, when={"optimizer": "sgd"})}
    )
    # That there is a momentum tells everything of the score, its value nothing.
    found = found_in(runs_of(lambda config: float("momentum" in config), 400, space), space)
    assert shares(found)["optimizer"] > 0.95
    assert shares(found)["momentum"] < 0.02


def test_trainings_that_diverged_do_not_drown_the_others() -> None:
    runs = runs_of(lambda config: abs(decades(config) + 3), 300)
    diverged = [run(index, 1e12, config=runs[index].config) for index in range(0, 300, 50)]
    kept = [each for each in runs if each.index % 50]
    assert shares(found_in([*kept, *diverged], maximize=False))["lr"] > 0.6


def test_noise_is_told_by_what_the_forest_explains() -> None:
    noise = np.random.default_rng(0)
    assert found_in(runs_of(lambda _: noise.normal(), 200)).explained < 0.1
    assert found_in(runs_of(decades, 200)).explained > 0.9


def test_the_same_runs_give_the_same_shares_and_many_are_drawn_from() -> None:
    runs = runs_of(decades, 2500)
    assert found_in(runs) == found_in(runs)
    assert found_in(runs).runs == 2000


@pytest.mark.parametrize("scores", [[0.1 * index for index in range(9)], [1.0] * 50])
def test_there_is_nothing_to_learn_from_few_runs_or_equal_ones(scores: list[float]) -> None:
    runs = [run(index, score, config={"lr": 1e-3 + index * 1e-5}) for index, score in enumerate(scores)]
    assert importance(SPACE, comparable(sweep_config(), runs), maximize=True) is None


def test_there_is_nothing_to_learn_from_runs_of_one_configuration() -> None:
    config = runs_of(lambda config: 0.0, 1)[0].config
    runs = [run(index, index / 20, config=config) for index in range(20)]
    assert importance(SPACE, comparable(sweep_config(), runs), maximize=True) is None


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=10, max_size=20))
def test_whatever_the_scores_are_the_shares_are_parts_of_a_whole(scores: list[float]) -> None:
    configs = [each.config for each in runs_of(decades, len(scores))]
    runs = [run(index, score, config=config) for index, (score, config) in enumerate(zip(scores, configs, strict=True))]
    found = importance(SPACE, comparable(sweep_config(), runs), maximize=True)
    if found is None:
        return
    every = [*found.parameters, *found.interactions]
    assert all(0 <= share.low <= share.high <= 1 + 1e-9 for share in every)
    assert 0 <= sum(share.share for share in every) <= 1 + 1e-9


def test_values_that_an_amended_space_does_not_hold_are_left_to_chance() -> None:
    runs = [run(index, float(index % 7), config={"lr": 5.0, "gone": "x"}) for index in range(40)]
    assert max(shares(found_in(runs)).values()) < 0.9
