"""The event log in SQLite, through SQLAlchemy Core."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import immutables
import msgspec
from msgspec.structs import replace
from sqlalchemy import (
    BindParameter,
    Connection,
    String,
    bindparam,
    create_engine,
    event,
    insert,
    select,
    update,
)
from sqlalchemy import exc as sql_errors
from sqlalchemy.pool import NullPool

from metta.sweep.errors import FencedError, LeaseHeldError, NameTakenError, StoreError
from metta.sweep.model.events import Event
from metta.sweep.model.run import RunInfo
from metta.sweep.model.state import SweepState, fold
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Heartbeat, Lease
from metta.sweep.stores.reader import PAGE, SCHEMA_VERSION, TOTALS, SqliteReader, decode_metadata, decode_run
from metta.sweep.stores.schema import EVENTS, HEARTBEATS, LEASES, METADATA, RUNS, SCHEMA, SWEEPS

_encode = msgspec.json.Encoder().encode


class SqlStore(SqliteReader):
    """A store in an SQLite file (WAL mode). See `protocols.Store` for what it guarantees.

    One connection writes, through SQLAlchemy, and one reads; a lock around each makes the store safe to share between
    threads.
    """

    def __init__(self, url: str | Path, *, create: bool = False) -> None:
        self._locate(url)
        self._create = create
        if not create:
            self._check_exists()
        self._write_lock = threading.Lock()
        self._engine = create_engine("sqlite://", creator=self._connect, poolclass=NullPool)

        @event.listens_for(self._engine, "connect")
        def _configure(connection: Any, _: Any) -> None:
            connection.execute(f"PRAGMA synchronous={self._synchronous}")

        @event.listens_for(self._engine, "begin")
        def _begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

        with self._errors(), ExitStack() as opened:
            self._writer = opened.enter_context(self._engine.connect())
            self._open()
            opened.pop_all()  # all is well: it stays open

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
            runs |= {row.run_id: decode_run(row.info) for row in rows}
        return SweepState(metadata=decode_metadata(row.config, row.totals), runs=immutables.Map(runs))

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
        row: dict[str, Any] = {"seq": sweep.seq, "totals": _encode({name: getattr(sweep, name) for name in TOTALS})}
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

    # --------------------------------------------------------------------------------------------- connections

    def close(self) -> None:
        """See `Store.close`."""
        with self._write_lock:
            self._writer.close()
            self._engine.dispose()
        super().close()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._write_lock, self._errors(), self._writer.begin():
            yield self._writer

    def _check_schema(self) -> None:
        if self._create and not self._has_schema():
            self._create_schema()
        super()._check_schema()

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
        try:
            with super()._errors():
                yield
        except sql_errors.DBAPIError as error:
            raise self._explained(str(error.orig)) from error


# What runs for every batch is built once: for SQLAlchemy a statement costs more to build than to run.
_THIS_SWEEP: BindParameter[str] = bindparam("its_sweep", type_=String)
_KNOWN_EVENTS = select(EVENTS.c.id, EVENTS.c.seq).where(EVENTS.c.id.in_(bindparam("ids", expanding=True)))
_SWEEP = select(SWEEPS).where(SWEEPS.c.sweep_id == _THIS_SWEEP)
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
    return (ids[start : start + PAGE] for start in range(0, len(ids), PAGE))
