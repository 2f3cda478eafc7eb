"""`metta sweep backup`: a copy that is a store like the one it was made of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cli.command_line import CommandLine
from metta.sweep.cli.backup import beside, sqlite_path
from metta.sweep.protocols import Store
from metta.sweep.stores import open_reader, open_store
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP


@pytest.fixture
def store(metta: CommandLine) -> Iterator[Store]:
    with closing(open_store(str(metta.folder / "sweeps.db"), create=True)) as store:
        store.append([sweep_created(), *run_events(0)])
        yield store


def assert_same(copy: Path, store: Store) -> None:
    with closing(open_reader(str(copy))) as reader:
        assert list(reader.read(SWEEP)) == list(store.read(SWEEP))


def test_without_a_name_the_copy_is_beside_the_store_with_the_time_in_its_name(
    metta: CommandLine, store: Store
) -> None:
    result = metta("backup")
    copy = Path(result.out.strip())
    assert (result.code, copy.parent) == (0, metta.folder)
    assert re.fullmatch(r"sweeps\.backup-\d{8}T\d{6}Z\.db", copy.name)
    assert f"look into it with --store {copy}" in result.err
    assert_same(copy, store)


def test_the_copy_goes_where_it_is_wanted_and_json_tells_how_large_it_is(metta: CommandLine, store: Store) -> None:
    copy = metta.folder / "copy.db"
    result = metta("backup", "copy.db", "--store", "sqlite:///sweeps.db", "--json")
    assert result.json == {
        "store": str(metta.folder / "sweeps.db"),
        "backup": str(copy),
        "size_bytes": copy.stat().st_size,
    }
    assert_same(copy, store)
    store.append(run_events(1))
    assert metta("status", "--store", "copy.db", "--json").json["counts"] == {"COMPLETED": 1}


def test_nothing_is_overwritten(metta: CommandLine, store: Store) -> None:
    kept = metta.write("copy.db", "mine")
    assert "exists and is never overwritten" in metta("backup", "copy.db").error.splitlines()[-1]
    assert kept.read_text() == "mine"


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_what_sqlite_would_take_for_a_part_of_the_store_is_no_place_for_a_copy(
    metta: CommandLine, store: Store, suffix: str
) -> None:
    store.append(run_events(1))
    path = metta.folder / f"sweeps.db{suffix}"
    for file in metta.folder.glob("sweeps.db-*"):
        file.rename(file.with_name(f"kept{file.name}"))
    error = metta("backup", path.name).error
    assert f"{path}: is where SQLite keeps a part of the store" in error
    assert not path.exists()


def test_a_store_on_a_server_is_left_to_pg_dump_and_its_password_is_not_shown(metta: CommandLine) -> None:
    error = metta("backup", "--store", "postgresql://me:secret@host/sweeps").error
    assert "pg_dump" in error
    assert "secret" not in error


def test_a_missing_store_is_refused_and_leaves_nothing_behind(metta: CommandLine) -> None:
    assert "there is no such file" in metta("backup", "--store", "nowhere.db").error
    assert metta.files() == set()


def test_the_file_of_a_store_is_found_in_its_url(tmp_path: Path) -> None:
    assert sqlite_path(f"sqlite:///{tmp_path}/a%20b.db?synchronous=normal") == tmp_path / "a b.db"
    assert sqlite_path("sqlite:///sweeps.db") == Path("sweeps.db").absolute()
    assert sqlite_path(str(tmp_path / "sweeps.db")) == tmp_path / "sweeps.db"
    assert sqlite_path("postgresql://host/sweeps") is None


def test_the_default_name_is_none_that_automatic_backups_count_as_theirs(tmp_path: Path) -> None:
    from metta.sweep.stores.backup import backups

    path = beside(tmp_path / "sweeps.db", START)
    assert path.name == f"sweeps.backup-{datetime.fromtimestamp(START, UTC):%Y%m%dT%H%M%SZ}.db"
    path.touch()
    assert backups(tmp_path / "sweeps.db", tmp_path) == []
