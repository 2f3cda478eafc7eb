"""The disk that holds the store, the logs and the trials' files is full, in the middle of a sweep."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from faults.world import MakeWorld
from metta.sweep.model.events import ControllerStarted
from metta.sweep.model.run import FailureKind, JobStatus
from waiting import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty folder on a disk of its own, of 24 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.fail(f"these tests fill a disk of their own, which takes the right to mount one: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """To the last byte."""
    ballast = folder / "ballast"
    with ballast.open("ab", buffering=0) as file, suppress(OSError):
        for size in (1 << 20, 4096, 1):
            with suppress(OSError):
                while file.write(b"x" * size):
                    pass
    return ballast


def test_a_sweep_waits_for_room_on_the_disk_and_goes_on(make_world: MakeWorld, small_disk: Path) -> None:
    world = make_world(folder=small_disk, max_trials=24, seconds=0.3)
    controller = world.start_controller()
    wait_until(lambda: world.ended() >= 4, what="four runs")
    agent = world.agent_pid()
    ballast = fill(small_disk)
    # Its log is on that disk too, so that it can't say what is the matter; what it has not written it cannot start.
    world.wait_for_silence()
    assert controller.poll() is None
    assert world.metta("status").returncode == 0
    assert "disk" in {issue["kind"] for issue in world.doctor() if issue["serious"]}
    ballast.unlink()
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 24}
    assert len(world.bodies(ControllerStarted)) == 1
    assert agent is not None
    failures = {job.failure for run in state.runs.values() for job in run.jobs} - {None}
    assert failures <= {FailureKind.STORE_LOST, FailureKind.NODE_LOST}


def test_a_trial_that_finds_the_disk_full_is_tried_again_without_counting(
    make_world: MakeWorld, small_disk: Path
) -> None:
    body = f"""
        if attempt < 3:
            with open({str(small_disk / "ballast")!r}, "wb") as file:
                while file.write(b"x" * (1 << 20)):
                    pass
        report_metrics({{"score": config["lr"]}})
    """
    world = make_world(max_trials=1, body=body)
    assert world.run_to_the_end() == 0
    state = world.check()
    [run] = state.runs.values()
    assert [job.failure for job in run.jobs] == [FailureKind.STORE_LOST, FailureKind.STORE_LOST, None]
    assert run.retry_count == 0
    assert "No space left on device" in run.failure_reasons[0]
