"""Copies of an SQLite store: consistent while controllers write, checked before they count as copies."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from metta.sweep.errors import DamagedStoreError, StoreAwayError, StoreError
from metta.sweep.protocols import Reader
from metta.sweep.stores import open_reader
from metta.sweep.stores.rows import RESCUE
from metta.sweep.stores.salvage import Progress

#: Pages copied at a time: some milliseconds' work.
_PAGES = 1_000
_STAMP = "%Y%m%dT%H%M%SZ"


def backup(store_path: Path, target: Path, on_progress: Progress | None = None) -> None:
    """Copy the store to `target` as it is at this moment. Nobody who writes to it has to wait.

    The copy is read as a whole and compared with its hashes before it appears under its name.

    Raises:
        StoreError: `target` exists, or the store is missing or no store.
        StoreAwayError: the copy cannot be written just now.
        DamagedStoreError: the store is damaged, so that a copy of it would be too.
    """
    # It refuses what is no store, with its own words; and while it is open, nobody looks at the log (see `check_log`).
    with closing(open_reader(str(store_path))), new_store_file(target) as copy:
        try:
            _copy(store_path, copy, on_progress)
            _check(copy, on_progress)
            shutil.copymode(store_path, copy)
        except sqlite3.OperationalError as error:
            raise StoreAwayError(f"store {store_path}: cannot be copied to {target} just now ({error})") from error
        except (sqlite3.DatabaseError, DamagedStoreError) as error:
            # Of the copy the error speaks, of the store it holds.
            found = str(error).removesuffix(f"; {RESCUE}").replace(str(copy), str(store_path))
            raise DamagedStoreError(
                f"store {store_path}: it is damaged, so it was not copied ({found}); {RESCUE}"
            ) from error


def _copy(source_path: Path, target: Path, on_progress: Progress | None) -> None:
    def report(_status: int, remaining: int, total: int) -> None:
        if on_progress is not None:
            on_progress("copying", total - remaining, total)

    with (
        closing(sqlite3.connect(source_path, isolation_level=None)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        copy.execute("PRAGMA synchronous=OFF")  # it is made durable as a whole, before it gets its name
        # Reading from one snapshot: otherwise SQLite begins anew whenever another process has written, perhaps forever.
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchall()
        source.backup(copy, pages=_PAGES, progress=report)


def _check(path: Path, on_progress: Progress | None) -> None:
    with closing(sqlite3.connect(path)) as connection:
        [(verdict,), *_] = connection.execute("PRAGMA integrity_check")
    if verdict != "ok":
        raise DamagedStoreError(verdict)
    with closing(open_reader(str(path))) as reader:
        # It checks the hash of each row, and that none is missing.
        sweeps = reader.fetch_sweeps()
        reader.fetch_runs()
        total, done = sum(sweep.seq for sweep in sweeps), 0
        for sweep in sweeps:
            done += sum(1 for _ in reader.read(sweep.sweep_id))
            if on_progress is not None:
                on_progress("checking", done, total)


# ---------------------------------------------------------------------------------------------------- automatic backups


def automatic_backup(store_path: Path, folder: Path, keep: int, now: float) -> Path | None:
    """Copy the store into `folder`, as `NAME-YYYYmmddTHHMMSSZ.db`, and delete all but the newest `keep` of its copies.

    Returns:
        The copy; None where the newest one already holds all that the store does.

    Raises:
        StoreError: as of `backup`; then no copy is deleted.
    """
    if keep < 1:
        raise ValueError(f"keep at least one backup, got keep={keep}")
    existing = backups(store_path, folder)
    if existing and _holds_the_same(store_path, existing[-1]):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{store_path.stem}-{datetime.fromtimestamp(now, UTC):{_STAMP}}.db"
    backup(store_path, target)
    for path in backups(store_path, folder)[:-keep]:
        path.unlink(missing_ok=True)
    return target


def backups(store_path: Path, folder: Path) -> list[Path]:
    """The automatic copies of the store in `folder`, oldest first."""
    name = re.compile(rf"{re.escape(store_path.stem)}-\d{{8}}T\d{{6}}Z\.db")
    return sorted(path for path in folder.glob("*.db") if name.fullmatch(path.name))


def _holds_the_same(store_path: Path, copy: Path) -> bool:
    try:
        with closing(open_reader(str(copy))) as theirs, closing(open_reader(str(store_path))) as ours:
            return _extent(ours) == _extent(theirs)
    except StoreError:
        return False


def _extent(reader: Reader) -> dict[str, int]:
    return {sweep.sweep_id: sweep.seq for sweep in reader.fetch_sweeps()}


# ------------------------------------------------------------------------------------------------------------ new files


@contextmanager
def new_store_file(target: Path) -> Iterator[Path]:
    """A path beside `target` to write a store to, which gets the name `target` when all went well, and is durable.

    Raises:
        StoreError: `target`, or something that SQLite would take for a part of it, exists.
        StoreAwayError: it cannot be written.
    """
    _check_is_free(target)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as folder:
            path = Path(folder) / target.name
            yield path
            with path.open("rb") as file:
                os.fsync(file.fileno())
            _check_is_free(target)
            path.rename(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise StoreAwayError(
            f"{target}: cannot be written ({error}); its folder must exist, be writable and have room for the store"
        ) from error


def _check_is_free(target: Path) -> None:
    for name in (target.name, f"{target.name}-wal", f"{target.name}-shm"):
        if os.path.lexists(target.with_name(name)):
            raise StoreError(
                f"{target.with_name(name)}: exists and is never overwritten; name another file or move it away"
            )


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
