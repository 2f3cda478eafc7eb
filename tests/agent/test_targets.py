"""Finding the function that a target names, in this process and in those of the jobs."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import pytest

from metta.sweep.agent.targets import import_file, import_target_module, is_importing, load_function
from metta.sweep.errors import TargetError
from metta.sweep.launch import describe_function
from metta.sweep.model.sweep import FunctionTarget, PickledTarget
from python_processes import run_python

LOAD = """
import sys, msgspec
from metta.sweep.agent.targets import load_function
from metta.sweep.model.sweep import FunctionTarget, PickledTarget
target = msgspec.json.decode(sys.argv[1], type=FunctionTarget | PickledTarget)
print(load_function(target)({"x": 2}))
"""


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports is forgotten after it."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(path: Path, text: str) -> str:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(dedent(text))
    return str(path)


def in_another_process(function: Callable[..., Any], folder: Path) -> str:
    """What the function makes of `{"x": 2}` when a job finds it by its description."""
    target, blob = describe_function(function, folder)
    if isinstance(target, PickledTarget):
        Path(target.path).write_bytes(blob)
    return run_python("-c", LOAD, msgspec.json.encode(target).decode(), folder=folder).out.strip()


class TestFiles:
    def test_a_script_is_imported_under_its_name_and_once(self, tmp_path: Path) -> None:
        path = write(tmp_path / "some_script.py", "print('imported'); value = __name__")
        module = import_file(path)
        assert (module.value, module.__file__) == ("some_script", path)
        assert sys.modules["some_script"] is module is import_file(path) is import_target_module(path)

    def test_it_finds_its_neighbours(self, tmp_path: Path) -> None:
        write(tmp_path / "some_neighbour.py", "value = 3")
        path = write(tmp_path / "some_script.py", "from some_neighbour import value")
        assert import_file(path).value == 3

    @pytest.mark.parametrize("name", ["random", "metta", "json"])
    def test_a_script_called_like_a_module_in_use_does_not_take_its_place(self, tmp_path: Path, name: str) -> None:
        before = sys.modules[name]
        path = write(tmp_path / f"{name}.py", "value = 3")
        module = import_file(path)
        assert (module.value, import_file(path)) == (3, module)
        assert sys.modules[name] is before

    def test_two_scripts_of_one_name_are_two(self, tmp_path: Path) -> None:
        paths = [write(tmp_path / folder / "some_script.py", f"value = {folder!r}") for folder in "ab"]
        assert [import_file(path).value for path in paths] == ["a", "b"]

    def test_a_script_that_runs_its_sweep_is_imported_up_to_there(self, tmp_path: Path) -> None:
        text = """
            from metta.sweep import Uniform, sweep
            @sweep(search_space={"x": Uniform(0, 1)}, metric="m")
            def train(config):
                return {"m": config["x"]}
            try:
                train.run()
            except Exception:
                raise RuntimeError("no handler sees it")
            value = "what follows belongs to the process that runs the sweep"
        """
        path = write(tmp_path / "some_script.py", text)
        module = import_file(path)
        assert not hasattr(module, "value")
        assert not is_importing()
        function = load_function(FunctionTarget(module=path, name="train"))
        assert function is module.train.function
        assert function({"x": 1}) == {"m": 1}
        assert not (tmp_path / "sweeps.db").exists()

    @pytest.mark.parametrize("error", ["ValueError('boom')", "SystemExit(3)", "KeyboardInterrupt()"])
    def test_a_script_that_fails_leaves_no_half_of_it(self, tmp_path: Path, error: str) -> None:
        path = write(tmp_path / "some_script.py", f"value = 1\nraise {error}")
        with pytest.raises(BaseException, match=r"boom|3|"):
            import_file(path)
        assert "some_script" not in sys.modules
        assert not is_importing()

    def test_what_is_no_python_file_is_refused(self, tmp_path: Path) -> None:
        folder = tmp_path / "folder.py"
        folder.mkdir()
        for path in (folder, tmp_path / "missing.py", Path(write(tmp_path / "text.txt", "value = 1"))):
            with pytest.raises(TargetError, match=r"^target: .* is not a Python file that can be imported"):
                import_file(str(path))


class TestDescriptions:
    def test_a_function_of_a_script_is_found_by_file_and_name(self, tmp_path: Path) -> None:
        path = write(tmp_path / "some_script.py", "factor = 3\ndef train(config): return factor * config['x']")
        function = import_file(path).train
        target, _ = describe_function(function, tmp_path)
        assert isinstance(target, FunctionTarget)
        assert (target.module, target.name) == (path, "train")
        assert in_another_process(function, tmp_path) == "6"

    def test_a_function_of_a_package_is_found_by_module_and_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path / "code" / "some_package" / "train.py", "def train(config): return config['x'] + 1")
        monkeypatch.syspath_prepend(tmp_path / "code")
        function = import_target_module("some_package.train").train
        target, _ = describe_function(function, tmp_path)
        assert isinstance(target, FunctionTarget)
        assert (target.module, target.name) == ("some_package.train", "train")
        # The job's own import path does not have the folder `code`: the description does.
        assert in_another_process(function, tmp_path) == "3"

    def test_a_method_of_a_class_is_found_by_its_dotted_name(self, tmp_path: Path) -> None:
        text = """
            class Trainer:
                @staticmethod
                def train(config): return config["x"]
                @classmethod
                def build(cls, config): return cls.train(config)
        """
        trainer = import_file(write(tmp_path / "some_script.py", text)).Trainer
        target, _ = describe_function(trainer.train, tmp_path)
        assert isinstance(target, FunctionTarget)
        assert target.name == "Trainer.train"
        assert in_another_process(trainer.train, tmp_path) == "2"
        assert in_another_process(trainer.build, tmp_path) == "2"

    def test_what_has_no_name_to_be_found_by_is_carried_by_value(self, tmp_path: Path) -> None:
        factor = 5

        def closure(config: dict[str, Any]) -> float:
            return factor * twice(config["x"])

        def twice(x: float) -> float:
            return 2 * x

        class Callable:
            def __init__(self, factor: int) -> None:
                self.factor = factor

            def __call__(self, config: dict[str, Any]) -> float:
                return self.factor * float(config["x"])

            def method(self, config: dict[str, Any]) -> float:
                return self(config) + 1

        assert in_another_process(closure, tmp_path) == "20"
        assert in_another_process(lambda config: config["x"], tmp_path) == "2"
        assert in_another_process(functools.partial(lambda a, config: a + config["x"], 7), tmp_path) == "9"
        assert in_another_process(Callable(3), tmp_path) == "6.0"
        assert in_another_process(Callable(3).method, tmp_path) == "7.0"

    def test_a_lambda_finds_the_modules_beside_its_script(self, tmp_path: Path) -> None:
        write(tmp_path / "code" / "some_neighbour.py", "def f(x): return 10 * x")
        path = write(
            tmp_path / "code" / "some_script.py", "import some_neighbour\ntrain = lambda c: some_neighbour.f(c['x'])"
        )
        assert in_another_process(import_file(path).train, tmp_path) == "20"

    def test_a_name_that_means_something_else_by_now_is_not_trusted(self, tmp_path: Path) -> None:
        module = import_file(write(tmp_path / "some_script.py", "def train(config): return 'first'"))
        first = module.train
        module.train = lambda config: "second"
        target, _ = describe_function(first, tmp_path)
        assert isinstance(target, PickledTarget)

    def test_what_cannot_be_carried_is_refused_with_a_way_out(self, tmp_path: Path) -> None:
        class Wordy:
            def __reduce__(self) -> Any:
                raise TypeError("not\n  this one")

        for held in (threading.Lock(), iter(range(3) for _ in range(3)), Wordy()):

            def function(config: dict[str, Any], held: Any = held) -> Any:
                return held

            with pytest.raises(TargetError) as caught:
                describe_function(function, tmp_path)
            assert str(caught.value).startswith("target: function cannot be carried to other processes (TypeError: ")
            assert "\n" not in str(caught.value)
            assert str(caught.value).endswith("or open files, locks and connections inside it")


class TestLoading:
    def test_a_function_that_is_not_there_is_named(self, tmp_path: Path) -> None:
        path = write(tmp_path / "some_script.py", "value = 3")
        for name in ("train", "value", "Trainer.train", "value.real"):
            with pytest.raises(TargetError) as caught:
                load_function(FunctionTarget(module=path, name=name))
            assert str(caught.value) == f"target: {path} has no function {name!r}"

    def test_a_saved_function_that_was_lost_or_changed_is_refused(self, tmp_path: Path) -> None:
        target, blob = describe_function(lambda config: config, tmp_path)
        assert isinstance(target, PickledTarget)
        with pytest.raises(TargetError, match=r"^target: the saved function '<lambda>' cannot be read: .*No such file"):
            load_function(target)
        Path(target.path).write_bytes(blob)
        assert load_function(target)({"x": 2}) == {"x": 2}
        Path(target.path).write_bytes(blob + b" ")
        with pytest.raises(TargetError, match=r"is not the function that the sweep was started with$"):
            load_function(target)

    def test_its_folders_join_the_import_path_once_and_in_order(self, tmp_path: Path) -> None:
        path = write(tmp_path / "some_script.py", "def train(config): pass")
        folders = [str(tmp_path / name) for name in ("a", "b")]
        target = FunctionTarget(module=path, name="train", import_path=[*folders, sys.path[0]])
        before = [*sys.path]
        for _ in range(2):
            load_function(target)
        assert [folder for folder in sys.path if folder != str(tmp_path)] == [*folders, *before]
