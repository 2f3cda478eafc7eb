"""Rows found in bytes: whatever SQLite wrote comes back, and nothing else does."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metta.sweep.errors import StoreError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobInfo, JobStatus, JobType, RunInfo
from metta.sweep.model.space import LogUniform, SearchSpace
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.stores.hashes import event_hash, run_hash, sweep_hash
from metta.sweep.stores.rows import encode_totals
from metta.sweep.stores.salvage import salvage
from metta.sweep.testing.sweeps import START, SWEEP, sweep_config

TABLES = """
CREATE TABLE events (
    sweep_id VARCHAR NOT NULL, seq INTEGER NOT NULL, id VARCHAR NOT NULL UNIQUE, at FLOAT NOT NULL,
    actor VARCHAR NOT NULL, type VARCHAR NOT NULL, run_id VARCHAR, job_id VARCHAR, body BLOB NOT NULL,
    hash BLOB NOT NULL, PRIMARY KEY (sweep_id, seq)
) WITHOUT ROWID;
CREATE TABLE sweeps (
    sweep_id VARCHAR NOT NULL, name VARCHAR NOT NULL UNIQUE, created_at FLOAT NOT NULL, seq INTEGER NOT NULL,
    config BLOB NOT NULL, totals BLOB NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (sweep_id)
);
CREATE TABLE runs (
    sweep_id VARCHAR NOT NULL, run_id VARCHAR NOT NULL, "index" INTEGER NOT NULL, status VARCHAR NOT NULL,
    score FLOAT, info BLOB NOT NULL, hash BLOB NOT NULL, PRIMARY KEY (sweep_id, run_id)
);
CREATE INDEX runs_by_index ON runs (sweep_id, "index");
CREATE INDEX runs_by_score ON runs (sweep_id, score);
"""
PAGE_SIZES = [1 << bits for bits in range(9, 17)]


@contextmanager
def tables(
    path: Path, page_size: int = 4096, journal: str = "wal", definitions: str = TABLES
) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute(f"PRAGMA journal_mode={journal}")
        connection.executescript(definitions)
        yield connection


def write_event(connection: sqlite3.Connection, event: Event) -> None:
    body = msgspec.json.encode(event.body)
    row = (event.sweep_id, event.seq, event.id, event.at, event.actor, event.type, event.run_id, event.job_id, body)
    connection.execute("INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?,?)", (*row, event_hash(*row)))


def write_sweep(connection: sqlite3.Connection, sweep: SweepMetadata) -> None:
    config = msgspec.json.encode(sweep.config)
    row = (sweep.sweep_id, sweep.config.name, sweep.created_at, sweep.seq, config, encode_totals(sweep))
    connection.execute("REPLACE INTO sweeps VALUES (?,?,?,?,?,?,?)", (*row, sweep_hash(*row)))


def write_run(connection: sqlite3.Connection, run: RunInfo) -> None:
    row = (run.sweep_id, run.run_id, run.index, run.status.value, run.score, msgspec.json.encode(run))
    values = ", ".join("?" * 7)
    connection.execute(
        f"INSERT INTO runs VALUES ({values}) ON CONFLICT (sweep_id, run_id) DO UPDATE SET "
        "status=excluded.status, score=excluded.score, info=excluded.info, hash=excluded.hash",
        (*row, run_hash(*row)),
    )


def report(seq: int, **fields: object) -> Event:
    run_id = ids.run_id(SWEEP, seq % ids.ID_COUNT)
    body = ev.MetricsReported(metrics={"reward": float(seq)})
    event = new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id=run_id, job_id=f"{run_id}.train.1")
    return msgspec.structs.replace(event, seq=seq, **fields)


def run(index: int, **fields: object) -> RunInfo:
    defaults = {"config": {"lr": 0.01}, "created_at": START}
    return RunInfo(sweep_id=SWEEP, run_id=ids.run_id(SWEEP, index), index=index, **{**defaults, **fields})  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- all that was written

# Lengths around those at which numbers take another byte and records another page.
LENGTHS = st.integers(0, 300) | st.sampled_from([450, 1000, 4000, 5000, 9000, 70_000])
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
REALS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-1000, 1 << 40).map(float)


@st.composite
def events(draw: st.DrawFn) -> list[Event]:
    seqs = draw(st.lists(st.integers(1, 300) | st.integers(1, (1 << 62)), unique=True, max_size=40))
    return [
        report(
            seq,
            sweep_id=draw(st.sampled_from([SWEEP, "another", "x" * 80])),
            at=draw(REALS),
            actor="a" + draw(TEXTS),
            run_id=draw(st.none() | st.just("run") | TEXTS.map(lambda text: "r" + text)),
            job_id=draw(st.none() | st.just("r" * 60)),
            body=ev.ControllerStopped(reason=draw(TEXTS) + "x" * draw(LENGTHS)),
        )
        for seq in seqs
    ]


@st.composite
def runs(draw: st.DrawFn) -> list[RunInfo]:
    return [
        run(
            index,
            status=draw(st.sampled_from(list(JobStatus))),
            score=draw(st.none() | REALS),
            failure_reasons=("x" * draw(LENGTHS),),
        )
        for index in draw(st.lists(st.integers(0, 1 << 24), unique=True, max_size=20))
    ]


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=events(), runs=runs(), data=st.data())
def test_all_rows_that_sqlite_wrote_are_found(
    tmp_path: Path, events: list[Event], runs: list[RunInfo], data: st.DataObject
) -> None:
    page_size, journal = data.draw(st.sampled_from(PAGE_SIZES)), data.draw(st.sampled_from(["wal", "delete"]))
    config = sweep_config(search_space=SearchSpace.of({f"p{n}": LogUniform(1e-5, 1e-1) for n in range(200)}))
    sweep = SweepMetadata(sweep_id=SWEEP, config=config, created_at=START, seq=7, cost=0.5)
    path = tmp_path / "sweeps.db"
    for file in tmp_path.iterdir():
        file.unlink()
    with tables(path, page_size, journal) as connection:
        write_sweep(connection, sweep)
        for event in events:
            write_event(connection, event)
        for each in runs:
            write_run(connection, each)
        deleted = data.draw(st.sampled_from(["nothing", "runs", "half of all"]))
        if deleted == "runs":
            connection.execute("DELETE FROM runs")
            connection.execute("VACUUM")
        elif deleted == "half of all":
            connection.execute("DELETE FROM events WHERE seq % 2")
            connection.execute('DELETE FROM runs WHERE "index" % 2')
        if data.draw(st.booleans()):
            connection.execute("PRAGMA wal_checkpoint")
        # Also while a connection is open: then part of it, or all, is in the write-ahead log.
        salvaged = salvage(path)
    assert salvaged.is_verified
    assert salvaged.sweeps == {SWEEP: sweep}
    kept = {(event.sweep_id, event.seq): event for event in events if deleted != "half of all" or event.seq % 2 == 0}
    found = {(event.sweep_id, event.seq): event for log in salvaged.events.values() for event in log.values()}
    assert kept.items() <= found.items()
    assert all(event in events for event in found.values())
    rows = [each for each in runs if deleted == "nothing" or (deleted == "half of all" and each.index % 2 == 0)]
    found_runs = list(salvaged.runs.get(SWEEP, {}).values())
    assert all(each in found_runs for each in rows)
    assert all(each in runs for each in found_runs)


def test_rows_of_the_write_ahead_log_are_found_without_the_file(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with tables(path) as connection:
        for seq in range(1, 100):
            write_event(connection, report(seq))
        path.write_bytes(b"")
        assert sorted(salvage(path).events[SWEEP]) == list(range(1, 100))


def test_rows_of_schema_1_are_found_though_nothing_vouches_for_them(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with tables(path, definitions=TABLES.replace("hash BLOB NOT NULL, ", "")) as connection:
        event, sweep, row = (
            report(1),
            SweepMetadata(sweep_id=SWEEP, config=sweep_config(), created_at=START, seq=1),
            run(0),
        )
        body, config, info = map(msgspec.json.encode, (event.body, sweep.config, row))
        ours = (event.run_id, event.job_id, body)
        connection.execute(
            "INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?)",
            (SWEEP, 1, event.id, event.at, event.actor, event.type, *ours),
        )
        connection.execute(
            "INSERT INTO sweeps VALUES (?,?,?,?,?,?)", (SWEEP, "demo", START, 1, config, encode_totals(sweep))
        )
        connection.execute(
            "INSERT INTO runs VALUES (?,?,?,?,?,?)", (SWEEP, row.run_id, 0, row.status.value, row.score, info)
        )
        salvaged = salvage(path)
    assert not salvaged.is_verified
    assert salvaged.events == {SWEEP: {1: event}}
    assert salvaged.sweeps == {SWEEP: sweep}
    assert salvaged.runs == {SWEEP: {row.run_id: row}}


def test_a_damaged_write_ahead_log_gives_back_the_commits_behind_the_damage(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with tables(path) as connection:
        for seq in range(1, 200):
            write_event(connection, report(seq))
        log = bytearray(path.with_name("sweeps.db-wal").read_bytes())
        content = path.read_bytes()
    # SQLite takes what follows a frame that is not right for the rest of a commit that never came to be.
    log[32 + 5 * (24 + 4096) + 2000] ^= 1
    path.write_bytes(content)
    path.with_name("sweeps.db-wal").write_bytes(log)
    assert sorted(salvage(path).events[SWEEP]) == list(range(1, 200))


def test_what_was_never_committed_is_not_found(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with tables(path) as connection:
        write_event(connection, report(1))
        connection.execute("PRAGMA cache_size=1")
        connection.execute("BEGIN")
        for seq in range(2, 500):
            write_event(connection, report(seq))
        assert b"metrics_reported" in path.with_name("sweeps.db-wal").read_bytes()[-8192:]
        assert list(salvage(path).events[SWEEP]) == [1]
        connection.execute("ROLLBACK")


def test_what_an_earlier_turn_left_in_the_write_ahead_log_is_not_taken_for_news(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with tables(path) as connection:
        for reports in range(50):
            write_run(connection, run(0, reports=reports))
        connection.execute("PRAGMA wal_checkpoint(RESTART)")
        write_run(connection, run(0, reports=50))
        assert salvage(path).runs[SWEEP][ids.run_id(SWEEP, 0)].reports == 50


def test_of_several_versions_of_a_row_the_newest_counts(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with tables(path) as connection:
        sweep = SweepMetadata(sweep_id=SWEEP, config=sweep_config(), created_at=START, seq=1)
        for step in range(40):
            write_sweep(connection, msgspec.structs.replace(sweep, seq=step + 1, reason="because" * step))
            for index in range(20):
                jobs = tuple(
                    JobInfo(job_id=f"j{number}", type=JobType.TRAIN, attempt=number, granted_at=START)
                    for number in range(step)
                )
                write_run(connection, run(index, jobs=jobs))
        salvaged = salvage(path)
    assert salvaged.sweeps[SWEEP].seq == 40
    assert {len(each.jobs) for each in salvaged.runs[SWEEP].values()} == {39}


# --------------------------------------------------------------------------------------------------------- nothing else


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A file with 300 events and 40 runs."""
    path = tmp_path / "whole.db"
    with tables(path, 1024) as connection:
        write_sweep(connection, SweepMetadata(sweep_id=SWEEP, config=sweep_config(), created_at=START, seq=300))
        for seq in range(1, 301):
            write_event(connection, report(seq, id=f"{seq:036}"))
        for index in range(40):
            write_run(connection, run(index))
    return path


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1 << 32), flips=st.sampled_from([1, 10, 100, 400]))
def test_flipped_bits_lose_rows_but_change_none(whole: Path, tmp_path: Path, seed: int, flips: int) -> None:
    before = salvage(whole)
    content = bytearray(whole.read_bytes())
    choose = random.Random(seed)
    for _ in range(flips):
        content[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(content)
    after = salvage(damaged)
    assert after.is_verified
    events, runs = after.events.get(SWEEP, {}), after.runs.get(SWEEP, {})
    assert events.items() <= before.events[SWEEP].items()
    assert runs.items() <= before.runs[SWEEP].items()
    assert after.sweeps.items() <= before.sweeps.items()
    # A flipped bit costs the row that it is in, and no other.
    assert len(events) + len(runs) + len(after.sweeps) >= 341 - flips


def test_the_header_of_the_file_is_not_needed(whole: Path) -> None:
    before = salvage(whole)
    content = whole.read_bytes()
    for start in (random.Random(0).randbytes(100), bytes(100)):
        whole.write_bytes(start + content[100:])
        assert salvage(whole) == before


def test_pages_may_lie_in_any_order(whole: Path) -> None:
    before = salvage(whole)
    content = whole.read_bytes()
    pages = [content[start : start + 1024] for start in range(0, len(content), 1024)]
    random.Random(0).shuffle(pages)
    whole.write_bytes(b"".join(pages))
    after = salvage(whole)
    assert (after.events, after.runs) == (before.events, before.runs)


def test_rows_of_deleted_projections_do_not_hide_that_they_are_stale(whole: Path) -> None:
    with closing(sqlite3.connect(whole, isolation_level=None)) as connection:
        write_run(connection, run(0, reports=5, failure_reasons=("x" * 900,)))
    assert salvage(whole).runs[SWEEP][ids.run_id(SWEEP, 0)].reports == 5


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"notes about sweeps" * 1000, bytes(100_000)])
def test_what_is_no_store_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sweeps.db"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=f"none of its {len(content):,} bytes belongs to a row of a sweep"):
        salvage(path)


def test_noise_is_no_store(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    path.write_bytes(random.Random(0).randbytes(1 << 22))
    with pytest.raises(StoreError, match="belongs to a row"):
        salvage(path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"missing\.db: cannot be read .* copy the file to a healthy disk"):
        salvage(tmp_path / "missing.db")


def test_a_row_of_a_later_version_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with tables(path) as connection:
        row = (SWEEP, 1, "id", START, "test", "sweep_transcended", None, None, b'{"type": "sweep_transcended"}')
        connection.execute("INSERT INTO events VALUES (?,?,?,?,?,?,?,?,?,?)", (*row, event_hash(*row)))
    with pytest.raises(StoreError, match="upgrade metta-sweep"):
        salvage(path)


def test_it_says_how_far_it_is(whole: Path, tmp_path: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    salvage(shutil.copy(whole, tmp_path / "copy.db"), lambda *step: steps.append(step))
    size = whole.stat().st_size
    assert [step for step in steps if step[1] == size] == [
        (f"reading {table}", size, size) for table in ("events", "sweeps", "runs")
    ]
