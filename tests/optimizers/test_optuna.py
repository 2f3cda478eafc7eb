"""Optuna's samplers as optimizers: deterministic, and told all that there is to tell."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest

from metta.sweep.errors import ConfigError, MissingExtraError
from metta.sweep.model.space import Choice, LogNormal, LogUniform, Normal, Range, SearchSpace, Uniform
from metta.sweep.model.state import SweepState
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


def test_normal_parameters_are_told_after_a_restart_as_they_were_suggested() -> None:
    space = SearchSpace.of({"init": Normal(0.0, 0.02), "scale": LogNormal(0.0, 1.0)})
    state = started(sweep_config(search_space=space, direction="minimize"))
    optimizer, score = OptunaOptimizer("TPESampler"), bowl(state.sweep.config)
    for _ in range(40):
        history = history_of(state)
        suggestions = optimizer.suggest(history, 1)
        assert suggestions == OptunaOptimizer("TPESampler").suggest(history, 1)
        state = lived(state, configs(suggestions), "c", score)
    live, fresh = (study_of(each, state) for each in (optimizer, OptunaOptimizer("TPESampler")))
    assert [trial.params for trial in live] == [trial.params for trial in fresh]


def study_of(optimizer: OptunaOptimizer, state: SweepState) -> list[optuna.trial.FrozenTrial]:
    """The trials from which the optimizer makes its next suggestion; those that were told are the first."""
    optimizer.suggest(history_of(state), 1)
    assert optimizer._study is not None
    return optimizer._study._study.get_trials()


def test_integers_that_floats_cannot_tell_apart_are_searched_by_number() -> None:
    low, high = 2**60, 2**60 + 1000
    space = SearchSpace.of({"n": Range(low, high), "m": Range(low, 2**60 + 1, step=1)})
    config = sweep_config(search_space=space, direction="minimize")
    optimizer = OptunaOptimizer("TPESampler")
    optimizer.check(config)
    tried = [run.config for run in search(optimizer, space, bowl(config), [1] * 20).runs.values()]
    assert all(low <= each["n"] <= high for each in tried)
    assert len({each["n"] for each in tried}) > 10
    assert {each["m"] for each in tried} == {low, low + 1}


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
        ("tpesampler", {}, r"has no sampler 'tpesampler'; did you mean 'TPESampler'\?"),
        ("tpe", {}, r"has no sampler 'tpe'; did you mean 'TPESampler'\?"),
        ("CMAESSAMPLR", {}, r"has no sampler 'CMAESSAMPLR'; did you mean 'CmaEsSampler'\?"),
        ("PartialFixedSampler", {}, "PartialFixedSampler is not offered: .*make the parameter a Constant"),
        ("BaseSampler", {}, "has no sampler 'BaseSampler'"),
        ("TPESampler", {"seed": 3}, "the seed of TPESampler comes from the sweep's own"),
        ("TPESampler", {"startup": 3}, r"TPESampler does not take these options \{'startup': 3\}"),
        ("QMCSampler", {"qmc_type": "latin"}, r"QMCSampler does not take these options .*halton"),
        ("GridSampler", {"search_space": {"x": [0.1]}}, "GridSampler is not offered: .*use strategy 'grid'"),
        ("NSGAIISampler", {"crossover": 3}, "NSGAIISampler does not take these options .*not a valid crossover"),
    ],
)
def test_what_optuna_does_not_have_is_refused(sampler: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptunaOptimizer(sampler, **options)


CONTINUOUS = SearchSpace.of({"x": Uniform(0.0, 1.0), "y": Uniform(0.0, 1.0)})


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("BruteForceSampler", {}, "BruteForceSampler cannot search this space with these options: ValueError: "),
        ("TPESampler", {"n_startup_trials": "x"}, "TPESampler cannot search this space .*: TypeError: "),
        ("TPESampler", {"gamma": 3}, "TPESampler cannot search this space .*: TypeError: "),
        ("CmaEsSampler", {"x0": {"nope": 0.5}}, "CmaEsSampler cannot search this space .*: AssertionError: "),
    ],
)
def test_what_a_sampler_cannot_do_is_refused_before_the_start(
    sampler: str, options: dict[str, Any], message: str
) -> None:
    optimizer = OptunaOptimizer(sampler, **options)
    with pytest.raises(ConfigError, match=f"strategy: Optuna's {message}"):
        optimizer.check(sweep_config(search_space=CONTINUOUS))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("sampler", [*SAMPLERS, "NSGAIIISampler"])
def test_what_a_sampler_can_do_is_not_refused(sampler: str, space: str) -> None:
    if sampler == "BruteForceSampler" and SPACES[space].cardinality is None:
        return
    optimizer = OptunaOptimizer(sampler, **SAMPLERS.get(sampler, {}))
    config = sweep_config(search_space=SPACES[space])
    fresh = OptunaOptimizer(sampler, **SAMPLERS.get(sampler, {}))
    optimizer.check(config)
    history = history_of(started(config))
    assert optimizer.suggest(history, 2) == fresh.suggest(history, 2)


def test_a_brute_force_search_of_a_huge_range_is_refused_at_once() -> None:
    config = sweep_config(search_space=SearchSpace.of({"n": Range(1, 10**12)}))
    with pytest.raises(ConfigError, match=r"BruteForceSampler .*at most 10000, and 'n' has 1000000000000; widen its"):
        OptunaOptimizer("BruteForceSampler").check(config)


def test_a_rehearsal_leaves_the_longest_start_behind() -> None:
    def gamma(_: int) -> int:
        raise ArithmeticError("no good ones")

    optimizer = OptunaOptimizer("TPESampler", n_startup_trials=60, gamma=gamma)
    with pytest.raises(ConfigError, match="ArithmeticError: no good ones"):
        optimizer.check(sweep_config(search_space=CONTINUOUS))


def test_a_sampler_that_lacks_a_package_is_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def infer(*_: Any) -> Any:
        raise ImportError("Tried to import 'torch' but failed.") from ModuleNotFoundError("none", name="torch.nn")

    monkeypatch.setattr(optuna.samplers.GPSampler, "infer_relative_search_space", infer)
    optimizer = OptunaOptimizer("RandomSampler")
    optimizer.check(sweep_config(search_space=CONTINUOUS))
    with pytest.raises(MissingExtraError, match=r"the sampler GPSampler needs torch; .*: pip install torch$"):
        OptunaOptimizer("GPSampler").check(sweep_config(search_space=CONTINUOUS))


def test_the_gaussian_process_asks_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # as if it were not installed, also where it is
    with pytest.raises(MissingExtraError, match=r"the sampler GPSampler needs torch; .*: pip install torch$"):
        OptunaOptimizer("GPSampler").check(sweep_config(search_space=CONTINUOUS))


def test_what_a_sampler_raises_later_names_it() -> None:
    optimizer = OptunaOptimizer("TPESampler", n_startup_trials=0, gamma=lambda n: 1 // 0)
    state = lived(started(sweep_config(search_space=CONTINUOUS)), [{"x": 0.1, "y": 0.2}], "c", lambda _: 0.0)
    with pytest.raises(ConfigError, match=r"Optuna's TPESampler failed to suggest anything; .*: ZeroDivisionError: "):
        optimizer.suggest(history_of(state), 1)


def test_what_lies_outside_the_space_is_refused() -> None:
    def new_sampler(seed: int, _: int) -> optuna.samplers.BaseSampler:
        return optuna.samplers.GridSampler({"x": [7.0], "y": [0.5]}, seed=seed)

    study = OptunaStudy(sweep_config(search_space=CONTINUOUS), new_sampler, replays=True)
    with (
        pytest.warns(UserWarning, match="out of range"),
        pytest.raises(ConfigError, match=r"GridSampler suggests what is outside .*'x': 7\.0 is outside"),
    ):
        study.ask(0)


def test_an_optuna_that_is_broken_is_called_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "optuna").mkdir()
    (tmp_path / "optuna" / "__init__.py").write_text("raise AttributeError('no such thing in numpy')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "optuna"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingExtraError, match=r"installed but broken \(AttributeError: no such thing .*pip install"):
        OptunaOptimizer()


def test_without_optuna_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r'pip install "metta-sweep\[optuna\]"'):
        OptunaOptimizer()
