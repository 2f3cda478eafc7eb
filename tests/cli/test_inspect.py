"""The commands that read: the exact JSON that scripts rely on, and what people see."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cli.command_line import CommandLine
from metta.sweep.cli.main import app
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import new_event
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.stores import open_store
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START

#: An ended sweep of three runs, and a later one of which one run has ended and one is training.
DONE, UNDERWAY = "46g3f", "46h00"


def run_shape(sweep_id: str, index: int, **changes: Any) -> dict[str, Any]:
    shape = {
        "run_id": ids.run_id(sweep_id, index),
        "sweep_id": sweep_id,
        "index": index,
        "status": "COMPLETED",
        "score": 1.0,
        "cost": 3600.0,
        "config": {"lr": 0.01},
        "metrics": {"reward": 1.0},
        "started_at": "2023-11-14T22:13:20.000+00:00",
        "ended_at": "2023-11-14T23:13:20.000+00:00",
        "failure_reasons": [],
        "partial_score": None,
        "progress": None,
        "stop_reason": None,
        "parent": None,
    }
    return shape | changes


GOOD = run_shape(DONE, 0)
BEST = run_shape(DONE, 1, score=3.0, metrics={"reward": 3.0})
FAILED = run_shape(DONE, 2, status="FAILED", score=None, metrics={}, failure_reasons=["reward was not reported"])
ENDED = run_shape(UNDERWAY, 0)
TRAINING = run_shape(UNDERWAY, 1, status="IN_TRAINING", score=None, cost=0.0, metrics={}, ended_at=None)

DONE_SHAPE = {
    "sweep_id": DONE,
    "name": "first",
    "status": "COMPLETED",
    "reason": "enough",
    "counts": {"COMPLETED": 2, "FAILED": 1},
    "best": BEST,
    "seq": 22,
    "eta": "2023-11-14T23:13:20.000+00:00",
    "controlled": False,
    "metric": "reward",
    "direction": "maximize",
    "max_trials": None,
    "cost": 10800.0,
    "created_at": "2023-11-14T22:13:20.000+00:00",
    "ended_at": "2023-11-14T23:13:20.000+00:00",
}
UNDERWAY_SHAPE = DONE_SHAPE | {
    "sweep_id": UNDERWAY,
    "name": "second",
    "status": "RUNNING",
    "reason": None,
    "counts": {"COMPLETED": 1, "IN_TRAINING": 1},
    "best": ENDED,
    "seq": 12,
    "max_trials": 9,
    "cost": 3600.0,
    "ended_at": None,
}


@pytest.fixture(scope="module")
def metta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    command_line = CommandLine(tmp_path_factory.mktemp("inspect"))
    store = open_store(str(command_line.folder / "sweeps.db"), create=True)
    end = ev.SweepEnded(status=SweepStatus.COMPLETED, reason="enough")
    first = [run_events(index, sweep_id=DONE, score=score) for index, score in enumerate([1.0, 3.0, None])]
    store.append([sweep_created(DONE, name="first"), *(event for run in first for event in run)])
    store.append([new_event(end, sweep_id=DONE, at=START + 3600, actor="test")])
    second = [*run_events(0, sweep_id=UNDERWAY), *run_events(1, sweep_id=UNDERWAY)[:4]]
    store.append([sweep_created(UNDERWAY, name="second", max_trials=9), *second])
    store.close()
    yield command_line
    command_line.close()


def test_status_is_one_object_about_the_latest_sweep_or_the_one_named(metta: CommandLine) -> None:
    result = metta("status", "--json")
    # Eight hours of work for four jobs at a time.
    eta = datetime.fromisoformat(result.json["eta"]).timestamp()
    assert eta == pytest.approx(time.time() + 8 * 3600 / 4, abs=60)
    assert result.json == UNDERWAY_SHAPE | {"eta": result.json["eta"]}
    assert (result.code, result.err) == (0, "")
    for address in (DONE, "46g", "first"):
        assert metta("status", address, "--json").json == DONE_SHAPE


def test_runs_are_an_array_in_the_order_in_which_they_started(metta: CommandLine) -> None:
    for command in (["status", "first", "--runs", "--json"], ["list", "46g", "--json"]):
        result = metta(*command)
        assert result.json == [GOOD, BEST, FAILED]
        assert (result.code, result.err) == (0, "")
    assert metta("status", "--runs", "--json").json == [ENDED, TRAINING]


def test_best_is_an_array_with_the_best_first_and_without_runs_that_failed(metta: CommandLine) -> None:
    assert metta("best", "first", "--json").json == [BEST]
    assert metta("best", "first", "--top", "5", "--json").json == [BEST, GOOD]
    assert metta("best", "--json").json == [ENDED]
    table = metta("best", "first", "--top", "2").out.splitlines()
    assert table[0].strip() == f"best of first ({DONE}), maximize reward"
    assert table[1].split() == ["run", "status", "reward", "cost", "lr"]
    assert table[2].split() == [BEST["run_id"], "COMPLETED", "3", "1h00m", "0.01"]


def test_list_is_an_array_of_sweeps_with_the_values_of_their_best_runs(metta: CommandLine) -> None:
    rows = metta("list", "--json").json
    assert rows == [
        {
            "sweep_id": sweep["sweep_id"],
            "name": sweep["name"],
            "run_id": best["run_id"],
            "status": sweep["status"],
            "counts": sweep["counts"],
            "score": best["score"],
            "cost": sweep["cost"],
            "config": best["config"],
            "metrics": best["metrics"],
            "started_at": sweep["created_at"],
            "ended_at": sweep["ended_at"],
            "failure_reasons": [],
        }
        for sweep, best in ((DONE_SHAPE, BEST), (UNDERWAY_SHAPE, ENDED))
    ]
    lines = metta("list").out.splitlines()
    assert [line.split()[:6] for line in lines[1:]] == [
        [DONE, "first", "COMPLETED", "3", "1", "3"],
        [UNDERWAY, "second", "RUNNING", "1/9", "0", "1"],
    ]


def test_show_tells_all_about_a_run_and_why_it_was_started(metta: CommandLine) -> None:
    run_id = BEST["run_id"]
    shape = metta("show", run_id, "--json").json
    [job] = shape.pop("jobs")
    metrics = shape.pop("run_metrics")
    assert (metrics["training_time"], metrics["total_time"], metrics["memory_peak_gb"]) == (3600.0, 3600.0, None)
    assert shape.pop("curves") == {}
    assert shape == BEST | {"reports": 1, "reasons": ["sample"], "checkpoints": []}
    assert (job["job_id"], job["type"], job["outcome"]) == (f"{run_id}.train.1", "train", "succeeded")
    assert (job["started_at"], job["ended_at"]) == (BEST["started_at"], BEST["ended_at"])
    text = metta("show", f"first/{run_id[:4]}").out
    for fact in (
        f"{run_id}, number 1 of sweep {DONE} (first)",
        "reward=3 (the best)",
        "lr = 0.01",
        "sample",
        "pid 4321",
        "1h00m in all, training 1h00m",
    ):
        assert fact in text
    assert "reward was not reported" in metta("show", FAILED["run_id"]).out


def test_status_for_people_names_the_counts_the_best_and_what_to_do_next(metta: CommandLine) -> None:
    text = metta("status").out
    for fact in (
        f"{UNDERWAY} (second)",
        f"RUNNING; no controller is at work: metta sweep run --resume {UNDERWAY}",
        "1 of 9 ended: 1 IN_TRAINING, 1 COMPLETED",
        "2:00:00",
        f"{ENDED['run_id']} reward=1",
        TRAINING["run_id"],
    ):
        assert fact in text
    assert "COMPLETED: enough" in metta("status", "first").out


def test_reading_writes_nothing(metta: CommandLine) -> None:
    before = [metta.store.fetch_sweeps(), metta.files()]
    for command in (
        ["list"],
        ["status"],
        ["best"],
        ["show", BEST["run_id"]],
        ["analyze"],
        ["compare", DONE, UNDERWAY],
        ["export"],
    ):
        assert metta(*command).code == 0
    assert [metta.store.fetch_sweeps(), metta.files()] == before


def test_the_schema_is_json(metta: CommandLine) -> None:
    assert metta("schema").json["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_every_command_has_help_with_an_example(metta: CommandLine) -> None:
    group = get_command(app).commands["sweep"]  # type: ignore[attr-defined]
    looking = {"list", "status", "show", "best", "schema", "logs", "events", "why", "replay", "analyze", "compare"}
    steering = {"run", "pause", "resume", "rollback", "stop", "debug"}
    tending = {"doctor", "backup", "export", "import", "notify", "serve-metrics"}
    inside_jobs = {"report", "checkpoint"}
    assert set(group.commands) == looking | steering | tending | inside_jobs
    for name, command in group.commands.items():
        assert command.help, name
        assert f"metta sweep {name}" in command.epilog, name
    assert "Example: metta sweep stop 46g3f" in metta("stop", "--help").out


def test_a_shell_completes_commands_and_ids(metta: CommandLine) -> None:
    def completions(*words: str) -> list[str]:
        variables = {"_METTA_COMPLETE": "complete_bash", "COMP_WORDS": " ".join(words), "COMP_CWORD": "3"}
        script = Path(sys.executable).with_name("metta")
        done = subprocess.run([script], cwd=metta.folder, env=os.environ | variables, capture_output=True, check=True)
        return done.stdout.decode().split()

    assert completions("metta", "sweep", "status", "46") == [DONE, UNDERWAY]
    assert completions("metta", "sweep", "status", "46h") == [UNDERWAY]
    assert completions("metta", "sweep", "compare", "46") == [DONE, UNDERWAY]
    for command in ("events", "replay"):
        assert completions("metta", "sweep", command, "46h") == [UNDERWAY]
    for command in ("show", "why"):
        assert completions("metta", "sweep", command, BEST["run_id"][:4]) == [BEST["run_id"]]
