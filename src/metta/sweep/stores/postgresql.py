"""What is PostgreSQL's own: connections that come back, advisory locks, LISTEN and NOTIFY, errors, passwords."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NoReturn

from metta.sweep.errors import ConfigError, DamagedStoreError, MissingExtraError, StoreAwayError, StoreError
from metta.sweep.stores import display_url
from metta.sweep.stores.reader import Fetch, Row
from metta.sweep.stores.rows import RESCUE, SCHEMA_QUERY, SCHEMA_TABLE, SCHEMA_VERSION

try:
    import psycopg
    from psycopg.conninfo import conninfo_to_dict
except ImportError as error:
    raise MissingExtraError(
        'store: a PostgreSQL store needs psycopg, which is not installed; pip install "metta-sweep[postgresql]"'
    ) from error

if TYPE_CHECKING:
    import sqlalchemy

#: How long a writer waits for another one.
LOCK_TIMEOUT_S = 30.0
#: How long any one statement may take, and a transaction do nothing: its process may have been suspended in the middle.
STATEMENT_TIMEOUT_S = 60.0
_CHANNEL = "metta_sweep"
#: A server that is gone without a word is noticed within some 30 seconds. All of it can be overridden in the URL.
_DEFAULTS = {
    "application_name": "metta-sweep",
    "connect_timeout": "10",
    "keepalives": "1",
    "keepalives_idle": "15",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


class PostgresqlDatabase:
    """A PostgreSQL database; the tables are in the user's default schema. See `reader.Database`.

    One connection writes, through SQLAlchemy, one reads, and each that waits for a change has one of its own. One that
    the server has ended is replaced at its next use: what was under way in it raises StoreAwayError, what comes after
    works again as soon as the server does.

    Args:
        url: `postgresql://user@host:port/database?option=value`, with the options of libpq.

    Raises:
        ConfigError: the URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._name = display_url(url)
        self._parameters = _DEFAULTS | self._parse(url)
        timeouts = {
            "lock_timeout": LOCK_TIMEOUT_S,
            "statement_timeout": STATEMENT_TIMEOUT_S,
            "idle_in_transaction_session_timeout": STATEMENT_TIMEOUT_S,
        }
        ours = " ".join(f"-c {name}={seconds * 1000:.0f}" for name, seconds in timeouts.items())
        self._parameters["options"] = f"{ours} {self._parameters.get('options', '')}".strip()
        self._read_lock = threading.Lock()
        self._write_lock = threading.Lock()
        self._reader: psycopg.Connection | None = None
        self._writer: sqlalchemy.Connection | None = None
        self._engine: sqlalchemy.Engine | None = None
        self._idle_listeners: list[psycopg.Connection] = []
        self._is_closed = False

    def _parse(self, url: str) -> dict[str, str]:
        try:
            parameters = {name: str(value) for name, value in conninfo_to_dict(url).items()}
        except psycopg.Error:
            # What psycopg says of it may quote the password.
            parameters = {"port": "unreadable"}
        ports = parameters.get("port", "").replace(",", "")
        # A password with a bare @ or / in it ends too early, and its rest is taken for a host, a port or a database.
        places = "".join(parameters.get(name, "") for name in ("host", "dbname"))
        if "@" in places or (ports and not ports.isdigit()):
            raise ConfigError(
                f"store: {self._name!r} cannot be read; it has to look like postgresql://USER@HOST:PORT/DATABASE, with "
                "special characters percent-encoded, and options of libpq after a question mark"
            )
        return parameters

    # ------------------------------------------------------------------------------------------------ opening

    def open(self) -> None:
        """See `Database.open`."""
        with self._errors():
            tables = self.fetch("SELECT to_regclass(?)::text", (SCHEMA_TABLE,))
            if tables == [(None,)]:
                raise StoreError(f"store {self._name}: holds no sweeps; start one first, or name another with --store")
            [(self.schema_version,)] = self.fetch(SCHEMA_QUERY)
        if self.schema_version > SCHEMA_VERSION:
            raise StoreError(
                f"store {self._name}: has schema {self.schema_version}, this version reads up to {SCHEMA_VERSION}; "
                "upgrade metta-sweep"
            )

    def open_for_writing(self, *, create: bool) -> None:
        """See `Database.open_for_writing`."""
        if create:
            from metta.sweep.stores.schema import create_tables

            with self.transaction(SCHEMA_TABLE) as connection:  # one creates, whoever else wants to waits and looks
                if connection.exec_driver_sql("SELECT to_regclass(%s)", (SCHEMA_TABLE,)).scalar() is None:
                    create_tables(connection)
        self.open()
        if self.schema_version < SCHEMA_VERSION:
            self._migrate()

    def _migrate(self) -> None:
        """Bring a store of version 2, the first that this server had, up to date, unless another process was faster."""
        with self.transaction(SCHEMA_TABLE) as connection:
            connection.exec_driver_sql("ALTER TABLE heartbeats ADD COLUMN IF NOT EXISTS gpus BYTEA")
            connection.exec_driver_sql(f"UPDATE {SCHEMA_TABLE} SET version = {SCHEMA_VERSION}")  # noqa: S608 (constants)
        self.schema_version = SCHEMA_VERSION

    def _connect(self) -> psycopg.Connection:
        if self._is_closed:
            raise StoreError(f"store {self._name}: is closed")
        return psycopg.connect(**self._parameters)  # type: ignore[arg-type]

    # ------------------------------------------------------------------------------------------------ reading

    def fetch(self, query: str, values: Sequence[Any] = ()) -> list[Row]:
        """See `Database.fetch`."""
        with self._read_lock, self._errors():
            return _fetch(self._live_reader(), query, values)

    @contextmanager
    def snapshot(self) -> Iterator[Fetch]:
        """See `Database.snapshot`."""
        with self._read_lock, self._errors():
            reader = self._live_reader()
            reader.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            try:
                yield lambda query, values: _fetch(reader, query, values)
            finally:
                try:
                    reader.rollback()
                except psycopg.Error:
                    reader.close()

    def by(self, index: str) -> str:
        """See `Database.by`: the server takes no such wishes."""
        return ""

    def _live_reader(self) -> psycopg.Connection:
        if self._reader is None or _has_ended(self._reader):
            self._reader = self._connect()
            self._reader.autocommit = True
        return self._reader

    # ------------------------------------------------------------------------------------------------ waiting

    def wait(self, sweep_id: str, has_changed: Callable[[], bool], timeout_s: float) -> bool:
        """See `Database.wait`."""
        deadline = time.monotonic() + timeout_s
        if has_changed():
            return True
        if timeout_s <= 0:
            return False
        with self._listener() as listener:
            # It listens already, so nothing that is committed after this look goes unheard.
            while not has_changed():
                heard: list[str] = []
                while sweep_id not in heard:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return False
                    heard = [notice.payload for notice in listener.notifies(timeout=left, stop_after=1)]
            return True

    @contextmanager
    def _listener(self) -> Iterator[psycopg.Connection]:
        """A connection that listens; only while somebody waits, because the server keeps what is not picked up."""
        listener = self._idle_listeners.pop() if self._idle_listeners else None
        with self._errors():
            if listener is None or _has_ended(listener):
                listener = self._connect()
                listener.autocommit = True
            try:
                listener.execute(f"LISTEN {_CHANNEL}")
                yield listener
                listener.execute("UNLISTEN *")
            except BaseException:
                listener.close()  # in the middle of something, or lost
                raise
        if self._is_closed:
            listener.close()
        else:
            self._idle_listeners.append(listener)

    # ------------------------------------------------------------------------------------------------ writing

    @contextmanager
    def transaction(self, sweep_id: str) -> Iterator[sqlalchemy.Connection]:
        """See `Database.transaction`."""
        with self._write_lock, self._errors():
            writer = self._live_writer()
            with writer.begin():
                _lock(writer, sweep_id)
                yield writer

    def _live_writer(self) -> sqlalchemy.Connection:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        if self._engine is None:
            self._engine = create_engine("postgresql+psycopg://", creator=self._connect, poolclass=NullPool)
        if self._writer is not None and (self._writer.invalidated or _has_ended(_driver_connection(self._writer))):
            self._writer.invalidate()
            self._writer.close()
            self._writer = None
        if self._writer is None:
            self._writer = self._engine.connect()
        return self._writer

    def reserve_names(self, connection: sqlalchemy.Connection) -> None:
        """See `Database.reserve_names`."""
        _lock(connection, "names of sweeps")

    def announce(self, connection: sqlalchemy.Connection, sweep_id: str) -> None:
        """See `Database.announce`."""
        connection.exec_driver_sql("SELECT pg_notify(%s, %s)", (_CHANNEL, sweep_id))

    def close(self) -> None:
        """See `Database.close`."""
        self._is_closed = True
        with self._write_lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        with self._read_lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None
        while self._idle_listeners:
            self._idle_listeners.pop().close()

    # ------------------------------------------------------------------------------------------------- errors

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Failures of the database as StoreError, with what can be done about them."""
        try:
            yield
        except Exception as error:
            cause = getattr(error, "orig", error)  # SQLAlchemy wraps what psycopg raised
            if not isinstance(cause, psycopg.Error):
                raise
            self._raise(cause)

    def _raise(self, cause: psycopg.Error) -> NoReturn:
        said = " ".join(str(cause).split())
        kind, advice = _explain(cause, said)
        password = self._parameters.get("password")
        if password and password in said:
            raise kind(f"store {self._name}: {said.replace(password, '***')}{advice}") from None
        raise kind(f"store {self._name}: {said}{advice}") from cause


def _fetch(connection: psycopg.Connection, query: str, values: Sequence[Any]) -> list[Row]:
    # In binary, or else events come spelled in hexadecimal digits.
    return connection.execute(query.replace("?", "%s").encode(), values, binary=True).fetchall()


def _lock(connection: sqlalchemy.Connection, name: str) -> None:
    """Wait for the lock of this name, and hold it to the end of the transaction."""
    digest = blake2b(f"metta-sweep:{name}".encode(), digest_size=8).digest()
    connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (int.from_bytes(digest, "big", signed=True),))


def _driver_connection(connection: sqlalchemy.Connection) -> psycopg.Connection:
    driver_connection = connection.connection.driver_connection
    assert isinstance(driver_connection, psycopg.Connection)
    return driver_connection


def _has_ended(connection: psycopg.Connection) -> bool:
    """Whether an idle connection is beyond use: the server says so, or hangs up, when it stops. Costs no round trip."""
    if connection.closed:
        return True
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLIN)
    if not poll.poll(0):
        return False
    connection.close()
    return True


_READ_ONLY = "; the server takes no writes: is it a standby? Try again when it is the primary, or name another"
_REFUSALS = {
    "password authentication failed": "; set PGPASSWORD, or write it into ~/.pgpass",
    "no password supplied": "; set PGPASSWORD, or write it into ~/.pgpass",
    "does not exist": "; have it created, or name another with --store",
    "pg_hba.conf": "; the server's administrator has to allow it",
    "permission denied": "; have it granted, or name another with --store",
    "invalid connection option": "; the options are those of libpq",
    "already exists": "; another program keeps its tables there: name another database, or a schema of its own with "
    "?options=-csearch_path%3DSCHEMA",
}


def _explain(error: psycopg.Error, said: str) -> tuple[type[StoreError], str]:
    """What kind of failure it is, and what can be done about it."""
    if isinstance(error, psycopg.errors.DataCorrupted | psycopg.errors.IndexCorrupted):
        return DamagedStoreError, f"; {RESCUE}"
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return StoreAwayError, _READ_ONLY
    if isinstance(error, psycopg.errors.LockNotAvailable):
        return StoreAwayError, f"; another process has kept it locked for {LOCK_TIMEOUT_S:.0f} seconds"
    if isinstance(error, psycopg.errors.DiskFull):
        return StoreAwayError, "; free some space on the server: nothing written before is lost"
    # A refused connection has no code, only words.
    for words, advice in _REFUSALS.items():
        if words in said:
            return StoreError, advice
    return (StoreAwayError if isinstance(error, psycopg.OperationalError) else StoreError), ""
