"""Ending sweeps: `metta sweep stop`, and Ctrl-C once and twice."""

from __future__ import annotations

import signal

import pytest

from cli.command_line import CommandLine, Running
from metta.sweep.model.run import JobStatus
from metta.sweep.model.sweep import SweepStatus
from waiting import wait_until


def interrupt(running: Running, answer: str, number: signal.Signals = signal.SIGINT) -> None:
    running.process.send_signal(number)
    wait_until(lambda: answer in running.err, what=f"the note {answer!r}")


def test_ctrl_c_lets_running_jobs_finish_and_starts_nothing_new(metta: CommandLine) -> None:
    running = metta.start_held()
    resume = f"metta sweep run --resume {metta.latest().sweep_id}"
    interrupt(running, f"nothing new starts, running jobs finish (again to cancel them); go on later with: {resume}\n")
    metta.release()
    result = running.wait()
    assert result.code == 130
    assert result.err.endswith(f"sweep {metta.latest().sweep_id} is interrupted; go on with: {resume}\n")
    assert "Traceback" not in result.err
    metta.wait_for_the_end_of_all_processes()
    assert (metta.latest().status, metta.latest().counts) == (SweepStatus.RUNNING, {JobStatus.COMPLETED: 2})
    status = metta("status")
    assert f"no controller is at work: {resume}" in status.out
    assert metta("run", "train.py").code == 0
    assert metta.latest().counts == {JobStatus.COMPLETED: 4}
    assert len(metta.executions()) == len(set(metta.executions())) == 4


def test_ctrl_c_and_sigterm_make_two_and_cancel_running_jobs_and_a_resume_runs_them_again(metta: CommandLine) -> None:
    running = metta.start_held()
    cut_short = metta.executions()
    interrupt(running, "stopping: nothing new starts", signal.SIGTERM)
    interrupt(running, "cancelling the running jobs; they will be tried again; go on later with: metta sweep run --res")
    assert running.wait().code == 130
    metta.wait_for_the_end_of_all_processes()
    assert (metta.latest().status, metta.latest().counts) == (SweepStatus.RUNNING, {JobStatus.CANCELLED: 2})
    metta.release()
    assert metta("run", "--resume", "train").code == 0
    assert metta.latest().counts == {JobStatus.COMPLETED: 4}
    assert sorted(metta.executions()) == sorted([*cut_short, *(run.run_id for run in metta.runs())])


@pytest.mark.slow
def test_stop_ends_a_sweep_through_its_controller_or_without_one(metta: CommandLine) -> None:
    running = metta.start_held()
    first = metta.latest().sweep_id
    stopped = metta("stop", first, "--reason", "seen enough")
    assert (stopped.code, stopped.out) == (0, "")
    assert stopped.err == f"sweep {first} STOPPED: seen enough; 2 runs are kept\n"
    assert running.wait().code == 1
    assert (metta.latest().status, metta.latest().counts) == (SweepStatus.STOPPED, {JobStatus.CANCELLED: 2})
    assert [run.failure_reasons for run in metta.runs()] == [("train cancelled: seen enough",)] * 2

    (metta.folder / "executions").unlink()
    running = metta.start_held()
    second = metta.latest().sweep_id
    assert second != first
    running.process.kill()
    running.process.wait()
    assert metta("stop", "train-2").err.startswith(f"sweep {second} STOPPED: stopped by the user; 2 runs")
    metta.wait_for_the_end_of_all_processes()
    assert metta.latest().counts == {JobStatus.CANCELLED: 2}
    again = metta("stop", second)
    assert (again.code, again.err) == (0, f"sweep {second} is STOPPED already: stopped by the user\n")
    # A stop is for good until somebody resumes by name: its cancelled runs stay, new ones take up the rest.
    metta.release()
    assert metta("run", "--resume", second).code == 0
    assert metta.latest().counts == {JobStatus.CANCELLED: 2, JobStatus.COMPLETED: 2}
