"""What is SQLite's own: files, WAL, locks, waiting for a change, errors. To read, the standard library is enough."""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote

from metta.sweep.errors import DamagedStoreError, StoreAwayError, StoreError
from metta.sweep.stores.migration import HASHES_SINCE, migrate, show_as_current
from metta.sweep.stores.reader import Fetch, Row
from metta.sweep.stores.rows import RESCUE, SCHEMA_QUERY, SCHEMA_TABLE, SCHEMA_VERSION
from metta.sweep.stores.wal import check_log

if TYPE_CHECKING:
    import sqlalchemy

#: How long a writer waits for another one.
LOCK_TIMEOUT_S = 30.0
#: The byte of the file `-shm` that a writer has locked.
_WRITING = 120
#: How often each file is open in this process, and what to hold to open another.
_OPEN: Counter[str] = Counter()
_OPENING = threading.Lock()
#: Waiting for a change looks this often at first, and ever more rarely up to the last.
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.001, 0.05
#: The same for a writer that waits for another one, which is done in a millisecond or two.
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.0003, 0.01


class SqliteDatabase:
    """An SQLite file in WAL mode. See `reader.Database`.

    One connection writes, through SQLAlchemy, and one reads; a lock around each makes them safe to share.

    Args:
        url: `sqlite:///FILE`, or the path of a file.

    Raises:
        StoreError: the URL names no file, or has options that do not exist.
    """

    def __init__(self, url: str | Path) -> None:
        file, options = (str(url), "") if isinstance(url, Path) else _split(url)
        chosen = parse_qs(options, keep_blank_values=True)
        synchronous = chosen.pop("synchronous", ["full"])
        if synchronous not in (["full"], ["normal"]):
            raise StoreError(f"store {url}: synchronous must be full or normal, got {', '.join(synchronous)!r}")
        if chosen:
            raise StoreError(f"store {url}: there is no option {', '.join(sorted(chosen))}; known: synchronous")
        if file in {"", ".", ":memory:"}:
            raise StoreError(f"store {url}: needs a file that several processes can share, e.g. sqlite:///sweeps.db")
        self._synchronous = synchronous[0]
        #: Absolute, so that processes with other working folders find the same store.
        self._path = Path(file).absolute()
        self.url = f"sqlite:///{quote(str(self._path))}" + (f"?{options}" if options else "")
        self._has_indices = True
        self._open_file: str | None = None
        self._read_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlalchemy.Connection | None = None

    # ------------------------------------------------------------------------------------------------ opening

    def open(self) -> None:
        """See `Database.open`."""
        with self._errors():
            self._check_log()
            self._open_to_read()

    def open_for_writing(self, *, create: bool) -> None:
        """See `Database.open_for_writing`."""
        with self._errors():
            if create and not self._path.exists():
                self._create()
            self._check_log()
            with closing(self._connect()) as connection:
                self._check_pages(connection)
                if self._version(connection) < SCHEMA_VERSION:
                    migrate(connection)
            self._open_to_read()
            self._writer = self._connect_writer()

    def _check_log(self) -> None:
        """Before anything else, and only when it is not open in this process already: see `check_log`."""
        file = os.path.realpath(self._path)
        with _OPENING:
            if not _OPEN[file] and self._synchronous == "full":
                check_log(self._path)
            _OPEN[file] += 1
            self._open_file = file

    def _open_to_read(self) -> None:
        self._reader = self._connect()
        self.schema_version = self._version(self._reader)
        _switch_to_wal(self._reader)
        if self.schema_version < HASHES_SINCE:
            show_as_current(self._reader)
            self._has_indices = False  # a view has none

    def _connect(self) -> sqlite3.Connection:
        """A connection to the file as it is: SQLite would make a missing one, and a store of an empty one."""
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            raise StoreError(
                f"store {self._path}: there is no such file; start a sweep first, or name another with --store"
            ) from None
        if size == 0:
            raise DamagedStoreError(
                f"store {self._path}: is an empty file, which no store ever is; "
                "restore a backup of it, or remove it to begin anew"
            )
        return sqlite3.connect(
            f"{self._path.as_uri()}?mode=rw",
            uri=True,
            timeout=LOCK_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )

    def _connect_writer(self) -> sqlalchemy.Connection:
        from sqlalchemy import create_engine, event
        from sqlalchemy.pool import NullPool

        engine = create_engine("sqlite://", creator=self._connect, poolclass=NullPool)

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _: Any) -> None:
            connection.execute(f"PRAGMA synchronous={self._synchronous}")
            connection.execute("PRAGMA busy_timeout=0")  # see _begin_immediately

        @event.listens_for(engine, "begin")
        def _begin(connection: sqlalchemy.Connection) -> None:
            _begin_immediately(connection.connection.driver_connection)

        return engine.connect()

    def _create(self) -> None:
        """Make the store under another name and then give it its own: nobody ever sees, or leaves, half a store."""
        from sqlalchemy import create_engine

        from metta.sweep.stores.schema import create_tables

        with tempfile.TemporaryDirectory(prefix=f".{self._path.name}.", dir=self._path.parent) as folder:
            new = Path(folder) / "new.db"
            engine = create_engine("sqlite://", creator=lambda: sqlite3.connect(new))
            with engine.begin() as connection:
                create_tables(connection)
            engine.dispose()
            with closing(sqlite3.connect(new)) as plain:
                _switch_to_wal(plain)
            try:
                os.link(new, self._path)
            except FileExistsError:  # somebody else was faster
                pass
            except OSError:  # a file system without hard links, where two who create at one time may take turns badly
                new.rename(self._path)

    def _check_pages(self, connection: sqlite3.Connection) -> None:
        [(finding,)] = connection.execute("PRAGMA quick_check(1)")
        if finding != "ok":
            raise DamagedStoreError(f"store {self._path}: {finding}; {RESCUE}")

    def _version(self, connection: sqlite3.Connection) -> int:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if SCHEMA_TABLE not in tables:
            other = f": it is the database of another program, with its table {tables[0]!r}" if tables else ""
            raise StoreError(f"store {self._path}: holds no sweeps{other}; name another with --store")
        [version] = [int(version) for (version,) in connection.execute(SCHEMA_QUERY)]
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"store {self._path}: has schema {version}, this version reads up to {SCHEMA_VERSION}; "
                "upgrade metta-sweep"
            )
        return version

    # ------------------------------------------------------------------------------------------------ reading

    def fetch(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """See `Database.fetch`."""
        with self._read_lock, self._errors():
            return self._open_reader.execute(query, values).fetchall()

    @contextmanager
    def snapshot(self) -> Iterator[Fetch]:
        """See `Database.snapshot`."""
        with self._read_lock, self._errors():
            reader = self._open_reader
            reader.execute("BEGIN")
            try:
                yield lambda query, values: reader.execute(query, values).fetchall()
            finally:
                if reader.in_transaction:
                    reader.execute("ROLLBACK")

    def by(self, index: str) -> str:
        """See `Database.by`."""
        return f"INDEXED BY {index}" if self._has_indices else ""

    @property
    def _open_reader(self) -> sqlite3.Connection:
        if self._reader is None:
            raise StoreError(f"store {self._path}: is closed")
        return self._reader

    def wait(self, sweep_id: str, has_changed: Callable[[], bool], timeout_s: float) -> bool:
        """See `Database.wait`."""
        deadline = time.monotonic() + timeout_s
        look_s = _SHORTEST_LOOK_S
        seen: int | None = None
        while True:
            # SQLite counts the commits of other connections: asking costs microseconds, so the log itself is asked only
            # when something was written.
            [(version,)] = self.fetch("PRAGMA data_version")
            if version != seen:
                seen = version
                if has_changed():
                    return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(look_s, left))
            look_s = min(look_s * 1.5, _LONGEST_LOOK_S)

    # ------------------------------------------------------------------------------------------------ writing

    @contextmanager
    def transaction(self, sweep_id: str) -> Iterator[sqlalchemy.Connection]:
        """See `Database.transaction`."""
        with self._write_lock, self._errors():
            if self._writer is None:
                raise StoreError(f"store {self._path}: is closed")
            with self._writer.begin():
                yield self._writer

    def reserve_names(self, connection: sqlalchemy.Connection) -> None:
        """See `Database.reserve_names`: here all transactions come one after the other."""

    def announce(self, connection: sqlalchemy.Connection, sweep_id: str) -> None:
        """See `Database.announce`: here the waiting look for themselves."""

    def close(self) -> None:
        """See `Database.close`."""
        with self._write_lock:
            if self._writer is not None:
                self._writer.close()
                self._writer.engine.dispose()
                self._writer = None
        with self._read_lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        with _OPENING:
            if self._open_file is not None:
                _OPEN[self._open_file] -= 1
                self._open_file = None

    # ------------------------------------------------------------------------------------------------- errors

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Failures of the database as StoreError, with what can be done about them."""
        try:
            yield
        except OSError as error:
            raise StoreAwayError(f"store {self._path}: {error.strerror}{_FOLDER}") from error
        except Exception as error:
            cause = getattr(error, "orig", error)  # SQLAlchemy wraps what SQLite raised
            if not isinstance(cause, sqlite3.Error):
                raise
            kind, advice = next((known for words, known in _FAILURES.items() if words in str(cause)), (StoreError, ""))
            if "locked" in str(cause) and (process_id := _writer_of(self._path)) is not None:
                advice += f" (process {process_id}; if it is suspended: kill -CONT {process_id}, or end it)"
            raise kind(f"store {self._path}: {cause}{advice}") from error


_FOLDER = "; its folder must exist and be writable"
_FAILURES: dict[str, tuple[type[StoreError], str]] = {
    "not a database": (DamagedStoreError, f"; it is some other kind of file, name another with --store; or: {RESCUE}"),
    "malformed": (DamagedStoreError, f"; {RESCUE}"),
    "decode to UTF-8": (DamagedStoreError, f"; {RESCUE}"),
    "no such ": (DamagedStoreError, f"; {RESCUE}"),
    "readonly": (StoreAwayError, "; make it and its folder writable, or name another with --store"),
    "unable to open": (StoreAwayError, _FOLDER),
    "disk I/O error": (
        StoreAwayError,
        "; the disk is over its quota, gone or failing: mend that and resume; what was written is safe",
    ),
    "disk is full": (StoreAwayError, "; free some space and resume the sweep: nothing written before is lost"),
    "locked": (StoreAwayError, f"; another process has kept it locked for {LOCK_TIMEOUT_S:.0f} seconds"),
}


def _split(url: str) -> tuple[str, str]:
    """The file that a URL names, and the options after it; no file where the URL names a host."""
    rest, _, options = url.removeprefix("sqlite://").partition("?")
    return unquote(rest[1:]) if rest.startswith("/") else "", options


def _begin_immediately(connection: Any) -> None:
    """Begin a transaction that writes, once no other process is in one.

    Where SQLite waits by itself it looks ever more rarely, and soon sleeps longer than a commit takes.
    """
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    pause_s = _SHORTEST_PAUSE_S
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.2, _LONGEST_PAUSE_S)


def _writer_of(path: Path) -> int | None:
    """The process that is writing to the store, where the kernel tells.

    It is not asked through the file: closing that would give up the locks that this process has.
    """
    try:
        inode = path.with_name(f"{path.name}-shm").stat().st_ino
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return None
    for _, _, _, mode, process_id, file, first, *_ in (lock for lock in locks if len(lock) == 8):
        if mode == "WRITE" and file.endswith(f":{inode}") and int(first) == _WRITING and int(process_id) > 0:
            return int(process_id)
    return None


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """The file keeps the mode, so only one that is ours may be given it; nearly always it has it already."""
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
            return
        except sqlite3.OperationalError as error:
            # Here SQLite does not wait, as it does elsewhere, for others that look at the new file.
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_SHORTEST_LOOK_S)
