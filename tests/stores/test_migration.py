"""Stores of earlier versions: read as they are, and brought up to date by the first who writes."""

from __future__ import annotations

import lzma
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from metta.sweep.errors import DamagedStoreError, StoreError
from metta.sweep.protocols import GpuLoad, Heartbeat, Lease
from metta.sweep.stores import open_reader, open_store
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.stores import contents, projections_equal_fold
from metta.sweep.testing.sweeps import SWEEP

#: Written by version 0.1: a random history of sixty events, and three runs of another sweep.
VERSION_1 = Path(__file__).with_name("assets") / "schema-1.db.xz"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "sweeps.db"
    path.write_bytes(lzma.decompress(VERSION_1.read_bytes()))
    return path


def tables(path: Path) -> dict[str, object]:
    """What each table and index of the database is made of."""
    with closing(sqlite3.connect(path)) as file:
        names = [name for (name,) in file.execute("SELECT name FROM sqlite_master ORDER BY name")]
        return {name: file.execute(f"PRAGMA table_xinfo('{name}')").fetchall() for name in names} | {
            f"index {name}": file.execute(f"PRAGMA index_xinfo('{name}')").fetchall() for name in names
        }


def version(path: Path) -> int:
    with closing(sqlite3.connect(path)) as file:
        return int(file.execute("SELECT version FROM metta_sweep_schema").fetchone()[0])


def test_a_reader_reads_it_and_leaves_it_as_it_is(old: Path) -> None:
    before = old.read_bytes()
    with closing(open_reader(str(old))) as reader:
        assert [sweep.sweep_id for sweep in reader.fetch_sweeps()] == ["other", SWEEP]
        assert [event.seq for event in reader.read(SWEEP)] == list(range(1, 61))
        assert [run.score for run in reader.fetch_runs("other")] == [1.0, None, None]
        assert [run.index for run in reader.fetch_runs("other", best_first=True, limit=5)] == [0]
    assert (old.read_bytes(), version(old)) == (before, 1)


def test_the_first_writer_brings_it_up_to_date_and_loses_nothing(old: Path, tmp_path: Path) -> None:
    with closing(open_reader(str(old))) as reader:
        before = contents(reader)
        with closing(open_store(str(old))) as store:
            assert contents(store) == before
            assert contents(reader) == before  # it had the old one open
            assert store.fetch_lease(SWEEP) == Lease(sweep_id=SWEEP, holder="node:1:1", fence=1, expires_at=130.0)
            assert store.fetch_heartbeats(SWEEP) == [Heartbeat(sweep_id=SWEEP, host="node", pid=1, at=100.0, jobs=2)]
            store.append(run_events(2, sweep_id="other")[4:])
            projections_equal_fold(store, SWEEP)
            projections_equal_fold(store, "other")
    assert version(old) == 3
    new = tmp_path / "new.db"
    open_store(str(new), create=True).close()
    assert tables(old) == tables(new)


def test_heartbeats_of_version_2_get_a_place_for_gpus(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    before = Heartbeat(sweep_id=SWEEP, host="node", pid=1, at=100.0, jobs=2)
    with closing(open_store(str(path), create=True)) as store:
        new = tables(path)
        store.append([sweep_created()])
        store.beat(before)
    with closing(sqlite3.connect(path)) as file:
        file.execute("ALTER TABLE heartbeats DROP COLUMN gpus")
        file.execute("UPDATE metta_sweep_schema SET version = 2")
        file.commit()
    with closing(open_reader(str(path))) as reader:
        assert reader.fetch_heartbeats(SWEEP) == [before]
        assert version(path) == 2
        after = replace(before, gpus=(GpuLoad(index=3, utilization=0.5, memory=1, memory_whole=2),))
        with closing(open_store(str(path))) as store:
            store.beat(after)
            assert store.fetch_heartbeats(SWEEP) == [after]
        assert reader.fetch_heartbeats(SWEEP) == [before]  # it was opened before there were any
    assert (version(path), tables(path)) == (3, new)


def test_its_rows_are_checked_from_then_on(old: Path) -> None:
    open_store(str(old)).close()
    with closing(sqlite3.connect(old)) as file:
        file.execute("UPDATE events SET actor = 'nobody' WHERE sweep_id = 'other' AND seq = 4")
        file.commit()
    with closing(open_reader(str(old))) as reader, pytest.raises(DamagedStoreError, match="sweep other: event 4"):
        list(reader.read("other"))


def test_a_process_of_the_old_version_cannot_write_to_it_any_more(old: Path) -> None:
    with closing(sqlite3.connect(old)) as earlier:
        assert earlier.execute("SELECT count(*) FROM events").fetchone() == (78,)
        open_store(str(old)).close()
        with pytest.raises(sqlite3.IntegrityError, match=r"events\.hash"):
            earlier.execute(
                "INSERT INTO events (sweep_id, seq, id, at, actor, type, body) "
                "VALUES ('other', 19, 'x', 1, 'x', '', '')"
            )


def test_a_migration_that_cannot_end_changes_nothing(old: Path) -> None:
    with closing(sqlite3.connect(old)) as file:
        file.execute("CREATE VIEW events_1 AS SELECT 1")
        file.commit()
    with pytest.raises(StoreError, match="events_1"):
        open_store(str(old))
    assert version(old) == 1
    with closing(open_reader(str(old))) as reader:
        assert len(list(reader.read(SWEEP))) == 60


def test_several_writers_bring_it_up_to_date_once(old: Path) -> None:
    with closing(open_store(str(old))) as one, closing(open_store(str(old))) as other:
        one.append([sweep_created("third", name="third")])
        assert contents(one) == contents(other)
