"""A store that is forgotten with its process: for simulations, and for looking at what would become of a copy."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from metta.sweep.errors import FencedError, LeaseHeldError, NameTakenError
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Heartbeat, Lease
from metta.sweep.stores.numbering import numbered


class MemoryStore:
    """See `protocols.Store`; nothing in it survives a crash, and other processes do not find it by its URL.

    It keeps each sweep's whole state, so its projections are the fold of the log and cannot differ from it.
    """

    url = "memory://"

    def __init__(self) -> None:
        self._logs: dict[str, list[Event]] = {}
        self._states: dict[str, SweepState] = {}
        #: By the ids under which events were handed in.
        self._seqs: dict[str, int] = {}
        self._leases: dict[str, Lease] = {}
        self._beats: dict[tuple[str, str], Heartbeat] = {}
        self._changed = threading.Condition(threading.RLock())

    # ------------------------------------------------------------------------------------------------- writing

    def append(
        self, events: Sequence[Event], *, fence: int | None = None, expected_seq: int | None = None
    ) -> list[Event]:
        """See `Store.append`."""
        if not events:
            return []
        sweep_id = events[0].sweep_id
        if any(event.sweep_id != sweep_id for event in events):
            raise ValueError("append takes events of one sweep at a time")
        with self._changed:
            if fence is not None and (current := self._fence(sweep_id)) != fence:
                raise FencedError(f"sweep {sweep_id}: another controller took over (lease {current}, ours was {fence})")
            before = self.state(sweep_id)
            if new := numbered(events, self._seqs, before.seq, expected_seq):
                written = [self._as_written(event, number) for number, event in enumerate(new, len(self._seqs))]
                after = fold(before, written)
                self._check_name(after.sweep)
                self._states[sweep_id] = after
                self._logs.setdefault(sweep_id, []).extend(written)
                self._seqs |= {event.id: event.seq for event in new}
                self._changed.notify_all()
            log = self._logs[sweep_id]
            return [log[self._seqs[event.id] - 1] for event in events]

    def _as_written(self, event: Event, _number: int) -> Event:
        """What the log says of an event that is the `number`-th in the whole store, from 0."""
        return event

    def _check_name(self, sweep: SweepMetadata) -> None:
        for other in self._states.values():
            if other.sweep.config.name == sweep.config.name and other.sweep.sweep_id != sweep.sweep_id:
                raise NameTakenError(
                    f"name: sweep {other.sweep.sweep_id} is named {sweep.config.name!r}; choose another name"
                )

    def rebuild(self, sweep_id: str) -> None:
        """See `Store.rebuild`."""
        with self._changed:
            if sweep_id in self._logs:
                self._states[sweep_id] = fold(EMPTY, self._logs[sweep_id])

    # ------------------------------------------------------------------------------------------------- reading

    def state(self, sweep_id: str) -> SweepState:
        """The fold of the sweep's log so far; the empty one where there is no such sweep."""
        return self._states.get(sweep_id, EMPTY)

    def read(self, sweep_id: str, after: int = 0, *, run_id: str | None = None) -> Iterable[Event]:
        """See `Reader.read`."""
        with self._changed:
            events = self._logs.get(sweep_id, [])[after:]
        return events if run_id is None else [event for event in events if event.run_id == run_id]

    def wait_for_change(self, sweep_id: str, after: int, timeout_s: float) -> bool:
        """See `Reader.wait_for_change`."""
        with self._changed:
            return self._changed.wait_for(lambda: self.state(sweep_id).seq > after, timeout_s)

    def fetch_sweeps(self, sweep_id: str | None = None) -> list[SweepMetadata]:
        """See `Reader.fetch_sweeps`."""
        with self._changed:
            sweeps = [state.sweep for state in self._states.values() if sweep_id in {None, state.sweep.sweep_id}]
        return sorted(sweeps, key=lambda sweep: (sweep.created_at, sweep.sweep_id))

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
        """See `Reader.fetch_runs`."""
        wanted_ids = None if run_ids is None else set(run_ids)
        wanted_statuses = None if statuses is None else set(statuses)
        found: list[RunInfo] = []
        for sweep in self.fetch_sweeps(sweep_id):
            runs = [
                run
                for run in self.state(sweep.sweep_id).runs.values()
                if (wanted_ids is None or run.run_id in wanted_ids)
                and (wanted_statuses is None or run.status in wanted_statuses)
                and (id_prefix is None or run.run_id.startswith(id_prefix))
                and not (best_first and run.score is None)
            ]
            sign = -1.0 if sweep.config.direction == "maximize" else 1.0
            found += sorted(runs, key=lambda run: (sign * (run.score or 0.0) if best_first else 0.0, run.index))
        return found[:limit]

    def projection_differences(self, sweep_id: str) -> list[str]:
        """See `Reader.projection_differences`: none, for there is nothing beside the log."""
        return []

    # --------------------------------------------------------------------------------------- leases, heartbeats

    def acquire_lease(
        self, sweep_id: str, holder: str, now: float, ttl_s: float, *, steal: Lease | None = None
    ) -> Lease:
        """See `Store.acquire_lease`."""
        with self._changed:
            current = self._leases.get(sweep_id)
            is_stolen = current is not None and steal is not None and current.fence == steal.fence
            if (
                current is not None
                and current.holder not in {"", holder}
                and current.expires_at > now
                and not is_stolen
            ):
                raise LeaseHeldError(
                    f"sweep {sweep_id}: controller {current.holder} is at work on it; stop that one first"
                )
            fence = 1 if current is None else current.fence + (current.holder != holder)
            lease = Lease(sweep_id=sweep_id, holder=holder, fence=fence, expires_at=now + ttl_s)
            self._leases[sweep_id] = lease
            return lease

    def release_lease(self, lease: Lease) -> None:
        """See `Store.release_lease`."""
        with self._changed:
            if self._fence(lease.sweep_id) == lease.fence:
                # It stays without a holder: its fence must never go back.
                self._leases[lease.sweep_id] = replace(lease, holder="", expires_at=0.0)

    def fetch_lease(self, sweep_id: str) -> Lease | None:
        """See `Reader.fetch_lease`."""
        lease = self._leases.get(sweep_id)
        return lease if lease is not None and lease.holder else None

    def _fence(self, sweep_id: str) -> int | None:
        lease = self._leases.get(sweep_id)
        return None if lease is None else lease.fence

    def beat(self, heartbeat: Heartbeat) -> None:
        """See `Store.beat`."""
        with self._changed:
            self._beats[heartbeat.sweep_id, heartbeat.host] = heartbeat

    def fetch_heartbeats(self, sweep_id: str) -> list[Heartbeat]:
        """See `Reader.fetch_heartbeats`."""
        with self._changed:
            return [beat for (of, _), beat in sorted(self._beats.items()) if of == sweep_id]

    def close(self) -> None:
        """See `Reader.close`: there are no connections."""
