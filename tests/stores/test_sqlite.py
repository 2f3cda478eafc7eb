"""What is particular to SQLite: files, the locks on them, their names, their damage."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from metta.sweep.errors import ConfigError, DamagedStoreError, StoreAwayError, StoreError
from metta.sweep.model import ids
from metta.sweep.model.run import JobStatus
from metta.sweep.protocols import Store
from metta.sweep.stores import open_reader, open_store, sqlite
from metta.sweep.stores import reader as reading
from metta.sweep.stores.hashes import event_hash
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.stores import projections_equal_fold
from metta.sweep.testing.sweeps import SWEEP
from stores.writing import acknowledged, appender, go


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Of a store that does not exist yet."""
    return tmp_path / "sweeps.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """A store with one sweep."""
    with closing(open_store(str(path), create=True)) as store:
        store.append([sweep_created()])
        yield store


def test_many_may_create_one_store_at_one_time(tmp_path: Path) -> None:
    openers, stores = 6, 20
    together = threading.Barrier(openers)

    def create(path: Path) -> str:
        together.wait()
        with closing(open_store(str(path), create=True)) as store:
            return store.url

    with ThreadPoolExecutor(openers) as pool:
        for number in range(stores):
            assert len(set(pool.map(create, [tmp_path / f"{number}.db"] * openers))) == 1


@pytest.mark.parametrize("synchronous", ["full", "normal"])
def test_what_was_acknowledged_survives_kill_9(path: Path, synchronous: str) -> None:
    url = f"sqlite:///{path}?synchronous={synchronous}"
    with closing(open_store(url, create=True)) as store:
        store.append([sweep_created()])
    promised: dict[int, str] = {}
    for lines in random.Random(synchronous).sample(range(40), 2):
        with appender(url, "runs") as process:
            go(process)
            assert process.stdout is not None
            output = "".join(process.stdout.readline() for _ in range(lines))
            process.kill()
            promised |= acknowledged(output + process.stdout.read())
        with closing(open_store(url)) as store:
            kept = {event.seq: event.id for event in store.read(SWEEP)}
            assert promised.items() <= kept.items()
            # At most the batch that was being written when the process died came on top, and that one whole.
            assert len(kept) - 1 - len(promised) in {0, 7}
            promised = {seq: id_ for seq, id_ in kept.items() if seq > 1}
            state = projections_equal_fold(store)
            assert {run.status for run in state.runs.values()} <= {JobStatus.COMPLETED}


def test_waiting_costs_next_to_nothing(store: Store) -> None:
    before = time.process_time()
    assert not store.wait_for_change(SWEEP, after=1, timeout_s=0.5)
    assert time.process_time() - before < 0.1


def test_reading_goes_on_while_another_process_is_in_the_middle_of_writing(store: Store, path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("DELETE FROM events")
        with closing(open_store(store.url)) as other:
            assert len(list(other.read(SWEEP))) == len(other.fetch_sweeps()) == 1
        writer.execute("ROLLBACK")


def test_a_lock_that_is_never_let_go_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT_S", 0.05)
    with closing(open_store(str(path), create=True)) as store:
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreAwayError, match=r"sweeps\.db: .*locked; another process"):
                store.append([sweep_created()])
        store.append([sweep_created()])
        projections_equal_fold(store)


_HOLD = (
    "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('BEGIN IMMEDIATE'); print(flush=True); input()"
)


def test_the_process_that_keeps_the_lock_is_named(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "LOCK_TIMEOUT_S", 0.1)
    command = [sys.executable, "-c", _HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(StoreAwayError, match=rf"process {holder.pid}; if it is suspended: kill -CONT {holder.pid}"):
            store.append(run_events(0))
        holder.kill()
    store.append(run_events(0))


@pytest.mark.parametrize(
    ("pragma", "cause"),
    [
        ("query_only = 1", r"readonly database; make it and its folder writable"),
        ("max_page_count = 1", "disk is full; "),
    ],
)
def test_a_store_that_cannot_be_written_just_now_is_away(store: Store, pragma: str, cause: str) -> None:
    writer = store._database._writer.connection.driver_connection
    writer.execute(f"PRAGMA {pragma}")
    with pytest.raises(StoreAwayError, match=cause):
        store.append([event for index in range(100) for event in run_events(index)])
    writer.execute("PRAGMA query_only = 0")
    writer.execute("PRAGMA max_page_count = 1000000")
    store.append(run_events(0))
    projections_equal_fold(store)


def test_a_full_disk_loses_nothing_and_work_goes_on_when_there_is_room(store: Store) -> None:
    with appender(store.url, "cramped") as process:
        output = process.communicate("\n")[0]
        assert process.returncode == 0
    promised = acknowledged(output)
    assert len(promised) > 14
    assert {event.seq: event.id for event in store.read(SWEEP, after=1)} == promised
    projections_equal_fold(store)


def test_a_batch_may_have_more_events_than_a_query_has_variables(path: Path) -> None:
    def lower_limit(connection: sqlite3.Connection, _: object) -> None:
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, reading.PAGE + 10)

    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", lower_limit)
    try:
        with closing(open_store(str(path), create=True)) as store:
            runs = [event for index in range(reading.PAGE + 20) for event in run_events(index)[:1]]
            store.append([sweep_created(), *runs])
            assert store.append(runs)[-1].seq == len(runs) + 1
            store.append([event for index in range(reading.PAGE + 20) for event in run_events(index)[1:2]])
            assert store.fetch_sweeps()[0].run_count == len(runs)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", lower_limit)


@pytest.mark.parametrize("has_statistics", [False, True])
def test_runs_are_found_by_their_indices(store: Store, path: Path, has_statistics: bool) -> None:
    store.append([event for index in range(200) for event in run_events(index, score=float(index))])
    if has_statistics:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("ANALYZE")
    some = [ids.run_id(SWEEP, index) for index in range(3)]
    wanted: dict[str, list[dict[str, object]]] = {
        "runs_by_index (": [{}, {"limit": 5}, {"statuses": [JobStatus.COMPLETED]}, {"id_prefix": "a", "limit": 5}],
        "runs_by_score (": [{"best_first": True}, {"best_first": True, "limit": 5}],
        "sqlite_autoindex_runs_1 (": [{"run_ids": some[:1]}, {"run_ids": some}],
    }
    with closing(open_reader(str(path))) as reader:
        connection = reader._database._reader
        for index, filters in ((index, filters) for index, several in wanted.items() for filters in several):
            queries: list[str] = []
            connection.set_trace_callback(queries.append)
            reader.fetch_runs(SWEEP, **filters)  # type: ignore[arg-type]
            connection.set_trace_callback(None)
            [query] = [query for query in queries if "info" in query]
            plan = " ".join(step for *_, step in connection.execute(f"EXPLAIN QUERY PLAN {query}"))
            assert f"USING INDEX {index}" in plan, filters


# ------------------------------------------------------------------------------------------------------- URLs and files


@pytest.mark.parametrize("name", ["sweeps.db", "two words.db", "100%.db", "50%25.db", "a#b.db", "what?.db", "søk.db"])
def test_the_url_leads_other_processes_to_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with closing(open_store(name, create=True)) as store:
        store.append([sweep_created()])
        assert (tmp_path / name).is_file()
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        with closing(open_store(store.url)) as other:
            assert [sweep.sweep_id for sweep in other.fetch_sweeps()] == [SWEEP]


@pytest.mark.parametrize(("options", "level"), [("", 2), ("?synchronous=full", 2), ("?synchronous=normal", 1)])
def test_the_url_says_how_careful_the_store_is_here_and_in_other_processes(
    path: Path, options: str, level: int
) -> None:
    with closing(open_store(f"sqlite:///{path}{options}", create=True)) as store:
        assert store._database._writer.exec_driver_sql("PRAGMA synchronous").scalar() == level
        assert store.url == f"sqlite:///{path}{options}"


@pytest.mark.parametrize("url", ["mysql://host/sweeps", "http://host", "sqlite3:///sweeps.db"])
def test_an_unknown_kind_of_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="use sqlite:///FILE or postgresql://"):
        open_store(url, create=True)


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", ":memory:", "sqlite://sweeps.db", "sqlite://folder/sweeps.db"],
)
def test_a_store_needs_a_file(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match=r"needs a file .* e\.g\. sqlite:///sweeps\.db"):
        open_store(url, create=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["off", "extra", "normal&synchronous=full"])
def test_synchronous_is_full_or_normal(path: Path, value: str) -> None:
    with pytest.raises(StoreError, match="synchronous must be full or normal"):
        open_store(f"sqlite:///{path}?synchronous={value}", create=True)
    assert not path.exists()


def test_what_does_not_exist_is_not_created_by_looking_at_it(path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such file; start a sweep first"):
        open_store(str(path))
    assert list(path.parent.iterdir()) == []


def test_a_file_system_without_hard_links_will_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", refuse)
    with closing(open_store(str(path), create=True)) as store:
        store.append([sweep_created()])
    assert list(path.parent.iterdir()) == [path]


def test_a_closed_store_leaves_one_file(store: Store, path: Path) -> None:
    store.append(run_events(0))
    store.close()
    assert list(path.parent.iterdir()) == [path]


def test_a_store_may_be_closed_twice(store: Store) -> None:
    store.close()
    store.close()


@pytest.mark.parametrize("create", [False, True])
def test_an_empty_file_is_a_damaged_store_and_stays_empty(path: Path, create: bool) -> None:
    path.touch()
    with pytest.raises(DamagedStoreError, match=r"is an empty file.*restore a backup of it, or remove it"):
        open_store(str(path), create=create)
    with pytest.raises(DamagedStoreError, match="is an empty file"):
        open_reader(str(path))
    assert path.read_bytes() == b""


def test_a_file_that_lost_its_end_is_reported_at_once(store: Store, path: Path) -> None:
    store.append([event for index in range(50) for event in run_events(index)])
    store.close()
    whole = path.read_bytes()
    for length in (len(whole) - 4096, len(whole) // 2, 4096, 99):
        path.write_bytes(whole[:length])
        for look in (open_store, open_reader):
            with pytest.raises(DamagedStoreError, match=r"metta sweep doctor --recover FILE"):
                look(str(path))
    assert path.read_bytes() == whole[:99]


@pytest.mark.parametrize("table", ["runs", "notes"])
def test_a_database_of_something_else_is_no_store_and_stays_as_it_is(path: Path, table: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TABLE {table} (id)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="holds no sweeps"):
        open_store(str(path))
    with pytest.raises(StoreError, match=f"is the database of another program, with its table '{table}'; name another"):
        open_store(str(path), create=True)
    assert path.read_bytes() == before


@pytest.mark.parametrize("create", [False, True])
def test_a_text_file_is_no_store_and_stays_as_it_is(path: Path, create: bool) -> None:
    path.write_text("lr,reward\n0.1,3\n" * 100)
    with pytest.raises(StoreError, match=r"sweeps\.db: file is not a database; it is some other kind of file"):
        open_store(str(path), create=create)
    assert path.read_text() == "lr,reward\n0.1,3\n" * 100


def test_a_folder_that_is_missing_is_not_created(path: Path) -> None:
    with pytest.raises(StoreError, match="its folder must exist and be writable"):
        open_store(str(path.parent / "missing" / "sweeps.db"), create=True)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("folder", ["file", "/proc"])
def test_a_folder_that_takes_no_files_is_reported(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="its folder must exist and be writable"):
        open_store(str(tmp_path / folder / "sweeps.db"), create=True)


def test_a_damaged_file_is_reported(store: Store, path: Path) -> None:
    store.append([event for index in range(50) for event in run_events(index)])
    store.close()
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 4096))
    for look in (open_store, open_reader):
        with pytest.raises(DamagedStoreError, match="metta sweep doctor --recover FILE"):
            list(look(str(path)).read(SWEEP))


def test_a_store_of_a_later_version_is_left_alone(store: Store, path: Path) -> None:
    store.close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE metta_sweep_schema SET version = 99")
        connection.commit()
    for create in (False, True):
        with pytest.raises(StoreError, match=r"has schema 99, this version reads up to 3; upgrade metta-sweep"):
            open_store(str(path), create=create)


@pytest.mark.parametrize("body", ['{"type":"run_teleported"}', '{"type":"run_failed"}', '{"type":"run_fai', "\xff"])
def test_an_event_that_cannot_be_read_is_named(store: Store, path: Path, body: str) -> None:
    store.append(run_events(0)[:3])
    with closing(sqlite3.connect(path)) as connection:
        connection.create_function("event_hash", 9, event_hash)
        connection.execute(
            "UPDATE events SET type = 'run_teleported', body = ? WHERE seq = 3", [body.encode("latin-1")]
        )
        columns = "sweep_id, seq, id, at, actor, type, run_id, job_id, body"
        connection.execute(f"UPDATE events SET hash = event_hash({columns}) WHERE seq = 3")
        connection.commit()
    events = iter(store.read(SWEEP))
    assert [next(events).seq, next(events).seq] == [1, 2]
    with pytest.raises(StoreError, match=r"sweep sw33p: event 3 of type 'run_teleported' .* upgrade metta-sweep"):
        next(events)
