"""`@sweep` and what becomes of it: in scripts, notebooks and processes of every kind."""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import metta.sweep
from metta.sweep import Choice, Constant, LogUniform, Range, Sweep, SweepError, SweepResult, Uniform, sweep
from metta.sweep.errors import ConfigError, MissingExtraError, TargetError, UsageError
from metta.sweep.model.run import JobStatus, Resources
from metta.sweep.model.sweep import SweepStatus
from processes import kill_all_in, processes_in
from python_processes import Result, run_python
from waiting import wait_until

#: The way of writing a sweep that started it all.
DSL = """
from metta.sweep import sweep, LogUniform, Choice, Range, report_metrics

@sweep(
    search_space={
        "learning_rate": LogUniform(1e-5, 1e-1),
        "batch_size": Choice([32, 64, 128]),
        "num_layers": Range(2, 8),
    },
    strategy="random",
    max_parallel=10,
    budget_hours=100,
    metric="validation_accuracy",
    direction="maximize",
)
def train(config):
    "Train a model."
    for epoch in range(3):
        report_metrics({"validation_accuracy": config["learning_rate"] * epoch, "epoch": epoch})
    return {"validation_accuracy": config["learning_rate"] * config["num_layers"]}
"""

SUMMARY = """
import json
print(json.dumps([result.name, result.status, result.best.score, result.best.config, len(result.runs)]))
"""


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sweeps of the test keep their store there, and no process of them outlives it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METTA_SWEEP_STORE", raising=False)
    yield
    try:
        wait_until(lambda: not processes_in(tmp_path), what="the end of all processes")
    finally:
        kill_all_in(tmp_path)


def sweep_of(function: Callable[..., Any], **settings: Any) -> SweepResult:
    """Sweep the function over x from 1 to 3, here and now."""
    defaults = {"search_space": {"x": Choice([1, 2, 3])}, "metric": "y", "strategy": "grid", "max_parallel": 2}
    return sweep(**{**defaults, **settings})(function).run(progress=False)


class TestDecorator:
    def test_a_decorated_function_is_still_that_function(self) -> None:
        namespace: dict[str, Any] = {}
        exec(DSL, namespace)
        train = namespace["train"]
        assert isinstance(train, Sweep)
        assert (train.__name__, train.__doc__) == ("train", "Train a model.")
        assert train({"learning_rate": 0.5, "num_layers": 2}) == {"validation_accuracy": 1.0}

    def test_arguments_go_through(self) -> None:
        @sweep(search_space={"x": 1}, metric="y")
        def train(config: dict[str, Any], *more: int, **named: int) -> Any:
            return config, more, named

        assert train({"x": 1}, 2, three=3) == ({"x": 1}, (2,), {"three": 3})

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"max_trails": 3}, "max_trails: unknown key; did you mean 'max_trials'?"),
            ({"direction": "max"}, "direction: cannot be 'max'; did you mean 'maximize'?"),
            ({"max_parallel": 0}, "max_parallel: expected int >= 1, got 0"),
            ({"metric": ""}, "metric: expected str of length >= 1, got ''"),
            ({"search_space": {}}, "search_space: search_space: needs at least one parameter, got none"),
            ({"search_space": {"x": {1, 2}}}, "search_space: parameter 'x': Constant: "),
            ({"search_space": {"x": {"unifrm": [0, 1]}}}, "search_space.x: unknown kind of parameter 'unifrm'; did"),
            ({"search_space": ["x"]}, "search_space: expected object, got ['x']"),
            ({"search_space": None}, "search_space: is missing; every sweep needs one"),
            ({"resources": {"cpu": 1}}, "resources.cpu: unknown key; did you mean 'cpus'?"),
            ({"resources": Resources(cpus=0)}, "resources.cpus: expected int >= 1, got 0"),
        ],
    )
    def test_mistakes_are_refused_where_they_are_written(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            sweep(**{"search_space": {"x": Uniform(0, 1)}, "metric": "y", **settings})
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize("settings", [{"strategy": "randon"}, {"strategy": {"scheduler": "lifo"}}])
    def test_an_unknown_strategy_is_refused_before_anything_is_written(
        self, tmp_path: Path, settings: dict[str, Any]
    ) -> None:
        with pytest.raises(ConfigError, match=r"^strategy: there is no .* did you mean '(random|fifo)'"):
            sweep_of(lambda config: None, **settings)
        assert list(tmp_path.iterdir()) == []

    def test_a_bad_override_is_refused_before_anything_is_written(self, tmp_path: Path) -> None:
        train = sweep(search_space={"x": 1}, metric="y")(lambda config: None)
        for override in ({"max_trials": 0}, {"strategy": "randon"}, {"name": ""}, {"seed": -1}):
            with pytest.raises(ConfigError, match=rf"^{next(iter(override))}: "):
                train.run(**override)  # type: ignore[arg-type]
        assert list(tmp_path.iterdir()) == []

    def test_what_cannot_be_carried_to_other_processes_is_refused_before_anything_is_written(
        self, tmp_path: Path
    ) -> None:
        lock = threading.Lock()
        with pytest.raises(TargetError, match=r"^target: <lambda> cannot be carried to other processes .* inside it$"):
            sweep_of(lambda config: lock)
        with pytest.raises(TargetError, match=r"^target: <lambda> cannot be carried to other processes"):
            sweep_of(lambda config: None, evaluate=lambda config: lock)
        assert list(tmp_path.iterdir()) == []


class TestRun:
    def test_the_result_tells_all_about_the_runs(self, capfd: pytest.CaptureFixture[str]) -> None:
        def train(config: dict[str, Any]) -> dict[str, float]:
            metta.sweep.report_metrics({"half": config["x"] / 2})
            if config["x"] == 3:
                raise ValueError("three\nis too\n\nmuch " + "!" * 10_000)
            return {"y": config["x"]}

        result = sweep_of(train)
        assert capfd.readouterr() == ("", "")
        assert (result.name, result.status, result.reason) == (
            "test_api" if "." not in __name__ else "train",
            SweepStatus.COMPLETED,
            "search space exhausted: 3 configurations were tried",
        )
        assert [run.config for run in result.runs] == [{"x": 1}, {"x": 2}, {"x": 3}]
        assert [run.status for run in result.runs] == [JobStatus.COMPLETED, JobStatus.COMPLETED, JobStatus.FAILED]
        assert [run.metrics for run in result.runs] == [{"half": 0.5, "y": 1.0}, {"half": 1.0, "y": 2.0}, {"half": 1.5}]
        assert result.best == result.runs[1]
        # A reason is one line, and not longer than a person reads; the whole of it is in the log.
        [reason] = result.runs[2].failure_reasons
        assert reason.startswith("train failed: ValueError: three is too much !!!!")
        assert len(reason) < 1_100
        assert "!" * 10_000 in Path(str(result.runs[2].jobs[0].log)).read_text()

        frame = result.to_dataframe()
        assert list(frame.columns) == ["run_id", "status", "score", "cost", "config.x", "metrics.half", "metrics.y"]
        assert frame["run_id"].tolist() == [run.run_id for run in result.runs]
        assert frame["config.x"].tolist() == [1, 2, 3]
        assert frame["score"].tolist()[:2] == [1.0, 2.0]
        assert frame["score"].isna().tolist() == [False, False, True]

    def test_a_table_without_pandas_names_the_cure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        result = SweepResult(
            sweep_id="46g3f", name="demo", status=SweepStatus.COMPLETED, reason=None, best=None, runs=[]
        )
        with pytest.raises(MissingExtraError, match=r'pip install "metta-sweep\[pandas\]"$'):
            result.to_dataframe()

    def test_a_sweep_without_a_score_has_no_best_run(self) -> None:
        result = sweep_of(lambda config: None)
        assert result.best is None
        assert {run.failure_reasons for run in result.runs} == {
            ("metric 'y' was not reported; train reported: no metrics at all",)
        }

    def test_the_configuration_is_nested_and_read_by_dot_path(self) -> None:
        def train(config: dict[str, Any]) -> dict[str, float]:
            assert config["a"]["b"] == config["a.b"] == config.get("a.b")
            assert config["a"]["c"]["d"] == config["a.c.d"] == "fixed"
            return {"y": config["a.b"]}

        space = {"a": {"b": Range(1, 3), "c.d": Constant("fixed")}}
        result = sweep_of(train, search_space=space)
        assert [run.score for run in result.runs] == [1.0, 2.0, 3.0]
        assert result.runs[0].config == {"a.b": 1, "a.c.d": "fixed"}

    def test_an_evaluation_scores_what_training_left_behind(self) -> None:
        def train(config: dict[str, Any]) -> dict[str, float]:
            (metta.sweep.run_directory() / "model").write_text(str(config["x"]))
            return {"y": -1.0}

        def evaluate(config: dict[str, Any]) -> dict[str, float]:
            return {"y": 10 * float((metta.sweep.run_directory() / "model").read_text())}

        result = sweep_of(train, evaluate=evaluate, direction="minimize")
        assert [run.score for run in result.runs] == [10.0, 20.0, 30.0]
        assert result.best == result.runs[0]

    def test_arguments_of_run_stand_instead_of_those_of_the_decorator(self, tmp_path: Path) -> None:
        train = sweep(search_space={"x": LogUniform(1, 9)}, metric="y", max_trials=9, seed=1, name="written")(
            lambda config: {"y": config["x"]}
        )
        results = [
            train.run(store=tmp_path / "other.db", name=name, max_trials=2, max_parallel=1, seed=3, progress=False)
            for name in ("given", "again")
        ]
        assert [result.name for result in results] == ["given", "again"]
        first, second = ([run.config for run in result.runs] for result in results)
        assert first == second
        assert len(first) == 2
        assert not (tmp_path / "sweeps.db").exists()

    def test_a_name_that_its_author_gave_is_not_given_twice(self) -> None:
        assert sweep_of(lambda config: {"y": 1}, name="mine").status is SweepStatus.COMPLETED
        with pytest.raises(UsageError, match=r"^name: sweep \w{5} is named 'mine'; choose another"):
            sweep_of(lambda config: {"y": 1}, name="mine")

    def test_it_works_outside_of_the_main_thread(self) -> None:
        results: list[SweepResult] = []
        thread = threading.Thread(target=lambda: results.append(sweep_of(lambda config: {"y": config["x"]})))
        thread.start()
        thread.join(timeout=60)
        assert [run.score for run in results[0].runs] == [1.0, 2.0, 3.0]

    def test_a_child_that_the_function_forks_and_that_returns_from_it_changes_nothing(self) -> None:
        def train(config: dict[str, Any]) -> dict[str, float]:
            import os

            if (child := os.fork()) == 0:
                if config["x"] == 2:
                    raise ValueError("the child's own affair")
                return {"y": -1}
            os.waitpid(child, 0)
            return {"y": config["x"]}

        assert [run.score for run in sweep_of(train).runs] == [1.0, 2.0, 3.0]


class TestPrograms:
    """Whatever kind of program calls `run()`, the jobs find its function."""

    def run(self, tmp_path: Path, *arguments: str, input: str = "") -> list[Any]:  # noqa: A002
        result: Result = run_python(*arguments, folder=tmp_path, input=input)
        assert "Traceback" not in result.err
        return list(json.loads(result.out))

    @pytest.mark.parametrize("guard", [False, True])
    def test_a_script_with_and_without_a_main_guard(self, tmp_path: Path, guard: bool) -> None:
        text = "result = train.run(max_trials=4)" + SUMMARY
        if guard:
            text = "if __name__ == '__main__':\n" + "\n".join(f"    {line}" for line in text.splitlines())
        (tmp_path / "my_training.py").write_text(DSL + text)
        name, status, score, config, count = self.run(tmp_path, "my_training.py")
        assert (name, status, count) == ("my_training", "COMPLETED", 4)
        assert score == config["learning_rate"] * config["num_layers"]
        assert set(config) == {"learning_rate", "batch_size", "num_layers"}

    def test_a_command_line_and_standard_input(self, tmp_path: Path) -> None:
        program = DSL + "result = train.run(max_trials=2)" + SUMMARY
        assert self.run(tmp_path, "-c", program)[::4] == ["train", 2]
        assert self.run(tmp_path, "-", input=program)[::4] == ["train-2", 2]

    def test_a_notebook(self, tmp_path: Path) -> None:
        # As IPython does it: cells are executed in the namespace of a module that has no file.
        program = f"""
            import sys, types
            module = types.ModuleType("__main__")
            sys.modules["__main__"] = module
            for cell in (
                "factor = 2",
                {DSL!r}.replace("def train(config):", "def train(config, factor=factor):"),
                "result = train.run(max_trials=2)",
                {SUMMARY!r},
            ):
                exec(compile(cell, "<cell>", "exec"), module.__dict__)
            """
        assert self.run(tmp_path, "-c", dedent(program))[::4] == ["train", 2]

    def test_lambdas_and_closures_of_a_script_in_another_folder(self, tmp_path: Path) -> None:
        code = tmp_path / "code"
        code.mkdir()
        (code / "my_helper.py").write_text("def double(x): return 2 * x")
        # The working folder is not on the script's import path, so it must not be on that of anything behind it.
        (tmp_path / "socket.py").write_text("raise RuntimeError('this is not the standard module')")
        (code / "my_script.py").write_text(
            dedent("""
                import json, my_helper
                from metta.sweep import Choice, sweep

                decorate = sweep(search_space={"x": Choice([1, 2])}, metric="y", strategy="grid")

                def closure(addend):
                    def train(config):
                        return {"y": my_helper.double(config["x"]) + addend}
                    return train

                class Trainer:
                    @staticmethod
                    @decorate
                    def train(config):
                        return {"y": 100 * config["x"]}

                functions = decorate(lambda config: {"y": my_helper.double(config["x"])}), decorate(closure(10))
                print(json.dumps([[run.score for run in f.run().runs] for f in (*functions, Trainer.train)]))
            """)
        )
        assert self.run(tmp_path, "code/my_script.py") == [[2.0, 4.0], [12.0, 14.0], [100.0, 200.0]]

    def test_a_module_run_by_its_name(self, tmp_path: Path) -> None:
        package = tmp_path / "my_package"
        package.mkdir()
        (package / "helper.py").write_text("limit = 2")
        (package / "train.py").write_text(
            "from .helper import limit\n" + DSL + "result = train.run(max_trials=limit)" + SUMMARY
        )
        assert self.run(tmp_path, "-m", "my_package.train")[::4] == ["train", 2]


class TestPackage:
    def test_all_public_names_load_and_no_other_does(self) -> None:
        for name in metta.sweep.__all__:
            assert getattr(metta.sweep, name) is not None
            assert getattr(importlib.import_module(metta.sweep._HOME_OF[name]), name) is getattr(metta.sweep, name)
        assert list(metta.sweep.__all__) == sorted(metta.sweep.__all__) == dir(metta.sweep)
        assert set(metta.sweep._HOME_OF) == set(metta.sweep.__all__)
        with pytest.raises(AttributeError, match=r"^module 'metta.sweep' has no attribute 'nothing'$"):
            metta.sweep.nothing  # noqa: B018

    def test_every_error_is_a_sweep_error(self) -> None:
        errors = importlib.import_module("metta.sweep.errors")
        classes = [value for value in vars(errors).values() if getattr(value, "__module__", "") == errors.__name__]
        errors_defined = [value for value in classes if isinstance(value, type)]
        assert len(errors_defined) > 10
        assert all(issubclass(error, SweepError) for error in errors_defined)

    def test_the_package_costs_nothing_to_import(self, tmp_path: Path) -> None:
        heavy = ["numpy", "scipy", "sqlalchemy", "typer", "rich", "msgspec", "psutil", "yaml", "cloudpickle", "pandas"]
        program = f"import metta.sweep, sys; print([name for name in {heavy} if name in sys.modules])"
        assert run_python("-c", program, folder=tmp_path).out == "[]\n"

    def test_decorating_needs_neither_database_nor_terminal(self, tmp_path: Path) -> None:
        heavy = ["scipy", "sqlalchemy", "typer", "rich", "psutil", "cloudpickle", "pandas"]
        program = DSL + f"\nimport sys; print([name for name in {heavy} if name in sys.modules])"
        assert run_python("-c", program, folder=tmp_path).out == "[]\n"
