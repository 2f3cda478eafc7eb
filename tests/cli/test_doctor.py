"""`metta sweep doctor`: each thing that can be wrong is found, explained, and mended where that can be done."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cli.command_line import CommandLine, Result
from metta.sweep.checkpoints import save
from metta.sweep.cli.examination import SCARCE_BYTES, scarce
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobStatus, JobType
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.protocols import Store
from metta.sweep.stores import open_store
from metta.sweep.stores.hashes import event_hash
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP
from processes import processes_in
from waiting import wait_until

RUN, OTHER = ids.run_id(SWEEP, 0), ids.run_id(SWEEP, 1)


def event(body: ev.Body, run_id: str | None = None, job_id: str | None = None) -> Event:
    return new_event(body, sweep_id=SWEEP, at=START + 3600, actor="test", run_id=run_id, job_id=job_id)


@pytest.fixture
def store(metta: CommandLine) -> Iterator[Store]:
    """An ended sweep of two runs, whose folder is here."""
    with closing(open_store(str(metta.folder / "sweeps.db"), create=True)) as store:
        directory = metta.folder / "sweeps" / SWEEP
        directory.mkdir(parents=True)
        store.append([sweep_created(directory=str(directory)), *run_events(0, score=1.0)])
        store.append([replaced(event) for event in run_events(1, score=3.0)])
        store.append([event(ev.SweepEnded(status=SweepStatus.COMPLETED, reason="enough"))])
        yield store


def replaced(event: Event) -> Event:
    """By another actor: one clock doesn't go back."""
    return new_event(event.body, sweep_id=SWEEP, at=event.at, actor="another", run_id=event.run_id, job_id=event.job_id)


def in_database(metta: CommandLine, statement: str, *values: Any) -> None:
    """Slipped fingers in the database."""
    with closing(sqlite3.connect(metta.folder / "sweeps.db", isolation_level=None)) as connection:
        assert connection.execute(statement, values).rowcount == 1


def issues(result: Result) -> list[tuple[str, str | None]]:
    """Kind and run of all issues that were found, of the store and of its only sweep."""
    found = [*result.json["issues"], *(issue for sweep in result.json["sweeps"] for issue in sweep["issues"])]
    return [(issue["kind"], issue["run_id"]) for issue in found]


def lines_of(result: Result) -> list[str]:
    return [re.sub(r"\s+", " ", line).strip() for line in result.out.splitlines()]


def test_a_healthy_sweep_gets_a_line_for_each_thing_that_was_looked_at(metta: CommandLine, store: Store) -> None:
    result = metta("doctor")
    assert (result.code, result.err) == (0, "")
    *lines, disk, last = lines_of(result)
    assert lines == [
        "store sqlite:///sweeps.db",
        "store ok",
        f"sweep {SWEEP} (demo)",
        "log ok 16 events",
        "tables ok as the log says",
        "runs ok 2 runs, 0 of them unfinished",
        "controller ok none is at work, the sweep is COMPLETED",
        lines[7],
        "checkpoints ok none",
    ]
    assert lines[7].startswith("agents ok none runs on ")
    assert re.fullmatch(r"disk (ok|note) [\d.,]+ GiB free", disk)
    assert last == "healthy"


def test_an_inconsistent_run_is_found_and_mended_and_the_log_says_why(metta: CommandLine, store: Store) -> None:
    wrong = ev.StateRepaired(problem="a slip", before={}, after={"score": None, "ended_at": None})
    store.append([event(wrong, OTHER)])
    result = metta("doctor", SWEEP)
    assert result.code == 1
    assert f"{OTHER}: completed without a score" in result.out
    assert "-> score None -> 3.0" in result.out
    assert result.out.endswith("2 issues, --fix mends 2\n")

    fixed = metta("doctor", SWEEP, "--fix", "--json")
    assert (fixed.code, issues(fixed)) == (0, [])
    assert [issue["problem"] for issue in fixed.json["sweeps"][0]["mended"]] == [
        "completed without a score",
        "COMPLETED without a time of its end",
    ]
    [run] = store.fetch_runs(SWEEP, run_ids=[OTHER])
    assert (run.score, run.ended_at) == (3.0, START + 3600)
    repairs = [each for each in store.read(SWEEP) if each.actor.startswith("doctor@")]
    assert [each.body.problem for each in repairs if isinstance(each.body, ev.StateRepaired)] == [
        "completed without a score",
        "COMPLETED without a time of its end",
    ]
    assert store.fetch_lease(SWEEP) is None
    assert metta("doctor").code == 0


def test_json_gives_each_issue_with_what_would_be_done(metta: CommandLine, store: Store) -> None:
    store.append([event(ev.StateRepaired(problem="a slip", before={}, after={"retry_count": -1}), RUN)])
    result = metta("doctor", "--json")
    [sweep] = result.json["sweeps"]
    assert result.json.keys() == {"store", "healthy", "issues", "sweeps"}
    assert result.json["healthy"] is sweep["healthy"] is False
    assert set(sweep["facts"]) == {"log", "tables", "runs", "controller", "agents", "checkpoints", "disk"}
    assert [issue for issue in sweep["issues"] if issue["serious"]] == [
        {
            "kind": "numbers",
            "run_id": RUN,
            "job_id": None,
            "problem": "retry_count is -1",
            "remedy": "retry_count -1 -> 0",
            "serious": True,
            "mendable": True,
        }
    ]


def test_repairs_fit_the_state_they_were_thought_of_where_a_controller_is_at_work(
    metta: CommandLine, store: Store
) -> None:
    store.append([event(ev.StateRepaired(problem="a slip", before={}, after={"retry_count": -1}), RUN)])
    lease = store.acquire_lease(SWEEP, "elsewhere/1:2:3", time.time(), 3600)
    result = metta("doctor", "--fix")
    assert (result.code, lines_of(result)[-1]) == (0, "1 mended, healthy")
    assert "elsewhere, pid 2, is at work" in result.out
    assert store.fetch_lease(SWEEP) == lease


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE runs SET info = replace(info, '1.0', '7.0') WHERE \"index\" = 0", "its hash does not fit"),
        ('DELETE FROM runs WHERE "index" = 0', "its row is missing"),
        ("UPDATE sweeps SET totals = replace(totals, '1', '2')", "its hash does not fit"),
    ],
)
def test_tables_that_differ_from_the_log_are_written_anew(
    metta: CommandLine, store: Store, statement: str, words: str
) -> None:
    before = store.fetch_runs(SWEEP)
    in_database(metta, statement)
    result = metta("doctor", SWEEP)
    assert result.code == 1
    assert words in result.out
    fixed = metta("doctor", SWEEP, "--fix")
    assert (fixed.code, fixed.err) == (0, "")
    assert store.fetch_runs(SWEEP) == before
    assert metta("doctor").code == 0


def test_a_row_of_a_sweep_gone_bad_is_explained_where_no_sweep_is_named(metta: CommandLine, store: Store) -> None:
    in_database(metta, "UPDATE sweeps SET totals = replace(totals, '1', '2')")
    result = metta("doctor", "--json")
    assert (result.code, issues(result)) == (1, [("store", None)])
    [issue] = result.json["issues"]
    assert "metta sweep doctor SWEEP --fix, with the whole id, writes its row anew" in issue["problem"]


def test_an_event_that_does_not_fit_is_named_with_what_follows_from_it(metta: CommandLine, store: Store) -> None:
    [wrong] = [each for each in store.read(SWEEP) if each.seq == 5]
    with closing(sqlite3.connect(metta.folder / "sweeps.db", isolation_level=None)) as connection:
        columns = "sweep_id, seq, id, at, actor, type, run_id, job_id, body"
        row = list(connection.execute(f"SELECT {columns} FROM events WHERE seq = 5").fetchone())
        row[6] = "nobody"
        hashed = event_hash(*row)
        connection.execute("UPDATE events SET run_id = 'nobody', hash = ? WHERE seq = 5", (hashed,))
    result = metta("doctor", SWEEP)
    assert result.code == 1
    assert f"event 5 ({wrong.type}, by test) does not fit what is before it" in result.out
    assert "there is no such run" in result.out
    assert metta("doctor", SWEEP, "--fix").code == 1
    assert "Traceback" not in result.err


def test_an_event_that_is_not_as_it_was_written_is_named(metta: CommandLine, store: Store) -> None:
    in_database(metta, "UPDATE events SET actor = 'somebody' WHERE seq = 5")
    result = metta("doctor", SWEEP, "--json")
    assert (result.code, issues(result)) == (1, [("log", None)])
    [issue] = result.json["sweeps"][0]["issues"]
    assert "event 5" in issue["problem"]
    assert "--recover" in issue["remedy"]
    assert not issue["mendable"]


def damage(path: Path) -> None:
    """Garbage in the middle of the file, as a failing disk leaves it."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(b"\xff" * 8192)


def test_a_damaged_file_is_explained_and_recovered_into_a_new_store(metta: CommandLine, store: Store) -> None:
    store.close()
    path = metta.folder / "sweeps.db"
    damage(path)
    result = metta("doctor")
    assert (result.code, "Traceback" in result.err) == (1, False)
    assert f"--recover {path}" in result.out
    assert metta("doctor", "--fix").code == 1

    recovered = metta("doctor", "--recover", "sweeps.db", "--json")
    assert recovered.code in {0, 1}
    assert recovered.json["target"] == "sweeps.recovered.db"
    assert [sweep["sweep_id"] for sweep in recovered.json["sweeps"]] == [SWEEP]
    assert "look into it with: metta sweep list --store sweeps.recovered.db" in recovered.err
    assert metta("doctor", SWEEP, "--store", "sweeps.recovered.db", "--fix").code == 0


def test_recovering_a_sound_store_loses_nothing_and_says_so(metta: CommandLine, store: Store) -> None:
    result = metta("doctor", "--recover", "sweeps.db", "--to", "new.db")
    assert result.code == 0
    heading, row = lines_of(result)
    assert heading == "sweep name events read written runs complete rebuilt partial lost"
    assert row == f"{SWEEP} demo 16 of 16 16 2 0 0 0"
    assert "reading" in result.err
    with closing(open_store(str(metta.folder / "new.db"))) as copy:
        assert list(copy.read(SWEEP)) == list(store.read(SWEEP))


def test_bad_input_is_refused_in_one_line(metta: CommandLine, store: Store) -> None:
    assert metta("doctor", "--to", "new.db").error.startswith("--to: ")
    assert metta("doctor", "--recover", "nowhere.db").error.startswith("--recover: there is no file nowhere.db")
    assert metta("doctor", "--recover", "sweeps.db", "--fix").error.startswith("--recover: ")
    assert "exists" in metta("doctor", "--recover", "sweeps.db", "--to", "sweeps.db").error
    assert "there is no such file" in metta("doctor", "--store", "nowhere.db").error
    assert "no sweep has the id" in metta("doctor", "nobody").error


def test_a_file_that_is_no_store_is_explained(metta: CommandLine) -> None:
    metta.write("notes.txt", "not a database at all\n" * 100)
    result = metta("doctor", "--store", "notes.txt")
    assert (result.code, "Traceback" in result.err) == (1, False)
    assert "not a database" in result.out


# --------------------------------------------------------------------------------------------------------------- files


def remove(path: Path) -> None:
    path.unlink()


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def alter(path: Path) -> None:
    path.write_bytes(b"?" * path.stat().st_size)


@pytest.mark.parametrize(
    ("harm", "words", "options"),
    [(remove, "missing", ()), (shorten, "damaged", ()), (alter, "SHA-256", ("--thorough",))],
)
def test_a_checkpoint_that_is_no_more_what_was_saved_is_taken_off_the_list(
    metta: CommandLine, store: Store, harm: Callable[[Path], None], words: str, options: tuple[str, ...]
) -> None:
    run_id = ids.run_id(SWEEP, 2)
    directory = metta.folder / "sweeps" / SWEEP / "runs" / run_id
    directory.mkdir(parents=True)
    first, second = (save(directory, {"weights": [step] * 100}, step) for step in (1, 2))
    job_id = ids.job_id(run_id, JobType.TRAIN, 1)
    store.append([event(ev.SweepResumed()), *map(replaced, run_events(2)[:4])])
    store.append([event(saved, run_id, job_id) for saved in (first, second)])
    store.append([*map(replaced, run_events(2)[4:]), event(ev.SweepEnded(status=SweepStatus.COMPLETED, reason="x"))])
    assert metta("doctor", "--thorough").code == 0

    harm(directory / first.path)
    result = metta("doctor", *options)
    assert result.code == 1
    assert f"{run_id}: checkpoint of step 1: {words}" in result.out or words in result.out
    assert metta("doctor", "--fix", *options).code == 0
    [run] = store.fetch_runs(SWEEP, run_ids=[run_id])
    assert [each.step for each in run.checkpoints] == [2]


def test_scarce_space_is_serious_only_while_the_sweep_goes_on(tmp_path: Path) -> None:
    assert scarce(tmp_path, SCARCE_BYTES, is_over=False) == []
    [issue] = scarce(tmp_path, SCARCE_BYTES - 1, is_over=False)
    assert (issue.is_serious, "1,024 MiB are free" in issue.problem) == (True, True)
    [issue] = scarce(tmp_path, 1, is_over=True)
    assert not issue.is_serious


# ------------------------------------------------------------------------------------------------------- under way


@pytest.mark.slow
def test_a_sweep_at_work_is_healthy_and_a_job_that_the_log_gave_up_is_ended(metta: CommandLine) -> None:
    running = metta.start_held()
    result = metta("doctor")
    assert (result.code, lines_of(result)[-1]) == (0, "healthy")
    assert " is at work" in result.out
    assert "answers and runs 2 jobs" in result.out

    running.process.kill()
    running.process.wait()
    died = metta("doctor")
    assert died.code == 0
    assert re.search(r"died; the next one takes its place at once; go on with: metta sweep run --resume", died.out)

    sweep = metta.latest()
    stray, kept = metta.runs()
    job = stray.open_job
    assert job is not None
    lost = new_event(
        ev.JobLost(reason="a test says so"),
        sweep_id=sweep.sweep_id,
        at=time.time(),
        actor="test",
        run_id=stray.run_id,
        job_id=job.job_id,
    )
    metta.store.append([lost])
    found = metta("doctor", "--json")
    assert found.code == 1
    [issue] = [issue for issue in found.json["sweeps"][0]["issues"] if issue["serious"]]
    assert (issue["kind"], issue["job_id"]) == ("stray_job", job.job_id)
    fixed = metta("doctor", "--fix", "--json")
    assert (fixed.code, [each["kind"] for each in fixed.json["sweeps"][0]["mended"]]) == (0, ["stray_job"])
    assert job.pid is not None
    pid = job.pid
    wait_until(
        lambda: pid not in {process.pid for process in processes_in(metta.folder)}, what="the end of the stray job"
    )
    [others] = metta.store.fetch_runs(sweep.sweep_id, run_ids=[kept.run_id])
    assert others.status is JobStatus.IN_TRAINING
    metta.release()
