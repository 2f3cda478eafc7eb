"""`metta sweep run`: what it starts, what it goes on with, what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.command_line import TARGET, CommandLine
from metta.sweep.model.run import JobStatus
from metta.sweep.model.sweep import SweepStatus
from waiting import wait_until


def test_progress_goes_to_standard_error_and_the_result_to_standard_output(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    result = metta("run", "train.py", "--json", METTA_SWEEP_STORE="sqlite:///elsewhere.db")
    assert not (metta.folder / "sweeps.db").exists()
    assert result.code == 0
    shape = result.json
    assert set(shape) >= {"sweep_id", "name", "status", "counts", "best", "seq", "eta"}
    assert (shape["name"], shape["status"], shape["counts"]) == ("train", "COMPLETED", {"COMPLETED": 4})
    assert shape["best"]["score"] == shape["best"]["config"]["lr"]
    greeting, *progress, summary, best = result.err.splitlines()
    assert greeting == f"started sweep {shape['sweep_id']} (train): random, maximize score"
    assert [line.split()[0] for line in progress][-1] == "[4/4]"
    assert len(progress) == 4
    assert summary.startswith(f"sweep {shape['sweep_id']} COMPLETED: ")
    assert best.startswith(f"best: {shape['best']['run_id']} score=")
    # The variable names the store for commands that read as well; an option goes before it.
    assert metta("status", "--json", METTA_SWEEP_STORE="sqlite:///elsewhere.db").json == shape
    assert metta("status", "--json", "--store", "elsewhere.db", METTA_SWEEP_STORE="nowhere.db").json == shape


def test_what_happens_is_logged_as_lines_by_the_controller_and_the_agent(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    result = metta("run", "train.py", "--log", "json")
    assert (result.code, result.out) == (0, "")
    lines = [json.loads(line) for line in result.err.splitlines()]
    events = [event.type for event in metta.store.read(metta.latest().sweep_id)]
    of_the_log = [line["event"] for line in lines if "event" in line]
    # All but the creation, which is no doing of the controller, and what goes on inside of jobs.
    assert of_the_log == [name for name in events[1:] if name not in {"metrics_reported", "job_dispatched"}]
    assert len({line["run_id"] for line in lines if "run_id" in line}) == 4
    agent = [
        json.loads(line) for line in (Path(metta.latest().config.directory) / "agent.log").read_text().splitlines()
    ]
    assert [line["event"] for line in agent if "event" in line].count("job_exited") == 4
    assert "did you mean 'json'" in metta("run", "train.py", "--log", "jsn").error


@pytest.mark.slow
def test_the_same_command_goes_on_with_a_killed_sweep_and_starts_a_numbered_one_after_a_finished_one(
    metta: CommandLine,
) -> None:
    first = metta.start_held()
    first.process.kill()
    first.process.wait()
    sweep_id = metta.latest().sweep_id
    metta.release()
    again = metta("run", "train.py")
    assert again.code == 0
    assert again.err.startswith(f"resuming sweep {sweep_id} (train): ")
    assert metta.latest().counts == {JobStatus.COMPLETED: 4}
    assert len(metta.executions()) == len(set(metta.executions())) == 4

    more = metta("run", "train.py", "--max-trials", "1")
    assert (more.code, metta.latest().config.name) == (0, "train-2")
    # An interrupted sweep with other options is the same sweep with other limits, one that searches otherwise is not.
    other = metta("run", "train.py", "--strategy", "sobol", "--max-trials", "1")
    assert (other.code, metta.latest().config.name) == (0, "train-3")

    longer = metta("run", "--resume", sweep_id[:4], "--max-trials", "6")
    assert longer.code == 0
    assert longer.err.startswith(f"resuming sweep {sweep_id} (train): 4 runs ended before, max_trials is now 6\n")
    finished = metta("run", "--resume", "train", "--json")
    assert (finished.code, finished.json["counts"]) == (0, {"COMPLETED": 6})
    assert len(metta.executions()) == 8


def test_what_cannot_change_under_way_is_refused_on_resuming(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    assert metta("run", "train.py", "--max-trials", "1").code == 0
    seq = metta.latest().seq
    assert metta("run", "--resume", "train", "--seed", "8").error.startswith("--seed: a sweep under way cannot change")
    assert metta("run", "--resume", "train", "--max-trials", "0").error == "--max-trials: expected at least 1, got 0"
    assert metta.latest().seq == seq


def test_a_detached_sweep_goes_on_by_itself(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    started = metta("run", "train.py", "--detach")
    assert started.code == 0
    assert started.out == f"{metta.latest().sweep_id}\n"
    assert f"watch it with: metta sweep status {metta.latest().sweep_id}" in started.err
    wait_until(lambda: metta.latest().status is SweepStatus.COMPLETED, what="the end of the sweep")
    metta.wait_for_the_end_of_all_processes()
    assert metta.latest().counts == {JobStatus.COMPLETED: 4}
    named = metta("run", "train.py", "--detach", "--json", "--name", "second", "--max-trials", "1").json
    assert named == {"sweep_id": metta.latest().sweep_id, "name": "second"}
    metta.wait_for_the_end_of_all_processes()
    assert metta.latest().counts == {JobStatus.COMPLETED: 1}


def test_a_command_reports_through_metta_sweep_report(metta: CommandLine) -> None:
    metta.write(
        "sweep.yaml",
        """
        command: [sh, -c, "metta sweep report accuracy={value} epoch=3"]
        search_space: {value: {choice: ["0.5", nan, none]}}
        metric: accuracy
        strategy: grid
        """,
    )
    assert metta("run", "sweep.yaml").code == 0
    good, nan, none = metta.runs()
    assert (good.score, good.metrics) == (0.5, {"accuracy": 0.5, "epoch": 3.0})
    assert nan.failure_reasons[-1].endswith("metric 'accuracy' is nan; only finite numbers can be compared")
    assert none.failure_reasons[-1].endswith("metric 'accuracy' must be a number, got 'none'")
    assert {nan.status, none.status} == {JobStatus.FAILED}
    # Outside of a sweep it does no harm, and says what it could not have reported.
    outside = metta("report", "accuracy=0.5")
    assert (outside.code, outside.out, outside.err) == (0, "", "not in a sweep: nothing to report to\n")
    assert metta("report", "accuracy").error == "metrics are NAME=NUMBER, got 'accuracy'"


def test_metrics_are_found_in_output_by_json_and_by_regex_and_in_a_file(metta: CommandLine) -> None:
    sources = {
        "json": ("""echo '{{"score": 1, "note": "x"}}'; echo 'score: no JSON'; echo '{{"score": {x}}}'""", ""),
        "named": ("echo epoch 1, score={x}", "metrics: {regex: 'score=(?P<score>[0-9.]+)'}"),
        "pairs": ("echo epoch=1 score={x}", r"metrics: {regex: '(\w+)=([0-9.]+)'}"),
        "file": (
            """echo '{{"score": {x}}}' > {run_directory}/metrics.json""",
            "metrics: {file: '{run_directory}/metrics.json'}",
        ),
    }
    for name, (script, metrics) in sources.items():
        command = json.dumps(["sh", "-c", script])
        text = f"command: {command}\nsearch_space: {{x: {{constant: 0.75}}}}\nmetric: score\nmax_trials: 1\n{metrics}\n"
        Path(metta.folder / f"{name}.yaml").write_text(text)
        assert metta("run", f"{name}.yaml", "--strategy", "grid").code == 0, name
        [run] = metta.runs()
        assert run.score == 0.75, name
