"""`metta sweep run --dry-run` and `metta sweep debug`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cli.command_line import TARGET, CommandLine
from metta.sweep.controller.debug import DebugController
from metta.sweep.model.run import JobStatus
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.testing import ManualClock
from metta.sweep.testing.fake_dispatcher import FakeDispatcher


def test_a_dry_run_shows_what_would_start_and_leaves_nothing_behind(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    before = metta.files()
    result = metta("run", "train.py", "--dry-run", "--steps", "3")
    assert result.code == 0
    assert metta.files() == before
    heading, *lines = result.out.splitlines()
    assert heading.split() == ["after", "run", "job", "config", "reasons"]
    assert len(lines) == 3
    assert [line.split()[0] for line in lines[:2]] == ["0.0s", "0.0s"]
    assert lines[0].split()[2:4] == ["train", "1"]
    assert lines[0].rstrip().endswith("random draw 0; 0 of 2 train slots are taken")
    assert result.err == (
        "Nothing was run or written. Durations and results of the jobs are made up, and so are choices that follow "
        "from them.\n"
    )
    assert metta("run", "train.py", "--dry-run", "--steps", "3") == result


def test_a_dry_run_in_json_and_to_the_end_of_the_sweep(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    result = metta("run", "train.py", "--dry-run", "--json", "--max-parallel", "1")
    assert result.json["made_up"] is True
    starts = result.json["starts"]
    assert len(starts) == 4
    assert set(starts[0]) == {"seconds", "run_id", "job_id", "type", "attempt", "until", "config", "reasons"}
    assert (starts[0]["seconds"], starts[0]["job_id"]) == (0.0, f"{starts[0]['run_id']}.train.1")
    assert starts[1]["seconds"] > 200
    assert " 4 jobs and no more would be started. " in metta("run", "train.py", "--dry-run").err
    # What it shows is what would be tried.
    assert metta("run", "train.py").code == 0
    assert [run.config for run in metta.runs()] == [start["config"] for start in starts]


def test_a_dry_run_without_a_seed_tells_the_one_with_which_it_would_come_true(metta: CommandLine) -> None:
    metta.write("train.py", TARGET.replace(", seed=7", ""))
    dry = metta("run", "train.py", "--dry-run", "--steps", "2")
    seed = dry.err.splitlines()[-1].removeprefix("To try these very configurations, run it with: --seed ")
    again = metta("run", "train.py", "--dry-run", "--steps", "2", "--seed", seed)
    assert again.out == dry.out
    assert "--seed" not in again.err
    assert metta("run", "train.py", "--dry-run", "--seed", seed, "--json").json["seed"] == int(seed)


def test_a_dry_run_of_a_sweep_in_the_store_goes_on_from_there(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    assert metta("run", "train.py").code == 0
    seq, files = metta.latest().seq, metta.files()
    assert metta("run", "--resume", "train", "--dry-run", "--json").json["starts"] == []
    more = metta("run", "--resume", "train", "--dry-run", "--json", "--max-trials", "6").json["starts"]
    assert len({start["run_id"] for start in more} - {run.run_id for run in metta.runs()}) == len(more) == 2
    assert more[0]["seconds"] < 1
    assert metta.latest().seq == seq
    assert metta.files() == files


def test_options_that_do_not_go_with_a_dry_run_are_refused(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    assert metta("run", "train.py", "--steps", "3").error == (
        "--steps: says how many starts a --dry-run shows; give that, too, or leave it out"
    )
    assert metta("run", "train.py", "--dry-run", "--detach").error == (
        "--detach: a --dry-run runs and changes nothing; leave one of the two out"
    )
    assert metta("run", "--dry-run").error == "give a TARGET to sweep or --resume SWEEP, and not both"
    assert metta("run", "--dry-run", "--resume", "train").code == 2
    assert metta("run", "train.py", "--dry-run", "--steps", "0").code == 2
    assert not (metta.folder / "sweeps.db").exists()


def debug(metta: CommandLine, typed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "metta.sweep.cli", "sweep", "debug", "train"],
        cwd=metta.folder,
        input=typed,
        capture_output=True,
        timeout=60,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_sweep_is_stepped_through_left_and_brought_to_its_end(metta: CommandLine) -> None:
    first = metta.start_held()
    first.process.kill()
    first.process.wait()
    left = debug(metta, "h\n\nq\n")
    assert left.returncode == 0
    assert "b STATUS" in left.stdout
    assert "2 IN_TRAINING" in left.stdout
    assert left.stderr == f"go on with: metta sweep run --resume {metta.latest().sweep_id}\n"
    metta.release()
    through = debug(metta, "b COMPLETED\nc\nb -completed\nc\n")
    assert through.returncode == 0, through.stderr
    assert "breakpoint: run " in through.stdout
    assert (metta.latest().status, metta.latest().counts) == (SweepStatus.COMPLETED, {JobStatus.COMPLETED: 4})
    assert len(metta.executions()) == len(set(metta.executions())) == 4
    again = debug(metta, "")
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr.endswith("is COMPLETED already: max_trials: all 4 runs are done\n")


def test_a_sweep_that_a_controller_is_at_work_on_is_not_debugged(metta: CommandLine) -> None:
    metta.start_held()
    refused = debug(metta, "")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "a controller is at work on it already; interrupt that one first, or only look: metta" in refused.stderr
    # Looking is not acting.
    sweep = metta.latest()
    controller = DebugController(metta.store, sweep.sweep_id, FakeDispatcher(), ManualClock(sweep.created_at))
    assert len(controller.dry_run(2)) == 2


def test_the_command_has_help_with_an_example(metta: CommandLine) -> None:
    result = metta("debug", "--help")
    assert result.code == 0
    assert "Example: metta sweep debug 46g3f" in result.out
