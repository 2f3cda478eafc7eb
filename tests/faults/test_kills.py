"""kill -9 of every kind of process, at random moments, with real processes."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from faults.world import World
from metta.sweep.model.run import JobState, JobStatus, Outcome
from waiting import wait_until

pytestmark = pytest.mark.slow

MakeWorld = Callable[..., World]


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    worlds: list[World] = []

    def make(**options: float) -> World:
        worlds.append(World(tmp_path, **options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()


def test_a_sweep_survives_twenty_kills_of_its_controller(make_world: MakeWorld) -> None:
    world = make_world(max_trials=60)
    chance = random.Random(1)
    kills = 0
    while kills < 20:
        world.start_controller()
        world.wait_for_events(chance.randint(1, 16))
        assert not world.is_over(), f"the sweep ended after {kills} kills; give it more to do"
        world.kill_controller()
        kills += 1
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 60}
    # Jobs do not even notice: each ran once.
    assert len(world.executed()) == len(set(world.executed())) == 60


def test_a_sweep_survives_five_kills_of_its_agent(make_world: MakeWorld) -> None:
    world = make_world(max_trials=60)
    chance = random.Random(2)
    world.start_controller()
    for _ in range(5):
        wait_until(world.agent_pid, what="an agent")
        world.wait_for_events(chance.randint(5, 50))
        pid = world.agent_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda dead=pid: world.agent_pid() != dead, what="the agent's death")
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
        assert not world.is_over(), f"the sweep ended after {kills} kills; give it more to do"
        kills += world.kill_a_trial(chance.randint(0, 3))
    assert world.run_to_the_end() == 0
    state = world.check()
    killed = [
        run for run in state.runs.values() if run.status is JobStatus.FAILED and run.jobs[-1].outcome is Outcome.KILLED
    ]
    # A trial may have delivered its result just before it was hit.
    assert 15 <= len(killed) <= 20
    assert all("SIGKILL" in run.failure_reasons[-1] for run in killed)
    assert state.sweep.counts.get(JobStatus.COMPLETED, 0) + len(killed) == 60


def test_controller_and_agent_killed_together_leave_nothing_behind_and_lose_nothing(make_world: MakeWorld) -> None:
    world = make_world(max_trials=12)
    for _ in range(3):
        world.start_controller()
        wait_until(lambda: world.is_over() or (world.agent_pid() and world.running()), what="running jobs")
        pid = world.agent_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        world.kill_controller()
        wait_until(lambda: not world.processes(), what="the end of all processes")
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 12}
