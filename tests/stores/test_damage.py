"""What is not as it was written is never given back as if it were, wherever it is looked at."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import psycopg
import pytest

from metta.sweep.errors import DamagedStoreError, InvalidTransition
from metta.sweep.model import ids
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobStatus
from metta.sweep.protocols import Reader, Store
from metta.sweep.stores import open_reader, open_store
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.stores import contents, projections_equal_fold
from metta.sweep.testing.sweeps import SWEEP

RUN = ids.run_id(SWEEP, 1)
NEXT_STEP = r".*metta sweep doctor --recover FILE"
Execute = Callable[..., int]


@pytest.fixture
def store(any_store: Store) -> Store:
    """With five runs, completed but for the last."""
    any_store.append([event for index in range(4) for event in run_events(index, score=float(index))])
    any_store.append(run_events(4)[:4])
    return any_store


@pytest.fixture(params=["store", "reader"])
def looking(request: pytest.FixtureRequest, store: Store, url: str) -> Iterator[Reader]:
    """Both ways to look at it."""
    if request.param == "store":
        yield store
    else:
        with closing(open_reader(url)) as reader:
            yield reader


# ------------------------------------------------------------------------------------------------------------ the log


@pytest.mark.parametrize(
    "change",
    [
        'body = CAST(\'{"type":"run_failed","reason":""}\' AS {bytes})',
        "at = at + 1",
        "actor = 'nobody'",
        "type = 'run_lost'",
        "run_id = 'other'",
        "job_id = 'other'",
        "id = 'other'",
        "hash = CAST('12345678' AS {bytes})",
    ],
)
def test_a_changed_event_is_named(looking: Reader, execute: Execute, url: str, change: str) -> None:
    blob = "BLOB" if url.startswith("sqlite") else "BYTEA"
    assert execute(f"UPDATE events SET {change.replace('{bytes}', blob)} WHERE seq = 9") == 1
    events = iter(looking.read(SWEEP))
    assert [next(events).seq for _ in range(8)] == list(range(1, 9))
    with pytest.raises(DamagedStoreError, match=f"sweep {SWEEP}: event 9 is not as it was written{NEXT_STEP}"):
        next(events)


@pytest.mark.parametrize(
    ("lost", "named"), [("= 1", "event 1 is"), ("IN (5, 6)", "events 5 to 6 are"), ("> 31", "events 32 to 33 are")]
)
def test_missing_events_are_named(looking: Reader, execute: Execute, lost: str, named: str) -> None:
    assert execute(f"DELETE FROM events WHERE seq {lost}")
    with pytest.raises(DamagedStoreError, match=f"sweep {SWEEP}: {named} missing in its log{NEXT_STEP}"):
        list(looking.read(SWEEP))


@pytest.mark.parametrize("after", [0, 5, 32])
def test_the_log_of_one_run_is_not_believed_when_events_are_missing(
    looking: Reader, execute: Execute, after: int
) -> None:
    assert list(looking.read(SWEEP, after=33, run_id=RUN)) == []
    execute("DELETE FROM events WHERE seq = 33")
    with pytest.raises(
        DamagedStoreError, match=f"gives {32 - after} events after {after} where there are {33 - after}"
    ):
        list(looking.read(SWEEP, after, run_id=RUN))


@pytest.mark.parametrize("change", ["run_id = 'other'", "run_id = NULL", "run_id = '', actor = 'nobody'"])
def test_an_event_that_lost_its_run_is_missed_in_the_log_of_the_run(
    looking: Reader, execute: Execute, change: str
) -> None:
    events = list(looking.read(SWEEP, run_id=RUN))
    assert {event.run_id for event in events} == {RUN}
    execute(f"UPDATE events SET {change} WHERE seq = {events[3].seq}")
    with pytest.raises(DamagedStoreError, match=f"event {events[3].seq} is not as it was written"):
        list(looking.read(SWEEP, run_id=RUN))


@pytest.mark.parametrize("after", [0, 5, 32])
def test_a_lost_log_is_no_empty_log(looking: Reader, execute: Execute, after: int) -> None:
    execute("DELETE FROM events")
    with pytest.raises(DamagedStoreError, match=f"events? {after + 1} .*missing"):
        list(looking.read(SWEEP, after))


def test_a_log_whose_sweep_is_lost_is_damaged(looking: Reader, execute: Execute) -> None:
    execute("DELETE FROM sweeps")
    with pytest.raises(DamagedStoreError, match=f"its log has 33 events, .* knows of 0{NEXT_STEP}"):
        list(looking.read(SWEEP))


# --------------------------------------------------------------------------------------------------------- projections


@pytest.mark.parametrize("change", ["name = 'x'", "created_at = 1.5", "seq = seq + 1", "totals = config"])
def test_a_changed_sweep_is_named(store: Store, looking: Reader, execute: Execute, change: str) -> None:
    execute(f"UPDATE sweeps SET {change}")
    for look in (
        looking.fetch_sweeps,
        lambda: looking.fetch_runs(SWEEP),
        lambda: list(looking.read(SWEEP)),
        lambda: store.append(run_events(5)),
    ):
        with pytest.raises(DamagedStoreError, match=f"sweep {SWEEP}: its row .* is not as it was written{NEXT_STEP}"):
            look()


@pytest.mark.parametrize(
    "change",
    [
        "status = 'FAILED'",
        "score = 99",
        "score = NULL",
        '"index" = 77',
        "info = hash",
        f"info = (SELECT info FROM runs WHERE run_id = '{ids.run_id(SWEEP, 2)}')",
    ],
)
def test_a_changed_run_is_named(store: Store, looking: Reader, execute: Execute, change: str) -> None:
    assert execute(f"UPDATE runs SET {change} WHERE run_id = '{RUN}'") == 1
    for look in (
        lambda: looking.fetch_runs(SWEEP),
        lambda: looking.fetch_runs(SWEEP, run_ids=[RUN]),
        lambda: looking.fetch_runs(id_prefix=RUN),
        lambda: store.append(run_events(1)[4:]),
    ):
        with pytest.raises(DamagedStoreError, match=f"the row of run {RUN} is not as it was written{NEXT_STEP}"):
            look()


def test_a_lost_run_is_missed(looking: Reader, execute: Execute) -> None:
    execute(f"DELETE FROM runs WHERE run_id = '{RUN}'")
    for look in (
        looking.fetch_runs,
        lambda: looking.fetch_runs(SWEEP),
        lambda: looking.fetch_runs(SWEEP, limit=5),
        lambda: looking.fetch_runs(SWEEP, statuses=[JobStatus.COMPLETED, JobStatus.FAILED]),
        lambda: looking.fetch_runs(SWEEP, best_first=True, limit=1),
        lambda: looking.fetch_runs(SWEEP, id_prefix=RUN),
        lambda: looking.fetch_runs(id_prefix="", limit=1),
    ):
        with pytest.raises(DamagedStoreError, match=rf"the table of runs gives \d runs where there are \d{NEXT_STEP}"):
            look()
    assert len(looking.fetch_runs(SWEEP, statuses=[JobStatus.IN_TRAINING])) == 1


def test_a_lost_run_is_no_unknown_run(store: Store, looking: Reader, execute: Execute) -> None:
    execute(f"DELETE FROM runs WHERE run_id = '{RUN}'")
    others = [ids.run_id(SWEEP, index) for index in (0, 2)]
    for look in (
        lambda: looking.fetch_runs(SWEEP, run_ids=[RUN]),
        lambda: looking.fetch_runs(run_ids=[*others, RUN, "other"]),
        lambda: store.append(run_events(1)[4:]),
        lambda: store.append([*run_events(5), *run_events(1)[4:]]),
    ):
        with pytest.raises(DamagedStoreError, match=f"run {RUN}: it is in the log, but the table .*{NEXT_STEP}"):
            look()
    assert [run.index for run in looking.fetch_runs(SWEEP, run_ids=[*others, "other"])] == [0, 2]
    assert looking.fetch_runs("other", run_ids=[RUN]) == []


def test_what_happens_to_an_unknown_run_is_not_taken_for_damage(store: Store) -> None:
    with pytest.raises(InvalidTransition):
        store.append(run_events(5)[1:])


def test_runs_of_a_lost_sweep_are_too_many(looking: Reader, execute: Execute) -> None:
    execute("DELETE FROM sweeps")
    with pytest.raises(DamagedStoreError, match="gives 5 runs where there are 0"):
        looking.fetch_runs()


# ------------------------------------------------------------------------------------------------------------ mending


def test_differences_are_said_and_a_rebuild_ends_them(store: Store, execute: Execute) -> None:
    before = contents(store)
    other = ids.run_id(SWEEP, 2)
    execute(f"DELETE FROM runs WHERE run_id = '{RUN}'")
    execute(f"UPDATE runs SET score = 0.5 WHERE run_id = '{other}'")
    execute("UPDATE sweeps SET seq = 3")
    execute("INSERT INTO runs SELECT sweep_id, 'extra', 9, status, score, info, hash FROM runs WHERE \"index\" = 0")
    assert sorted(store.projection_differences(SWEEP)) == sorted(
        [
            f"sweep {SWEEP}: its row is not as it was written: its hash does not fit",
            f"run {RUN}: its row is missing",
            f"run {other}: its row is not as it was written: its hash does not fit",
            "run extra: its row is not as it was written: its hash does not fit",
            "run extra: it has a row, but the log knows nothing of it",
        ]
    )
    store.rebuild(SWEEP)
    assert store.projection_differences(SWEEP) == []
    assert contents(store) == before
    store.append(run_events(5))
    projections_equal_fold(store)


def test_projections_that_are_merely_old_are_told_field_by_field(store: Store, execute: Execute, url: str) -> None:
    old = [(table, rows_of(url, f"SELECT * FROM {table}")) for table in ("sweeps", "runs")]
    store.append([*run_events(4)[4:6], *run_events(5)[:1]])
    execute("DELETE FROM runs")
    execute("DELETE FROM sweeps")
    for table, rows in old:
        for row in rows:
            execute(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", *row)
    lines = store.projection_differences(SWEEP)
    assert f"sweep {SWEEP}: seq is 33, by the log it is 36" in lines
    assert f"run {ids.run_id(SWEEP, 4)}: status is IN_TRAINING, by the log it is TRAINING_DONE_NO_EVAL" in lines
    assert f"run {ids.run_id(SWEEP, 5)}: its row is missing" in lines
    store.rebuild(SWEEP)
    projections_equal_fold(store)


def rows_of(url: str, query: str) -> list[tuple[object, ...]]:
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as file:
            return file.execute(query).fetchall()
    with psycopg.connect(url) as connection:
        return connection.execute(query.encode()).fetchall()


@pytest.mark.parametrize("lost", ["= 5", "> 30", "> 0"])
def test_nothing_is_rebuilt_from_a_damaged_log(store: Store, execute: Execute, lost: str) -> None:
    execute(f"DELETE FROM events WHERE seq {lost}")
    runs, sweeps = store.fetch_runs(SWEEP), store.fetch_sweeps()
    with pytest.raises(DamagedStoreError, match=NEXT_STEP):
        store.rebuild(SWEEP)
    assert (store.fetch_runs(SWEEP), store.fetch_sweeps()) == (runs, sweeps)


# ---------------------------------------------------------------------------------------------------- SQLite's indices


@pytest.mark.parametrize("index", ["runs_by_index", "runs_by_score"])
def test_an_index_that_hides_a_run_is_found_out(tmp_path: Path, index: str) -> None:
    path = tmp_path / "sweeps.db"
    with closing(open_store(str(path), create=True)) as store:
        store.append([sweep_created(), *(event for number in range(4) for event in run_events(number))])
    _forget_in_index(path, index, RUN)
    wanted: dict[str, dict[str, object]] = {
        "runs_by_index": {},
        "runs_by_score": {"best_first": True, "limit": 2},
    }
    with closing(open_reader(str(path))) as reader:
        for filters in (wanted[index], {"id_prefix": RUN} if index == "runs_by_index" else wanted[index]):
            with pytest.raises(DamagedStoreError, match="3 runs where there are 4"):
                reader.fetch_runs(SWEEP, **filters)  # type: ignore[arg-type]


def test_an_index_of_the_ids_that_hides_a_run_is_found_out(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with closing(open_store(str(path), create=True)) as store:
        store.append([sweep_created(), *(event for number in range(4) for event in run_events(number)[:4])])
    _forget_in_primary_key(path, RUN)
    with closing(open_store(str(path))) as store, closing(open_reader(str(path))) as reader:
        for look in (
            lambda: reader.fetch_runs(SWEEP, run_ids=[RUN]),
            lambda: reader.fetch_runs(SWEEP, run_ids=[RUN, ids.run_id(SWEEP, 2)]),
            lambda: store.append(run_events(1)[4:]),
        ):
            with pytest.raises(DamagedStoreError, match=f"run {RUN}: it is in the log"):
                look()
        assert [run.index for run in reader.fetch_runs(SWEEP)] == [0, 1, 2, 3]


def _forget_in_primary_key(path: Path, run_id: str) -> None:
    """Take a run out of the index of the primary key alone: it changes places with one without the run."""
    primary = "sqlite_autoindex_runs_1"
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(f"CREATE INDEX other ON runs (sweep_id, run_id) WHERE run_id <> '{run_id}'")
        file.execute("PRAGMA writable_schema = ON")
        roots = dict(file.execute("SELECT name, rootpage FROM sqlite_master WHERE name IN ('other', ?)", (primary,)))
        swapped = [(roots["other"], primary), (roots[primary], "other")]
        file.executemany("UPDATE sqlite_master SET rootpage = ? WHERE name = ?", swapped)


def _forget_in_index(path: Path, index: str, run_id: str) -> None:
    """Take a run out of one index alone: SQLite does so when it believes the index covers only the other runs."""
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        [(sql,)] = file.execute("SELECT sql FROM sqlite_master WHERE name = ?", (index,)).fetchall()
        file.execute("PRAGMA writable_schema = ON")
        file.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (f"{sql} WHERE run_id <> '{run_id}'", index))
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        file.execute(f"REINDEX {index}")
        file.execute("PRAGMA writable_schema = ON")
        file.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", (sql, index))
    with closing(sqlite3.connect(path)) as file:
        assert file.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",)


def logs(reader: Reader) -> list[list[Event]]:
    """Of each run by itself."""
    return [list(reader.read(SWEEP, run_id=ids.run_id(SWEEP, index))) for index in range(5)]


@pytest.mark.slow
def test_no_flipped_byte_goes_unnoticed(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with closing(open_store(str(path), create=True)) as store:
        store.append(random_history(seed=4, length=40))
        truth = contents(store), logs(store)
    whole = path.read_bytes()
    told = 0
    for place in range(0, len(whole), 127):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        with suppress(DamagedStoreError):
            with closing(open_reader(str(path))) as reader:
                assert (contents(reader), logs(reader)) == truth, f"byte {place}"
            told -= 1
        told += 1
    assert told > 50
