"""`metta sweep status --watch` and `--tail`, in real terminals and in pipes."""

from __future__ import annotations

import json
import shlex
import signal
import sqlite3
import sys
from contextlib import closing

import pytest
from rich.cells import cell_len

from cli.command_line import CommandLine
from metta.sweep.model import events as ev
from metta.sweep.model.events import new_event
from metta.sweep.model.run import JobStatus
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.stores import open_store
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP
from postgresql import PostgresqlServer
from terminal import terminal
from waiting import wait_until

METTA = [sys.executable, "-m", "metta.sweep.cli", "sweep"]


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10)])
def test_a_sweep_is_watched_on_a_terminal_until_it_has_ended(metta: CommandLine, width: int, height: int) -> None:
    metta.start_held()
    with terminal([*METTA, "status", "--watch"], metta.folder, width=width, height=height) as shown:
        begun = shown.wait_for("2 of 2 running")
        assert "train (" in begun.splitlines()[0]
        metta.release()
        end = shown.wait_for("ended with 0")
        # The last picture stays, and nothing of those before it is left above it.
        assert "4/4 runs" in end
        assert "COMPLETED" in end
        assert shown.everything.count("train (") == 1
        assert max(map(cell_len, shown.everything.splitlines())) <= width
        assert len(shown.everything.splitlines()) <= height + 1  # what the shell said after it


@pytest.mark.parametrize(
    ("setting", "plain"), [("TERM=dumb", True), ("PYTHONIOENCODING=ascii", False), ("PYTHONIOENCODING=latin-1", False)]
)
def test_terminals_that_can_do_less_show_what_they_can(metta: CommandLine, setting: str, plain: bool) -> None:
    end = ev.SweepEnded(status=SweepStatus.COMPLETED, reason="all is done")
    with closing(open_store(str(metta.folder / "sweeps.db"), create=True)) as store:
        store.append([sweep_created(), *run_events(0), new_event(end, sweep_id=SWEEP, at=START, actor="test")])
    with terminal(["env", setting, *METTA, "status", "--watch"], metta.folder) as shown:
        screen = shown.wait_for("ended with 0")
    assert "Traceback" not in screen
    assert screen.startswith(f"sweep {SWEEP} COMPLETED" if plain else f"demo ({SWEEP}) COMPLETED")


def test_what_another_program_reads_is_not_drawn_though_it_may_have_colours(metta: CommandLine) -> None:
    end = ev.SweepEnded(status=SweepStatus.COMPLETED, reason="all is done")
    with closing(open_store(str(metta.folder / "sweeps.db"), create=True)) as store:
        store.append([sweep_created(), *run_events(0), new_event(end, sweep_id=SWEEP, at=START, actor="test")])
    done = metta("status", "--watch", FORCE_COLOR="1")
    assert done.out.startswith(f"sweep {SWEEP} COMPLETED: all is done")
    assert "\x1b" not in done.out


def test_after_ctrl_z_it_goes_on_below_what_the_shell_has_said(metta: CommandLine) -> None:
    metta.start_held()
    command = shlex.join([*METTA, "status", "--watch"])
    script = f"set -m; {command}; echo stopped with $?; echo again; fg; echo ended with $?; exec cat"
    with terminal(["bash", "-c", script], metta.folder) as shown:
        shown.wait_for("2 of 2 running")
        shown.press("C-z")
        shown.wait_for("stopped with 148")
        shown.wait_for("again")
        wait_until(lambda: shown.screen.rpartition("again")[2].count("2 of 2 running") == 1, what="a new picture")
        metta.release()
        shown.wait_for("ended with 0")
        before, _, after = shown.everything.rpartition("again")
    assert before.count("2 of 2 running") == 1  # as it was when it was stopped
    assert "4/4 runs" in after
    assert after.count("train (") == 1


def test_ctrl_c_leaves_the_sweep_alone_and_the_picture_on_the_screen(metta: CommandLine) -> None:
    running = metta.start_held()
    with terminal([*METTA, "status", "--watch"], metta.folder) as shown:
        shown.wait_for("2 of 2 running")
        shown.press("C-c")
        screen = shown.wait_for("ended with 130")
        assert "Traceback" not in screen
        assert shown.everything.count("2 of 2 running") == 1
    metta.release()
    assert running.wait().code == 0


def test_it_says_that_no_controller_is_at_work_when_that_was_killed(metta: CommandLine) -> None:
    running = metta.start_held()
    sweep_id = metta.latest().sweep_id
    watching = metta.start("status", "--watch")
    with terminal([*METTA, "status", "--watch"], metta.folder) as shown:
        shown.wait_for("2 of 2 running")
        wait_until(lambda: "2 of 2 running" in watching.out, what="the first line")
        running.process.send_signal(signal.SIGKILL)
        running.process.wait()
        shown.wait_for(f"no controller is at work: metta sweep run --resume {sweep_id}")
        wait_until(lambda: f"no controller is at work: metta sweep run --resume {sweep_id}" in watching.out)
        metta.release()
        assert metta("run", "--resume", sweep_id).code == 0
        screen = shown.wait_for("ended with 0")
        assert "no controller" not in screen
    assert watching.wait().code == 0


def test_in_a_pipe_each_thing_that_happens_is_a_plain_line(metta: CommandLine) -> None:
    running = metta.start_held()
    watching = metta.start("status", "--watch")
    wait_until(lambda: watching.out, what="the first line")
    metta.release()
    done = watching.wait()
    assert running.wait().code == 0
    assert (done.code, done.err) == (0, "")
    assert all(character.isprintable() or character == "\n" for character in done.out)
    first, *ended, last = done.out.splitlines()
    assert first == "[0/4] RUNNING: 2 of 2 running; 2 IN_TRAINING"
    assert sorted(line.split()[0] for line in ended if line.startswith("[")) == [f"[{n}/4]" for n in range(1, 5)]
    assert {line.split()[1] for line in ended if line.startswith("[")} == {run.run_id for run in metta.runs()}
    [best] = [line for line in done.out.splitlines() if line.startswith("best: ")]
    assert last == best
    # A sweep that has ended is shown once, and that is all.
    again = metta("status", "--watch")
    assert again.code == 0
    assert again.out.startswith(f"sweep {metta.latest().sweep_id} COMPLETED: ")


def test_for_scripts_each_change_is_an_object(metta: CommandLine) -> None:
    running = metta.start_held()
    watching = metta.start("status", "--watch", "--json")
    wait_until(lambda: watching.out.endswith("\n"), what="the first object")
    metta.release()
    objects = [json.loads(line) for line in watching.wait().out.splitlines()]
    assert running.wait().code == 0
    assert objects[0]["counts"] == {"IN_TRAINING": 2}
    assert objects[0].keys() == metta("status", "--json").json.keys()
    assert objects[-1]["status"] == "COMPLETED"
    assert objects[-1]["best"]["run_id"] == metta.latest().best_run_id
    states = [(each["seq"], each["controlled"]) for each in objects]
    assert len(set(states)) == len(states)
    assert states == sorted(states, key=lambda state: state[0])


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_store_that_no_longer_has_the_sweep_ends_it(metta: CommandLine, options: tuple[str, ...]) -> None:
    path = metta.folder / "sweeps.db"
    with closing(open_store(str(path), create=True)) as store:
        store.append([sweep_created(), *run_events(0)])
    watching = metta.start("status", "--watch", *options)
    wait_until(lambda: watching.out, what="the first line")
    with closing(sqlite3.connect(path)) as connection, connection:  # as a database that was set up anew
        for table in ("sweeps", "runs", "events"):
            connection.execute(f"DELETE FROM {table}")
    done = watching.wait()
    assert (done.code, done.err) == (2, f"error: sweep {SWEEP} is not in the store any more; see: metta sweep list\n")


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_an_absence_of_the_store_is_outlasted(
    metta: CommandLine, options: tuple[str, ...], postgresql_server: PostgresqlServer, postgresql_url: str
) -> None:
    with closing(open_store(postgresql_url, create=True)) as store:
        store.append([sweep_created(), *run_events(0)])
    watching = metta.start("status", "--watch", "--store", postgresql_url, *options)
    wait_until(lambda: watching.out, what="the first line")
    try:
        postgresql_server.stop()
        wait_until(lambda: "the store is away, waiting for it" in watching.out + watching.err, what="that it is away")
    finally:
        postgresql_server.start()
    end = ev.SweepEnded(status=SweepStatus.COMPLETED, reason="all is done")
    with closing(open_store(postgresql_url)) as store:
        store.append([new_event(end, sweep_id=SWEEP, at=START, actor="test")])
    done = watching.wait()
    assert done.code == 0
    assert "all is done" in done.out


def test_a_run_is_followed_with_its_log_and_its_metrics(metta: CommandLine) -> None:
    metta.start_held()
    run_id = metta.executions()[0]
    watching = metta.start("status", "--tail", run_id)
    wait_until(lambda: f"training {run_id}\n" in watching.out, what="the first line")
    with terminal([*METTA, "status", "train", "--tail", run_id[:4]], metta.folder) as shown:
        screen = shown.wait_for(f"{run_id} IN_TRAINING")
        assert f"training {run_id}" in screen
        # The line that says where it stands is the last.
        assert screen.rstrip().splitlines()[-1].startswith(f"{run_id} IN_TRAINING")
        metta.release()
        end = shown.wait_for("ended with 0")
        assert f"{run_id} IN_TRAINING" not in end
        assert "COMPLETED score=" in end
    done = watching.wait()
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines.index(f"training {run_id}") < lines.index("trained")
    [run] = [run for run in metta.runs() if run.run_id == run_id]
    assert run.status is JobStatus.COMPLETED
    assert lines[-1].endswith(f"COMPLETED score={run.score:.6g}")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--watch", "--runs"), "--runs and --watch: each shows something else"),
        (("--watch", "--tail", "abc"), "--watch and --tail: each shows something else"),
        (("--tail", "abc", "--json"), "--tail: prints a log, which is no JSON"),
    ],
)
def test_views_that_exclude_each_other_are_refused(metta: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    assert metta("status", *arguments).error.startswith(said)


def test_a_run_that_there_is_not_is_refused(metta: CommandLine) -> None:
    metta.write(
        "sweep.yaml", "command: [echo, '{x}']\nsearch_space: {x: {constant: 1}}\nmetric: score\nmax_trials: 1\n"
    )
    metta("run", "sweep.yaml")
    assert metta("status", "--tail", "nothing").error.startswith("no run has the id or prefix 'nothing'")
    assert metta("status", "nowhere", "--tail", "x").error.startswith("no sweep has the id")
