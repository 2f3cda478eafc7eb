"""Several controllers: one at a time at a sweep, each at its own; with the store on a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from faults.world import MakeWorld, World
from metta.sweep.model.events import ControllerStarted
from metta.sweep.model.run import JobStatus
from waiting import wait_until

pytestmark = pytest.mark.slow

HELD = """
    wait_for("go")
    report_metrics({"score": config["lr"]})
"""


def start_first_and_standby(world: World, *, prefix: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
    """The controller at work; the one that waits is the world's latest."""
    first = world.start_controller()
    wait_until(lambda: len(world.running()) == 4, what="four running jobs")
    world.start_controller("--standby", prefix=prefix)
    wait_until(lambda: "standing by" in world.said, what="the standby")
    return first


def check_that_each_job_ran_once(world: World) -> None:
    world.signal("go")
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 8}
    assert len(world.executed()) == len(set(world.executed())) == 8
    assert "Traceback" not in world.said


def test_a_standby_on_the_same_machine_takes_over_at_once(make_world: MakeWorld, postgresql_url: str) -> None:
    world = make_world(max_trials=8, url=postgresql_url, body=HELD)
    first = start_first_and_standby(world)
    first.kill()
    first.wait()
    wait_until(lambda: "took over" in world.said, what="the takeover", timeout_s=5)
    check_that_each_job_ran_once(world)


def test_a_standby_on_another_machine_takes_over_within_seconds(make_world: MakeWorld, postgresql_url: str) -> None:
    # In a namespace of its own it has another machine's name, and cannot know what became of a process on this one.
    prefix = ("unshare", "--uts", "sh", "-c", 'hostname another-machine && exec "$@"', "sh")
    tried = subprocess.run([*prefix, sys.executable, "-c", ""], capture_output=True, text=True, check=False)
    assert tried.returncode == 0, f"this test plays another machine, which takes the right to unshare: {tried.stderr}"
    world = make_world(max_trials=8, url=postgresql_url, body=HELD)
    first = start_first_and_standby(world, prefix=prefix)
    killed_at = time.monotonic()
    first.kill()
    first.wait()
    wait_until(lambda: "took over" in world.said, what="the takeover", timeout_s=25)
    assert time.monotonic() - killed_at > 5  # not before the silence has lasted
    check_that_each_job_ran_once(world)
    hosts = [started.host for started in world.bodies(ControllerStarted)]
    assert hosts[1] == "another-machine" != hosts[0]


def test_a_controller_that_wakes_after_its_lease_is_gone_does_no_harm(
    make_world: MakeWorld, postgresql_url: str
) -> None:
    world = make_world(max_trials=8, url=postgresql_url, body=HELD)
    first = start_first_and_standby(world)
    os.kill(first.pid, signal.SIGSTOP)
    wait_until(lambda: "took over" in world.said, what="the takeover", timeout_s=40)
    os.kill(first.pid, signal.SIGCONT)
    assert first.wait(timeout=60) == 2
    assert "another controller" in world.said or "at work on it" in world.said
    check_that_each_job_ran_once(world)


def test_two_sweeps_in_one_database_with_a_controller_each_do_not_disturb_each_other(
    make_world: MakeWorld, postgresql_url: str
) -> None:
    one = make_world(max_trials=25, url=postgresql_url, name="one")
    other = make_world(max_trials=25, url=postgresql_url, name="other")
    one.start_controller()
    other.start_controller()
    one.wait_for_events(10)
    one.kill_controller()
    assert other.run_to_the_end() == 0
    assert one.run_to_the_end() == 0
    for world in (one, other):
        assert world.check().sweep.counts == {JobStatus.COMPLETED: 25}
        assert len(world.executed()) == 25
    assert one.sweep_id != other.sweep_id
