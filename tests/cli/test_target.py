"""What TARGET of `metta sweep run` may name, and what is said when it names nothing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from metta.sweep.cli.target import load_definition
from metta.sweep.errors import ConfigError, UsageError
from metta.sweep.launch import Definition
from metta.sweep.model.run import Resources
from metta.sweep.model.sweep import CommandTarget, MetricsSource

SWEEP = """
    from metta.sweep import Uniform, sweep

    @sweep(search_space={"x": Uniform(0, 1)}, metric="y", max_trials=3)
    def train(config):
        return {"y": 1}
"""
FILE = "metric: y\nmax_trials: 3\nresources: {cpus: 2}\nsearch_space: {x: {uniform: [0, 1]}}\n"


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working folder is the test's; what it imports is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(name: str, text: str) -> None:
    path = Path(name)
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(dedent(text))


def load(target: str, **overrides: Any) -> Definition:
    return load_definition(target, overrides)


class TestPython:
    @pytest.mark.parametrize(
        "target", ["my_code/my_script.py", "my_code/my_script.py:train", "my_code.my_script", "my_code.my_script:train"]
    )
    def test_a_file_or_module_with_one_sweep_is_enough_and_its_name_does_no_harm(self, target: str) -> None:
        write("my_code/my_script.py", SWEEP)
        definition = load(target, max_trials=5)
        assert definition.target({"x": 1}) == {"y": 1}
        assert (definition.settings.metric, definition.settings.max_trials) == ("y", 5)
        assert definition.working_directory == Path.cwd()
        is_module = not target.split(":", maxsplit=1)[0].endswith(".py")
        assert definition.default_name == ("train" if is_module else "my_script")

    def test_a_sweep_under_two_names_is_one(self) -> None:
        write("my_script.py", dedent(SWEEP) + "also = train\n")
        assert load("my_script.py").target.__name__ == "train"

    @pytest.mark.parametrize("target", ["my_script.py", "my_script"])
    def test_a_script_that_starts_its_sweep_is_asked_for_it_and_not_run(self, target: str) -> None:
        write("my_script.py", dedent(SWEEP) + "train.run()\nraise RuntimeError('not reached')\n")
        assert load(target).settings.metric == "y"
        assert not Path("sweeps.db").exists()

    def test_what_it_prints_does_not_get_into_the_output(self, capsys: pytest.CaptureFixture[str]) -> None:
        write("my_script.py", "print('hello')\n" + dedent(SWEEP))
        load("my_script.py")
        assert capsys.readouterr() == ("", "hello\n")

    @pytest.mark.parametrize(
        ("target", "message"),
        [
            ("missing.py", "target: there is no file missing.py"),
            ("missing.module:train", "target: missing.module cannot be imported: ModuleNotFoundError: No module named"),
            ("", "target: '' is neither a .py, .yaml or .toml file nor a module"),
            ("./script", "target: './script' is neither a .py, .yaml or .toml file nor a module"),
            ("two.py", "target: two.py has several sweeps; name one: two.py:train, two.py:other"),
            ("two.py:trian", "target: two.py has no sweep 'trian'; did you mean 'train'? known: other, train"),
            ("two.py:plain", "target: 'plain' in two.py is not decorated with @sweep, so its search space is unknown"),
            ("none.py", "target: none.py has no function decorated with @sweep"),
            ("broken.py", "target: broken.py cannot be imported: SyntaxError: "),
            ("raising.py", "target: raising.py cannot be imported: ValueError: two lines ({folder}/helping.py:2)"),
            ("exiting.py", "target: exiting.py cannot be imported: SystemExit: 3 ({folder}/exiting.py:1)"),
            ("wrong.py", "wrong.py:3: max_trails: unknown key; did you mean 'max_trials'?"),
            ("wrong_space.py", "wrong_space.py:2: Uniform: needs low < high, got low=1, high=0"),
        ],
    )
    def test_what_names_no_sweep_is_refused_in_one_line(self, tmp_path: Path, target: str, message: str) -> None:
        other = "@sweep(search_space={'x': 1}, metric='y')\ndef other(config): pass\n"
        write("two.py", dedent(SWEEP) + other + "def plain(config): pass\n")
        write("none.py", "from metta.sweep import sweep\n")
        write("broken.py", "def train(config) return 3")
        write("helping.py", "def help():\n    raise ValueError('two\\n  lines')\n")
        write("raising.py", "import helping\nhelping.help()\n")
        write("exiting.py", "raise SystemExit(3)\n")
        write("wrong.py", "from metta.sweep import sweep\n\nsweep(search_space={'x': 1}, metric='y', max_trails=3)")
        write("wrong_space.py", "from metta.sweep import Uniform\nUniform(1, 0)\n")
        with pytest.raises(UsageError) as caught:
            load(target)
        assert str(caught.value).startswith(message.format(folder=tmp_path))
        assert "\n" not in str(caught.value)

    def test_a_bad_option_names_its_field(self) -> None:
        write("my_script.py", SWEEP)
        with pytest.raises(ConfigError, match=r"^max_parallel: expected int >= 1, got 0$"):
            load("my_script.py", max_parallel=0)


class TestFiles:
    def test_a_command_runs_in_the_folder_of_its_file(self) -> None:
        write("files/my_sweep.yaml", FILE + "command: echo {x}\nevaluate: [cat, file]\nmetrics: {stdout: json}\n")
        definition = load("files/my_sweep.yaml", max_trials=7, strategy="grid")
        source = MetricsSource(stdout="json")
        assert definition.target == CommandTarget(argv=["echo", "{x}"], metrics=source)
        assert definition.evaluate == CommandTarget(argv=["cat", "file"], metrics=source)
        settings = definition.settings
        assert (settings.max_trials, settings.strategy, settings.resources) == (7, "grid", Resources(cpus=2))
        assert (definition.default_name, definition.working_directory) == ("my_sweep", Path.cwd() / "files")

    @pytest.mark.parametrize("where", ["my_functions.py", "my_functions", "my_package.functions"])
    def test_functions_are_found_from_the_folder_of_its_file(self, where: str) -> None:
        code = """
            import my_helper
            def train(config): return {"y": my_helper.value}
            def score(config): return {"y": 10 * my_helper.value}
        """
        write("files/my_functions.py", code)
        write("files/my_package/functions.py", code)
        write("files/my_helper.py", "value = 3")
        write("files/my_sweep.yaml", FILE + f"function: {where}:train\nevaluate: {where}:score\n")
        definition = load("files/my_sweep.yaml")
        assert (definition.target({}), definition.evaluate({})) == ({"y": 3}, {"y": 30})

    def test_a_decorated_function_takes_its_settings_from_the_file(self) -> None:
        write("my_script.py", SWEEP)
        write("my_sweep.toml", "metric = 'z'\nfunction = 'my_script.py:train'\n[search_space]\nx = 1\n")
        definition = load("my_sweep.toml")
        assert (definition.settings.metric, definition.settings.max_trials) == ("z", None)
        assert definition.target({}) == {"y": 1}

    @pytest.mark.parametrize(
        ("function", "message"),
        [
            ("train", "function: 'train' names no function; write file.py:function or package.module:function"),
            ("my_script.py:trian", "function: my_script.py has no function 'trian'; did you mean 'train'?"),
            ("missing.py:train", "target: there is no file missing.py"),
        ],
    )
    def test_a_function_that_is_not_there_is_named(self, function: str, message: str) -> None:
        write("my_script.py", SWEEP)
        write("my_sweep.yaml", FILE + f"function: {function}\n")
        with pytest.raises(UsageError) as caught:
            load("my_sweep.yaml")
        assert str(caught.value).startswith(message)

    def test_a_bad_option_names_its_field(self) -> None:
        write("my_sweep.yaml", FILE + "command: echo {x}\n")
        with pytest.raises(ConfigError, match=r"^seed: expected int >= 0, got -1$"):
            load("my_sweep.yaml", seed=-1)
