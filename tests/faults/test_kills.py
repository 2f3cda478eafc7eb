"""kill -9 of every kind of process, at random moments, with real processes."""

from __future__ import annotations

import random

import psutil
import pytest

from faults.world import MakeWorld
from metta.sweep.model.events import JobExited
from metta.sweep.model.run import FailureKind, JobState, JobStatus, Outcome
from waiting import wait_until

pytestmark = pytest.mark.slow


def test_a_sweep_survives_twenty_kills_of_its_controller(make_world: MakeWorld) -> None:
    world = make_world(max_trials=60)
    chance = random.Random(1)
    kills = 0
    while kills < 20:
        world.start_controller()
        world.wait_for_events(chance.randint(1, 16))
        assert not world.is_over(), f"the sweep ended after {kills} kills; give it more to do\n{world.said}"
        world.kill_controller()
        kills += 1
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 60}
    # Jobs do not even notice: each ran once.
    assert len(world.executed()) == len(set(world.executed())) == 60


def test_a_sweep_survives_five_kills_of_its_agent(make_world: MakeWorld) -> None:
    world = make_world(max_trials=60, seconds=0.4)
    chance = random.Random(2)
    world.start_controller()
    for kills in range(5):
        world.wait_for_events(chance.randint(1, 30))
        wait_until(lambda: world.is_over() or (world.agent_pid() and world.running()), what="running jobs")
        assert not world.is_over(), f"the sweep ended after {kills} kills; give it more to do\n{world.said}"
        world.kill_agent()
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 60}
    # A job that died with its agent is told apart from one that failed, and tried again.
    lost = [job for run in state.runs.values() for job in run.jobs if job.state is JobState.LOST]
    assert lost
    assert len(set(world.executed())) >= 60


def test_a_sweep_survives_twenty_kills_of_single_trials(make_world: MakeWorld) -> None:
    world = make_world(max_trials=60, seconds=0.3)
    chance = random.Random(3)
    world.start_controller()
    kills = 0
    while kills < 20:
        world.wait_for_events(chance.randint(1, 9))
        assert not world.is_over(), f"the sweep ended after {kills} kills; give it more to do\n{world.said}"
        kills += world.kill_a_trial(chance.randint(0, 3))
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 60}
    killed = [exited for exited in world.bodies(JobExited) if exited.outcome is Outcome.KILLED]
    # A trial may have delivered its result just before it was hit.
    assert 15 <= len(killed) <= 20
    assert {(exited.failure, exited.error) for exited in killed} == {(FailureKind.KILLED, "SIGKILL (signal 9)")}
    reasons = [reason for run in state.runs.values() for reason in run.failure_reasons]
    assert len(reasons) == len(killed)
    assert all("SIGKILL" in reason for reason in reasons)
    # Some were hit before their code began.
    assert 60 <= len(world.executed()) == len(set(world.executed())) <= 60 + len(killed)


def test_controller_and_agent_killed_together_leave_nothing_behind_and_lose_nothing(make_world: MakeWorld) -> None:
    world = make_world(max_trials=20, seconds=0.5)
    for kills in range(3):
        controller = world.start_controller()
        wait_until(lambda: world.is_over() or (world.agent_pid() and world.running()), what="running jobs")
        assert not world.is_over(), f"the sweep ended after {kills} kills; give it more to do\n{world.said}"
        controller.kill()
        world.kill_agent()
        controller.wait()
        wait_until(lambda: not world.processes(), what="the end of all processes")
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 20}


def test_what_a_job_put_into_a_session_of_its_own_goes_when_agent_and_fork_server_die_together(
    make_world: MakeWorld,
) -> None:
    body = """
        if attempt == 1:
            process = subprocess.Popen(["sleep", "301"], start_new_session=True)
            pathlib.Path("detached").write_text(str(process.pid))
            wait_for("nothing that ever comes")
        report_metrics({"score": config["lr"]})
    """
    world = make_world(max_trials=1, body=body)
    world.start_controller()
    note = world.folder / "detached"
    wait_until(lambda: note.exists() and note.read_text(), what="the detached process")
    detached = psutil.Process(int(note.read_text()))
    agent_pid = world.agent_pid()
    assert agent_pid is not None
    agent = psutil.Process(agent_pid)
    agent.suspend()  # so that it cannot tidy up behind its fork server
    for process in (*agent.children(), agent):
        process.kill()
    assert world.run_to_the_end() == 0
    assert not detached.is_running() or detached.status() == psutil.STATUS_ZOMBIE
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 1}


def test_what_was_killed_in_the_middle_is_seen_for_what_it_is_and_goes_on(make_world: MakeWorld) -> None:
    body = """
        if attempt == 1:
            wait_for("nothing that ever comes")
        report_metrics({"score": config["lr"]})
    """
    world = make_world(max_trials=4, body=body)
    world.start_controller()
    wait_until(lambda: len(world.running()) == 4, what="four running jobs")
    assert "no controller is at work" not in world.metta("status").stdout
    world.kill_everything()
    # Whoever only looks is told, and changes nothing.
    seq = world.sweep.seq
    assert f"no controller is at work: metta sweep run --resume {world.sweep_id}" in world.metta("status").stdout
    looked = " ".join(world.metta("doctor").stdout.split())
    assert "died; the next one takes its place at once; go on with: metta sweep run --resume" in looked
    assert "none runs on" in looked
    assert world.sweep.seq == seq
    assert world.metta("run", "--resume", world.name).returncode == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 4}
    assert [job.state for run in state.runs.values() for job in run.jobs] == [JobState.LOST, JobState.EXITED] * 4
