"""Early stopping by real processes, with kill -9 of the controller and of the agent in the middle."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from faults.world import MakeWorld
from metta.sweep.model.events import RunStopped
from metta.sweep.model.run import JobStatus, Outcome, Rung, RunInfo
from waiting import wait_until

pytestmark = pytest.mark.slow

#: Nine epochs with a checkpoint after each; the larger the learning rate, the better.
BODY = """
    checkpoint = load_checkpoint()
    for epoch in range(checkpoint.step + 1 if checkpoint else 1, 10):
        time.sleep(0.05)
        save_checkpoint({"epoch": epoch}, step=epoch)
        report_metrics({"score": config["lr"] * (1 - 0.5 ** epoch), "epoch": epoch})
"""
LEVELS = (1.0, 3.0)

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits_mlp.py"
TRIALS = 16
#: The example, with less to do, by bayesian optimization and successive halving.
CHANGES = {
    "EPOCHS = 80\n": "EPOCHS = 27\n",
    'strategy="random",': """name="faults",
    strategy={"optimizer": "bayesian", "scheduler": "asha"},
    fidelity={"maximum": 27, "grace_period": 3},
    seed=3,""",
    "max_trials=60": f"max_trials={TRIALS}",
}


def settings(mode: str) -> dict[str, Any]:
    return {
        "strategy": {"optimizer": "bayesian", "scheduler": "asha", "scheduler_options": {"mode": mode}},
        "fidelity": {"maximum": 9},
    }


def check_that_the_worse_were_stopped(runs: list[RunInfo]) -> None:
    """Each run that was stopped on its way was, at a level that it came to, not among the best third by then."""
    rungs = [rung for run in runs for rung in run.rungs]

    def is_beaten(mine: Rung) -> bool:
        earlier = [rung.value for rung in rungs if rung.level == mine.level and rung.seq < mine.seq]
        return sum(value >= mine.value for value in earlier) >= max(1, (len(earlier) + 1) // 3)

    # Until it was stopped it may have come to the next level, and have been better there.
    stopped = [run for run in runs if run.jobs[-1].outcome is Outcome.STOPPED]
    assert all(any(map(is_beaten, run.rungs)) for run in stopped)


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_halving_survives_kills_of_controller_and_agent(make_world: MakeWorld, mode: str) -> None:
    world = make_world(max_trials=30, body=BODY, **settings(mode))
    chance = random.Random(4)
    for kills in range(6):
        world.start_controller()
        world.wait_for_events(chance.randint(20, 60))
        assert not world.is_over(), f"the sweep ended after {kills} kills; give it more to do\n{world.said}"
        if kills % 3 == 2:
            wait_until(lambda: world.is_over() or (world.agent_pid() and world.running()), what="running jobs")
            world.kill_agent()
        world.kill_controller()
    assert world.run_to_the_end() == 0
    state = world.check()
    counts = state.sweep.counts
    assert set(counts) == {JobStatus.COMPLETED, JobStatus.STOPPED}
    assert sum(counts.values()) == 30
    # While there is no controller, trials come to their end.
    assert counts[JobStatus.STOPPED] >= (1 if mode == "stop" else 12)
    runs = sorted(state.runs.values(), key=lambda run: run.index)
    check_that_the_worse_were_stopped(runs)
    completed = [run for run in runs if run.status is JobStatus.COMPLETED]
    assert all(run.progress == 9 and [rung.level for rung in run.rungs] == list(LEVELS) for run in completed)
    if mode == "promote":
        paused = [job for run in runs for job in run.jobs if job.outcome is Outcome.PAUSED]
        assert all(job.until in LEVELS for job in paused)
        assert len(paused) >= 30


def test_time_slices_survive_kills_of_controller_and_agent(make_world: MakeWorld) -> None:
    strategy = {"scheduler": "timeslice", "scheduler_options": {"slice": 3}}
    world = make_world(max_trials=9, body=BODY, strategy=strategy, fidelity={"maximum": 9})
    chance = random.Random(4)
    for _ in range(3):
        world.start_controller()
        world.wait_for_events(chance.randint(20, 40))
        wait_until(lambda: world.is_over() or (world.agent_pid() and world.running()), what="running jobs")
        assert not world.is_over(), world.said
        world.kill_agent()
        world.kill_controller()
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 9}
    for run in state.runs.values():
        ends = [job.until for job in run.jobs if job.outcome in {Outcome.PAUSED, Outcome.SUCCEEDED}]
        assert ends == [3.0, 6.0, None]


def test_networks_that_are_halved_survive_kills_of_controller_and_agent(make_world: MakeWorld) -> None:
    world = make_world(max_trials=TRIALS)
    source = EXAMPLE.read_text()
    for before, after in CHANGES.items():
        assert source.count(before) == 1, f"the example has no {before!r} any more"
        source = source.replace(before, after)
    world.target.write_text(source)
    world.start_controller()
    wait_until(lambda: world.is_over() or bool(world.bodies(RunStopped)), what="a run that is stopped early")
    world.kill_controller()
    world.start_controller()
    wait_until(lambda: world.is_over() or (world.agent_pid() and world.running()), what="running jobs")
    assert not world.is_over(), f"the sweep ended before it was killed\n{world.said}"
    world.kill_agent()
    world.kill_controller()
    assert world.run_to_the_end() == 0, world.said
    state = world.check()
    assert sum(state.sweep.counts.values()) == TRIALS
    assert set(state.sweep.counts) == {JobStatus.COMPLETED, JobStatus.STOPPED}
    best = max((run.score, run.run_id) for run in state.runs.values() if run.score is not None)
    assert best[0] > 0.95
    check_that_the_worse_were_stopped(list(state.runs.values()))
