"""The store goes away in the middle of a sweep, and comes back: a real PostgreSQL server, really stopped."""

from __future__ import annotations

import os
import signal

import pytest

from faults.world import MakeWorld, World
from metta.sweep.model.events import ControllerStarted, JobExited, RunCreated
from metta.sweep.model.run import FailureKind, JobState, JobStatus
from postgresql import PostgresqlServer
from waiting import wait_until

pytestmark = pytest.mark.slow

#: Ends when it is told to, and leaves word that it did.
HELD = """
    wait_for("go")
    report_metrics({"score": config["lr"]})
    pathlib.Path(f"ended-{run.run_id}").touch()
"""


def ended_code(world: World) -> int:
    return len(list(world.folder.glob("ended-*")))


def test_a_sweep_goes_on_through_three_restarts_of_its_store(
    make_world: MakeWorld, postgresql_server: PostgresqlServer, postgresql_url: str
) -> None:
    world = make_world(max_trials=40, seconds=0.3, url=postgresql_url)
    world.start_controller()
    for mode in ("immediate", "fast", "immediate"):
        world.wait_for_events(20)
        assert not world.is_over()
        agent = world.agent_pid()
        postgresql_server.stop(mode)
        postgresql_server.start()
        assert not world.is_over()
        assert world.agent_pid() == agent
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 40}
    # Nobody died, and nothing was done again.
    assert len(world.bodies(ControllerStarted)) == 1
    assert len(world.executed()) == 40
    assert "Traceback" not in world.said


def test_jobs_that_end_while_the_store_is_away_are_recorded_when_it_is_back(
    make_world: MakeWorld, postgresql_server: PostgresqlServer, postgresql_url: str
) -> None:
    world = make_world(max_trials=8, url=postgresql_url, body=HELD)
    controller = world.start_controller()
    wait_until(lambda: len(world.running()) == 4, what="four running jobs")
    agent = world.agent_pid()
    spool = world.files / "agent.spool"

    postgresql_server.stop()
    world.signal("go")
    wait_until(lambda: ended_code(world) == 4, what="the end of the jobs")
    # What they said is safe by now even if the agent should be killed, and the user can read what is the matter.
    wait_until(lambda: spool.read_bytes().count(b'"job_exited"') == 4, what="the results in the spool")
    wait_until(lambda: "the store is away" in world.said, what="a word of the controller")
    refused = world.metta("status")
    assert refused.returncode == 2
    assert "refused" in refused.stderr
    assert refused.stderr.count("\n") == 1
    # Nothing new starts, because nobody would know of it.
    assert len(world.executed()) == 4
    assert controller.poll() is None

    postgresql_server.start()
    wait_until(lambda: world.ended() >= 4, what="the results", timeout_s=15)
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 8}
    assert len(world.executed()) == len(set(world.executed())) == 8
    assert len(world.bodies(JobExited)) == 8
    assert len(world.bodies(ControllerStarted)) == 1
    assert "the store is back" in world.said
    agent_log = world.agent_said
    assert "the store is away" in agent_log
    assert "the store is back" in agent_log
    assert spool.read_bytes() == b""
    assert agent is not None


def test_a_controller_killed_while_the_store_is_away_finds_everything_when_both_are_back(
    make_world: MakeWorld, postgresql_server: PostgresqlServer, postgresql_url: str
) -> None:
    world = make_world(max_trials=8, url=postgresql_url, body=HELD)
    world.start_controller()
    wait_until(lambda: len(world.running()) == 4, what="four running jobs")
    postgresql_server.stop()
    world.kill_controller()
    world.signal("go")
    wait_until(lambda: ended_code(world) == 4, what="the end of the jobs")
    # Without a store there is nothing to go on with, which is said in a line.
    refused = world.start_controller()
    assert refused.wait(timeout=60) == 2
    assert "Traceback" not in world.said
    assert "error: store postgresql://" in world.said
    postgresql_server.start()
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 8}
    assert len(world.executed()) == 8


def test_what_an_agent_could_not_write_before_it_was_killed_is_written_by_the_next_one(
    make_world: MakeWorld, postgresql_server: PostgresqlServer, postgresql_url: str
) -> None:
    world = make_world(max_trials=6, url=postgresql_url, body=HELD)
    world.start_controller()
    wait_until(lambda: len(world.running()) == 4, what="four running jobs")
    agent = world.agent_pid()
    assert agent is not None
    spool = world.files / "agent.spool"
    postgresql_server.stop()
    world.signal("go")
    wait_until(lambda: spool.read_bytes().count(b'"job_exited"') == 4, what="the results in the spool")
    os.kill(agent, signal.SIGKILL)
    postgresql_server.start()
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 6}
    # Their results were not lost with the agent, so nothing had to be done again.
    assert len(world.executed()) == 6
    assert all(len(run.jobs) == 1 for run in state.runs.values())


def test_jobs_lost_with_their_agent_while_the_store_is_away_are_tried_again(
    make_world: MakeWorld, postgresql_server: PostgresqlServer, postgresql_url: str
) -> None:
    world = make_world(max_trials=6, url=postgresql_url, body=HELD)
    world.start_controller()
    wait_until(lambda: len(world.running()) == 4, what="four running jobs")
    agent = world.agent_pid()
    assert agent is not None
    postgresql_server.stop()
    os.kill(agent, signal.SIGKILL)
    world.signal("go")
    postgresql_server.start()
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 6}
    lost = [job for run in state.runs.values() for job in run.jobs if job.state is JobState.LOST]
    assert [job.failure for job in lost] == [FailureKind.NODE_LOST] * 4
    assert len(world.bodies(RunCreated)) == 6
