"""The agent does not answer: it is waited for, and replaced when it gives no sign of life either."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from faults.world import MakeWorld, World
from metta.sweep.model.events import DispatchFailed, JobLost
from metta.sweep.model.run import JobState, JobStatus
from waiting import wait_until

pytestmark = pytest.mark.slow

HELD = """
    wait_for("go")
    report_metrics({"score": config["lr"]})
"""


def stop_agent(world: World) -> int:
    wait_until(lambda: len(world.running()) == 4, what="four running jobs")
    agent = world.agent_pid()
    assert agent is not None
    os.kill(agent, signal.SIGSTOP)
    return agent


def test_an_agent_that_was_only_stopped_goes_on_with_its_jobs(make_world: MakeWorld) -> None:
    world = make_world(max_trials=8, body=HELD)
    world.start_controller()
    agent = stop_agent(world)
    world.signal("go")
    sweep_id = world.sweep_id
    renewals = set()

    def is_held_on_to() -> bool:
        # Waiting for an answer, the controller must not lose the sweep to another one.
        lease = world.store.fetch_lease(sweep_id)
        assert lease is not None
        assert lease.expires_at > time.time()
        renewals.add(lease.expires_at)
        return len(renewals) == 4

    wait_until(is_held_on_to, what="three renewals of the lease")
    shown = world.metta("status").stdout
    assert re.search(rf"pid {agent}: \d jobs, seen \d+(\.\d+)?s ago", shown), shown
    assert "no controller" not in shown
    # Nothing is concluded from its silence yet.
    assert world.bodies(JobLost) == []
    os.kill(agent, signal.SIGCONT)
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 8}
    assert len(world.executed()) == len(set(world.executed())) == 8


def test_the_doctor_finds_an_agent_that_does_not_answer(make_world: MakeWorld) -> None:
    world = make_world(max_trials=8, body=HELD)
    world.start_controller()
    agent = stop_agent(world)
    world.kill_controller()
    began = time.monotonic()
    found = world.doctor()
    assert time.monotonic() - began < 25
    assert [issue["kind"] for issue in found if issue["serious"]] == ["agent"]
    assert f"the agent with pid {agent} takes connections but does not answer" in found[0]["problem"]
    assert world.doctor("--fix") != []  # it is the controller's to replace
    os.kill(agent, signal.SIGCONT)
    world.signal("go")
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 8}
    assert len(world.executed()) == len(set(world.executed())) == 8


def test_an_agent_that_stays_silent_is_replaced_and_its_jobs_are_tried_again(make_world: MakeWorld) -> None:
    world = make_world(max_trials=8, body=HELD)
    world.start_controller()
    agent = stop_agent(world)
    wait_until(lambda: world.agent_pid() != agent, what="the end of the silent agent", timeout_s=90)
    world.signal("go")
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 8}
    lost = [job for run in state.runs.values() for job in run.jobs if job.state is JobState.LOST]
    assert len(lost) == 4
    assert {lost.reason for lost in world.bodies(JobLost)} == {"local no longer knows it"}
    assert len(world.executed()) == len(set(world.executed())) == 12


def test_a_job_that_was_offered_to_a_silent_agent_is_executed_once(make_world: MakeWorld) -> None:
    body = """
        if attempt == 1:
            raise RuntimeError("the first attempt fails")
        report_metrics({"score": config["lr"]})
    """
    world = make_world(max_trials=1, body=body, max_retries=1, retry_delay_seconds=3)
    world.start_controller()
    wait_until(lambda: [run for run in world.runs(JobStatus.RETRYING) if run.retry_at], what="a run that waits")
    agent = world.agent_pid()
    assert agent is not None
    os.kill(agent, signal.SIGSTOP)
    wait_until(lambda: world.bodies(DispatchFailed), what="an attempt to dispatch")
    assert "does not answer" in world.bodies(DispatchFailed)[0].reason
    os.kill(agent, signal.SIGCONT)
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 1}
    assert len(world.executed()) == len(set(world.executed())) == 2
