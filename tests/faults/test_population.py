"""Population based training of real networks by real processes, with kill -9 of the controller in the middle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from faults.world import MakeWorld, World
from metta.sweep.model import events as ev
from metta.sweep.model.events import Body
from metta.sweep.model.run import JobStatus, Outcome, RunInfo
from metta.sweep.model.state import SweepState
from waiting import wait_until

pytestmark = pytest.mark.slow

EXAMPLE = Path(__file__).parents[2] / "examples" / "digits_mlp.py"
EPOCHS, LEVELS = 24, (4.0, 8.0, 12.0, 16.0, 20.0)
POPULATION, TRIALS = 4, 7
#: The example, shorter, and as a population. Each run writes down the weights that it loads and saves.
CHANGES = {
    "EPOCHS = 80\n": f"""EPOCHS = {EPOCHS}

def note(what, network, epoch):
    import hashlib
    from metta.sweep import current_run
    weights = hashlib.sha256(b"".join(part.tobytes() for part in network.coefs_)).hexdigest()
    with open("weights", "a") as notes:
        notes.write(f"{{current_run().run_id}} {{what}} {{epoch}} {{weights}}\\n")

""",
    'strategy="random",': f"""name="faults",
    strategy={{
        "scheduler": "pbt",
        "scheduler_options": {{"population": {POPULATION}, "fixed": ["hidden_layer_sizes", "activation"]}},
    }},
    fidelity={{"maximum": {EPOCHS}, "grace_period": 4, "interval": 4}},
    seed=7,""",
    "max_trials=60": f"max_trials={TRIALS}",
    'checkpoints={"last": 2}': 'checkpoints={"last": 1}',
    "        network, epoch = adjusted(": """        note("loads", checkpoint.value, checkpoint.step)
        network, epoch = adjusted(""",
    "            save_checkpoint(network, step=epoch)": """            note("saves", network, epoch)
            save_checkpoint(network, step=epoch)""",
}

_Kind = TypeVar("_Kind", bound=Body)


def shortened_example() -> str:
    source = EXAMPLE.read_text()
    for before, after in CHANGES.items():
        assert source.count(before) == 1, f"the example has no {before!r} any more"
        source = source.replace(before, after)
    return source


def has_copied(world: World, count: int) -> Callable[[], bool]:
    return lambda: len(world.bodies(ev.CheckpointCopied)) >= count or world.is_over()


def test_a_population_of_networks_survives_kills_of_its_controller(make_world: MakeWorld) -> None:
    world = make_world(max_trials=TRIALS)
    world.target.write_text(shortened_example())
    for count in (1, 2):
        world.start_controller()
        wait_until(has_copied(world, count), what=f"copy {count} of a checkpoint")
        assert not world.is_over(), f"the sweep ended before it was killed\n{world.said}"
        world.kill_controller()
    assert world.run_to_the_end() == 0, world.said
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: POPULATION, JobStatus.STOPPED: TRIALS - POPULATION}
    check_that_each_is_trained_once(state)
    branches = [run for run in state.runs.values() if run.parent is not None]
    assert len(branches) == TRIALS - POPULATION
    for run in branches:
        check_branch(world, state, run)


def check_that_each_is_trained_once(state: SweepState) -> None:
    for run in state.runs.values():
        levels = [job.until for job in run.jobs if job.outcome is Outcome.PAUSED]
        assert len(levels) == len(set(levels))
        if run.status is JobStatus.COMPLETED:
            assert run.progress == EPOCHS
            assert tuple(rung.level for rung in run.rungs) == LEVELS


def check_branch(world: World, state: SweepState, run: RunInfo) -> None:
    """It has begun with its parent's very weights, from a copy of the checkpoint, and gone on by values of its own."""
    assert run.parent is not None
    parent, step = state.runs[run.parent.run_id], run.parent.step
    [copy] = of_run(world, run, ev.CheckpointCopied)
    [original] = [saved for saved in of_run(world, parent, ev.CheckpointSaved) if saved.step == step]
    assert (copy.source, copy.step, copy.sha256) == (parent.run_id, step, original.sha256)
    notes = [line.split() for line in (world.folder / "weights").read_text().splitlines()]
    loaded = next(note for note in notes if note[:2] == [run.run_id, "loads"])
    saved = next(note for note in notes if note[:3] == [parent.run_id, "saves", str(step)])
    assert loaded[2:] == saved[2:]
    assert run.config != parent.config
    for name in ("hidden_layer_sizes", "activation"):
        assert run.config[name] == parent.config[name]


def of_run(world: World, run: RunInfo, kind: type[_Kind]) -> list[_Kind]:
    events = world.store.read(world.sweep_id, run_id=run.run_id)
    return [event.body for event in events if isinstance(event.body, kind)]
