"""A configuration that is written to a file is the same when it is read."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.config import build_config
from metta.sweep.config_file import dump, load
from metta.sweep.errors import ConfigError
from metta.sweep.exchange.sweep_file import to_yaml
from metta.sweep.model.dispatching import Dispatching
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import FailureKind, Resources, RetryPolicy
from metta.sweep.model.space import Choice, Constant, LogNormal, LogUniform, Normal, Range, SearchSpace, Uniform
from metta.sweep.model.sweep import (
    CommandTarget,
    FunctionTarget,
    MetricsSource,
    PickledTarget,
    Retention,
    Strategy,
    SweepConfig,
)
from metta.sweep.testing.sweeps import sweep_config

SPACE = SearchSpace.of(
    {
        "trainer.lr": LogUniform(1e-5, 1e-1),
        "trainer.optimizer": Choice(["adam", "sgd"]),
        "trainer.momentum": Uniform(0.5, 0.99, when={"trainer.optimizer": ["sgd"]}),
        "layers": Range(1, 8),
        "dropout": Range(0.1, 0.5, step=0.1),
        "width": Range(16, 512, log=True),
        "noise": Normal(0.0, 1.5),
        "scale": LogNormal(0.0, 0.5),
        "shape": Choice([[32], [64, 64], {"a": None}]),
        "seed": Constant({"deep": [1, "1e-4", "on", "0o17", "16:9", "null", "~", ""]}),
    }
)


def read_again(config: SweepConfig) -> SweepConfig:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sweep.yaml"
        path.write_text(to_yaml("sw33p", config), encoding="utf-8")
        settings_ = load(path)
    assert isinstance(settings_.command, list)
    return build_config(
        settings_,
        name=settings_.name or "",
        target=CommandTarget(argv=settings_.command, metrics=settings_.metrics),
        evaluate=None,
        directory=Path(config.directory),
        working_directory=Path(config.working_directory),
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"target": CommandTarget(argv=["python", "train.py", "--lr={trainer.lr}", ""])},
        {"strategy": Strategy(optimizer="tpe", scheduler="asha"), "fidelity": Fidelity(maximum=81.0)},
        {"strategy": Strategy(optimizer="bayesian"), "direction": "minimize", "isolation": "reuse"},
        {"retry": RetryPolicy(max_retries=2, on=(FailureKind.KILLED,)), "same_error_limit": 0},
        {"resources": Resources(cpus=2, memory_gb=1.5), "checkpoints": Retention(last=2), "max_hours": 1.5},
        {"dispatcher": Dispatching(fallback=("local",)), "max_parallel_eval": 3, "backup_hours": 2.0},
        {"target": CommandTarget(argv=["train"], metrics=MetricsSource(regex=r"(\w+): ([0-9.]+)"))},
    ],
    ids=str,
)
def test_the_configuration_is_the_same(fields: dict[str, Any]) -> None:
    command = CommandTarget(argv=["train", "{args}"], metrics=MetricsSource())
    config = sweep_config(**{"search_space": SPACE, "target": command, "max_trials": 40, **fields})
    assert read_again(config) == config


_TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\x85\u2028\u2029"), max_size=12)
_WORDS = st.sampled_from(
    ["on", "yes", "1e-4", "1_000", "0x1f", "0o7", ".5", "12:30:45", "=", "<<", "null", "2020-01-01", "- a"]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _TEXT
    | _WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT | _WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.lists(_VALUES, min_size=2, max_size=5))
def test_any_values_are_read_as_they_were_written(values: list[Any]) -> None:
    import yaml

    from metta.sweep.config_file import _Loader

    assert yaml.load(dump({"values": values}), Loader=_Loader) == {"values": values}


def test_a_function_is_named_as_seen_from_the_folder_it_ran_in() -> None:
    target = FunctionTarget(module="/code/nets/train.py", name="train")
    assert "function: nets/train.py:train\n" in to_yaml("x", sweep_config(target=target, evaluate=target))
    assert "function: /else/train.py:train\n" in to_yaml(
        "x", sweep_config(target=replace(target, module="/else/train.py"))
    )


def test_a_function_without_a_file_says_what_to_do() -> None:
    target = PickledTarget(name="<lambda>", path="/f.pkl", sha256="0")
    with pytest.raises(ConfigError, match="--format json"):
        to_yaml("x", sweep_config(target=target))
