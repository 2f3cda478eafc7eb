"""The reading half of the SQLite store, on the standard library alone.

A command that only looks should answer before one notices, and importing SQLAlchemy takes longer than all else that
such a command does. These few plain SELECTs are all of the SQL that is written by hand; whatever writes goes through
SQLAlchemy.
"""
# ruff: noqa: S608 (statements are put together from constants of this file; values are always parameters)

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote

import msgspec

from metta.sweep.errors import StoreError
from metta.sweep.model.events import Body, Event
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.sweep import SweepConfig, SweepMetadata
from metta.sweep.protocols import Heartbeat, Lease

#: Written to the schema table of each store; a store of a later version is refused, one of an earlier version migrated.
SCHEMA_VERSION = 1
SCHEMA_TABLE = "metta_sweep_schema"
#: Rows fetched at a time: few enough that reading a long log stays flat in memory, and that their ids fit into one
#: query.
PAGE = 2_000
#: Waiting for a change looks this often at first, and ever more rarely up to the last.
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.001, 0.05
#: How long a writer waits for another one.
LOCK_TIMEOUT_S = 30.0

_decode_body: Callable[[bytes], Body] = msgspec.json.Decoder(Body).decode
decode_run = msgspec.json.Decoder(RunInfo).decode


class _Totals(SweepMetadata, frozen=True, kw_only=True):
    """SweepMetadata as its row holds it: the config has a column of its own."""

    config: SweepConfig | None = None  # type: ignore[assignment]


TOTALS = tuple(name for name in SweepMetadata.__struct_fields__ if name != "config")
_decode_totals = msgspec.json.Decoder(_Totals).decode


@lru_cache(maxsize=64)
def _decode_config(blob: bytes) -> SweepConfig:
    """Cached, so that a sweep's config, and what its search space has computed, is one object per process."""
    return msgspec.json.decode(blob, type=SweepConfig)


class SqliteReader:
    """Reads a store. See `protocols.Reader`.

    Args:
        url: `sqlite:///FILE`, or the path of a file.

    Raises:
        StoreError: the file is missing, is no store, or comes from a later version.
    """

    def __init__(self, url: str | Path) -> None:
        self._locate(url)
        self._check_exists()
        self._open()

    def _locate(self, url: str | Path) -> None:
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

    def _check_exists(self) -> None:
        if not self._path.exists():
            raise StoreError(
                f"store {self._path}: there is no such file; start a sweep first, or name another with --store"
            )

    def _open(self) -> None:
        self._read_lock = threading.Lock()
        with self._errors():
            self._reader = self._connect()
            try:
                self._check_schema()
            except BaseException:
                self._reader.close()
                raise

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)

    # -------------------------------------------------------------------------------------------------- events

    def read(self, sweep_id: str, after: int = 0, *, run_id: str | None = None) -> Iterator[Event]:
        """See `Store.read`."""
        mine, values = ("", ()) if run_id is None else ("AND run_id = ?", (run_id,))
        query = f"SELECT {_EVENT_COLUMNS} FROM events WHERE sweep_id = ? AND seq > ? {mine} ORDER BY seq LIMIT {PAGE}"
        while True:
            page = self._fetch(query, (sweep_id, after, *values))
            yield from map(_event, page)
            if len(page) < PAGE:
                return
            after = page[-1][1]

    def wait_for_change(self, sweep_id: str, after: int, timeout_s: float) -> bool:
        """See `Store.wait_for_change`."""
        deadline = time.monotonic() + timeout_s
        look_s = _SHORTEST_LOOK_S
        seen: int | None = None
        while True:
            # SQLite counts the commits of other connections: asking costs microseconds, so the log itself is asked only
            # when something was written.
            [(version,)] = self._fetch("PRAGMA data_version")
            if version != seen:
                seen = version
                if self._last_seq(sweep_id) > after:
                    return True
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(look_s, left))
            look_s = min(look_s * 1.5, _LONGEST_LOOK_S)

    def _last_seq(self, sweep_id: str) -> int:
        rows = self._fetch("SELECT seq FROM sweeps WHERE sweep_id = ?", (sweep_id,))
        return int(rows[0][0]) if rows else 0

    # --------------------------------------------------------------------------------------------- projections

    def fetch_sweeps(self, sweep_id: str | None = None) -> list[SweepMetadata]:
        """See `Store.fetch_sweeps`."""
        mine, values = ("", ()) if sweep_id is None else ("WHERE sweep_id = ?", (sweep_id,))
        rows = self._fetch(f"SELECT config, totals FROM sweeps {mine} ORDER BY created_at, sweep_id", values)
        return [decode_metadata(*row) for row in rows]

    def fetch_runs(
        self,
        sweep_id: str | None = None,
        *,
        run_ids: Iterable[str] | None = None,
        statuses: Iterable[JobStatus] | None = None,
        id_prefix: str | None = None,
        best_first: bool = False,
        limit: int | None = None,
    ) -> list[RunInfo]:
        """See `Store.fetch_runs`."""
        wanted = ["TRUE"]
        values: list[Any] = []

        def where(condition: str, *arguments: Any) -> None:
            wanted.append(condition)
            values.extend(arguments)

        if sweep_id is not None:
            where("sweep_id = ?", sweep_id)
        if run_ids is not None:
            run_ids = list(run_ids)
            where(f"run_id IN ({_marks(run_ids)})", *run_ids)
        if statuses is not None:
            names = [status.value for status in statuses]
            where(f"status IN ({_marks(names)})", *names)
        if id_prefix is not None:
            where("substr(run_id, 1, ?) = ?", len(id_prefix), id_prefix)
        order = 'sweep_id, "index"'
        if best_first:
            if sweep_id is None:
                raise ValueError("best_first needs a sweep: only scores of one sweep compare")
            [direction] = [sweep.config.direction for sweep in self.fetch_sweeps(sweep_id)] or ["maximize"]
            where("score IS NOT NULL")
            order = f'score {"DESC" if direction == "maximize" else "ASC"}, "index"'
        query = f"SELECT info FROM runs WHERE {' AND '.join(wanted)} ORDER BY {order} LIMIT ?"
        return [decode_run(info) for (info,) in self._fetch(query, (*values, -1 if limit is None else limit))]

    def fetch_lease(self, sweep_id: str) -> Lease | None:
        """See `Store.fetch_lease`."""
        for row in self._fetch(f"{_LEASES} WHERE sweep_id = ? AND holder IS NOT NULL", (sweep_id,)):
            return Lease(**dict(zip(Lease.__struct_fields__, row, strict=True)))
        return None

    def fetch_heartbeats(self, sweep_id: str) -> list[Heartbeat]:
        """See `Store.fetch_heartbeats`."""
        rows = self._fetch(
            "SELECT sweep_id, host, pid, at, jobs FROM heartbeats WHERE sweep_id = ? ORDER BY host", (sweep_id,)
        )
        return [Heartbeat(**dict(zip(Heartbeat.__struct_fields__, row, strict=True))) for row in rows]

    # --------------------------------------------------------------------------------------------- connection

    def close(self) -> None:
        """See `Store.close`."""
        with self._read_lock:
            self._reader.close()

    def _fetch(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        with self._read_lock, self._errors():
            return self._reader.execute(query, values).fetchall()

    def _check_schema(self) -> None:
        if not self._has_schema():
            raise StoreError(f"store {self._path}: holds no sweeps; name another with --store")
        self._switch_to_wal()
        [(version,)] = self._reader.execute(f"SELECT version FROM {SCHEMA_TABLE}")
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"store {self._path}: has schema {version}, this version reads up to {SCHEMA_VERSION}; "
                "upgrade metta-sweep"
            )

    def _has_schema(self) -> bool:
        query = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?"
        return self._reader.execute(query, (SCHEMA_TABLE,)).fetchone() is not None

    def _switch_to_wal(self) -> None:
        """The file keeps the mode, so only one that is ours may be given it; nearly always it has it already."""
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while True:
            try:
                self._reader.execute("PRAGMA journal_mode=WAL").fetchall()
                return
            except sqlite3.OperationalError as error:
                # Here SQLite does not wait, as it does elsewhere, for others that look at the new file.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
            time.sleep(_SHORTEST_LOOK_S)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Failures of the database as StoreError, with what can be done about them."""
        try:
            yield
        except sqlite3.Error as error:
            raise self._explained(str(error)) from error

    def _explained(self, cause: str) -> StoreError:
        advice = next((advice for words, advice in _ADVICE.items() if words in cause), "")
        return StoreError(f"store {self._path}: {cause}{advice}")


_ADVICE = {
    "not a database": "; it is some other kind of file: name another with --store",
    "malformed": "; restore a backup of it",
    "readonly": "; make it and its folder writable, or name another with --store",
    "unable to open": "; its folder must exist and be writable",
    "disk I/O error": "; the disk is over its quota, gone or failing: mend that and resume; what was written is safe",
    "disk is full": "; free some space and resume the sweep: nothing written before is lost",
    "locked": f"; another process has kept it locked for {LOCK_TIMEOUT_S:.0f} seconds",
}

_EVENT_COLUMNS = "sweep_id, seq, id, at, actor, type, run_id, job_id, body"
_LEASES = "SELECT sweep_id, holder, fence, expires_at FROM leases"


def _split(url: str) -> tuple[str, str]:
    """The file that a URL names, and the options after it; no file where the URL names a host."""
    rest, _, options = url.removeprefix("sqlite://").partition("?")
    return unquote(rest[1:]) if rest.startswith("/") else "", options


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def decode_metadata(config: bytes, totals: bytes) -> SweepMetadata:
    """A sweep from the two columns that hold it."""
    decoded = _decode_totals(totals)
    return SweepMetadata(config=_decode_config(config), **{name: getattr(decoded, name) for name in TOTALS})


def _event(row: tuple[Any, ...]) -> Event:
    sweep_id, seq, id_, at, actor, type_, run_id, job_id, body = row
    try:
        decoded = _decode_body(body)
    except msgspec.DecodeError as error:
        raise StoreError(
            f"sweep {sweep_id}: event {seq} of type {type_!r} cannot be read ({error}); "
            "it may come from a newer version: upgrade metta-sweep"
        ) from error
    return Event(id=id_, sweep_id=sweep_id, at=at, actor=actor, body=decoded, run_id=run_id, job_id=job_id, seq=seq)
