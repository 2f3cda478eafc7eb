"""What training code calls, inside a sweep and outside."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metta.sweep import current_run, report_metrics, run_directory, session
from metta.sweep.errors import MetricError
from metta.sweep.model.run import JobType
from metta.sweep.session import RunConfig, RunContext, Session


class Tensor:
    """As far as metrics go, one of torch's."""

    def __init__(self, *values: float) -> None:
        self._values = values

    def item(self) -> float:
        if len(self._values) != 1:
            raise RuntimeError("a Tensor with several elements cannot be converted to Scalar")
        return self._values[0]


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return RunContext(
        sweep_id="46g3f",
        run_id="7kq9z",
        job_id="7kq9z.train.1",
        type=JobType.TRAIN,
        directory=str(tmp_path / "runs" / "7kq9z"),
    )


@pytest.fixture
def sent(context: RunContext) -> Iterator[list[dict[str, float]]]:
    """Metrics that reach the agent while this process is a job's."""
    reports: list[dict[str, float]] = []
    session.enter(Session(context, reports.append))
    yield reports
    session.enter(None)


class TestOutside:
    def test_a_report_does_nothing_whatever_it_says(self) -> None:
        report_metrics({"accuracy": 0.9})
        report_metrics({"accuracy": math.nan})
        report_metrics({})

    def test_there_is_no_run_and_its_folder_is_the_working_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert current_run() is None
        assert run_directory() == tmp_path


class TestInside:
    def test_reports_are_sent_one_by_one(self, sent: list[dict[str, float]]) -> None:
        report_metrics({"accuracy": 0.5, "epoch": 1})
        report_metrics({"accuracy": 0.75})
        assert sent == [{"accuracy": 0.5, "epoch": 1.0}, {"accuracy": 0.75}]

    def test_an_empty_report_is_not_sent(self, sent: list[dict[str, float]]) -> None:
        report_metrics({})
        assert sent == []

    @pytest.mark.parametrize(
        "value",
        [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), np.array([0.5]), Tensor(0.5)],
    )
    def test_scalars_of_all_libraries_are_numbers(self, sent: list[dict[str, float]], value: Any) -> None:
        report_metrics({"accuracy": value})
        assert sent == [{"accuracy": 0.5}]
        assert type(sent[0]["accuracy"]) is float

    @pytest.mark.parametrize(
        ("value", "number"), [(3, 3.0), (True, 1.0), (np.int64(3), 3.0), (np.True_, 1.0), (10**300, 1e300)]
    )
    def test_integers_and_truth_values_are_numbers_too(
        self, sent: list[dict[str, float]], value: Any, number: float
    ) -> None:
        report_metrics({"accuracy": value})
        assert sent == [{"accuracy": number}]

    @pytest.mark.parametrize(
        ("metrics", "message"),
        [
            ({"acc": math.nan}, "metric 'acc' is nan; only finite numbers can be compared"),
            ({"loss": 1, "acc": math.inf}, "metric 'acc' is inf; only finite numbers can be compared"),
            ({"acc": np.float32("-inf")}, "metric 'acc' is -inf; only finite numbers can be compared"),
            ({"acc": Tensor(math.nan)}, "metric 'acc' is nan; only finite numbers can be compared"),
            ({"acc": 10**400}, "metric 'acc' is inf; only finite numbers can be compared"),
            ({"acc": "high"}, "metric 'acc' must be a number, got str: 'high'"),
            ({"acc": "0.9"}, "metric 'acc' must be a number, got str: '0.9'"),
            ({"acc": None}, "metric 'acc' must be a number, got NoneType: None"),
            ({"acc": 1j}, "metric 'acc' must be a number, got complex: 1j"),
            ({"acc": Fraction(1, 2)}, "metric 'acc' must be a number, got Fraction: Fraction(1, 2)"),
            ({"acc": [0.9]}, "metric 'acc' must be a number, got list: [0.9]"),
            ({"acc": np.array([1.0, 2.0])}, "metric 'acc' must be one number, got ndarray of several"),
            ({"acc": Tensor(1, 2)}, "metric 'acc' must be one number, got Tensor of several"),
            ({3: 0.5}, "metric names must be non-empty strings, got 3"),
            ({"": 0.5}, "metric names must be non-empty strings, got ''"),
            (0.9, "metrics must be a dict of names to numbers, got float: 0.9"),
            ([("acc", 0.9)], "metrics must be a dict of names to numbers, got list: [('acc', 0.9)]"),
            (None, "metrics must be a dict of names to numbers, got NoneType: None"),
        ],
    )
    def test_what_is_no_report_is_refused_whole(self, sent: list[dict[str, float]], metrics: Any, message: str) -> None:
        with pytest.raises(MetricError) as caught:
            report_metrics(metrics)
        assert str(caught.value) == message
        assert sent == []

    def test_the_first_bad_report_is_remembered_for_code_that_swallows_errors(self, context: RunContext) -> None:
        current = Session(context, lambda metrics: None)
        for value in (math.nan, 1.0, math.inf):
            try:
                current.report({"acc": value})
            except MetricError:
                continue
        assert str(current.error) == "metric 'acc' is nan; only finite numbers can be compared"

    @pytest.mark.usefixtures("sent")
    def test_the_run_is_known_and_has_a_folder_of_its_own(self, context: RunContext) -> None:
        assert current_run() is context
        assert run_directory() == run_directory() == Path(context.directory)
        assert run_directory().is_dir()


class TestConfig:
    CONFIG = RunConfig.of({"lr": 0.1, "trainer.optimizer.kind": "sgd", "trainer.layers": [1, 2], "trainer.x": None})

    def test_it_is_nested_where_names_have_dots(self) -> None:
        assert self.CONFIG == {
            "lr": 0.1,
            "trainer": {"optimizer": {"kind": "sgd"}, "layers": [1, 2], "x": None},
        }

    def test_it_is_read_by_dot_path_too(self) -> None:
        assert self.CONFIG["trainer.optimizer.kind"] == self.CONFIG["trainer"]["optimizer"]["kind"] == "sgd"
        assert self.CONFIG["trainer.optimizer"] == {"kind": "sgd"}
        assert self.CONFIG["trainer.x"] is None
        assert self.CONFIG["lr"] == 0.1

    def test_a_parameter_that_may_be_missing_is_asked_for_by_dot_path_too(self) -> None:
        assert "trainer.optimizer.kind" in self.CONFIG
        assert self.CONFIG.get("trainer.optimizer.kind", "adam") == "sgd"
        assert self.CONFIG.get("trainer.x", 3) is None

    @pytest.mark.parametrize("name", ["trainer.momentum", "lr.x", "x", "trainer.", ".lr", "", "trainer.layers.0", 3])
    def test_a_name_that_is_not_there_is_a_key_error_with_the_whole_name(self, name: Any) -> None:
        with pytest.raises(KeyError) as caught:
            self.CONFIG[name]
        assert caught.value.args == (name,)
        assert name not in self.CONFIG
        assert self.CONFIG.get(name, "default") == "default"

    def test_it_is_a_dict_in_every_other_way(self) -> None:
        assert dict(**self.CONFIG) == self.CONFIG
        assert list(self.CONFIG) == ["lr", "trainer"]
        assert self.CONFIG.get("momentum", 0.9) == 0.9
        assert isinstance(self.CONFIG["trainer"], dict)
