"""A new store from what can be read of a damaged one.

Where the log of a sweep is whole, it is copied as it is. Where events are missing, what is left is folded event by
event: what no longer fits is left out, and what is missing is made good from the projections, by events that say so.
The new log is therefore a log like any other, and its projections are written by the store as always.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from metta.sweep.errors import InvalidTransition, StoreError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.run import RunInfo
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.model.sweep import AMENDABLE, LIMITS, SweepConfig, SweepMetadata, SweepStatus
from metta.sweep.stores import open_store
from metta.sweep.stores.backup import new_store_file
from metta.sweep.stores.salvage import Progress, Salvaged, progress_of, salvage

#: Who says what the recovery adds to a log.
ACTOR = "recovery"
#: Why a run of which nothing is left has failed.
LOST = "lost with a damaged page of the store"
#: Events written in one commit.
_BATCH = 1_000


class RecoveredSweep(msgspec.Struct, frozen=True, kw_only=True):
    """What came back of a sweep. Runs are named by their ids."""

    sweep_id: str
    name: str
    #: Events that the log had, as far as one can tell, and those of them that could be read.
    events_expected: int
    events_read: int
    #: Events of the new log: those that fit, and those that make good what is missing.
    events_written: int
    #: Runs of which nothing is missing.
    complete: tuple[str, ...]
    #: Runs that are as they were, though parts of their history are missing.
    rebuilt: tuple[str, ...]
    #: Runs that are as far as what is left of their history goes.
    partial: tuple[str, ...]
    #: Runs of which nothing is left but the id; they count as failed.
    lost: tuple[str, ...]
    #: Events that were read but do not fit without others that are missing, each with the reason.
    left_out: tuple[str, ...]

    @property
    def is_whole(self) -> bool:
        """Whether the new log is the old one, event by event."""
        return self.events_read == self.events_expected == self.events_written and not self.left_out


class RecoveryReport(msgspec.Struct, frozen=True, kw_only=True):
    """What came back of a store."""

    source: str
    target: str
    sweeps: tuple[RecoveredSweep, ...]
    #: Sweeps that left traces but no configuration, each with what was read of them.
    lost_sweeps: tuple[str, ...]
    #: Whether each row was checked by its hash; a store of schema 1 has none, so that its values may be wrong.
    is_verified: bool


def recover(
    damaged: Path, target: Path, *, on_progress: Progress | None = None, now: float | None = None
) -> RecoveryReport:
    """Write what can be read of the store in `damaged`, and of the write-ahead log beside it, to a new one in `target`.

    `damaged` is only read; nobody should be writing to it.

    Args:
        damaged: The file of an SQLite store.
        target: Where the new store is to be; nothing may be there yet.
        on_progress: Told what is being done, how much of it is done, and how much there is.
        now: The time of the events that the recovery adds; that of the clock unless given.

    Raises:
        StoreError: `target` exists, or nothing can be read of `damaged`.
        StoreAwayError: `target` cannot be written just now.
    """
    at = time.time() if now is None else now
    with new_store_file(target) as path:
        salvaged = salvage(damaged, on_progress)
        rebuilt = {sweep_id: _Rebuilding(salvaged, sweep_id, at) for sweep_id in salvaged.sweep_ids}
        recovered = [log for log in rebuilt.values() if log.is_possible]
        if not recovered:
            raise StoreError(
                f"store {damaged}: no configuration of a sweep is left in it ({_remains(salvaged)}); restore a backup"
            )
        with closing(open_store(str(path), create=True)) as store:
            for log in recovered:
                for start in range(0, len(log.events), _BATCH):
                    store.append(log.events[start : start + _BATCH])
                    if on_progress is not None:
                        on_progress("writing", min(start + _BATCH, len(log.events)), len(log.events))
    return RecoveryReport(
        source=str(damaged),
        target=str(target),
        sweeps=tuple(log.report() for log in recovered),
        lost_sweeps=tuple(_remain(salvaged, sweep_id) for sweep_id, log in rebuilt.items() if not log.is_possible),
        is_verified=salvaged.is_verified,
    )


def _remains(salvaged: Salvaged) -> str:
    return "; ".join(_remain(salvaged, sweep_id) for sweep_id in salvaged.sweep_ids)


def _remain(salvaged: Salvaged, sweep_id: str) -> str:
    events, runs = salvaged.events.get(sweep_id, {}), salvaged.runs.get(sweep_id, {})
    return f"sweep {sweep_id}: {len(events)} events and the rows of {len(runs)} runs were read"


class _Rebuilding:
    """The new log of one sweep, while it is put together."""

    def __init__(self, salvaged: Salvaged, sweep_id: str, at: float) -> None:
        self._sweep_id = sweep_id
        self._at = at
        by_seq = salvaged.events.get(sweep_id, {})
        self._read = [by_seq[seq] for seq in sorted(by_seq)]
        self._metadata = salvaged.sweeps.get(sweep_id)
        self._rows = salvaged.runs.get(sweep_id, {})
        self._expected = max([*by_seq, self._metadata.seq if self._metadata else 0])
        self._holes = [seq for seq in range(1, self._expected + 1) if seq not in by_seq]
        self._own: dict[str, list[Event]] = {}
        for event in self._read:
            if event.run_id is not None:
                self._own.setdefault(event.run_id, []).append(event)
        self._run_ids = self._known_run_ids()
        self._indices = {run_id: index for index, run_id in enumerate(self._run_ids)}
        self._state = EMPTY
        self._repaired: set[str] = set()
        self._lost: set[str] = set()
        self._left_out: list[str] = []
        self.events: list[Event] = []
        #: Without its configuration nothing can be made of a sweep.
        self.is_possible = self._metadata is not None or 1 in by_seq
        if self.is_possible:
            self._rebuild()

    def _known_run_ids(self) -> list[str]:
        """By index, those included of which nothing is left: indices have no gaps, and ids follow from them."""
        known = {run.index: run.run_id for run in self._rows.values()}
        known |= {
            event.body.index: event.run_id
            for event in self._read
            if isinstance(event.body, ev.RunCreated) and event.run_id is not None
        }
        count = max([self._metadata.run_count if self._metadata else 0, *(index + 1 for index in known)])
        return [known.get(index) or ids.run_id(self._sweep_id, index) for index in range(count)]

    def report(self) -> RecoveredSweep:
        """What became of it."""
        complete = {run_id for run_id in self._own if self._is_complete(run_id)}
        as_they_were = {run_id for run_id, row in self._rows.items() if self._state.runs.get(run_id) == row}
        return RecoveredSweep(
            sweep_id=self._sweep_id,
            name=self._state.sweep.config.name,
            events_expected=self._expected,
            events_read=len(self._read),
            events_written=len(self.events),
            complete=self._in_order(complete),
            rebuilt=self._in_order(as_they_were - complete),
            partial=self._in_order({*self._run_ids} - complete - as_they_were - self._lost),
            lost=self._in_order(self._lost),
            left_out=tuple(self._left_out),
        )

    def _in_order(self, run_ids: set[str]) -> tuple[str, ...]:
        return tuple(run_id for run_id in self._run_ids if run_id in run_ids)

    def _is_complete(self, run_id: str) -> bool:
        """Whether the run is as it was, and all of its history is there."""
        run = self._state.runs.get(run_id)
        if run is None or run_id in self._repaired | self._lost:
            return False
        # Its row tells that nothing followed, or the sweep's row how far the log went; even after an end something may.
        if self._rows.get(run_id) == run:
            return self._has_all_events(run_id, self._own[run_id][-1].seq)
        return self._metadata is not None and self._has_all_events(run_id, self._expected)

    def _has_all_events(self, run_id: str, last: int) -> bool:
        """Whether none of the run's events from its creation to this number can be missing."""
        created = self._own[run_id][0]
        return isinstance(created.body, ev.RunCreated) and not self._has_holes(created.seq, last)

    def _has_holes(self, first: int, last: int) -> bool:
        return bisect_right(self._holes, last) > bisect_left(self._holes, first)

    def _rebuild(self) -> None:
        if self._metadata is not None and self._has_holes(1, 1):
            self._add(ev.SweepCreated(config=self._metadata.config), at=self._metadata.created_at)
        for position, event in enumerate(self._read):
            self._create_runs(self._end_of_runs_before(position, event))
            self._keep(event)
            if event.run_id is not None and event is self._own[event.run_id][-1]:
                self._mend(event.run_id)
        self._create_runs(len(self._run_ids))
        if self._metadata is not None and self._holes and self._metadata.seq == self._expected:
            self._close(self._metadata)

    # ------------------------------------------------------------------------------------------------------ events

    def _keep(self, event: Event) -> None:
        refusal = self._refusal(event)
        if refusal is None:
            return
        # What happens to a run after the end tells that the sweep was resumed in between: that event is missing.
        has_ended = self._state.metadata is not None and self._state.sweep.status.ended
        resumed = self._new(ev.SweepResumed(), at=event.at)
        if event.run_id is not None and has_ended and self._refusal(resumed, event) is None:
            return
        self._left_out.append(f"event {event.seq} of {event.actor}: {refusal}")

    def _refusal(self, *events: Event) -> str | None:
        """Take the events into the new log, all or none; why they do not fit."""
        numbered = [replace(event, seq=seq) for seq, event in enumerate(events, self._state.seq + 1)]
        try:
            self._state = fold(self._state, numbered)
        except InvalidTransition as error:
            return str(error)
        self.events += numbered
        return None

    def _add(self, body: Body, run_id: str | None = None, at: float | None = None) -> None:
        self._keep(self._new(body, run_id, at))

    def _new(self, body: Body, run_id: str | None = None, at: float | None = None) -> Event:
        return new_event(body, sweep_id=self._sweep_id, at=self._at if at is None else at, actor=ACTOR, run_id=run_id)

    # -------------------------------------------------------------------------------------------------------- runs

    def _end_of_runs_before(self, position: int, event: Event) -> int:
        """How many runs there were when this happened, as far as it says."""
        if isinstance(event.body, ev.RunCreated):
            return event.body.index
        if event.run_id is not None:
            return self._indices.get(event.run_id, -1) + 1
        if isinstance(event.body, ev.SweepEnded):
            later = (other.body for other in islice(self._read, position + 1, None))
            return next((body.index for body in later if isinstance(body, ev.RunCreated)), len(self._run_ids))
        return 0

    def _create_runs(self, end: int) -> None:
        """Make good the creation of the runs below this index."""
        for index in range(len(self._state.runs), end):
            run_id = self._run_ids[index]
            row = self._rows.get(run_id)
            if row is None:
                # Its configuration is unknown, so nothing can be learned from it; but its index was given away.
                self._add(ev.RunCreated(index=index, config={}, reasons=(LOST,)), run_id)
                self._add(ev.RunFailed(reason=LOST), run_id)
                self._lost.add(run_id)
            else:
                self._add(ev.RunCreated(index=index, config=row.config, reasons=(LOST,)), run_id, row.created_at)
                if run_id not in self._own:
                    self._mend(run_id)

    def _mend(self, run_id: str) -> None:
        """Bring a run whose history has holes to where its row says that it was."""
        run, row = self._state.runs.get(run_id), self._rows.get(run_id)
        if run is None or row is None or run == row or progress_of(row) < progress_of(run):
            return
        if self._is_known(run_id) and progress_of(row) == progress_of(run):
            return  # an older version of the row
        self._add(_repair(run, row), run_id)
        self._repaired.add(run_id)

    def _is_known(self, run_id: str) -> bool:
        """Whether all that happened to a run is there, and by which metric it was judged."""
        # Without the sweep's row one cannot know that the log went no further.
        if self._metadata is None or run_id not in self._own or not self._has_all_events(run_id, self._expected):
            return False
        # Another metric than in the end may be that of the time, or what an amendment that is missing has changed.
        return self._state.sweep.config.metric == self._metadata.config.metric

    # ------------------------------------------------------------------------------------------------------- sweep

    def _close(self, before: SweepMetadata) -> None:
        """Bring the sweep to where its row, which is as late as the log, says that it was."""
        if changes := _changes(self._state.sweep.config, before.config, AMENDABLE):
            self._add(ev.SweepAmended(changes=changes, best_run_id=before.best_run_id, best_score=before.best_score))
        limits = _changes(self._state.sweep.config, before.config, LIMITS)
        status = self._state.sweep.status
        if limits or status not in {before.status, SweepStatus.RUNNING}:
            self._add(ev.SweepResumed(changes=limits))
        if self._state.sweep.status is before.status:
            return
        reason = before.reason or LOST
        if before.status is SweepStatus.PAUSED:
            self._add(ev.SweepPaused(reason=reason))
        elif before.status is SweepStatus.STOPPING:
            self._add(ev.SweepStopRequested(reason=reason))
        elif not self._state.unfinished:
            self._add(ev.SweepEnded(status=before.status, reason=reason), at=before.ended_at)


def _repair(run: RunInfo, row: RunInfo) -> ev.StateRepaired:
    differing = [name for name in RunInfo.__struct_fields__ if getattr(run, name) != getattr(row, name)]
    before, after = (
        {name: msgspec.to_builtins(getattr(version, name)) for name in differing} for version in (run, row)
    )
    return ev.StateRepaired(
        problem="events of it were lost with damaged pages of the store", before=before, after=after
    )


def _changes(before: SweepConfig, after: SweepConfig, names: Sequence[str]) -> dict[str, Any]:
    differing = [name for name in names if getattr(before, name) != getattr(after, name)]
    return {name: msgspec.to_builtins(getattr(after, name)) for name in differing}
