"""A sweep whose author named no metric: it is found where there is no doubt, and asked for elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from metta.sweep import Uniform, report_metrics, sweep
from metta.sweep.cli.target import load_definition
from metta.sweep.config_file import load_with_origin
from metta.sweep.errors import ConfigError

SPACE = {"x": Uniform(0, 1)}


def found_in(function: Callable[..., Any], **settings: Any) -> tuple[str, str]:
    settings = sweep(search_space=SPACE, **settings)(function).settings
    return settings.metric, settings.direction


class TestFunctions:
    def test_the_only_metric_is_taken_with_its_direction(self) -> None:
        def classify(config: dict[str, Any]) -> dict[str, float]:
            report_metrics({"validation_accuracy": 0.5, "train_accuracy": 0.9, "epoch": 1})
            return {"validation_accuracy": 0.5}

        def regress(config: dict[str, Any]) -> dict[str, float]:
            return {"val_loss": 0.5}

        assert found_in(classify) == ("validation_accuracy", "maximize")
        assert found_in(regress) == ("val_loss", "minimize")
        assert sweep(search_space=SPACE)(regress).definition({}).metric_is_inferred
        assert not sweep(search_space=SPACE, metric="val_loss")(regress).definition({}).metric_is_inferred

    def test_what_the_author_says_goes_before_what_is_found(self) -> None:
        def regress(config: dict[str, Any]) -> dict[str, float]:
            return {"val_loss": 0.5, "val_mae": 0.1}

        assert found_in(regress, metric="val_mae") == ("val_mae", "maximize")
        assert found_in(regress, metric="val_mae", direction="minimize") == ("val_mae", "minimize")

    def test_a_given_direction_holds_for_a_metric_that_is_found(self) -> None:
        def train(config: dict[str, Any]) -> dict[str, float]:
            return {"y": 0.5}

        assert found_in(train, direction="minimize") == ("y", "minimize")
        with pytest.raises(ConfigError, match=r"^metric: is missing; if it is 'y', found in the code, say so, and its"):
            found_in(train)

    def test_with_an_evaluation_it_is_the_evaluation_s(self) -> None:
        def train(config: dict[str, Any]) -> dict[str, float]:
            return {"accuracy": 0.5}

        def evaluate(config: dict[str, Any]) -> dict[str, float]:
            return {"test_error": 0.5}

        assert found_in(train, evaluate=evaluate) == ("test_error", "minimize")

    def test_a_doubt_is_refused_with_what_was_found(self) -> None:
        def train(config: dict[str, Any]) -> dict[str, float]:
            return {"precision": 0.5, "recall": 0.5, "epoch": 3}

        with pytest.raises(ConfigError) as caught:
            found_in(train)
        assert str(caught.value) == (
            "metric: is missing; the code has several that it could be, name one: 'precision', 'recall'"
        )

    def test_nothing_found_is_refused_as_ever(self) -> None:
        with pytest.raises(ConfigError, match=r"^metric: is missing; every sweep needs one$"):
            found_in(len)
        with pytest.raises(ConfigError, match=r"^metric: is missing; every sweep needs one$"):
            found_in(lambda config: None)

    def test_other_mistakes_are_told_first(self) -> None:
        with pytest.raises(ConfigError, match=r"^max_trails: unknown key"):
            sweep(search_space=SPACE, max_trails=3)


class TestFiles:
    @pytest.fixture
    def loaded(self, tmp_path: Path) -> Callable[..., Any]:
        def read(text: str, **files: str) -> tuple[str, str, bool]:
            for name, code in files.items():
                (tmp_path / f"{name}.py").write_text(dedent(code))
            path = tmp_path / "sweep.yaml"
            path.write_text(dedent(text) + "\nsearch_space: {x: {uniform: [0, 1]}}\n")
            settings, is_inferred = load_with_origin(path)
            return settings.metric, settings.direction, is_inferred

        return read

    def test_of_a_command_it_is_what_its_script_writes_as_json(self, loaded: Callable[..., Any]) -> None:
        code = "print('seen: ', n)\nprint(json.dumps({'val_loss': v, 'step': 1}))"
        assert loaded("command: python train.py --x={x}", train=code) == ("val_loss", "minimize", True)
        assert loaded("command: [python, train.py]\nmetric: y", train=code) == ("y", "maximize", False)

    def test_of_a_function_it_is_what_that_returns(self, loaded: Callable[..., Any]) -> None:
        code = """
            raise RuntimeError("executed")
            def train(config):
                return {"accuracy": 1}
            def other(config):
                return {"reward": 1}
            """
        assert loaded("function: code:train", code=code) == ("accuracy", "maximize", True)
        assert loaded("function: code.py:other\ndirection: minimize", code=code) == ("reward", "minimize", True)

    def test_a_pattern_with_one_name_names_it(self, loaded: Callable[..., Any]) -> None:
        text = "command: train {x}\nmetrics: {regex: 'loss=(?P<loss>[0-9.]+)'}"
        assert loaded(text) == ("loss", "minimize", True)

    def test_a_pattern_of_pairs_finds_what_is_printed(self, loaded: Callable[..., Any]) -> None:
        text = r"""
            command: python train.py
            metrics: {regex: '(\w+)=([0-9.]+)'}
            """
        assert loaded(text, train="print(f'{epoch} accuracy={a}')") == ("accuracy", "maximize", True)

    def test_the_evaluation_goes_before_the_training(self, loaded: Callable[..., Any]) -> None:
        files = {"train": "print(json.dumps({'loss': v}))", "score": "print(json.dumps({'auc': v}))"}
        text = "command: python train.py\nevaluate: python score.py"
        assert loaded(text, **files) == ("auc", "maximize", True)
        function = "command: python train.py\nevaluate: check.py:score"
        assert loaded(function, **files, check="def score(c):\n    return {'f1': 1}") == ("f1", "maximize", True)

    @pytest.mark.parametrize(
        "text", ["command: sh -c true", "command: python gone.py", "function: gone:train", "function: train"]
    )
    def test_what_cannot_be_looked_into_is_asked_for(self, loaded: Callable[..., Any], text: str) -> None:
        with pytest.raises(ConfigError, match=r"metric: is missing; every sweep needs one$"):
            loaded(text)

    def test_it_is_known_to_be_found_when_the_sweep_starts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: Callable[..., Any]
    ) -> None:
        monkeypatch.setattr(sys, "path", [*sys.path])
        loaded("command: python train.py", train="print(json.dumps({'auc': v}))")
        definition = load_definition(str(tmp_path / "sweep.yaml"), {})
        assert (definition.settings.metric, definition.metric_is_inferred) == ("auc", True)
