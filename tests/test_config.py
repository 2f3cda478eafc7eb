"""What users may say about a sweep, and what they are told when they say something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep import registry
from metta.sweep.config import (
    COMBINATIONS,
    Settings,
    SweepFile,
    build_config,
    check_metrics,
    parse_command,
    parse_settings,
    parse_strategy,
)
from metta.sweep.config_changes import differences
from metta.sweep.config_defaults.smart import SmartDefaults
from metta.sweep.config_space import parse_space
from metta.sweep.errors import ConfigError, FieldError
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.notify import NoticeKind, Notify
from metta.sweep.model.run import FailureKind, Resources, RetryPolicy
from metta.sweep.model.space import Choice, Constant, LogNormal, LogUniform, Normal, Range, Uniform
from metta.sweep.model.sweep import (
    CommandTarget,
    FunctionTarget,
    MetricsSource,
    PickledTarget,
    Retention,
    Strategy,
    SweepConfig,
)

COMMAND = CommandTarget(argv=["true"])
FAILURES = ", ".join(sorted(FailureKind))
LEAST = {"search_space": {"lr": {"uniform": [0, 1]}}, "metric": "accuracy"}


_NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, 1, 10**6, 10**6 + 1, 10**9, 10**9 + 1, 2**31, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63) - 1]),
    st.floats(),
)


def given_settings() -> st.SearchStrategy[dict[str, Any]]:
    """Some settings with values of their kind, which are beyond their bounds as often as not."""
    numbers = [name for name in Settings.__struct_fields__ if isinstance(getattr(Settings(**LEAST), name), int | float)]
    numbers += ["seed", "max_parallel", "max_trials", "budget_hours", "max_hours", "job_timeout_s", "backup_hours"]
    numbers += ["max_retries", "retry_delay_seconds"]
    nested = {
        name: st.dictionaries(st.sampled_from(kind.__struct_fields__), _NUMBERS, max_size=2)
        for name, kind in {
            "resources": Resources,
            "retry": RetryPolicy,
            "retry_eval": RetryPolicy,
            "checkpoints": Retention,
        }.items()
    }
    levels = st.fixed_dictionaries({"optimizer": st.just("grid"), "optimizer_options": st.just({"levels": 3})})
    texts = {name: st.text(st.characters(), max_size=5) for name in ("name", "metric")}
    anything = {**dict.fromkeys(numbers, _NUMBERS), **nested, **texts, "strategy": levels}
    return st.sets(st.sampled_from(sorted(anything)), max_size=2).flatmap(
        lambda names: st.fixed_dictionaries({name: anything[name] for name in names})
    )


def problem_with(**settings: Any) -> str:
    """The message about settings that are not valid."""
    with pytest.raises(ConfigError) as caught:
        parse_settings({**LEAST, **settings}, SweepFile)
    message = str(caught.value)
    assert "\n" not in message
    return message


def config_of(
    target: Any = COMMAND, evaluate: Any = None, working_directory: str = "/code", **settings: Any
) -> SweepConfig:
    return build_config(
        parse_settings({**LEAST, **settings}),
        name="demo",
        target=target,
        evaluate=evaluate,
        directory=Path("/files"),
        working_directory=Path(working_directory),
    )


class TestSettings:
    def test_a_space_and_a_metric_are_enough(self) -> None:
        settings = parse_settings(LEAST)
        assert settings == Settings(search_space=LEAST["search_space"], metric="accuracy")
        assert (settings.direction, settings.strategy, settings.isolation) == ("maximize", "random", "process")

    def test_every_setting_arrives(self) -> None:
        given: dict[str, Any] = {
            "name": "demo",
            "search_space": {"lr": 1},
            "metric": "loss",
            "direction": "minimize",
            "strategy": "grid",
            "seed": 3,
            "max_parallel": 4,
            "max_parallel_eval": 2,
            "fidelity": {"resource": "step", "maximum": 900, "grace_period": 10, "reduction_factor": 4},
            "max_trials": 10,
            "budget_hours": 1.5,
            "max_hours": 2,
            "resources": {"cpus": 2, "gpus": 1},
            "job_timeout_s": 60,
            "grace_s": 0,
            "isolation": "reuse",
            "command": ["python", "train.py"],
            "function": None,
            "metrics": {"regex": "(a)=(1)", "stdout": "json", "file": "m.json"},
            "evaluate": "python eval.py",
            "max_retries": 2,
            "retry_delay_seconds": 5,
            "retry": {"backoff": 3, "on": ["killed"], "memory_growth": 2},
            "retry_eval": {"max_retries": 1},
            "same_error_limit": 5,
            "partial_results": True,
            "checkpoints": {"last": 3, "best": 1, "every": 10},
            "backup_hours": 24,
            "backups": 7,
            "dispatcher": "local",
            "notify": {"channels": ["$SLACK_URL"], "on": ["sweep_ended"], "every_minutes": 5, "stalled_minutes": 60},
        }
        settings = parse_settings(given, SweepFile)
        arrived = {name: getattr(settings, name) for name in given}
        nested = {
            "resources": Resources(cpus=2, gpus=1),
            "metrics": MetricsSource(regex="(a)=(1)", stdout="json", file="m.json"),
            "retry": RetryPolicy(backoff=3, on=(FailureKind.KILLED,), memory_growth=2),
            "retry_eval": RetryPolicy(max_retries=1),
            "checkpoints": Retention(last=3, best=1, every=10),
            "fidelity": Fidelity(resource="step", maximum=900, grace_period=10, reduction_factor=4),
            "notify": Notify(
                channels=("$SLACK_URL",), on=(NoticeKind.SWEEP_ENDED,), every_minutes=5, stalled_minutes=60
            ),
        }
        assert arrived == {**given, **nested}
        assert set(given) == set(SweepFile.__struct_fields__)

    @pytest.mark.parametrize("name", ["search_space", "metric"])
    def test_what_every_sweep_needs_is_asked_for_by_name(self, name: str) -> None:
        for incomplete in ({key: value for key, value in LEAST.items() if key != name}, {**LEAST, name: None}):
            with pytest.raises(ConfigError, match=f"^{name}: is missing"):
                parse_settings(incomplete)

    @pytest.mark.parametrize(
        ("fidelity", "message"),
        [
            ({"resource": "epoch"}, "fidelity: "),
            ({"maximum": 10, "grace_period": 20}, "fidelity.grace_period: is at most maximum (10), got 20"),
            ({"maximum": 10, "reduction_factor": 1}, "fidelity.reduction_factor: expected"),
            ({"maximum": 10, "eta": 3}, "fidelity.eta: unknown key"),
            ({"maximum": 10, "resource": "loss"}, "fidelity.resource: is the metric that tells how far a run is"),
        ],
    )
    def test_a_fidelity_that_makes_no_sense_is_refused(self, fidelity: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            config_of(fidelity=fidelity, metric="loss")
        assert str(caught.value).startswith(message)

    def test_an_unknown_key_is_answered_with_the_closest_known_one(self) -> None:
        message = problem_with(max_trails=3)
        assert message.startswith("max_trails: unknown key; did you mean 'max_trials'? known: backup_hours,")

    def test_a_file_s_keys_are_unknown_to_the_decorator(self) -> None:
        with pytest.raises(ConfigError, match=r"^command: unknown key"):
            parse_settings({**LEAST, "command": "true"})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"resources": {"cpu": 2}}, "resources.cpu: unknown key; did you mean 'cpus'? known: cpus, gpus"),
            ({"strategy": {"optimzer": "grid"}}, "strategy.optimzer: unknown key; did you mean 'optimizer'?"),
            ({"metrics": {"regexp": "x"}}, "metrics.regexp: unknown key; did you mean 'regex'?"),
            ({3: 4}, "3: unknown key; known:"),
        ],
    )
    def test_unknown_keys_are_found_at_every_level(self, settings: dict[Any, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_settings({**LEAST, **settings}, SweepFile)
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_trials": "ten"}, "max_trials: expected int | null, got 'ten'"),
            ({"max_trials": 0}, "max_trials: expected int >= 1, got 0"),
            ({"max_trials": True}, "max_trials: expected int | null, got True"),
            ({"max_parallel": 1.5}, "max_parallel: expected int | null, got 1.5"),
            ({"max_parallel": -1}, "max_parallel: expected int >= 1, got -1"),
            ({"max_parallel_eval": None}, "max_parallel_eval: expected int, got None"),
            ({"seed": -1}, "seed: expected int >= 0, got -1"),
            ({"budget_hours": 0}, "budget_hours: expected float > 0.0, got 0"),
            ({"max_hours": "2h"}, "max_hours: expected float | null, got '2h'"),
            ({"max_hours": float("inf")}, "max_hours: expected float <= 1000000000.0, got inf"),
            ({"job_timeout_s": -5}, "job_timeout_s: expected float > 0.0, got -5"),
            ({"grace_s": float("inf")}, "grace_s: expected float <= 1000000000.0, got inf"),
            ({"grace_s": float("nan")}, "grace_s: expected float >= 0.0, got nan"),
            ({"resources": {"cpus": 0}}, "resources.cpus: expected int >= 1, got 0"),
            ({"resources": {"gpus": -1}}, "resources.gpus: expected int >= 0, got -1"),
            ({"resources": 4}, "resources: expected object, got 4"),
            ({"metric": ""}, "metric: expected str of length >= 1, got ''"),
            ({"metric": 5}, "metric: expected str, got 5"),
            ({"name": ""}, "name: expected str of length >= 1, got ''"),
            ({"search_space": ["lr"]}, "search_space: expected object, got ['lr']"),
            ({"strategy": 3}, "strategy: expected str | object, got 3"),
            ({"strategy": {"optimizer_options": {1: 2}}}, "strategy.optimizer_options: expected str, got {1: 2}"),
            ({"command": ["python", 3]}, "command.1: expected str, got 3"),
            ({"command": {}}, "command: expected str | array | null, got {}"),
            ({"metrics": {"file": 3}}, "metrics.file: expected str | null, got 3"),
            ({"direction": "max"}, "direction: cannot be 'max'; did you mean 'maximize'? known: maximize, minimize"),
            ({"direction": None}, "direction: expected str, got None"),
            ({"isolation": "thread"}, "isolation: cannot be 'thread'; known: process, reuse"),
            ({"max_retries": 1_000_001}, "max_retries: expected int <= 1000000, got 1000001"),
            ({"retry_delay_seconds": 1e10}, "retry_delay_seconds: expected float <= 1000000000.0, got 10000000000.0"),
            ({"retry": {"on": ("typo",)}}, f"retry.on.0: cannot be 'typo'; known: {FAILURES}"),
            (
                {"retry": {"on": ["killed", "kiled"]}},
                f"retry.on.1: cannot be 'kiled'; did you mean 'killed'? known: {FAILURES}",
            ),
            ({"retry": {"on": {"typo"}}}, f"retry.on.0: cannot be 'typo'; known: {FAILURES}"),
            ({"retry": {"on": ("killed", 3)}}, "retry.on.1: expected str, got 3"),
            ({"dispatcher": {"fallback": ("local", 3)}}, "dispatcher.fallback.1: expected str | object, got 3"),
            (
                {"dispatcher": {"route": ({"to": "local", "min_cpus": 0},)}},
                "dispatcher.route.0.min_cpus: expected int >= 1, got 0",
            ),
            (
                {"dispatcher": {"route": [{"to": "local", "type": "evl"}]}},
                "dispatcher.route.0.type: cannot be 'evl'; did you mean 'eval'? known: eval, train",
            ),
            ({"name": "two\nlines"}, "name: is one line without control characters, got 'two\\nlines'"),
            ({"name": "\x1b[31mred"}, "name: is one line without control characters, got '\\x1b[31mred'"),
            ({"name": "two\u2028lines"}, "name: is one line without control characters, got 'two\\u2028lines'"),
            ({"metrics": {"stdout": "jsn"}}, "metrics.stdout: cannot be 'jsn'; did you mean 'json'? known: json"),
        ],
    )
    def test_a_wrong_value_is_named_with_what_is_allowed(self, settings: dict[str, Any], message: str) -> None:
        assert problem_with(**settings) == message


class TestSpace:
    @pytest.mark.parametrize(
        ("written", "parameter"),
        [
            ({"uniform": [0, 1]}, Uniform(0, 1)),
            ({"log_uniform": [1e-4, 1e-1]}, LogUniform(1e-4, 1e-1)),
            ({"range": [1, 10]}, Range(1, 10)),
            ({"range": [1, 10], "step": 3}, Range(1, 10, 3)),
            ({"range": [1, 1024], "log": True}, Range(1, 1024, log=True)),
            ({"choice": ["a", 2, [3, 4], None]}, Choice(["a", 2, [3, 4], None])),
            ({"normal": [0, 1]}, Normal(0, 1)),
            ({"log_normal": [0, 1]}, LogNormal(0, 1)),
            ({"constant": 3}, Constant(3)),
            ({"constant": {"a": 1}}, Constant({"a": 1})),
            (3, Constant(3)),
            (None, Constant(None)),
            ([1, 2], Constant([1, 2])),
            (Range(1, 3), Range(1, 3)),
        ],
    )
    def test_every_kind_can_be_written(self, written: Any, parameter: Any) -> None:
        assert parse_space({"x": written}).parameters == {"x": parameter}

    def test_nested_mappings_become_dot_paths(self) -> None:
        space = parse_space(
            {"trainer": {"optimizer": {"lr": {"uniform": [0, 1]}}, "epochs": 3}, "trainer.seed": {"choice": [1, 2]}}
        )
        assert space.parameters == {
            "trainer.optimizer.lr": Uniform(0, 1),
            "trainer.epochs": Constant(3),
            "trainer.seed": Choice([1, 2]),
        }

    def test_a_condition_stands_beside_the_parameter(self) -> None:
        space = parse_space(
            {"kind": {"choice": ["sgd", "adam"]}, "momentum": {"uniform": [0, 1], "when": {"kind": "sgd"}}}
        )
        assert space.parameters["momentum"] == Uniform(0, 1, when={"kind": "sgd"})

    def test_a_group_may_hold_parameters_called_step_and_log(self) -> None:
        space = parse_space({"decay": {"step": {"range": [1, 3]}, "log": {"choice": [True, False]}}})
        assert list(space.parameters) == ["decay.step", "decay.log"]

    @pytest.mark.parametrize(
        ("written", "message"),
        [
            ({"uniform": [1, 0]}, "Uniform: needs low < high, got low=1, high=0"),
            ({"log_uniform": [0, 1]}, "LogUniform: a log scale needs low > 0, got low=0"),
            ({"log_uniform": [1e-1, 1e-4]}, "LogUniform: needs low < high"),
            ({"range": [5, 5]}, "Range: needs low < high, got low=5, high=5; for a single value use Constant"),
            ({"range": [1, 5], "step": 0}, "Range: step must be a finite number above 0, got 0"),
            ({"range": [1, 5], "step": "a"}, "Range: step must be a finite number above 0, got 'a'"),
            ({"normal": [0, 0]}, "Normal: std must be"),
            ({"choice": []}, "Choice: needs at least one value, got an empty list"),
            ({"choice": 5}, "Choice: needs a list of values, got 5"),
            ({"choice": ["a", "a"]}, "Choice: "),
            ({"uniform": [0, float("nan")]}, "Uniform: high must be a finite number, got nan"),
            ({"uniform": ["a", 1]}, "Uniform: low must be a finite number, got 'a'"),
            ({"uniform": [1]}, "uniform takes a list of two numbers, got [1]"),
            ({"uniform": 3}, "uniform takes a list of two numbers, got 3"),
            ({"range": [1, 2, 3]}, "range takes a list of two numbers, got [1, 2, 3]"),
            ({"uniform": [0, 1], "choice": [1]}, "is of one kind, got choice and uniform"),
            ({"uniform": [0, 1], "step": 1}, "unknown key 'step' beside uniform; known: when"),
            (
                {"range": [0, 9], "stp": 1},
                "unknown key 'stp' beside range; did you mean 'step'?",
            ),
            (
                {"log_unifrm": [1, 2]},
                "unknown kind of parameter 'log_unifrm'; did you mean 'log_uniform'?",
            ),
            ({"rnge": [1, 2], "step": 1}, "unknown kind of parameter 'rnge'; did you mean 'range'?"),
            ({"constnt": 3, "when": {"y": 1}}, "unknown kind of parameter 'constnt'; did you mean 'constant'?"),
            ({"when": {"y": 1}}, "unknown kind of parameter ''; known: choice"),
        ],
    )
    def test_a_mistake_is_named_with_its_parameter(self, written: Any, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_space({"group": {"x": written}, "y": {"choice": [1, 2]}})
        assert str(caught.value).startswith(f"search_space.group.x: {message}")
        assert isinstance(caught.value, FieldError)
        assert caught.value.path == ("search_space", "group", "x")

    @pytest.mark.parametrize(
        ("space", "message"),
        [
            ({}, "search_space: needs at least one parameter"),
            ({"group": {}}, "parameter 'group': an empty mapping holds no parameters"),
            ({"a": {"b": 1}, "a.b": 2}, "parameter 'a.b' is defined twice"),
            ({"a": 1, "a.b": 2}, "parameter 'a.b': 'a' is a parameter itself"),
            ({"a..b": 1}, "parameter 'a..b': a name is one or more words joined by single dots"),
            ({1: {"uniform": [0, 1]}}, "names are strings, got 1; put it in quotes"),
            ({"a": {True: {"uniform": [0, 1]}}}, "names are strings, got True; put it in quotes"),
            ({"x": {"constant": 1, "when": {"kin": 1}}, "kind": {"choice": [1, 2]}}, "did you mean 'kind'?"),
            ({"x": {"constant": 1, "when": {"lr": 0.5}}, "lr": {"uniform": [0, 1]}}, "'lr', which is continuous"),
            ({"x": {"constant": 1, "when": {"kind": "c"}}, "kind": {"choice": ["a", "b"]}}, "'kind' is never 'c'"),
            (
                {
                    "a": {"choice": [1, 2], "when": {"b": 1}},
                    "b": {"choice": [1, 2], "when": {"a": 1}},
                },
                "conditions form a circle",
            ),
        ],
    )
    def test_a_space_that_makes_no_sense_is_refused(self, space: dict[Any, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_space(space)
        assert str(caught.value).startswith("search_space")
        assert message in str(caught.value)


OPTIMIZERS, SCHEDULERS = set(registry.names("optimizers")), set(registry.names("schedulers"))


class TestStrategy:
    @pytest.mark.parametrize("name", sorted(OPTIMIZERS - COMBINATIONS.keys()))
    def test_the_short_form_names_an_optimizer(self, name: str) -> None:
        assert parse_strategy(name) == Strategy(optimizer=name)

    @pytest.mark.parametrize("name", sorted(SCHEDULERS - COMBINATIONS.keys()))
    def test_or_a_scheduler(self, name: str) -> None:
        assert parse_strategy(name) == Strategy(scheduler=name)

    def test_or_both_together(self) -> None:
        assert parse_strategy("pb2") == Strategy(
            optimizer="pb2", scheduler="pbt", scheduler_options={"explore": "optimizer"}
        )
        bohb = Strategy(optimizer="tpe", scheduler="hyperband")
        assert parse_strategy("bohb") == bohb
        assert config_of(strategy="bohb", fidelity={"maximum": 9}).strategy == bohb
        with pytest.raises(ConfigError, match="there is no strategy 'bohp'; did you mean 'bohb'"):
            parse_strategy("bohp")
        with pytest.raises(ConfigError, match="fidelity: is missing"):
            config_of(strategy="bohb")

    def test_what_follows_a_colon_is_the_first_option(self) -> None:
        strategy = Strategy(optimizer="optuna", optimizer_options={"sampler": "TPESampler"})
        assert parse_strategy("optuna:TPESampler") == strategy
        assert config_of(strategy="optuna:TPESampler").strategy == strategy
        assert parse_strategy("grid:3").optimizer_options == {"levels": 3}
        assert parse_strategy("cmaes:0.3").optimizer_options == {"sigma": 0.3}
        assert parse_strategy("bayesian:true").optimizer_options == {"cost_aware": True}

    def test_populations_need_levels_and_name_parameters_that_there_are(self) -> None:
        levels = {"maximum": 50, "grace_period": 10, "interval": 10}
        config = config_of(strategy="pbt", fidelity=levels)
        assert (config.strategy, config.fidelity) == (Strategy(scheduler="pbt"), Fidelity(**levels))
        assert config_of(strategy="pb2", fidelity=levels).strategy == parse_strategy("pb2")
        for strategy in ("pbt", "pb2"):
            with pytest.raises(ConfigError, match="fidelity: is missing"):
                config_of(strategy=strategy)
        for options, words in (({"population": 1}, "from 2 to 100000, got 1"), ({"fixed": ["no"]}, "fixed names 'no'")):
            with pytest.raises(ConfigError, match=words):
                config_of(strategy={"scheduler": "pbt", "scheduler_options": options}, fidelity=levels)

    def test_the_long_form_has_options(self) -> None:
        config = config_of(strategy={"optimizer": "grid", "optimizer_options": {"levels": 3}})
        assert config.strategy == Strategy(optimizer="grid", optimizer_options={"levels": 3})

    def test_a_colon_means_the_same_in_the_long_form(self) -> None:
        config = config_of(strategy={"optimizer": "optuna:TPESampler", "optimizer_options": {"n_startup_trials": 5}})
        assert config.strategy.optimizer == "optuna"
        assert config.strategy.optimizer_options == {"sampler": "TPESampler", "n_startup_trials": 5}

    @pytest.mark.parametrize(
        ("strategy", "message"),
        [
            (
                "randon",
                "strategy: there is no strategy 'randon'; did you mean 'random'? known: adaptive, ",
            ),
            ("", "strategy: there is no strategy ''; known:"),
            ("TPE", "strategy: there is no strategy 'TPE'; did you mean 'tpe'?"),
            ("optna:TPESampler", "strategy: there is no strategy 'optna:TPESampler'; did you mean 'optuna'?"),
            ("fifo:3", "strategy: there is no strategy 'fifo:3'; "),
            ("random:3", "strategy: random has no options; leave the colon out"),
            ("grid:three", "strategy: grid needs levels to be an integer from 1 to 100000, got 'three'"),
            ("grid:1e30", "strategy: grid needs levels to be an integer from 1 to 100000, got 1e+30"),
            ("optuna:TPE", "strategy: Optuna has no sampler 'TPE'; did you mean 'TPESampler'? known: "),
            ({"optimizer": "grd"}, "strategy: there is no optimizer 'grd'; did you mean 'grid'?"),
            ({"scheduler": "lifo"}, "strategy: there is no scheduler 'lifo'; did you mean 'fifo'?"),
            ({"optimizer": "grid", "optimizer_options": {"level": 3}}, "strategy: grid does not take these options"),
            ({"optimizer": "grid", "optimizer_options": {"levels": 0}}, "strategy: grid needs levels to be an integer"),
        ],
    )
    def test_an_unknown_one_is_answered_with_the_closest_known(self, strategy: Any, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            config_of(strategy=strategy)
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize("number", [float("nan"), float("inf")])
    def test_options_are_numbers_that_the_log_can_hold(self, number: float) -> None:
        strategy = {"scheduler": "timeslice", "scheduler_options": {"slice": number}}
        with pytest.raises(ConfigError, match=f"slice: has to be a finite number, got {number}"):
            config_of(strategy=strategy, fidelity={"maximum": 9})


class TestCommand:
    def test_one_line_is_split_as_a_shell_does(self) -> None:
        assert parse_command("command", "python 'my train.py' --lr={lr}") == ["python", "my train.py", "--lr={lr}"]

    def test_a_list_stays_as_it_is(self) -> None:
        assert parse_command("command", ["a b", "c"]) == ["a b", "c"]

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            ("", "command: needs a program to run, got nothing"),
            ("   ", "command: needs a program to run, got nothing"),
            ([], "command: needs a program to run, got nothing"),
            ("echo 'x", 'command: no closing quotation, got "echo \'x"'),
            ("echo \\", "command: no escaped character, got 'echo \\\\'"),
        ],
    )
    def test_what_is_no_command_is_refused(self, command: Any, message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            parse_command("command", command)
        assert str(caught.value) == message

    @pytest.mark.parametrize("regex", [None, r"(?P<accuracy>\d+)", r"(\w+)=(\d+)", r"(?P<a>\d)(x)?"])
    def test_a_pattern_that_can_find_metrics_is_taken(self, regex: str | None) -> None:
        check_metrics(MetricsSource(regex=regex))

    @pytest.mark.parametrize("regex", ["", "accuracy", r"accuracy=(\d+)", r"(a)(b)(c)"])
    def test_a_pattern_that_names_no_metric_is_refused(self, regex: str) -> None:
        with pytest.raises(ConfigError, match=r"^metrics.regex: needs groups named like metrics"):
            check_metrics(MetricsSource(regex=regex))

    def test_a_broken_pattern_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^metrics.regex: is no regular expression: .*, got '\('"):
            check_metrics(MetricsSource(regex="("))


class TestConfig:
    def test_defaults_become_the_values_that_will_be_used(self) -> None:
        config = config_of()
        assert config.max_parallel == SmartDefaults(Resources()).detect_optimal_parallelism()
        assert 0 <= config.seed < 2**32
        assert (config.max_trials, config.budget_hours, config.grace_s) == (None, None, 10.0)
        assert (config.directory, config.working_directory) == ("/files", "/code")

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"retry": RetryPolicy(max_retries=-1)}, "retry.max_retries: expected int >= 0, got -1"),
            ({"retry_eval": RetryPolicy(backoff=1000)}, "retry_eval.backoff: expected float <= 100.0, got 1000"),
            ({"strategy": Strategy(optimizer_options={"x": "\ud800"})}, "strategy: cannot be written as JSON: 'utf-8'"),
            ({"metric": "\ud800"}, "metric: cannot be written as JSON: 'utf-8' codec"),
            (
                {"resources": {"memory_gb": 8}, "retry": {"max_memory_gb": 4}},
                "retry.max_memory_gb: is at least resources.memory_gb (8), from which memory grows, got 4",
            ),
            (
                {"resources": {"memory_gb": 8}, "retry_eval": {"max_memory_gb": 7.5}},
                "retry_eval.max_memory_gb: is at least resources.memory_gb (8), from which memory grows, got 7.5",
            ),
        ],
    )
    def test_what_could_not_be_read_again_or_cannot_be_is_not_written(
        self, settings: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ConfigError) as caught:
            config_of(**settings)
        assert str(caught.value).startswith(message)

    def test_a_name_given_elsewhere_is_one_line_as_well(self) -> None:
        with pytest.raises(FieldError, match=r"name: is one line"):
            build_config(
                parse_settings(LEAST),
                name="two\nlines",
                target=COMMAND,
                evaluate=None,
                directory=Path("/files"),
                working_directory=Path("/code"),
            )

    @settings(max_examples=300, deadline=None)
    @example({"max_retries": 1_000_001})
    @example({"seed": 2**70})
    @example({"resources": {"cpus": 2**63}})
    @given(given_settings())
    def test_what_is_accepted_can_be_written_and_read_again(self, given: dict[str, Any]) -> None:
        try:
            config = config_of(**given)
        except ConfigError:
            return
        assert msgspec.json.decode(msgspec.json.encode(config), type=SweepConfig) == config

    @pytest.mark.parametrize("name", ["max_retries", "retry_delay_seconds"])
    def test_a_short_setting_has_the_bounds_of_the_long_one(self, name: str) -> None:
        short, long = (
            {field.name: field for field in msgspec.structs.fields(kind)} for kind in (Settings, RetryPolicy)
        )
        bounds = [kind for kind in get_args(short[name].type) if kind is not type(None)]
        assert bounds[0] in {long[name].type, *get_args(long[name].type)}

    def test_jobs_with_many_cpus_leave_room_for_fewer(self) -> None:
        assert config_of(resources={"cpus": 10_000}).max_parallel == 1

    def test_a_sweep_goes_on_whatever_became_of_its_limits_and_seed(self) -> None:
        first = config_of(seed=1, max_trials=3, max_parallel=1, grace_s=1)
        assert not differences(first, config_of(seed=2, max_trials=9, budget_hours=3, max_hours=1))

    @pytest.mark.parametrize(
        "change",
        [
            {"search_space": {"lr": {"uniform": [0, 2]}}},
            {"metric": "loss"},
            {"direction": "minimize"},
            {"strategy": "grid"},
            {"isolation": "reuse"},
            {"target": CommandTarget(argv=["false"])},
            {"evaluate": COMMAND},
            {"working_directory": "/other"},
        ],
    )
    def test_another_experiment_is_another_sweep(self, change: dict[str, Any]) -> None:
        assert differences(config_of(), config_of(**change))

    def test_a_function_is_the_same_however_its_pickle_differs(self) -> None:
        pickles = [PickledTarget(name="train", path=f"/{sha}.pkl", sha256=sha) for sha in ("a", "b")]
        assert not differences(config_of(pickles[0]), config_of(pickles[1]))
        function = FunctionTarget(module="/code/train.py", name="train", import_path=["/code"])
        assert not differences(config_of(function), config_of(replace(function, import_path=["/libraries"])))
        for other in (pickles[0], replace(function, module="/copy/train.py"), replace(function, name="other")):
            assert differences(config_of(function), config_of(other))


class TestNotify:
    @pytest.mark.parametrize(
        "short", ["$SLACK_URL", ["$SLACK_URL"], ["$SLACK_URL", "$SLACK_URL"], {"channels": "$SLACK_URL"}]
    )
    def test_short_forms_name_channels(self, short: Any) -> None:
        assert config_of(notify=short).notify == Notify(channels=("$SLACK_URL",))

    def test_without_it_the_sweep_names_nobody(self) -> None:
        assert config_of().notify is None
        assert config_of(notify={"on": ["new_best"]}).notify == Notify(on=(NoticeKind.NEW_BEST,))

    def test_who_is_told_may_change_without_making_another_sweep(self) -> None:
        assert differences(config_of(notify="$A"), config_of(notify="$B")) == {}

    @pytest.mark.parametrize(
        "notify",
        [
            "slack://TOKENaaaa/b/c",
            ["$OK", "slack://TOKENaaaa/b/c"],
            {"channels": "slack://TOKENaaaa/b/c"},
            {"channels": [["slack://TOKENaaaa/b/c"]]},
            {"channels": {"slack": "slack://TOKENaaaa/b/c"}},
            {"on": ["slack://TOKENaaaa/b/c"]},
            {"every_minutes": "slack://TOKENaaaa/b/c"},
        ],
    )
    def test_urls_are_refused_and_not_repeated(self, notify: Any) -> None:
        with pytest.raises(FieldError, match="notify") as caught:
            config_of(notify=notify)
        assert "TOKEN" not in str(caught.value)

    @pytest.mark.parametrize(
        ("notify", "why"),
        [
            ({"chanels": ["$A"]}, "did you mean 'channels'"),
            ({"on": ["new_bst"]}, "did you mean 'new_best'"),
            ({"every_minutes": -1}, "every_minutes"),
            ({"stalled_minutes": 0}, "stalled_minutes"),
            ("$", "'\\$VARIABLE' or paths"),
        ],
    )
    def test_mistakes_are_named(self, notify: Any, why: str) -> None:
        with pytest.raises(FieldError, match=why):
            config_of(notify=notify)
