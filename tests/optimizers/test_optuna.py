"""Optuna's samplers as optimizers: deterministic, and told all that there is to tell."""

from __future__ import annotations

import sys
from typing import Any

import optuna
import pytest

from metta.sweep.errors import ConfigError, MissingExtraError
from metta.sweep.model.space import Choice, LogNormal, LogUniform, Range, SearchSpace, Uniform
from metta.sweep.optimizers.optuna import OptunaOptimizer
from metta.sweep.optimizers.optuna_study import OptunaStudy
from metta.sweep.optimizers.random import RandomOptimizer
from metta.sweep.protocols import Optimizer
from metta.sweep.testing import OptimizerContract, sweep_config
from metta.sweep.testing.promises import PROMISES
from metta.sweep.testing.searches import SPACES, bowl, configs, history_of, lived, searched, started
from optimizers.searching import best, search

#: Of each way to suggest one: those that leave notes, that go through a sequence, that model.
SAMPLERS: dict[str, dict[str, Any]] = {
    "BruteForceSampler": {},
    "CmaEsSampler": {"with_margin": True},
    "NSGAIISampler": {"population_size": 4},
    "QMCSampler": {"scramble": True},
    "RandomSampler": {},
    "TPESampler": {"multivariate": True, "group": True, "constant_liar": True},
}
#: What an adapter may get wrong.
AT_STAKE = ("a_new_optimizer_goes_on_where_another_stopped", "the_space_may_change_in_the_middle")


class TestTPESampler(OptimizerContract):
    def new_optimizer(self) -> OptunaOptimizer:
        return OptunaOptimizer("TPESampler")


@pytest.mark.parametrize("promise", AT_STAKE)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_sampler_is_as_stateless_as_any_optimizer(sampler: str, promise: str) -> None:
    def new_optimizer() -> Optimizer:
        return OptunaOptimizer(sampler, **SAMPLERS[sampler])

    spaces = ["finite", "finite and conditional"] if sampler == "BruteForceSampler" else ["continuous", "conditional"]
    [keep] = [each.keep for each in PROMISES if each.keep.__name__ == promise]
    for space in spaces:
        keep(new_optimizer, SPACES[space])


@pytest.mark.parametrize("sampler", ["CmaEsSampler", "NSGAIISampler", "QMCSampler", "TPESampler"])
def test_a_long_sweep_goes_on_after_a_restart_as_if_there_had_been_none(sampler: str) -> None:
    space, optimizer = SPACES["continuous"], OptunaOptimizer(sampler, **SAMPLERS[sampler])
    state = search(optimizer, space, bowl(sweep_config(search_space=space, direction="minimize")), [3] * 12)
    history = history_of(state)
    assert optimizer.suggest(history, 3) == OptunaOptimizer(sampler, **SAMPLERS[sampler]).suggest(history, 3)


def test_a_grid_is_walked_over_restarts() -> None:
    grid = {"search_space": {"layers": [1, 2], "width": [0, 1, 2], "rate": [0]}}
    space = SPACES["finite"]
    state = search(OptunaOptimizer("GridSampler", **grid), space, lambda _: 0.0, [2])
    state = search_on(state, OptunaOptimizer("GridSampler", **grid), 4)
    tried = {space.key(run.config) for run in state.runs.values()}
    assert len(tried) == 6
    assert all(run.config["layers"] < 3 for run in state.runs.values())


def search_on(state: Any, optimizer: Optimizer, count: int) -> Any:
    for _ in range(count):
        state = lived(state, configs(optimizer.suggest(history_of(state), 1)), "c", lambda _: 0.0)
    return state


def test_it_finds_better_configurations_than_random_search() -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0), "n": Range(1, 64, log=True), "kind": Choice(["a", "b", "c"])})
    score = bowl(sweep_config(search_space=space, direction="minimize"))
    ours, random = (best(new, space, score, [1] * 40) for new in (OptunaOptimizer, RandomOptimizer))
    assert ours < random


# ---------------------------------------------------------------------------------------------------- what it is told


def told(fates: str, **fields: Any) -> list[optuna.trial.FrozenTrial]:
    """The trials of a study that was told a search with runs of these fates."""
    state = searched(SPACES["continuous"], fates, **fields)
    sampler = optuna.samplers.RandomSampler
    study = OptunaStudy(state.sweep.config, lambda seed, index: sampler(seed=index), replays=False)
    assert study.follow(history_of(state))
    return study._study.get_trials()


def test_runs_are_trials_of_the_same_standing() -> None:
    running, failed, complete = (
        optuna.trial.TrialState.RUNNING,
        optuna.trial.TrialState.FAIL,
        optuna.trial.TrialState.COMPLETE,
    )
    assert [trial.state for trial in told("cfrpxb")] == [complete, failed, failed, running, failed, failed]
    assert [trial.state for trial in told("cr", partial_results=True)] == [complete, complete]


def test_less_is_better_in_either_direction() -> None:
    low, high = (told("cc", direction=direction) for direction in ("minimize", "maximize"))
    assert [trial.value for trial in low] == [trial.value for trial in high]
    assert min(trial.value for trial in low) >= 0.0


def test_parameters_are_put_in_terms_of_their_kind() -> None:
    space = SearchSpace.of(
        {
            "lr": LogUniform(1e-5, 1e-1),
            "layers": Range(2, 9, step=3),
            "rate": Range(0.1, 0.5, step=0.2),
            "units": Range(8, 64, log=True),
            "kind": Choice([None, [1, 2], True, 1]),
            "scale": LogNormal(0.0, 1.0),
            "fixed": 3,
        }
    )
    config = {"lr": 0.01, "layers": 5, "rate": 0.5, "units": 16, "kind": True, "scale": 1.0, "fixed": 3}
    state = lived(started(sweep_config(search_space=space)), [config], "c", lambda _: 1.0)
    study = OptunaStudy(state.sweep.config, lambda seed, _: optuna.samplers.RandomSampler(seed=seed), replays=False)
    assert study.follow(history_of(state))
    [trial] = study._study.get_trials()
    assert trial.params == {"lr": 0.01, "layers": 5, "rate": 2, "units": 16, "kind": 2, "scale": 0.5}
    kinds = {
        name: type(distribution).__name__.removesuffix("Distribution")
        for name, distribution in trial.distributions.items()
    }
    assert kinds == {
        "lr": "Float",
        "layers": "Int",
        "rate": "Int",
        "units": "Int",
        "kind": "Categorical",
        "scale": "Float",
    }
    assert trial.distributions["layers"] == optuna.distributions.IntDistribution(2, 8, step=3)


def test_nothing_is_said_on_standard_error_and_nothing_is_left_set(capfd: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        search(OptunaOptimizer("TPESampler", multivariate=True), SPACES["conditional"], lambda _: 0.0, [3] * 5)
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert capfd.readouterr().err == ""


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (
            "TPEsampler",
            {},
            r"Optuna has no sampler 'TPEsampler'; did you mean 'TPESampler'\? known: BruteForceSampler, ",
        ),
        ("PartialFixedSampler", {}, "has no sampler 'PartialFixedSampler'"),
        ("BaseSampler", {}, "has no sampler 'BaseSampler'"),
        ("TPESampler", {"seed": 3}, "the seed of TPESampler comes from the sweep's own"),
        ("TPESampler", {"startup": 3}, r"TPESampler does not take these options \{'startup': 3\}"),
        ("QMCSampler", {"qmc_type": "latin"}, r"QMCSampler does not take these options .*halton"),
        ("GridSampler", {}, "GridSampler does not take these options .*search_space"),
    ],
)
def test_what_optuna_does_not_have_is_refused(sampler: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptunaOptimizer(sampler, **options)


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r'pip install "metta-sweep\[optuna\]"'):
        OptunaOptimizer()
