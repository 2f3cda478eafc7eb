"""Trials that want more memory than they are given."""

from __future__ import annotations

import pytest

from faults.world import MakeWorld
from metta.sweep.model.events import JobExited
from metta.sweep.model.run import FailureKind, JobStatus, Outcome

pytestmark = pytest.mark.slow


def test_a_trial_beyond_its_memory_limit_is_killed_and_completes_with_more(make_world: MakeWorld) -> None:
    body = """
        if number == 0:
            block = bytearray(400 << 20)
            time.sleep(1)
        report_metrics({"score": config["lr"]})
    """
    settings = {"resources": {"memory_gb": 0.25}, "retry": {"memory_growth": 4.0}}
    world = make_world(max_trials=4, body=body, **settings)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 4}
    [killed] = [exited for exited in world.bodies(JobExited) if exited.outcome is not Outcome.SUCCEEDED]
    assert (killed.outcome, killed.failure) == (Outcome.KILLED, FailureKind.OUT_OF_MEMORY)
    assert killed.memory_peak_bytes is not None
    assert killed.memory_peak_bytes > 0.25 * (1 << 30)
    [grown] = [run for run in state.runs.values() if run.failure_reasons]
    assert grown.memory_gb == 1.0
    assert "memory_gb = 0.25" in grown.failure_reasons[0]
    assert "memory_gb = 0.25" in world.metta("show", grown.run_id).stdout


def test_a_memory_error_is_put_down_to_memory_and_tried_again(make_world: MakeWorld) -> None:
    body = """
        if attempt == 1:
            block = bytearray(1 << 62)
        report_metrics({"score": config["lr"]})
    """
    world = make_world(max_trials=2, body=body)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 2}
    for run in state.runs.values():
        assert [job.failure for job in run.jobs] == [FailureKind.OUT_OF_MEMORY, None]
        assert run.failure_reasons[0].startswith("train failed: MemoryError")


def test_a_trial_that_always_wants_too_much_fails_with_the_reason_and_the_others_go_on(make_world: MakeWorld) -> None:
    body = """
        if number == 0:
            block = bytearray(400 << 20)
            time.sleep(5)
        report_metrics({"score": config["lr"]})
    """
    world = make_world(max_trials=3, body=body, resources={"memory_gb": 0.25})
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 2, JobStatus.FAILED: 1}
    [failed] = [run for run in state.runs.values() if run.status is JobStatus.FAILED]
    # More of the same would end the same.
    assert len(failed.jobs) == 1
    assert "memory_gb = 0.25" in failed.failure_reasons[-1]
