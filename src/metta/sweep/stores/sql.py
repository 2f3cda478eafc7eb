"""The writing half of a store in an SQL database, through SQLAlchemy Core."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import immutables
import msgspec
from msgspec.structs import replace
from sqlalchemy import BindParameter, Connection, Row, String, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from metta.sweep.errors import (
    DamagedStoreError,
    FencedError,
    InvalidTransition,
    LeaseHeldError,
    NameTakenError,
    StaleWriteError,
    StoreError,
)
from metta.sweep.model.events import Event, RunCreated
from metta.sweep.model.run import RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Heartbeat, Lease
from metta.sweep.stores.hashes import event_hash, run_hash, sweep_hash
from metta.sweep.stores.numbering import numbered
from metta.sweep.stores.reader import PAGE, Database, SqlReader, check_next, run_missing
from metta.sweep.stores.rows import RESCUE, SWEEP_COLUMNS, encode_totals, to_event, to_run, to_sweep
from metta.sweep.stores.schema import EVENTS, HEARTBEATS, LEASES, RUNS, SWEEPS

_encode = msgspec.json.Encoder().encode


class _WrittenBeforeError(StoreError):
    """The log has an event of this id or number already."""


class SqlStore(SqlReader):
    """A store in an SQL database. See `protocols.Store` for what it guarantees.

    Args:
        database: Which one.
        create: Make the store where there is none.
    """

    def __init__(self, database: Database, *, create: bool = False) -> None:
        self._create = create
        super().__init__(database)

    def _open(self) -> None:
        self._database.open_for_writing(create=self._create)

    # -------------------------------------------------------------------------------------------------- events

    def append(
        self, events: Sequence[Event], *, fence: int | None = None, expected_seq: int | None = None
    ) -> list[Event]:
        """See `Store.append`.

        That all events are new is nearly always so, and then looking for them would only cost time: what gives it away
        is that they do not fit, or that the table of events has them.
        """
        if not events:
            return []
        sweep_id = events[0].sweep_id
        if any(event.sweep_id != sweep_id for event in events):
            raise ValueError("append takes events of one sweep at a time")
        try:
            return self._append(sweep_id, events, fence, expected_seq, are_new=True)
        except (_WrittenBeforeError, InvalidTransition, StaleWriteError):
            return self._append(sweep_id, events, fence, expected_seq, are_new=False)

    def _append(
        self, sweep_id: str, events: Sequence[Event], fence: int | None, expected_seq: int | None, *, are_new: bool
    ) -> list[Event]:
        with self._database.transaction(sweep_id) as connection:
            row = self._fenced_sweep(connection, sweep_id, fence)
            known = {} if are_new else self._known_seqs(connection, events)
            before = self._partial_state(connection, row, events)
            if new := numbered(events, known, before.seq, expected_seq):
                known |= {event.id: event.seq for event in new}
                after = fold(before, new)
                self._write_events(connection, new)
                self._write_sweep(connection, row, before, after.sweep)
                self._write_runs(connection, before, after)
                self._database.announce(connection, sweep_id)
        return [replace(event, seq=known[event.id]) for event in events]

    def _fenced_sweep(self, connection: Connection, sweep_id: str, fence: int | None) -> Row[Any] | None:
        """The sweep's row, once it is certain that who writes under this fence may."""
        if fence is None:
            return connection.execute(_SWEEP, {"its_sweep": sweep_id}).one_or_none()
        row = connection.execute(_SWEEP_AND_FENCE, {"its_sweep": sweep_id}).one_or_none()
        current = row.fence if row is not None else None
        if current != fence:
            raise FencedError(f"sweep {sweep_id}: another controller took over (lease {current}, ours was {fence})")
        return row

    def _known_seqs(self, connection: Connection, events: Sequence[Event]) -> dict[str, int]:
        known: dict[str, int] = {}
        for ids in _pages([event.id for event in events]):
            known |= {row.id: row.seq for row in connection.execute(_KNOWN_EVENTS, {"ids": ids})}
        return known

    def _partial_state(self, connection: Connection, row: Row[Any] | None, events: Sequence[Event]) -> SweepState:
        """The state as far as the events can touch it: the sweep's totals and their runs."""
        if row is None:
            return EMPTY
        sweep = to_sweep(*row[: len(SWEEP_COLUMNS)])
        runs: dict[str, RunInfo] = {}
        touched = {event.run_id for event in events if event.run_id is not None}
        for run_ids in _pages(sorted(touched)):
            rows = connection.execute(_RUNS, {"its_sweep": sweep.sweep_id, "run_ids": run_ids})
            runs |= {run.run_id: to_run(*run) for run in rows}
        created = {event.run_id for event in events if isinstance(event.body, RunCreated)}
        for run_ids in _pages(sorted(touched - runs.keys() - created)):
            for run_id in connection.execute(_IN_LOG, {"its_sweep": sweep.sweep_id, "run_ids": run_ids}).scalars():
                raise run_missing(run_id)
        return SweepState(metadata=sweep, runs=immutables.Map(runs))

    def _write_events(self, connection: Connection, events: Sequence[Event]) -> None:
        rows: list[dict[str, Any]] = [
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
        for row in rows:
            row["hash"] = event_hash(**row)
        try:
            connection.execute(_INSERT_EVENTS, rows)
        except IntegrityError as error:
            raise _WrittenBeforeError(
                f"sweep {events[0].sweep_id}: its log holds an event of an id or number that is new; {RESCUE}"
            ) from error

    def _write_sweep(
        self, connection: Connection, row: Row[Any] | None, before: SweepState, sweep: SweepMetadata
    ) -> None:
        if row is None or sweep.config is not before.sweep.config:
            self._check_name(connection, sweep)
            config = _encode(sweep.config)
        else:
            config = row.config
        values = _sweep_row(sweep, config)
        if row is None:
            connection.execute(_INSERT_SWEEP, values)
        elif config is row.config:
            connection.execute(_UPDATE_TOTALS, {"its_sweep": sweep.sweep_id, **_only(_CHANGING_TOTALS, values)})
        else:
            connection.execute(update(SWEEPS).where(SWEEPS.c.sweep_id == sweep.sweep_id).values(values))

    def _check_name(self, connection: Connection, sweep: SweepMetadata) -> None:
        self._database.reserve_names(connection)
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
            if known is None:
                inserts.append(_run_row(run))
            elif run is not known:
                row = _only(_CHANGING_OF_RUN, _run_row(run))
                updates.append({"its_sweep": run.sweep_id, "its_run": run_id, **row})
        if inserts:
            connection.execute(_INSERT_RUNS, inserts)
        if updates:
            connection.execute(_UPDATE_RUN, updates)

    # --------------------------------------------------------------------------------------------- projections

    def rebuild(self, sweep_id: str) -> None:
        """See `Store.rebuild`."""
        with self._database.transaction(sweep_id) as connection:
            state = fold(EMPTY, self._log(connection, sweep_id))
            row = connection.execute(_SWEEP, {"its_sweep": sweep_id}).one_or_none()
            if row is not None and state.seq < (row.seq if _is_intact(row) else 1):
                raise DamagedStoreError(
                    f"sweep {sweep_id}: its log ends after {state.seq} of {row.seq} events, so there is nothing to "
                    f"rebuild it from; {RESCUE}"
                )
            connection.execute(delete(RUNS).where(RUNS.c.sweep_id == sweep_id))
            connection.execute(delete(SWEEPS).where(SWEEPS.c.sweep_id == sweep_id))
            if state.metadata is not None:
                self._check_name(connection, state.sweep)
                connection.execute(_INSERT_SWEEP, _sweep_row(state.sweep, _encode(state.sweep.config)))
                self._write_runs(connection, EMPTY, state)
            self._database.announce(connection, sweep_id)

    def _log(self, connection: Connection, sweep_id: str) -> Iterator[Event]:
        after = 0
        while rows := connection.execute(_LOG, {"its_sweep": sweep_id, "after": after}).all():
            for row in rows:
                event = to_event(*row)
                check_next(event, after)
                after = event.seq
                yield event

    # -------------------------------------------------------------------------------------- leases, heartbeats

    def acquire_lease(
        self, sweep_id: str, holder: str, now: float, ttl_s: float, *, steal: Lease | None = None
    ) -> Lease:
        """See `Store.acquire_lease`."""
        with self._database.transaction(sweep_id) as connection:
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
        with self._database.transaction(lease.sweep_id) as connection:
            # The row stays: its fence must never go back.
            connection.execute(update(LEASES).where(mine).values(holder=None, expires_at=0.0))

    def beat(self, heartbeat: Heartbeat) -> None:
        """See `Store.beat`."""
        mine = (HEARTBEATS.c.sweep_id == heartbeat.sweep_id) & (HEARTBEATS.c.host == heartbeat.host)
        gpus = msgspec.json.encode(heartbeat.gpus) if heartbeat.gpus else None
        row = {**msgspec.structs.asdict(heartbeat), "gpus": gpus}
        with self._database.transaction(heartbeat.sweep_id) as connection:
            if not connection.execute(update(HEARTBEATS).where(mine).values(row)).rowcount:
                connection.execute(insert(HEARTBEATS).values(row))


# What runs for every batch is built once: for SQLAlchemy a statement costs more to build than to run.
_THIS_SWEEP: BindParameter[str] = bindparam("its_sweep", type_=String)
_KNOWN_EVENTS = select(EVENTS.c.id, EVENTS.c.seq).where(EVENTS.c.id.in_(bindparam("ids", expanding=True)))
_SWEEP = select(SWEEPS).where(SWEEPS.c.sweep_id == _THIS_SWEEP)
_SWEEP_AND_FENCE = select(SWEEPS, LEASES.c.fence).join_from(SWEEPS, LEASES, SWEEPS.c.sweep_id == LEASES.c.sweep_id)
_SWEEP_AND_FENCE = _SWEEP_AND_FENCE.where(SWEEPS.c.sweep_id == _THIS_SWEEP)
_RUNS = select(RUNS).where(RUNS.c.sweep_id == _THIS_SWEEP, RUNS.c.run_id.in_(bindparam("run_ids", expanding=True)))
_IN_LOG = select(EVENTS.c.run_id).where(EVENTS.c.sweep_id == _THIS_SWEEP)
_IN_LOG = _IN_LOG.where(EVENTS.c.run_id.in_(bindparam("run_ids", expanding=True))).limit(1)
_LOG = select(EVENTS).where(EVENTS.c.sweep_id == _THIS_SWEEP, EVENTS.c.seq > bindparam("after"))
_LOG = _LOG.order_by(EVENTS.c.seq).limit(PAGE)
_INSERT_EVENTS = insert(EVENTS)
_INSERT_SWEEP = insert(SWEEPS)
_INSERT_RUNS = insert(RUNS)
_CHANGING_TOTALS = ("seq", "totals", "hash")
_CHANGING_OF_RUN = ("status", "score", "info", "hash")
_UPDATE_TOTALS = (
    update(SWEEPS).where(SWEEPS.c.sweep_id == _THIS_SWEEP).values({name: bindparam(name) for name in _CHANGING_TOTALS})
)
_UPDATE_RUN = (
    update(RUNS)
    .where(RUNS.c.sweep_id == _THIS_SWEEP, RUNS.c.run_id == bindparam("its_run"))
    .values({name: bindparam(name) for name in _CHANGING_OF_RUN})
)


def _sweep_row(sweep: SweepMetadata, config: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {
        "sweep_id": sweep.sweep_id,
        "name": sweep.config.name,
        "created_at": sweep.created_at,
        "seq": sweep.seq,
        "config": config,
        "totals": encode_totals(sweep),
    }
    return {**row, "hash": sweep_hash(**row)}


def _run_row(run: RunInfo) -> dict[str, Any]:
    row: dict[str, Any] = {
        "sweep_id": run.sweep_id,
        "run_id": run.run_id,
        "index": run.index,
        "status": run.status.value,
        "score": run.score,
        "info": _encode(run),
    }
    return {**row, "hash": run_hash(**row)}


def _only(names: Sequence[str], row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in names}


def _is_intact(row: Row[Any]) -> bool:
    try:
        to_sweep(*tuple(row))
    except DamagedStoreError:
        return False
    return True


def _pages(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[start : start + PAGE] for start in range(0, len(ids), PAGE))
