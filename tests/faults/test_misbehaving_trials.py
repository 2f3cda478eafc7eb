"""Whatever the user's code does to its process, the run has an end with a reason, and the others go on."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from faults.world import MakeWorld
from metta.sweep.model.events import JobExited
from metta.sweep.model.run import FailureKind, JobStatus, Outcome, RunInfo
from waiting import wait_until

pytestmark = pytest.mark.slow


def test_a_segmentation_fault_is_told_apart_and_tried_again(make_world: MakeWorld) -> None:
    body = """
        if attempt == 1:
            ctypes.string_at(0) if number % 2 else os.kill(os.getpid(), signal.SIGSEGV)
        report_metrics({"score": config["lr"]})
    """
    world = make_world(max_trials=4, body=body)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 4}
    for run in state.runs.values():
        assert [job.failure for job in run.jobs] == [FailureKind.KILLED, None]
        assert run.failure_reasons == ("train killed: SIGSEGV (signal 11)",)


def test_a_trial_that_hangs_is_ended_after_its_time_and_tried_again(make_world: MakeWorld) -> None:
    body = """
        if attempt == 1 and number < 2:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            wait_for("nothing that ever comes")
        report_metrics({"score": config["lr"]})
    """
    world = make_world(max_trials=4, body=body, job_timeout_s=2, grace_s=0.3, max_retries=1)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 4}
    ends = [(exited.outcome, exited.failure) for exited in world.bodies(JobExited)]
    assert ends.count((Outcome.TIMED_OUT, FailureKind.TIMED_OUT)) == 2
    reasons = [run.failure_reasons for run in state.runs.values() if run.failure_reasons]
    assert reasons == [("train timed_out: ran longer than job_timeout_s = 2",)] * 2


def test_a_stopped_trial_that_wakes_after_it_was_given_up_does_no_harm(make_world: MakeWorld) -> None:
    body = """
        if number == 0:
            signal.signal(signal.SIGTERM, lambda *_: pathlib.Path("woken").touch())
            os.kill(os.getpid(), signal.SIGSTOP)
            wait_for("woken")
        report_metrics({"score": config["lr"]})
        return {"score": 1000.0}
    """
    world = make_world(max_trials=4, body=body, job_timeout_s=2, grace_s=20)
    world.start_controller()
    wait_until(world.executions, what="the first trial")
    _, pid = world.executions()[0]

    def is_asked_to_end() -> bool:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        pending = next(line.split()[1] for line in lines if line.startswith("ShdPnd"))
        return bool(int(pending, 16) & 1 << (signal.SIGTERM - 1))

    wait_until(is_asked_to_end, what="the signal to end")
    os.kill(pid, signal.SIGCONT)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert (world.folder / "woken").exists()
    assert state.sweep.counts == {JobStatus.COMPLETED: 3, JobStatus.FAILED: 1}
    [failed] = [run for run in state.runs.values() if run.status is JobStatus.FAILED]
    assert failed.score is None
    assert failed.failure_reasons == ("train timed_out: ran longer than job_timeout_s = 2",)


def test_a_storm_of_nans_fails_those_that_reported_them_once_and_pauses_nothing(make_world: MakeWorld) -> None:
    body = """
        report_metrics({"score": float("nan") if number % 2 else config["lr"]})
    """
    world = make_world(max_trials=20, body=body, max_retries=3, same_error_limit=3)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 10, JobStatus.FAILED: 10}
    assert len(world.executed()) == 20
    for run in state.runs.values():
        if run.status is JobStatus.FAILED:
            assert run.jobs[-1].failure is FailureKind.BAD_METRICS
            assert "finite" in run.failure_reasons[-1]
            assert run.score is None


def test_a_sweep_whose_jobs_fail_at_random_completes_all_runs(make_world: MakeWorld) -> None:
    body = """
        chance = random.Random(f"{number} {attempt}")
        if chance.random() < 0.3:
            ends = [
                lambda: 1 / 0, lambda: sys.exit(3), lambda: os._exit(7), lambda: os.abort(),
                lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: os.kill(os.getpid(), signal.SIGTERM),
                lambda: ctypes.string_at(0),
            ]
            chance.choice(ends)()
            time.sleep(60)
        report_metrics({"score": config["lr"]})
    """
    attempts = sum(
        next(attempt for attempt in range(1, 7) if random.Random(f"{number} {attempt}").random() >= 0.3)
        for number in range(40)
    )
    world = make_world(max_trials=40, body=body, max_retries=5, retry_delay_seconds=0.05)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 40}
    assert len(world.executed()) == len(set(world.executed())) == attempts
    assert sum(len(run.failure_reasons) for run in state.runs.values()) == attempts - 40


#: What a trial does, and a part of the reason that is kept.
ENDS = {
    "sys.exit(3)": "called sys.exit(3)",
    "sys.exit()": "called sys.exit()",
    "os._exit(0)": "exited with code 0",
    "os._exit(5)": "exited with code 5",
    "raise KeyboardInterrupt": "KeyboardInterrupt",
    "raise GeneratorExit": "GeneratorExit",
    "return None": "metric 'score' was not reported; train reported: no metrics at all",
    "return 'good'": "returned str 'good'; return a dict of metrics",
    "return {'score': 'good'}": "metric 'score'",
    "return {'score': None}": "metric 'score'",
    "return {'score': float('-inf')}": "only finite numbers",
    "return {'other': 1.0}": "metric 'score' was not reported; train reported: other",
    "raise BaseExceptionGroup('several', [KeyboardInterrupt()])": "BaseExceptionGroup",
}


def test_every_way_not_to_return_a_result_is_a_failure_with_its_reason(make_world: MakeWorld) -> None:
    body = "\n".join(f"if number == {number}:\n    {end}" for number, end in enumerate(ENDS))
    world = make_world(max_trials=len(ENDS), body=body)
    assert world.run_to_the_end() == 1
    state = world.check()
    assert state.sweep.counts == {JobStatus.FAILED: len(ENDS)}
    by_number: list[RunInfo] = [state.runs[job_id.partition(".")[0]] for job_id in world.executed()]
    for run, (end, reason) in zip(by_number, ENDS.items(), strict=True):
        assert len(run.failure_reasons) == 1, end
        assert reason in run.failure_reasons[0], end
        assert run.score is None
    shown = " ".join(world.metta("show", by_number[0].run_id).stdout.split())
    assert "called sys.exit(3)" in shown


def test_daemons_that_a_trial_leaves_behind_hold_up_nothing_and_end(make_world: MakeWorld) -> None:
    body = """
        if os.fork() == 0:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            if os.fork() == 0:
                time.sleep(300)
            os._exit(0)
        report_metrics({"score": config["lr"]})
    """
    world = make_world(max_trials=6, body=body)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 6}
    # A daemon has the socket of its trial open; nobody waited for it.
    assert all(run.cost < 30 for run in state.runs.values())


def test_a_trial_that_floods_its_log_does_not_hold_up_the_others(make_world: MakeWorld) -> None:
    body = """
        if number == 0:
            for _ in range(1000):
                os.write(1, b"x" * 99_999 + b"\\n")
        print("quiet")
        report_metrics({"score": config["lr"]})
    """
    world = make_world(max_trials=8, body=body)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 8}
    logs = [Path(run.jobs[-1].log or "") for run in state.runs.values()]
    assert max(log.stat().st_size for log in logs) > 100_000_000
    assert all(log.stat().st_size < 1000 or log.stat().st_size > 100_000_000 for log in logs)
    for log in logs:
        log.unlink()


def test_a_trial_that_is_killed_goes_on_from_its_last_checkpoint(make_world: MakeWorld) -> None:
    body = """
        found = load_checkpoint()
        for epoch in range(0 if found is None else found.step + 1, 6):
            with open("epochs", "a") as epochs:
                epochs.write(f"{run.run_id} {epoch}\\n")
            save_checkpoint({"epoch": epoch}, step=epoch)
            if attempt < 3 and epoch == 2 * attempt:
                os.kill(os.getpid(), signal.SIGKILL)
        report_metrics({"score": config["lr"]})
    """
    world = make_world(max_trials=4, body=body)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 4}
    epochs = [line.split() for line in (world.folder / "epochs").read_text().splitlines()]
    for run in state.runs.values():
        assert len(run.jobs) == 3
        assert [epoch for run_id, epoch in epochs if run_id == run.run_id] == ["0", "1", "2", "3", "4", "5"]
