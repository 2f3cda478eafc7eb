"""Copies are complete, consistent and checked, and they take nothing from anybody."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from metta.sweep.errors import DamagedStoreError, StoreAwayError, StoreError
from metta.sweep.model.events import Event
from metta.sweep.protocols import Store
from metta.sweep.stores import open_reader, open_store
from metta.sweep.stores.backup import automatic_backup, backup, backups
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.stores import projections_equal_fold
from metta.sweep.testing.sweeps import START, SWEEP

DAY = 86_400.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweeps.db"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "copy.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """A store with a sweep of three runs."""
    with closing(open_store(str(path), create=True)) as store:
        store.append([sweep_created(), *(event for index in range(3) for event in run_events(index))])
        yield store


def log_of(path: Path) -> list[Event]:
    with closing(open_reader(str(path))) as reader:
        return list(reader.read(SWEEP))


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_copy_holds_what_the_store_does(store: Store, path: Path, target: Path) -> None:
    before = log_of(path)
    backup(path, target)
    assert files(path.parent) == {"sweeps.db", "sweeps.db-wal", "sweeps.db-shm", "copy.db"}
    assert log_of(target) == before
    with closing(open_store(str(target))) as copy:
        assert projections_equal_fold(copy) == projections_equal_fold(store)
        copy.append(run_events(3))
    assert log_of(path) == before


def test_a_copy_of_a_closed_store(store: Store, path: Path, target: Path) -> None:
    store.close()
    backup(path, target)
    assert files(path.parent) == {"sweeps.db", "copy.db"}
    assert len(log_of(target)) == 22


def test_writers_do_not_wait_and_the_copy_is_of_one_moment(store: Store, path: Path, target: Path) -> None:
    before = log_of(path)
    written: list[int] = []

    def write(step: str, done: int, total: int) -> None:
        # In the middle of the copy: SQLite would begin anew, or the copy hold half of this, if it were of two moments.
        written.append(store.append(run_events(3 + len(written)))[-1].seq)

    backup(path, target, write)
    assert written
    assert log_of(target) == before
    assert log_of(path)[-1].seq == written[-1]
    projections_equal_fold(store)


def test_copies_are_made_while_others_write_without_a_pause(store: Store, path: Path, target: Path) -> None:
    stop = threading.Event()

    def write() -> None:
        index = 3
        while not stop.is_set():
            store.append(run_events(index))
            index += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(5):
            copy = target.with_name(f"{number}.db")
            backup(path, copy)
            with closing(open_store(str(copy))) as other:
                projections_equal_fold(other)
    finally:
        stop.set()
        writer.join()


def test_it_says_how_far_it_is(store: Store, path: Path, target: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    backup(path, target, lambda *step: steps.append(step))
    assert [step for step, *_ in steps] == ["copying", "checking"]
    assert all(done == total > 0 for _, done, total in steps)


@pytest.mark.parametrize("name", ["copy.db", "copy.db-wal", "copy.db-shm"])
def test_nothing_is_overwritten(store: Store, path: Path, target: Path, name: str) -> None:
    target.with_name(name).write_text("precious")
    before = files(path.parent)
    with pytest.raises(StoreError, match=rf"{name}: exists and is never overwritten; name another file"):
        backup(path, target)
    assert target.with_name(name).read_text() == "precious"
    assert files(path.parent) == before


def test_a_store_that_is_missing_or_none_is_refused(path: Path, target: Path) -> None:
    with pytest.raises(StoreError, match="there is no such file"):
        backup(path, target)
    path.write_text("notes" * 1000)
    with pytest.raises(StoreError, match=r"sweeps\.db"):
        backup(path, target)
    assert files(path.parent) == {"sweeps.db"}


def test_a_folder_that_cannot_be_written_is_named(store: Store, path: Path) -> None:
    with pytest.raises(StoreAwayError, match=r"nowhere/copy\.db: cannot be written .* its folder must exist"):
        backup(path, path.parent / "nowhere" / "copy.db")


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE events SET at = at + 1 WHERE seq = 5",
        'UPDATE runs SET score = 2 WHERE "index" = 1',
        "DELETE FROM events WHERE seq = 22",
        'DELETE FROM runs WHERE "index" = 2',
    ],
)
def test_no_copy_of_a_damaged_store_passes_for_one(store: Store, path: Path, target: Path, change: str) -> None:
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(change)
    with pytest.raises(
        DamagedStoreError, match=r"sweeps\.db: it is damaged, so it was not copied .*doctor --recover FILE$"
    ):
        backup(path, target)
    assert files(path.parent) == {"sweeps.db"}


def test_a_damaged_page_is_noticed(store: Store, path: Path, target: Path) -> None:
    store.close()
    content = path.read_bytes()
    for start in range(4096, len(content), 4096):
        path.write_bytes(content[:start] + b"\xff" * 4096 + content[start + 4096 :])
        with pytest.raises(StoreError, match=r"sweeps\.db"):
            backup(path, target)
        assert files(path.parent) <= {"sweeps.db", "sweeps.db-wal", "sweeps.db-shm"}


def test_a_copy_can_be_read_by_those_who_can_read_the_store(store: Store, path: Path, target: Path) -> None:
    path.chmod(0o600)
    backup(path, target)
    assert target.stat().st_mode & 0o777 == 0o600


# ---------------------------------------------------------------------------------------------------- automatic backups


def test_the_newest_copies_are_kept(store: Store, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some" / "where"
    for day in range(5):
        store.append(run_events(3 + day))
        copy = automatic_backup(path, folder, keep=2, now=START + day * DAY)
        assert copy == backups(path, folder)[-1]
    assert files(folder) == {"sweeps-20231117T221320Z.db", "sweeps-20231118T221320Z.db"}
    assert [len(log_of(copy)) for copy in backups(path, folder)] == [22 + 7 * 4, 22 + 7 * 5]


def test_what_has_not_changed_is_not_copied_again(store: Store, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    assert automatic_backup(path, folder, keep=3, now=START) is not None
    assert automatic_backup(path, folder, keep=3, now=START + DAY) is None
    store.append(run_events(3))
    assert automatic_backup(path, folder, keep=3, now=START + 2 * DAY) is not None
    assert len(backups(path, folder)) == 2


def test_a_damaged_copy_does_not_count(store: Store, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    copy = automatic_backup(path, folder, keep=3, now=START)
    assert copy is not None
    copy.write_bytes(copy.read_bytes()[:5000])
    assert automatic_backup(path, folder, keep=3, now=START + DAY) is not None


def test_other_files_in_the_folder_are_left_alone(store: Store, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    folder.mkdir()
    others = {"sweeps-mine.db", "other-20200101T000000Z.db", "sweeps-20200101T000000Z.db.txt", "sweeps.db"}
    for name in others:
        (folder / name).touch()
    for day in range(3):
        store.append(run_events(3 + day))
        automatic_backup(path, folder, keep=1, now=START + day * DAY)
    assert files(folder) == {*others, "sweeps-20231116T221320Z.db"}


def test_a_failed_backup_costs_no_older_one(store: Store, path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    automatic_backup(path, folder, keep=1, now=START)
    store.append(run_events(3))
    store.close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("DELETE FROM events WHERE seq = 3")
    with pytest.raises(DamagedStoreError):
        automatic_backup(path, folder, keep=1, now=START + DAY)
    assert files(folder) == {"sweeps-20231114T221320Z.db"}


def test_at_least_one_is_kept(store: Store, path: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep at least one backup, got keep=0"):
        automatic_backup(path, tmp_path, keep=0, now=START)
