"""Sweeps in YAML and TOML: what a file may say, where its mistakes are, and the schema that editors check it by."""

from __future__ import annotations

import json
import re
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from metta.sweep.config import SweepFile
from metta.sweep.config_file import json_schema, load
from metta.sweep.config_space import KINDS, parse_space
from metta.sweep.errors import ConfigError
from metta.sweep.model.run import FailureKind, RetryPolicy
from metta.sweep.model.space import Choice, LogUniform, Range, Uniform
from metta.sweep.model.sweep import MetricsSource

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"

WHOLE = """\
name: demo
command: [python, train.py, "--lr={lr}"]
metrics:
  regex: '(\\w+)=([0-9.]+)'
search_space:
  lr: {log_uniform: [1e-4, 1e-1]}
  trainer:
    optimizer:
      kind: {choice: [sgd, adam]}
      momentum: {uniform: [.5, 1.], when: {trainer.optimizer.kind: sgd}}
    layers: {range: [1, 10], step: 3}
metric: accuracy
max_trials: 10
"""


@pytest.fixture
def read(tmp_path: Path) -> Any:
    """Loads a file with the text given."""

    def read_text(text: str, name: str = "sweep.yaml") -> SweepFile:
        path = tmp_path / name
        path.write_text(dedent(text))
        return load(path)

    return read_text


@pytest.fixture
def problem(tmp_path: Path, read: Any) -> Any:
    """The message about a file, from its line on."""

    def message_about(text: str, name: str = "sweep.yaml") -> str:
        with pytest.raises(ConfigError) as caught:
            read(text, name)
        message = str(caught.value)
        assert "\n" not in message
        return message.removeprefix(f"{tmp_path / name}:")

    return message_about


class TestYaml:
    def test_a_whole_file_is_read(self, read: Any) -> None:
        file = read(WHOLE)
        assert (file.name, file.metric, file.max_trials) == ("demo", "accuracy", 10)
        assert file.command == ["python", "train.py", "--lr={lr}"]
        assert file.metrics == MetricsSource(regex=r"(\w+)=([0-9.]+)")
        assert parse_space(file.search_space).parameters == {
            "lr": LogUniform(1e-4, 1e-1),
            "trainer.optimizer.kind": Choice(["sgd", "adam"]),
            "trainer.optimizer.momentum": Uniform(0.5, 1.0, when={"trainer.optimizer.kind": "sgd"}),
            "trainer.layers": Range(1, 10, 3),
        }

    def test_the_examples_are_read(self) -> None:
        assert load(EXAMPLES / "command.yaml").name == "digits-command"
        population = load(EXAMPLES / "population.yaml")
        assert population.fidelity is not None
        assert population.fidelity.interval == 10

    @pytest.mark.parametrize(
        ("written", "number"),
        [
            ("1e-4", 1e-4),
            ("1E-4", 1e-4),
            ("-1e3", -1000.0),
            ("+1.5e+3", 1500.0),
            (".5", 0.5),
            ("1.", 1.0),
            ("1.e2", 100.0),
            ("12", 12),
            ("-3", -3),
            ("0x1f", 31),
            ("0o17", 15),
        ],
    )
    def test_numbers_are_those_of_yaml_1_2(self, read: Any, written: str, number: float) -> None:
        [value] = read(f"command: 'true'\nmetric: m\nsearch_space: {{x: {{choice: [{written}]}}}}").search_space["x"][
            "choice"
        ]
        assert value == number
        assert type(value) is type(number)

    @pytest.mark.parametrize("word", ["true", "True", "TRUE", "false", "False", "FALSE"])
    def test_booleans_are_those_of_yaml_1_2(self, read: Any, word: str) -> None:
        file = read(f"command: 'true'\nmetric: m\nsearch_space: {{x: {{choice: [{word}]}}}}")
        assert file.search_space["x"]["choice"] == [word.lower() == "true"]

    @pytest.mark.parametrize("word", ["on", "off", "yes", "No", "ON", "y", "n", "tRUE"])
    def test_other_words_are_none(self, read: Any, word: str) -> None:
        file = read(f"command: 'true'\nmetric: m\nsearch_space: {{{word}: {{choice: [{word}]}}}}")
        assert file.search_space == {word: {"choice": [word]}}

    def test_a_retry_policy_names_the_failures_it_is_for(self, read: Any) -> None:
        assert read(f"{WHOLE}retry: {{on: [user_error]}}\n").retry.on == (FailureKind.USER_ERROR,)

    def test_a_value_may_be_used_twice(self, read: Any) -> None:
        file = read(f"{WHOLE}retry: &policy {{backoff: 3}}\nretry_eval: *policy\n")
        assert file.retry == file.retry_eval == RetryPolicy(backoff=3)

    @given(st.floats(allow_nan=False, allow_infinity=False))
    def test_every_float_is_read_as_python_writes_it(self, tmp_path_factory: Any, number: float) -> None:
        path = tmp_path_factory.getbasetemp() / "float.yaml"
        path.write_text(f"command: 'true'\nmetric: m\nsearch_space: {{x: {{constant: {number!r}}}}}")
        assert load(path).search_space == {"x": {"constant": number}}

    @pytest.mark.parametrize("text", ["16:9", "08", "1e", "e5", "1.2.3", "--1", "1_000", "1:30.5", "abc"])
    def test_what_is_no_number_is_a_string(self, read: Any, text: str) -> None:
        file = read(f"command: 'true'\nmetric: m\nname: {text}\nsearch_space: {{x: {{choice: [{text}]}}}}")
        assert file.name == text
        assert file.search_space["x"]["choice"] == [text]


class TestMistakes:
    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            ("max_trials: 10", "max_trails: 10", "13: max_trails: unknown key; did you mean 'max_trials'?"),
            ("  regex:", "  regexp:", "4: metrics.regexp: unknown key; did you mean 'regex'?"),
            ("max_trials: 10", "max_trials: ten", "13: max_trials: expected int | null, got 'ten'"),
            (
                "[1e-4, 1e-1]",
                "[1e-1, 1e-4]",
                "6: search_space.lr: LogUniform: needs low < high, got low=0.1",
            ),
            ("[1e-4, 1e-1]", "[0, 1e-1]", "6: search_space.lr: LogUniform: a log scale needs low > 0, got low=0"),
            ("log_uniform", "log_unifrm", "6: search_space.lr: unknown kind of parameter 'log_unifrm'; did you mean"),
            ("[sgd, adam]", "[]", "9: search_space.trainer.optimizer.kind: Choice: needs at least one value"),
            (
                "step: 3",
                "stp: 3",
                "11: search_space.trainer.layers: unknown key 'stp' beside range; did you mean",
            ),
            (".kind: sgd}", ".kind: sdg}", "5: search_space: parameter 'trainer.optimizer.momentum': "),
            ("metric: accuracy", "metric:", "12: metric: is missing"),
            ("'(\\w+)=([0-9.]+)'", "'('", "4: metrics.regex: is no regular expression"),
            ("'(\\w+)=([0-9.]+)'", "'accuracy'", "4: metrics.regex: needs groups"),
            ("[python, train.py,", "[python, 3,", "2: command.1: expected str, got 3"),
            ('[python, train.py, "--lr={lr}"]', "[]", "2: command: needs a program to run"),
            ('[python, train.py, "--lr={lr}"]', "python 'train.py", "2: command: no closing quotation"),
            ("metric: accuracy", "metric: accuracy\nevaluate: ''", "13: evaluate: needs a program to run"),
            ("name: demo", "function: train.py:train", "2: command: give either command or function, and not both"),
            ("metric: accuracy", "metric: accuracy\nname: other", "13: name: is given twice, first in line 1"),
            ("  trainer:", "  lr: 3\n  trainer:", "7: search_space.lr: is given twice, first in line 6"),
            ("  trainer:", "  7: {uniform: [0, 1]}\n  trainer:", "7: search_space.7: names are strings, got 7; put"),
            ("max_trials: 10", "max_trials: [", "14: is not valid YAML: "),
            ("max_trials: 10", "max_trials: @10", "13: is not valid YAML: found character '@' that cannot start"),
            ("max_trials: 10", "max_trials: !!python/name:os.system x", "13: is not valid YAML: could not determine"),
        ],
    )
    def test_the_line_of_a_mistake_is_named(self, problem: Any, before: str, after: str, message: str) -> None:
        assert WHOLE.count(before) == 1
        assert problem(WHOLE.replace(before, after)).startswith(message)

    @pytest.mark.parametrize(
        "text",
        [
            "retry: &a {on: *a}",
            "retry: &a [*a]",
            "strategy: {optimizer: grid, optimizer_options: &a {levels: [1, *a]}}",
            "search_space: &a {x: {y: *a}}",
            "retry: &a\n  <<: *a",
            "? &a [*a]\n: 1",
        ],
    )
    def test_a_value_within_itself_is_refused(self, problem: Any, text: str) -> None:
        message = "1: is not valid YAML: an alias stands within the value that it names; write the value out"
        assert problem(text).partition(":")[2] == message.partition(":")[2]

    def test_values_that_grow_by_aliases_cost_nothing(self, problem: Any) -> None:
        levels = [f"a{n}: &a{n} {{{', '.join(f'{key}: *a{n - 1}' for key in 'abcdefghij')}}}" for n in range(1, 30)]
        assert "a0: unknown key" in problem("\n".join(["a0: &a0 {x: 1}", *levels]))

    def test_nesting_without_end_is_refused(self, problem: Any) -> None:
        assert "is nested too deeply" in problem(f"retry: {'[' * 5000}")

    def test_a_missing_key_has_no_line(self, problem: Any) -> None:
        assert problem(WHOLE.replace("metric: accuracy\n", "")) == " metric: is missing; every sweep needs one"

    def test_neither_command_nor_function_is_refused(self, problem: Any) -> None:
        text = WHOLE.replace('command: [python, train.py, "--lr={lr}"]\n', "")
        assert problem(text) == " command: give either command or function, and not both"

    @pytest.mark.parametrize(("text", "got"), [("", "NoneType"), ("- a", "list"), ("hello", "str"), ("3", "int")])
    def test_what_is_no_mapping_is_no_sweep(self, problem: Any, text: str, got: str) -> None:
        assert problem(text) == f" a sweep is a mapping of keys to values, got {got}"

    def test_a_file_that_cannot_be_read_is_named(self, tmp_path: Path) -> None:
        for path in (tmp_path / "missing.yaml", tmp_path):
            with pytest.raises(ConfigError, match=f"^{path}: cannot be read: "):
                load(path)

    @pytest.mark.parametrize("name", ["sweep.yaml", "sweep.toml"])
    def test_binary_garbage_is_no_sweep(self, tmp_path: Path, name: str) -> None:
        path = tmp_path / name
        for garbage in (b"\xff\xfe\x00\x01", b"a: \x00\x07"):
            path.write_bytes(garbage)
            with pytest.raises(ConfigError, match=r"cannot be read|is not valid") as caught:
                load(path)
            assert "\n" not in str(caught.value)


class TestToml:
    TEXT = """\
    command = "python train.py"  # a comment
    metric = "accuracy"
    max_trials = 3

    [search_space]
    lr = {log_uniform = [1e-4, 1e-1]}
    trainer.layers = {range = [1, 3]}

    [search_space.optimizer]
    kind = {choice = ["a"]}
    """

    def test_toml_says_the_same(self, read: Any) -> None:
        file = read(self.TEXT, "sweep.toml")
        assert (file.command, file.metric, file.max_trials) == ("python train.py", "accuracy", 3)
        assert parse_space(file.search_space).parameters == {
            "lr": LogUniform(1e-4, 1e-1),
            "trainer.layers": Range(1, 3),
            "optimizer.kind": Choice(["a"]),
        }

    @pytest.mark.parametrize(
        ("before", "after", "message"),
        [
            ("max_trials", "max_trails", "3: max_trails: unknown key; did you mean 'max_trials'?"),
            ("[1e-4, 1e-1]", "[0.0, 1e-1]", "6: search_space.lr: LogUniform: a log scale needs low > 0"),
            ("[1, 3]", "[3, 1]", "7: search_space.trainer.layers: Range: needs low < high"),
            ('["a"]', "[]", "10: search_space.optimizer.kind: Choice: needs at least one value"),
            ("= 3", "= ", " is not valid TOML: Invalid value (at line 3, column 14)"),
        ],
    )
    def test_the_line_of_a_mistake_is_named(self, problem: Any, before: str, after: str, message: str) -> None:
        assert problem(dedent(self.TEXT).replace(before, after), "sweep.toml").startswith(message)


def documented() -> list[Any]:
    """The blocks of the documents that are sweeps, or the settings of retries."""
    documents = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [
        pytest.param(suffix, block, id=f"{document.name}-{suffix}")
        for document in documents
        for suffix, block in re.findall(r"^```(yaml|toml)\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)
        if re.search(r"^\[?(search_space|retry)\b", block, re.MULTILINE)
    ]
    assert len(found) >= 3
    return found


@pytest.mark.parametrize(("suffix", "block"), documented())
def test_what_the_documents_show_is_read(read: Any, suffix: str, block: str) -> None:
    if "search_space" not in block:
        least = {"command": "true", "metric": "m", "search_space.x": 1}
        block = "".join(f"{key} = {json.dumps(value)}\n" for key, value in least.items()) + block
        if suffix == "yaml":
            block = block.replace(" = ", ": ").replace("search_space.x: 1", "search_space: {x: 1}")
    read(block, f"sweep.{suffix}")


class TestSchema:
    SCHEMA = json_schema()

    def accepts(self, text: str) -> bool:
        """Through JSON, as an editor sees the file."""
        validator = Draft202012Validator(self.SCHEMA)
        return bool(validator.is_valid(json.loads(json.dumps(yaml.safe_load(text)))))

    def test_it_is_a_valid_json_schema(self) -> None:
        schema = json.loads(json.dumps(self.SCHEMA, allow_nan=False))
        Draft202012Validator.check_schema(schema)
        assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"

    def test_it_knows_every_key(self) -> None:
        assert set(self.SCHEMA["$defs"]["SweepFile"]["properties"]) == set(SweepFile.__struct_fields__)

    def test_it_knows_every_kind_of_parameter(self) -> None:
        kinds = [kind["required"][0] for kind in self.SCHEMA["$defs"]["Parameter"]["oneOf"]]
        assert kinds == list(KINDS)

    @pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
    def test_it_accepts_the_examples(self, example: Path) -> None:
        assert self.accepts(example.read_text().replace("1e-", "1.0e-"))  # PyYAML's own floats are those of YAML 1.1

    @pytest.mark.parametrize(
        "space",
        [
            "{x: 3}",
            "{x: [1, 2]}",
            "{x: {constant: {a: 1}}}",
            "{x: {range: [1, 3], step: 1, log: false, when: {y: 1}}, y: {choice: [1, 2]}}",
            "{a: {b: {c: {normal: [0, 1]}, d: 3}}}",
            "{decay: {step: {range: [1, 3]}, log: {choice: [true, false]}}}",
        ],
    )
    def test_it_accepts_what_is_valid(self, read: Any, space: str) -> None:
        text = f"command: 'true'\nmetric: m\nsearch_space: {space}"
        read(text)
        assert self.accepts(text)

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            ("max_trials", "max_trails"),
            ("  regex:", "  regexp:"),
            ("max_trials: 10", "max_trials: 0"),
            ("max_trials: 10", "max_trials: ten"),
            ("name: demo", "direction: max"),
            ("name: demo", "strategy: {optimzer: grid}"),
            ("log_uniform", "log_unifrm"),
            ("{range: [1, 10], step: 3}", "{rnge: [1, 10], step: 3}"),
            ("step: 3", "stp: 3"),
            ("step: 3", "choice: [1]"),
            ("[1, 10]", "[1]"),
            ("[sgd, adam]", "[]"),
            ("{log_uniform: [1e-4, 1e-1]}", "{}"),
        ],
    )
    def test_it_rejects_what_is_refused(self, problem: Any, before: str, after: str) -> None:
        text = WHOLE.replace("1e-", "1.0e-")
        assert self.accepts(text)
        before, after = before.replace("1e-", "1.0e-"), after.replace("1e-", "1.0e-")
        assert text.count(before) == 1
        assert problem(text.replace(before, after))
        assert not self.accepts(text.replace(before, after))
