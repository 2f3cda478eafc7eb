"""Changing a sweep's course: pause, resume, rollback, --amend, --standby."""

from __future__ import annotations

import os
import signal

import pytest

from cli.command_line import TARGET, CommandLine
from metta.sweep.agent.location import new_socket_path
from metta.sweep.model.run import JobStatus
from metta.sweep.model.sweep import SweepStatus
from processes import kill_all_in
from waiting import wait_until

pytestmark = pytest.mark.slow

#: A run fails after its checkpoint unless the file `mended` is there.
FRAGILE = """
    from pathlib import Path
    from metta.sweep import LogUniform, load_checkpoint, save_checkpoint, sweep

    @sweep(search_space={"lr": LogUniform(1e-4, 1e-1)}, metric="epochs", max_trials=1)
    def train(config):
        found = load_checkpoint()
        start = 0 if found is None else found.step + 1
        for epoch in range(start, 3):
            save_checkpoint({"epoch": epoch}, step=epoch)
        if not Path("mended").exists():
            raise RuntimeError("not mended")
        return {"epochs": float(3 - start)}
"""


#: Of three runs the best goes on beyond the first level; the others wait there, and are stopped in the end.
HALVED = """
    from metta.sweep import LogUniform, current_run, load_checkpoint, report_metrics, save_checkpoint, sweep

    @sweep(
        search_space={"lr": LogUniform(1e-4, 1e-1)},
        metric="score",
        strategy={"scheduler": "asha", "scheduler_options": {"mode": "promote"}},
        fidelity={"maximum": 3},
        max_trials=3,
        max_parallel=1,
    )
    def train(config):
        found = load_checkpoint()
        for epoch in range(found.step + 1 if found else 1, 4):
            with open("executions", "a") as executions:
                executions.write(f"{current_run().run_id}:{epoch}\\n")
            save_checkpoint({"epoch": epoch}, step=epoch)
            report_metrics({"score": epoch + config["lr"], "epoch": epoch})
"""


def test_a_run_that_was_stopped_early_is_trained_to_its_end_if_the_user_wants_it(metta: CommandLine) -> None:
    metta.write("train.py", HALVED)
    assert metta("run", "train.py").code == 0
    assert metta.latest().counts == {JobStatus.COMPLETED: 1, JobStatus.STOPPED: 2}
    stopped, other = (run.run_id for run in metta.runs() if run.status is JobStatus.STOPPED)
    assert metta("resume", stopped).code == 0
    assert metta.latest().counts == {JobStatus.COMPLETED: 2, JobStatus.STOPPED: 1}
    wanted = next(run for run in metta.runs() if run.run_id == stopped)
    assert (wanted.status, wanted.progress, wanted.stop_reason) == (JobStatus.COMPLETED, 3, None)
    assert [line for line in metta.executions() if stopped in line] == [f"{stopped}:{epoch}" for epoch in (1, 2, 3)]
    assert "the user wants it" in metta("show", stopped).out
    # The sweep as a whole brings nobody back.
    assert metta("resume", "train").code == 0
    assert next(run for run in metta.runs() if run.run_id == other).status is JobStatus.STOPPED
    refused = metta("resume", wanted.run_id).error
    assert refused == (
        f"run {wanted.run_id} is COMPLETED; only CANCELLED, FAILED, PAUSED, RETRYING and STOPPED runs can be resumed"
    )


def test_a_paused_sweep_lets_running_jobs_finish_and_goes_on_when_it_is_resumed(metta: CommandLine) -> None:
    running = metta.start_held()
    sweep_id = metta.latest().sweep_id
    paused = metta("pause", "train", "--reason", "the cluster is needed")
    assert paused.err == f"sweep {sweep_id} is PAUSED; go on with: metta sweep resume {sweep_id}\n"
    assert metta("pause", "train").err == f"sweep {sweep_id} is PAUSED: there is nothing to pause\n"
    metta.release()
    assert running.wait().code == 130
    assert running.err.endswith(f"is PAUSED: the cluster is needed\ngo on with: metta sweep resume {sweep_id}\n")
    assert (metta.latest().status, metta.latest().counts) == (SweepStatus.PAUSED, {JobStatus.COMPLETED: 2})
    assert "PAUSED: the cluster is needed; go on with" in metta("status").out
    resumed = metta("resume", "train")
    assert resumed.code == 0
    assert metta.latest().counts == {JobStatus.COMPLETED: 4}
    longer = metta("resume", "train", "--max-trials", "5")
    assert (longer.code, metta.latest().counts) == (0, {JobStatus.COMPLETED: 5})
    assert metta("resume", "train", "--checkpoint", "3").error.startswith("--checkpoint: 'train' is a sweep")
    assert metta("resume", "nothing").error.startswith("no sweep or run has the id, name or prefix 'nothing'")


def test_a_paused_sweep_whose_controller_is_still_there_just_goes_on(metta: CommandLine) -> None:
    running = metta.start_held()
    metta("pause", "train")
    goes_on = metta("resume", "train")
    assert (goes_on.code, goes_on.out) == (0, "")
    assert "goes on; watch it with" in goes_on.err
    metta.release()
    assert running.wait().code == 0


def test_the_last_runs_are_taken_back_replaced_and_given_back(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    metta("run", "train.py")
    ended = sorted(metta.runs(), key=lambda run: (run.ended_at or 0.0, run.index))
    last = [run.run_id for run in ended[:-3:-1]]
    assert metta("rollback", "train").error.startswith("give --jobs NUMBER")
    assert metta("rollback", "train", "--jobs", "2", "--json").json["rolled_back"] == last
    assert metta.latest().counts == {JobStatus.COMPLETED: 2, JobStatus.ROLLED_BACK: 2}
    assert metta("best", "--json").json[0]["run_id"] not in last
    assert metta("resume", "train").code == 0
    assert metta.latest().counts == {JobStatus.COMPLETED: 4, JobStatus.ROLLED_BACK: 2}
    back = metta("rollback", "train", "--undo")
    assert "2 runs count again" in back.err
    assert metta.latest().counts == {JobStatus.COMPLETED: 6}
    assert "there is nothing to restore" in metta("rollback", "train", "--undo").err


def test_a_changed_space_is_refused_with_the_difference_and_accepted_as_an_amendment(metta: CommandLine) -> None:
    running = metta.start_held()
    sweep_id = metta.latest().sweep_id
    metta.write("train.py", TARGET.replace("1e-4, 1e-1", "1e-6, 1e-5"))
    refused = metta("run", "train.py")
    assert (refused.code, refused.out) == (2, "")
    assert "what it searches has changed:\n  search_space.lr: " in refused.err
    assert "1e-06" in refused.err
    assert "with --amend" in refused.err
    # In a sweep under way, the controller at work takes it over.
    amended = metta("run", "train.py", "--amend")
    assert amended.code == 0
    assert amended.err.endswith("the controller at work on it goes on with the new search_space\n")
    metta.release()
    assert running.wait().code == 0
    assert metta.latest().sweep_id == sweep_id
    rates = [run.config["lr"] for run in metta.runs()]
    assert all(rate >= 1e-4 for rate in rates[:2])
    assert all(rate <= 1e-5 for rate in rates[2:])
    assert metta("run", "train.py", "--amend").error.startswith("--amend: there is no unfinished sweep of 'train'")


def test_an_amended_direction_finds_the_best_run_anew(metta: CommandLine) -> None:
    running = metta.start_held()
    metta.write("train.py", TARGET.replace('metric="score"', 'metric="score", direction="minimize"'))
    assert "direction: maximize -> minimize" in metta("run", "train.py").err
    metta("run", "train.py", "--amend")
    metta.release()
    assert running.wait().code == 0
    assert metta.latest().best_run_id == min(metta.runs(), key=lambda run: run.config["lr"]).run_id


def test_a_run_goes_on_from_the_checkpoint_asked_for(metta: CommandLine) -> None:
    metta.write("train.py", FRAGILE)
    assert metta("run", "train.py").code == 1
    [run] = metta.runs()
    assert [checkpoint.step for checkpoint in run.checkpoints] == [0, 1, 2]
    (metta.folder / "mended").touch()
    assert "no checkpoint of step 7; it has: 0, 1, 2" in metta("resume", run.run_id, "--checkpoint", "7").error
    assert metta("resume", run.run_id, "--checkpoint", "0").code == 0
    assert metta.runs()[0].score == 2.0
    assert metta("resume", run.run_id).error.startswith(f"run {run.run_id} is COMPLETED")


def test_a_standby_takes_over_from_a_controller_that_was_killed(metta: CommandLine) -> None:
    first = metta.start_held()
    second = metta.start("run", "train.py", "--standby")
    wait_until(lambda: "standing by" in second.err, what="the standby")
    first.process.kill()
    first.process.wait()
    wait_until(lambda: "took over" in second.err, what="the takeover", timeout_s=10)
    metta.release()
    assert second.wait().code == 0
    assert metta.latest().counts == {JobStatus.COMPLETED: 4}
    assert len(metta.executions()) == len(set(metta.executions())) == 4


def test_a_standby_ends_with_the_sweep(metta: CommandLine) -> None:
    first = metta.start_held()
    second = metta.start("run", "--resume", metta.latest().sweep_id, "--standby")
    wait_until(lambda: "standing by" in second.err, what="the standby")
    metta.release()
    assert (first.wait().code, second.wait().code) == (0, 0)


def test_a_controller_that_slept_through_the_loss_of_its_lease_does_no_harm(metta: CommandLine) -> None:
    first = metta.start_held()
    metta.suspend(first)
    # It looks alive to whoever asks for its process; its lease runs out all the same.
    second = metta.start("run", "train.py", "--standby")
    wait_until(lambda: "took over" in second.err, what="the takeover", timeout_s=40)
    os.kill(first.process.pid, signal.SIGCONT)
    refused = first.wait()
    assert refused.code == 2
    assert "Traceback" not in refused.err
    metta.release()
    assert second.wait().code == 0
    assert metta.latest().counts == {JobStatus.COMPLETED: 4}
    assert len(metta.executions()) == len(set(metta.executions())) == 4


def test_limits_of_a_sweep_under_way_change_by_running_it_again(metta: CommandLine) -> None:
    running = metta.start_held()
    metta.write("train.py", TARGET.replace("max_trials=4", "max_trials=3"))
    again = metta("run", "train.py")
    assert (again.code, "goes on with the new max_trials" in again.err) == (0, True)
    assert "a controller is at work on it already" in metta("run", "train.py").error
    metta.release()
    assert running.wait().code == 0
    assert metta.latest().counts == {JobStatus.COMPLETED: 3}


def test_a_stop_whose_controller_was_killed_is_carried_out_by_whoever_comes_next(metta: CommandLine) -> None:
    running = metta.start_held()
    sweep_id = metta.latest().sweep_id
    metta.suspend(running)
    stopping = metta.start("stop", "train")
    wait_until(lambda: metta.latest().status is SweepStatus.STOPPING, what="the request")
    for command in (running, stopping):
        command.process.kill()
        command.process.wait()
    assert f"no controller is at work: metta sweep stop {sweep_id}" in metta("status").out
    assert metta("resume", "train").error.endswith(f"bring it to its end with: metta sweep stop {sweep_id}")
    assert metta("run", "train.py").code == 1
    assert (metta.latest().status, metta.latest().counts) == (SweepStatus.STOPPED, {JobStatus.CANCELLED: 2})


def test_a_sweep_may_be_taken_up_from_within_a_job_of_its_own(metta: CommandLine) -> None:
    running = metta.start_held()
    running.process.kill()
    kill_all_in(metta.folder)
    running.process.wait()
    metta.wait_for_the_end_of_all_processes()
    metta.release()
    # As in a shell that a job had started: the new agent looks for what its predecessor's jobs have left.
    socket = new_socket_path(metta.store.url, metta.latest().sweep_id)
    assert metta("run", "train.py", METTA_SWEEP_SOCKET=str(socket)).code == 0
    assert metta.latest().counts == {JobStatus.COMPLETED: 4}
