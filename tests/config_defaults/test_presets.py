"""Search spaces to begin with."""

from __future__ import annotations

import pytest

from metta.sweep import Choice, LogUniform, SmartDefaults, sweep
from metta.sweep.config_defaults.presets import PRESETS
from metta.sweep.errors import ConfigError
from metta.sweep.model.space import SearchSpace


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_each_is_a_search_space_with_its_sources(name: str) -> None:
    space = SearchSpace.of(SmartDefaults().suggest_search_space(name))
    for unit in (0.0, 0.3, 1.0):
        config = space.decode([unit] * len(space.dimensions))
        space.check(config)
        assert space.decode(space.encode(config)) == config
    sources = SmartDefaults().explain_search_space(name)
    assert sources
    assert all(any(character.isdigit() for character in source) or "documentation" in source for source in sources)


def test_what_is_usual_lies_within() -> None:
    """The values that the sources name as theirs."""
    usual = {
        "transformer_finetuning": {"lr": 2e-5, "batch_size": 32, "epochs": 3, "warmup_ratio": 0.06},
        "transformer_pretraining": {"lr": 6e-4, "beta2": 0.95, "weight_decay": 0.1, "warmup_steps": 4000},
        "cnn": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "batch_size": 256},
        "xgboost": {"learning_rate": 0.3, "max_depth": 6, "subsample": 1.0, "n_estimators": 100},
        "lightgbm": {"learning_rate": 0.1, "num_leaves": 31, "min_child_samples": 20},
        "random_forest": {"n_estimators": 100, "min_samples_leaf": 1, "max_depth": None},
        "svm": {"C": 1.0, "gamma": 0.1},
        "ppo": {"lr": 3e-4, "gamma": 0.99, "gae_lambda": 0.95, "clip_range": 0.2, "epochs": 10},
        "dqn": {"lr": 6.25e-5, "gamma": 0.99, "batch_size": 32, "target_update_steps": 10_000},
        "gan": {"generator_lr": 2e-4, "beta1": 0.5, "gradient_penalty": 10.0, "discriminator_steps": 5},
        "diffusion": {"lr": 2e-4, "ema_decay": 0.9999, "dropout": 0.1},
    }
    for name, values in usual.items():
        space = SmartDefaults().suggest_search_space(name)
        assert [key for key, value in values.items() if not space[key].contains(value)] == [], name


@pytest.mark.parametrize("written", ["Random Forest", "random-forest", " random_forest ", "forest"])
def test_a_name_may_be_written_in_any_way(written: str) -> None:
    assert SmartDefaults().suggest_search_space(written) == dict(PRESETS["random_forest"].space)


def test_an_unknown_kind_is_answered_with_those_there_are() -> None:
    with pytest.raises(ConfigError) as caught:
        SmartDefaults().suggest_search_space("xgbost")
    message = str(caught.value)
    assert message.startswith("model_type: there is no search space for 'xgbost'; did you mean 'xgboost'? known: ")
    assert all(name in message for name in PRESETS)


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="model_type: needs the name of a kind of model"):
        SmartDefaults().suggest_search_space(3)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="code: needs the text of Python code, got NoneType"):
        SmartDefaults().infer_metric(None)  # type: ignore[arg-type]


def test_a_suggestion_is_ones_own_to_change() -> None:
    space = SmartDefaults().suggest_search_space("cnn")
    space["lr"] = LogUniform(1e-4, 1e-2)
    space["augment"] = Choice([True, False])
    assert SmartDefaults().suggest_search_space("cnn").keys() == PRESETS["cnn"].space.keys()
    assert sweep(search_space=space, metric="accuracy")(lambda config: None).settings.search_space == space
