"""Rows that somebody else changed: noticed, explained, and got rid of without losing what is sound."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from faults.world import MakeWorld, World
from metta.sweep.model.run import JobStatus
from waiting import wait_until

pytestmark = pytest.mark.slow


def change(world: World, statement: str) -> None:
    """Behind the sweep's back."""
    with closing(sqlite3.connect(world.folder / "sweeps.db", isolation_level=None, timeout=30)) as connection:
        assert connection.execute(statement).rowcount == 1


def recover_and_put_in_place(world: World) -> None:
    """As docs/backup.md has it."""
    recovered = world.metta("doctor", "--recover", "sweeps.db")
    assert "what could be read is in sweeps.recovered.db" in recovered.stderr, recovered
    old = world.folder / "old"
    old.mkdir()
    for file in sorted(world.folder.glob("sweeps.db*")):
        file.rename(old / file.name)
    (world.folder / "sweeps.recovered.db").rename(world.folder / "sweeps.db")
    world.reopen()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE events SET body = '{}' WHERE seq = (SELECT max(seq) FROM events WHERE type = 'run_completed')",
        "DELETE FROM events WHERE seq = (SELECT max(seq) FROM events WHERE type = 'metrics_reported')",
        "UPDATE events SET run_id = 'other' WHERE seq = (SELECT min(seq) FROM events WHERE type = 'job_started')",
    ],
    ids=["changed", "deleted", "of another run"],
)
def test_a_sweep_whose_log_was_changed_is_refused_found_recovered_and_goes_on(
    make_world: MakeWorld, statement: str
) -> None:
    world = make_world(max_trials=24)
    world.start_controller()
    wait_until(lambda: world.ended() >= 8, what="eight runs")
    world.kill_everything()
    before = {run.run_id: run for run in world.runs(JobStatus.COMPLETED)}
    change(world, statement)

    refused = world.start_controller()
    assert refused.wait(timeout=60) == 2
    assert "doctor --recover" in world.said
    assert "Traceback" not in world.said
    found = world.doctor()
    assert {issue["kind"] for issue in found if issue["serious"]} <= {"log", "store", "projections"}
    assert "--recover" in " ".join(issue["remedy"] for issue in found)

    recover_and_put_in_place(world)
    assert world.run_to_the_end() == 0
    state = world.check()
    assert state.sweep.counts == {JobStatus.COMPLETED: 24}
    # What was done before the damage is there, and was not done again.
    executed = world.executed()
    for run_id, run in before.items():
        assert state.runs[run_id].score == run.score
        assert sum(job_id.startswith(f"{run_id}.") for job_id in executed) == 1


def test_a_controller_at_work_stops_when_the_row_that_it_builds_on_was_changed(make_world: MakeWorld) -> None:
    world = make_world(max_trials=24)
    controller = world.start_controller()
    wait_until(lambda: world.ended() >= 4, what="four runs")
    change(world, "UPDATE sweeps SET totals = replace(totals, '\"COMPLETED\":', '\"COMPLETED\": 1')")
    assert controller.wait(timeout=60) == 2
    assert "Traceback" not in world.said
    assert "doctor" in world.said
    assert world.metta("status").returncode == 2
    assert [issue["kind"] for issue in world.doctor() if issue["serious"]]
    world.kill_everything()

    recover_and_put_in_place(world)
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 24}


def test_a_table_that_was_changed_is_written_anew_from_the_log(make_world: MakeWorld, postgresql_url: str) -> None:
    world = make_world(max_trials=24, url=postgresql_url)
    world.start_controller()
    wait_until(lambda: world.ended() >= 8, what="eight runs")
    sweep_id = world.sweep_id
    world.kill_controller()
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        best = connection.execute(
            "UPDATE runs SET score = 1e9 WHERE run_id = (SELECT min(run_id) FROM runs WHERE status = 'COMPLETED')"
        )
        assert best.rowcount == 1
    assert world.metta("status", "--runs").returncode == 2
    assert "projections" in {issue["kind"] for issue in world.doctor(sweep_id)}
    world.doctor(sweep_id, "--fix")
    assert [issue for issue in world.doctor() if issue["serious"]] == []
    assert world.run_to_the_end() == 0
    assert world.check().sweep.counts == {JobStatus.COMPLETED: 24}


def test_a_file_cut_short_is_refused_and_what_is_left_of_it_is_recovered(make_world: MakeWorld) -> None:
    world = make_world(max_trials=24)
    world.start_controller()
    wait_until(lambda: world.ended() >= 12, what="twelve runs")
    world.kill_everything()
    path = Path(world.folder / "sweeps.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    world.reopen()
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 3 // 4 // 4096 * 4096)
    refused = world.start_controller()
    assert refused.wait(timeout=60) == 2
    assert "Traceback" not in world.said
    assert "doctor --recover" in world.said
    assert world.doctor()
    recover_and_put_in_place(world)
    assert world.run_to_the_end() == 0
    world.check(is_history_whole=False)
