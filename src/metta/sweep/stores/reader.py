"""The reading half of a store in an SQL database.

A command that only looks should answer before one notices, and importing SQLAlchemy takes longer than all else that
such a command does. These few plain SELECTs, which SQLite and PostgreSQL both understand, are all of the SQL that is
written by hand; whatever writes goes through SQLAlchemy.

Nothing is taken on trust: rows are checked by their hashes, the log by its numbers, and the table of runs by the counts
that the sweep's row holds. A damaged index, which hides rows, is found by that.
"""
# ruff: noqa: S608 (statements are put together from constants of this file; values are always parameters)

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager
from itertools import islice
from operator import lt
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from metta.sweep.errors import DamagedStoreError
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.sweep import Direction, SweepMetadata
from metta.sweep.protocols import Heartbeat, Lease
from metta.sweep.stores.rows import (
    EVENT_COLUMNS,
    GPUS_SINCE,
    RESCUE,
    RUN_COLUMNS,
    SWEEP_COLUMNS,
    to_event,
    to_heartbeat,
    to_run,
    to_sweep,
)

if TYPE_CHECKING:
    import sqlalchemy

#: Rows fetched at a time: few enough that reading a long log stays flat in memory, and that their ids fit into one
#: query.
PAGE = 2_000

Row: TypeAlias = tuple[Any, ...]
#: Runs a SELECT with `?` for each value.
Fetch: TypeAlias = Callable[[str, Sequence[Any]], list[Row]]


class Database(Protocol):
    """What SQLite and PostgreSQL do each in its own way: finding it, connecting, locking, waiting, errors.

    A failure of the database is raised as StoreError with what can be done about it.
    """

    #: Where other processes find it.
    url: str
    #: Of the tables as they were when it was opened.
    schema_version: int

    def open(self) -> None:
        """Get ready to read; raises StoreError when there is no store, or one that cannot be read."""
        ...

    def open_for_writing(self, *, create: bool) -> None:
        """Get ready to read and write, after making the tables (`create`) or bringing them up to date."""
        ...

    def fetch(self, query: str, values: Sequence[Any]) -> list[Row]:
        """The rows of one SELECT."""
        ...

    def snapshot(self) -> AbstractContextManager[Fetch]:
        """Several SELECTs that see the store as it is at one moment."""
        ...

    def by(self, index: str) -> str:
        """What goes after the name of a table so that its rows are found by this index and by no other."""
        ...

    def transaction(self, sweep_id: str) -> AbstractContextManager[sqlalchemy.Connection]:
        """A writing transaction, which no other about the same sweep runs beside."""
        ...

    def reserve_names(self, connection: sqlalchemy.Connection) -> None:
        """Keep other transactions from naming sweeps until this one ends."""
        ...

    def announce(self, connection: sqlalchemy.Connection, sweep_id: str) -> None:
        """Wake those who wait for a change of the sweep, when this transaction is committed."""
        ...

    def wait(self, sweep_id: str, has_changed: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until `has_changed` or the time is over; which of the two it was."""
        ...

    def close(self) -> None:
        """Let go of all connections."""
        ...


class SqlReader:
    """Reads a store. See `protocols.Reader`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.url = database.url
        try:
            self._open()
        except BaseException:
            database.close()
            raise

    def _open(self) -> None:
        self._database.open()

    # -------------------------------------------------------------------------------------------------- events

    def read(self, sweep_id: str, after: int = 0, *, run_id: str | None = None) -> Iterator[Event]:
        """See `Store.read`."""
        begin = after
        while True:
            with self._database.snapshot() as fetch:
                page = _page_of_log(fetch, sweep_id, after, run_id)
                last = _last_seq(fetch, sweep_id)
                if run_id is not None and len(page) < PAGE:
                    _check_count_of_events(fetch, sweep_id, begin, last)
            for row in page:
                event = to_event(*row)
                if run_id is None:
                    check_next(event, after)
                after = event.seq
                if run_id in {None, event.run_id}:
                    yield event
            if len(page) < PAGE:
                if run_id is None and (page or after < last):
                    _check_end(sweep_id, after, last)
                return

    def wait_for_change(self, sweep_id: str, after: int, timeout_s: float) -> bool:
        """See `Store.wait_for_change`."""
        return self._database.wait(sweep_id, lambda: _last_seq(self._database.fetch, sweep_id) > after, timeout_s)

    # --------------------------------------------------------------------------------------------- projections

    def fetch_sweeps(self, sweep_id: str | None = None) -> list[SweepMetadata]:
        """See `Store.fetch_sweeps`."""
        return _sweeps(self._database.fetch, sweep_id)

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
        if best_first and sweep_id is None:
            raise ValueError("best_first needs a sweep: only scores of one sweep compare")
        wanted = _Wanted(
            sweep_id=sweep_id,
            run_ids=None if run_ids is None else frozenset(run_ids),
            statuses=None if statuses is None else frozenset(statuses),
            id_prefix=id_prefix,
            best_first=best_first,
            limit=limit,
        )
        with self._database.snapshot() as fetch:
            sweeps = _sweeps(fetch, sweep_id)
            direction = sweeps[0].config.direction if sweeps else "maximize"
            rows = fetch(*wanted.query(direction))
            if best_first or id_prefix is not None:
                self._check_index(fetch, "runs_by_score" if best_first else "runs_by_index", sweeps, sweep_id)
            if not_found := wanted.ids_without(rows):
                _check_never_created(fetch, sweep_id, not_found)
        runs = [to_run(*row) for row in rows]
        wanted.check(runs, sweeps, direction)
        return runs

    def _check_index(self, fetch: Fetch, index: str, sweeps: Sequence[SweepMetadata], sweep_id: str | None) -> None:
        """Raise a DamagedStoreError when the index does not have all runs."""
        mine, values = _of(sweep_id)
        [(count,)] = fetch(f"SELECT count(*) FROM runs {self._database.by(index)} WHERE {mine}", values)
        _check_count(count, sum(sweep.run_count for sweep in sweeps), sweep_id)

    def projection_differences(self, sweep_id: str) -> list[str]:
        """See `Store.projection_differences`."""
        from metta.sweep.stores.projections import differences  # it reads logs through this module

        with self._database.snapshot() as fetch:
            return differences(fetch, sweep_id)

    def fetch_lease(self, sweep_id: str) -> Lease | None:
        """See `Store.fetch_lease`."""
        query = "SELECT sweep_id, holder, fence, expires_at FROM leases WHERE sweep_id = ? AND holder IS NOT NULL"
        for row in self._database.fetch(query, (sweep_id,)):
            return Lease(**dict(zip(Lease.__struct_fields__, row, strict=True)))
        return None

    def fetch_heartbeats(self, sweep_id: str) -> list[Heartbeat]:
        """See `Store.fetch_heartbeats`."""
        gpus = "gpus" if self._database.schema_version >= GPUS_SINCE else "NULL"
        query = f"SELECT sweep_id, host, pid, at, jobs, {gpus} FROM heartbeats WHERE sweep_id = ? ORDER BY host"
        rows = self._database.fetch(query, (sweep_id,))
        return [to_heartbeat(*row) for row in rows]

    def close(self) -> None:
        """See `Store.close`."""
        self._database.close()


class _Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """The filters of `fetch_runs`: as a query, and as a check of what it gave."""

    sweep_id: str | None
    run_ids: frozenset[str] | None
    statuses: frozenset[JobStatus] | None
    id_prefix: str | None
    best_first: bool
    limit: int | None

    def query(self, direction: Direction) -> tuple[str, list[Any]]:
        conditions = ["TRUE"]
        values: list[Any] = []

        def where(condition: str, arguments: Iterable[Any]) -> None:
            conditions.append(condition)
            values.extend(arguments)

        if self.sweep_id is not None:
            where("sweep_id = ?", [self.sweep_id])
        if self.run_ids is not None:
            where(_is_in("run_id", self.run_ids), self.run_ids)
        if self.statuses is not None:
            where(_is_in("status", self.statuses), [status.value for status in self.statuses])
        if self.id_prefix is not None:
            where("substr(run_id, 1, ?) = ?", [len(self.id_prefix), self.id_prefix])
        # A sum is in no index: otherwise SQLite walks through all runs by their indices to save the sorting of a few.
        order = 'sweep_id, "index"' if self.run_ids is None else 'sweep_id, "index" + 0'
        if self.best_first:
            conditions.append("score IS NOT NULL")
            order = f'score {"DESC" if direction == "maximize" else "ASC"}, "index"'
        query = f"SELECT {RUN} FROM runs WHERE {' AND '.join(conditions)} ORDER BY {order}"
        if self.limit is not None:
            query, values = f"{query} LIMIT ?", [*values, self.limit]
        return query, values

    def ids_without(self, rows: Sequence[Row]) -> frozenset[str]:
        """The ids, of those asked for, that have no row although nothing else that is wanted can be the reason."""
        is_all = self.statuses is None and self.id_prefix is None and self.limit is None and not self.best_first
        return self.run_ids.difference(row[1] for row in rows) if is_all and self.run_ids else frozenset()

    def check(self, runs: Sequence[RunInfo], sweeps: Sequence[SweepMetadata], direction: Direction) -> None:
        """Raise a DamagedStoreError when an index led to other runs than those that were wanted, or not to all."""
        sign = -1 if direction == "maximize" else 1
        places: list[Any] = [
            (sign * (run.score or 0.0), run.index) if self.best_first else (run.sweep_id, run.index) for run in runs
        ]
        in_order = all(map(lt, places, islice(places, 1, None)))
        if not in_order or not self._fit(runs):
            raise DamagedStoreError(f"{_whose(self.sweep_id)}: an index of the table of runs leads astray; {RESCUE}")
        if self.run_ids is None and self.id_prefix is None and not self.best_first:
            counts = (sweep.counts for sweep in sweeps)
            statuses = JobStatus if self.statuses is None else self.statuses
            expected = sum(count.get(status, 0) for count in counts for status in statuses)
            _check_count(len(runs), expected if self.limit is None else min(expected, self.limit), self.sweep_id)

    def _fit(self, runs: Sequence[RunInfo]) -> bool:
        prefix = self.id_prefix or ""
        return (
            (self.sweep_id is None or all(run.sweep_id == self.sweep_id for run in runs))
            and (self.run_ids is None or all(run.run_id in self.run_ids for run in runs))
            and (self.statuses is None or all(run.status in self.statuses for run in runs))
            and (not prefix or all(run.run_id.startswith(prefix) for run in runs))
        )


def read_log(fetch: Fetch, sweep_id: str) -> Iterator[Event]:
    """The sweep's whole log, whatever the tables projected from it say; its end cannot be checked without them."""
    after = 0
    while page := _page_of_log(fetch, sweep_id, after, None):
        for row in page:
            event = to_event(*row)
            check_next(event, after)
            after = event.seq
            yield event


def check_next(event: Event, after: int) -> None:
    """Raise a DamagedStoreError when events are missing between number `after` and this event."""
    if event.seq != after + 1:
        raise _events_missing(event.sweep_id, after + 1, event.seq - 1)


def _check_end(sweep_id: str, end: int, last: int) -> None:
    if end < last:
        raise _events_missing(sweep_id, end + 1, last)
    if end > last:
        raise DamagedStoreError(
            f"sweep {sweep_id}: its log has {end} events, its row in the table of sweeps knows of {last}; {RESCUE}"
        )


def _check_count_of_events(fetch: Fetch, sweep_id: str, after: int, last: int) -> None:
    [(count,)] = fetch("SELECT count(*) FROM events WHERE sweep_id = ? AND seq > ?", (sweep_id, after))
    if count != max(last - after, 0):
        raise DamagedStoreError(
            f"sweep {sweep_id}: its log gives {count} events after {after} where there are {last - after}; {RESCUE}"
        )


def _events_missing(sweep_id: str, first: int, last: int) -> DamagedStoreError:
    which = f"event {first} is" if first == last else f"events {first} to {last} are"
    return DamagedStoreError(f"sweep {sweep_id}: {which} missing in its log; {RESCUE}")


def _check_never_created(fetch: Fetch, sweep_id: str | None, run_ids: frozenset[str]) -> None:
    mine, values = _of(sweep_id)
    query = f"SELECT run_id FROM events WHERE {mine} AND {_is_in('run_id', run_ids)} LIMIT 1"
    for (run_id,) in fetch(query, (*values, *run_ids)):
        raise run_missing(run_id)


def run_missing(run_id: str) -> DamagedStoreError:
    """The error for a run that the log knows and the table of runs does not."""
    return DamagedStoreError(
        f"run {run_id}: it is in the log, but the table of runs, or its index, does not have it; {RESCUE}"
    )


def _check_count(count: int, expected: int, sweep_id: str | None) -> None:
    if count != expected:
        raise DamagedStoreError(
            f"{_whose(sweep_id)}: the table of runs gives {count} runs where there are {expected}; {RESCUE}"
        )


def _whose(sweep_id: str | None) -> str:
    return "all sweeps" if sweep_id is None else f"sweep {sweep_id}"


def _page_of_log(fetch: Fetch, sweep_id: str, after: int, run_id: str | None) -> list[Row]:
    """With `run_id`, also those events that may be of that run and damaged: those that are of no known run."""
    mine, values = "", list[str]()
    if run_id is not None:
        known = "SELECT run_id FROM runs WHERE sweep_id = ?"
        mine, values = f"AND (run_id = ? OR run_id IS NULL OR run_id NOT IN ({known}))", [run_id, sweep_id]
    query = f"SELECT {EVENT} FROM events WHERE sweep_id = ? AND seq > ? {mine} ORDER BY seq LIMIT {PAGE}"
    return fetch(query, (sweep_id, after, *values))


def _sweeps(fetch: Fetch, sweep_id: str | None) -> list[SweepMetadata]:
    mine, values = _of(sweep_id)
    rows = fetch(f"SELECT {SWEEP} FROM sweeps WHERE {mine} ORDER BY created_at, sweep_id", values)
    return [to_sweep(*row) for row in rows]


def _of(sweep_id: str | None) -> tuple[str, tuple[str, ...]]:
    """The condition for rows of one sweep, or of all, and its values."""
    return ("TRUE", ()) if sweep_id is None else ("sweep_id = ?", (sweep_id,))


def _last_seq(fetch: Fetch, sweep_id: str) -> int:
    return sum(sweep.seq for sweep in _sweeps(fetch, sweep_id))


def _columns(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


def _is_in(column: str, values: Sized) -> str:
    # PostgreSQL takes no empty list.
    return f"{column} IN ({', '.join('?' * len(values))})" if len(values) else "FALSE"


EVENT, SWEEP, RUN = map(_columns, (EVENT_COLUMNS, SWEEP_COLUMNS, RUN_COLUMNS))
