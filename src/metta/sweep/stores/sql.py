"""The event log in SQLite, through SQLAlchemy Core."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import immutables
import msgspec
from msgspec.structs import replace
from sqlalchemy import (
    URL,
    BindParameter,
    Connection,
    Row,
    Select,
    String,
    bindparam,
    create_engine,
    event,
    insert,
    select,
    update,
)
from sqlalchemy import exc as sql_errors
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from metta.sweep.errors import FencedError, LeaseHeldError, NameTakenError, StoreError
from metta.sweep.model.events import Body, Event
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.state import SweepState, fold
from metta.sweep.model.sweep import SweepConfig, SweepMetadata
from metta.sweep.protocols import Heartbeat, Lease
from metta.sweep.stores.schema import EVENTS, HEARTBEATS, LEASES, METADATA, RUNS, SCHEMA, SCHEMA_VERSION, SWEEPS

#: Rows fetched at a time: few enough that reading a long log stays flat in memory, and that their ids fit into one
#: query.
_PAGE = 2_000
#: Waiting for a change looks this often at first, and ever more rarely up to the last.
_SHORTEST_LOOK_S, _LONGEST_LOOK_S = 0.001, 0.05
#: How long a writer waits for another one.
_LOCK_TIMEOUT_S = 30.0

_decode_body: Callable[[bytes], Body] = msgspec.json.Decoder(Body).decode
_decode_run = msgspec.json.Decoder(RunInfo).decode
_encode = msgspec.json.Encoder().encode


class _Totals(SweepMetadata, frozen=True, kw_only=True):
    """SweepMetadata as its row holds it: the config has a column of its own."""

    config: SweepConfig | None = None  # type: ignore[assignment]


_TOTALS = tuple(name for name in SweepMetadata.__struct_fields__ if name != "config")
_decode_totals = msgspec.json.Decoder(_Totals).decode


@lru_cache(maxsize=64)
def _decode_config(blob: bytes) -> SweepConfig:
    """Cached, so that a sweep's config, and what its search space has computed, is one object per process."""
    return msgspec.json.decode(blob, type=SweepConfig)


class SqlStore:
    """A store in an SQLite file (WAL mode). See `protocols.Store` for what it guarantees.

    One connection writes and one reads; a lock around each makes the store safe to share between threads.
    """

    def __init__(self, url: str | URL, *, create: bool = False) -> None:
        parsed = make_url(url)
        synchronous = str(parsed.query.get("synchronous", "full")).upper()
        if synchronous not in {"FULL", "NORMAL"}:
            raise StoreError(f"store {url}: synchronous must be full or normal, got {synchronous.lower()!r}")
        if unknown := parsed.query.keys() - {"synchronous"}:
            raise StoreError(f"store {url}: there is no option {', '.join(sorted(unknown))}; known: synchronous")
        if parsed.host or not parsed.database or parsed.database == ":memory:":
            raise StoreError(f"store {url}: needs a file that several processes can share, e.g. sqlite:///sweeps.db")
        #: Absolute, so that processes with other working folders find the same store.
        path = Path(parsed.database).absolute()
        self.url = parsed.set(database=str(path)).render_as_string(hide_password=False)
        self._path = path
        if not create and not path.exists():
            raise StoreError(f"store {path}: there is no such file; start a sweep first, or name another with --store")
        self._engine = create_engine(
            parsed.set(database=str(path), query={}),
            poolclass=NullPool,
            connect_args={"timeout": _LOCK_TIMEOUT_S, "check_same_thread": False},
        )

        @event.listens_for(self._engine, "connect")
        def _configure(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # transactions begin where we say so
            connection.execute(f"PRAGMA synchronous={synchronous}")

        @event.listens_for(self._engine, "begin")
        def _begin(connection: Connection) -> None:
            if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
                connection.exec_driver_sql("BEGIN IMMEDIATE")

        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        with self._errors(), ExitStack() as opened:
            self._writer = opened.enter_context(self._engine.connect())
            self._reader = opened.enter_context(self._engine.connect())
            self._reader.execution_options(isolation_level="AUTOCOMMIT")
            self._prepare_schema(create)
            opened.pop_all()  # all is well: they stay open

    # -------------------------------------------------------------------------------------------------- events

    def append(self, events: Sequence[Event], *, fence: int | None = None) -> list[Event]:
        """See `Store.append`."""
        if not events:
            return []
        sweep_id = events[0].sweep_id
        if any(event.sweep_id != sweep_id for event in events):
            raise ValueError("append takes events of one sweep at a time")
        with self._transaction() as connection:
            if fence is not None:
                self._check_fence(connection, sweep_id, fence)
            known = self._known_seqs(connection, events)
            before = self._partial_state(connection, sweep_id, events)
            numbered: list[Event] = []
            seq = before.seq
            for event_ in events:
                if event_.id not in known:
                    known[event_.id] = seq = seq + 1
                    numbered.append(replace(event_, seq=seq))
            if numbered:
                after = fold(before, numbered)
                self._write_events(connection, numbered)
                self._write_sweep(connection, before, after)
                self._write_runs(connection, before, after)
        return [replace(event_, seq=known[event_.id]) for event_ in events]

    def _known_seqs(self, connection: Connection, events: Sequence[Event]) -> dict[str, int]:
        known: dict[str, int] = {}
        for ids in _pages([event_.id for event_ in events]):
            known |= {row.id: row.seq for row in connection.execute(_KNOWN_EVENTS, {"ids": ids})}
        return known

    def _partial_state(self, connection: Connection, sweep_id: str, events: Sequence[Event]) -> SweepState:
        """The state as far as the events can touch it: the sweep's totals and their runs."""
        row = connection.execute(_SWEEP, {"its_sweep": sweep_id}).one_or_none()
        if row is None:
            return SweepState()
        runs: dict[str, RunInfo] = {}
        for run_ids in _pages(sorted({event_.run_id for event_ in events if event_.run_id is not None})):
            rows = connection.execute(_RUNS, {"its_sweep": sweep_id, "run_ids": run_ids})
            runs |= {row.run_id: _decode_run(row.info) for row in rows}
        return SweepState(metadata=_metadata(row), runs=immutables.Map(runs))

    def _write_events(self, connection: Connection, events: Sequence[Event]) -> None:
        rows = [
            {
                "sweep_id": event.sweep_id,
                "seq": event.seq,
                "id": event.id,
                "at": event.at,
                "actor": event.actor,
                "type": event.type,
                "run_id": event.run_id,
                "job_id": event.job_id,
                "body": _encode(event.body),
            }
            for event in events
        ]
        connection.execute(_INSERT_EVENTS, rows)

    def _write_sweep(self, connection: Connection, before: SweepState, after: SweepState) -> None:
        sweep = after.sweep
        row: dict[str, Any] = {"seq": sweep.seq, "totals": _encode({name: getattr(sweep, name) for name in _TOTALS})}
        is_new = before.metadata is None
        if before.metadata is None or before.metadata.config is not sweep.config:
            self._check_name(connection, sweep)
            config = {"name": sweep.config.name, "config": _encode(sweep.config)}
            if is_new:
                created = {"sweep_id": sweep.sweep_id, "created_at": sweep.created_at}
                connection.execute(insert(SWEEPS), {**row, **config, **created})
            else:
                connection.execute(update(SWEEPS).where(SWEEPS.c.sweep_id == sweep.sweep_id).values(config))
        if not is_new:
            connection.execute(_UPDATE_SWEEP, {"its_sweep": sweep.sweep_id, **row})

    def _check_name(self, connection: Connection, sweep: SweepMetadata) -> None:
        query = select(SWEEPS.c.sweep_id).where(SWEEPS.c.name == sweep.config.name)
        other = connection.execute(query).scalar_one_or_none()
        if other is not None and other != sweep.sweep_id:
            raise NameTakenError(
                f"name: sweep {other} is named {sweep.config.name!r}; "
                f"choose another --name, or go on with it: metta sweep run --resume {other}"
            )

    def _write_runs(self, connection: Connection, before: SweepState, after: SweepState) -> None:
        inserts, updates = [], []
        for run_id, run in after.runs.items():
            known = before.runs.get(run_id)
            if run is known:
                continue
            row = {"status": run.status.value, "score": run.score, "info": _encode(run)}
            if known is None:
                inserts.append({"sweep_id": run.sweep_id, "run_id": run_id, "index": run.index, **row})
            else:
                updates.append({"its_sweep": run.sweep_id, "its_run": run_id, **row})
        if inserts:
            connection.execute(_INSERT_RUNS, inserts)
        if updates:
            connection.execute(_UPDATE_RUN, updates)

    def read(self, sweep_id: str, after: int = 0, *, run_id: str | None = None) -> Iterator[Event]:
        """See `Store.read`."""
        query = _EVENTS if run_id is None else _EVENTS.where(EVENTS.c.run_id == run_id)
        while True:
            page = self._fetch(query, {"its_sweep": sweep_id, "after": after})
            for row in page:
                yield _event(*cast(tuple[Any, ...], row))
            if len(page) < _PAGE:
                return
            after = page[-1].seq

    def wait_for_change(self, sweep_id: str, after: int, timeout_s: float) -> bool:
        """See `Store.wait_for_change`."""
        deadline = time.monotonic() + timeout_s
        look_s = _SHORTEST_LOOK_S
        seen: int | None = None
        while True:
            # SQLite counts the commits of other connections: asking costs microseconds, so the log itself is asked only
            # when something was written.
            version = self._fetch_pragma("data_version")
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
        rows = self._fetch(_LAST_SEQ, {"its_sweep": sweep_id})
        return int(rows[0].seq) if rows else 0

    # --------------------------------------------------------------------------------------------- projections

    def fetch_sweeps(self, sweep_id: str | None = None) -> list[SweepMetadata]:
        """See `Store.fetch_sweeps`."""
        query = select(SWEEPS).order_by(SWEEPS.c.created_at, SWEEPS.c.sweep_id)
        if sweep_id is not None:
            query = query.where(SWEEPS.c.sweep_id == sweep_id)
        return [_metadata(row) for row in self._fetch(query)]

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
        query = select(RUNS.c.info)
        if sweep_id is not None:
            query = query.where(RUNS.c.sweep_id == sweep_id)
        if run_ids is not None:
            query = query.where(RUNS.c.run_id.in_(list(run_ids)))
        if statuses is not None:
            query = query.where(RUNS.c.status.in_([status.value for status in statuses]))
        if id_prefix is not None:
            query = query.where(RUNS.c.run_id.startswith(id_prefix, autoescape=True))
        if best_first:
            if sweep_id is None:
                raise ValueError("best_first needs a sweep: only scores of one sweep compare")
            [direction] = [sweep.config.direction for sweep in self.fetch_sweeps(sweep_id)] or ["maximize"]
            by_score = RUNS.c.score.desc() if direction == "maximize" else RUNS.c.score.asc()
            query = query.where(RUNS.c.score.is_not(None)).order_by(by_score, RUNS.c.index)
        else:
            query = query.order_by(RUNS.c.sweep_id, RUNS.c.index)
        return [_decode_run(row.info) for row in self._fetch(query.limit(limit))]

    # -------------------------------------------------------------------------------------- leases, heartbeats

    def acquire_lease(
        self, sweep_id: str, holder: str, now: float, ttl_s: float, *, steal: Lease | None = None
    ) -> Lease:
        """See `Store.acquire_lease`."""
        with self._transaction() as connection:
            row = connection.execute(select(LEASES).where(LEASES.c.sweep_id == sweep_id)).one_or_none()
            stolen = row is not None and steal is not None and row.fence == steal.fence
            if row is not None and row.holder not in {None, holder} and row.expires_at > now and not stolen:
                raise LeaseHeldError(f"sweep {sweep_id}: controller {row.holder} is at work on it; stop that one first")
            fence = 1 if row is None else row.fence + (row.holder != holder)
            lease = Lease(sweep_id=sweep_id, holder=holder, fence=fence, expires_at=now + ttl_s)
            values = {"holder": holder, "fence": fence, "expires_at": lease.expires_at}
            if row is None:
                connection.execute(insert(LEASES).values(sweep_id=sweep_id, **values))
            else:
                connection.execute(update(LEASES).where(LEASES.c.sweep_id == sweep_id).values(values))
            return lease

    def release_lease(self, lease: Lease) -> None:
        """See `Store.release_lease`."""
        mine = (LEASES.c.sweep_id == lease.sweep_id) & (LEASES.c.fence == lease.fence)
        with self._transaction() as connection:
            # The row stays: its fence must never go back.
            connection.execute(update(LEASES).where(mine).values(holder=None, expires_at=0.0))

    def fetch_lease(self, sweep_id: str) -> Lease | None:
        """See `Store.fetch_lease`."""
        rows = self._fetch(select(LEASES).where(LEASES.c.sweep_id == sweep_id, LEASES.c.holder.is_not(None)))
        return Lease(**rows[0]._mapping) if rows else None

    def _check_fence(self, connection: Connection, sweep_id: str, fence: int) -> None:
        current = connection.execute(_FENCE, {"its_sweep": sweep_id}).scalar_one_or_none()
        if current != fence:
            raise FencedError(f"sweep {sweep_id}: another controller took over (lease {current}, ours was {fence})")

    def beat(self, heartbeat: Heartbeat) -> None:
        """See `Store.beat`."""
        mine = (HEARTBEATS.c.sweep_id == heartbeat.sweep_id) & (HEARTBEATS.c.host == heartbeat.host)
        row = msgspec.structs.asdict(heartbeat)
        with self._transaction() as connection:
            if not connection.execute(update(HEARTBEATS).where(mine).values(row)).rowcount:
                connection.execute(insert(HEARTBEATS).values(row))

    def fetch_heartbeats(self, sweep_id: str) -> list[Heartbeat]:
        """See `Store.fetch_heartbeats`."""
        rows = self._fetch(select(HEARTBEATS).where(HEARTBEATS.c.sweep_id == sweep_id).order_by(HEARTBEATS.c.host))
        return [Heartbeat(**row._mapping) for row in rows]

    # --------------------------------------------------------------------------------------------- connections

    def close(self) -> None:
        """See `Store.close`."""
        with self._write_lock, self._read_lock:
            self._writer.close()
            self._reader.close()
            self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._write_lock, self._errors(), self._writer.begin():
            yield self._writer

    def _fetch(self, query: Select[Any], values: dict[str, Any] | None = None) -> Sequence[Row[Any]]:
        with self._read_lock, self._errors():
            return self._reader.execute(query, values).all()

    def _fetch_pragma(self, name: str) -> int:
        with self._read_lock, self._errors():
            return int(self._reader.exec_driver_sql(f"PRAGMA {name}").scalar_one())

    def _prepare_schema(self, create: bool) -> None:
        if not self._engine.dialect.has_table(self._reader, SCHEMA.name):
            if not create:
                raise StoreError(f"store {self._path}: holds no sweeps; name another with --store")
            self._create_schema()
        self._switch_to_wal()
        version = self._reader.execute(select(SCHEMA.c.version)).scalar_one()
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"store {self._path}: has schema {version}, this version reads up to {SCHEMA_VERSION}; "
                "upgrade metta-sweep"
            )

    def _switch_to_wal(self) -> None:
        """The file keeps the mode, so only one that is ours may be given it; nearly always it has it already."""
        deadline = time.monotonic() + _LOCK_TIMEOUT_S
        while True:
            try:
                self._reader.exec_driver_sql("PRAGMA journal_mode=WAL")
                return
            except sql_errors.OperationalError as error:
                # Here SQLite does not wait, as it does elsewhere, for others that look at the new file.
                if "locked" not in str(error.orig) or time.monotonic() > deadline:
                    raise
            time.sleep(_SHORTEST_LOOK_S)

    def _create_schema(self) -> None:
        with self._writer.begin():
            tables = self._engine.dialect.get_table_names(self._writer)
            if SCHEMA.name not in tables:  # else another process was faster
                if tables:
                    raise StoreError(
                        f"store {self._path}: is the database of another program, with its table {tables[0]!r}; "
                        "name another with --store"
                    )
                METADATA.create_all(self._writer, checkfirst=False)
                self._writer.execute(insert(SCHEMA).values(version=SCHEMA_VERSION))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Failures of the database as StoreError, with what can be done about them."""
        try:
            yield
        except sql_errors.DBAPIError as error:
            cause = str(error.orig)
            advice = next((advice for words, advice in _ADVICE.items() if words in cause), "")
            raise StoreError(f"store {self._path}: {cause}{advice}") from error


_ADVICE = {
    "not a database": "; it is some other kind of file: name another with --store",
    "malformed": "; restore a backup of it",
    "readonly": "; make it and its folder writable, or name another with --store",
    "unable to open": "; its folder must exist and be writable",
    "disk I/O error": "; the disk is over its quota, gone or failing: mend that and resume; what was written is safe",
    "disk is full": "; free some space and resume the sweep: nothing written before is lost",
    "locked": f"; another process has kept it locked for {_LOCK_TIMEOUT_S:.0f} seconds",
}

# What runs for every batch is built once: for SQLAlchemy a statement costs more to build than to run.
_THIS_SWEEP: BindParameter[str] = bindparam("its_sweep", type_=String)
_KNOWN_EVENTS = select(EVENTS.c.id, EVENTS.c.seq).where(EVENTS.c.id.in_(bindparam("ids", expanding=True)))
_EVENTS = (
    select(EVENTS)
    .where(EVENTS.c.sweep_id == _THIS_SWEEP, EVENTS.c.seq > bindparam("after"))
    .order_by(EVENTS.c.seq)
    .limit(_PAGE)
)
_SWEEP = select(SWEEPS).where(SWEEPS.c.sweep_id == _THIS_SWEEP)
_LAST_SEQ = select(SWEEPS.c.seq).where(SWEEPS.c.sweep_id == _THIS_SWEEP)
_FENCE = select(LEASES.c.fence).where(LEASES.c.sweep_id == _THIS_SWEEP)
_RUNS = select(RUNS.c.run_id, RUNS.c.info).where(
    RUNS.c.sweep_id == _THIS_SWEEP, RUNS.c.run_id.in_(bindparam("run_ids", expanding=True))
)
_INSERT_EVENTS = insert(EVENTS)
_INSERT_RUNS = insert(RUNS)
_UPDATE_SWEEP = (
    update(SWEEPS).where(SWEEPS.c.sweep_id == _THIS_SWEEP).values(seq=bindparam("seq"), totals=bindparam("totals"))
)
_UPDATE_RUN = (
    update(RUNS)
    .where(RUNS.c.sweep_id == _THIS_SWEEP, RUNS.c.run_id == bindparam("its_run"))
    .values(status=bindparam("status"), score=bindparam("score"), info=bindparam("info"))
)


def _pages(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE))


def _metadata(row: Row[Any]) -> SweepMetadata:
    totals = _decode_totals(row.totals)
    return SweepMetadata(config=_decode_config(row.config), **{name: getattr(totals, name) for name in _TOTALS})


def _event(  # noqa: PLR0917 (the columns in their order: reading them by name takes longer than all the rest)
    sweep_id: str,
    seq: int,
    event_id: str,
    at: float,
    actor: str,
    kind: str,
    run_id: str | None,
    job_id: str | None,
    blob: bytes,
) -> Event:
    try:
        body = _decode_body(blob)
    except msgspec.DecodeError as error:
        raise StoreError(
            f"sweep {sweep_id}: event {seq} of type {kind!r} cannot be read ({error}); "
            "it may come from a newer version: upgrade metta-sweep"
        ) from error
    return Event(id=event_id, sweep_id=sweep_id, at=at, actor=actor, body=body, run_id=run_id, job_id=job_id, seq=seq)
