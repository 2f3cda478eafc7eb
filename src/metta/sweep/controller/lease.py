"""One controller at a time: the holder's name, and how to tell that it is dead."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from metta.sweep.errors import LeaseHeldError, StoreAwayError
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.protocols import Clock, Lease, Reader, Store

#: A holder that is silent for so long has lost the lease. Renewed at a third of it, it outlasts two missed renewals; a
#: standby on another machine takes over so long after the holder's death.
LEASE_TTL_S = 12.0
RENEW_AFTER_S = LEASE_TTL_S / 3
#: A standby looks this often whether the holder is gone.
_LOOK_EVERY_S = 0.5
#: Start times are read off the wall clock, so the same process's moves when that is set; no id is used again so soon.
_SAME_START_S = 5.0


def _this_machine() -> str:
    """The host, told apart from containers of the same name, whose process ids mean something else."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()}/{namespace.stat().st_ino if namespace.exists() else 0}"


def this_holder() -> str:
    """This process, by machine, process id and start time (ids are used again)."""
    import psutil

    return f"{_this_machine()}:{os.getpid()}:{psutil.Process().create_time():.2f}"


def holder_text(holder: str) -> str:
    """A holder, for people: its host and process."""
    machine, pid, _ = holder.rsplit(":", 2)
    return f"{machine.partition('/')[0]}, pid {pid},"


def is_dead(holder: str) -> bool:
    """Whether a holder is certainly gone: it ran on this machine, and its process does not exist any more."""
    import psutil  # a command that only looks at a finished sweep does not need it

    machine, pid, started = holder.rsplit(":", 2)
    if machine != _this_machine():
        return False
    try:
        process = psutil.Process(int(pid))
        # A zombie is dead, and stays in the list until its parent asks how it ended, which some never do.
        return process.status() == psutil.STATUS_ZOMBIE or (abs(process.create_time() - float(started)) > _SAME_START_S)
    except psutil.NoSuchProcess:
        return True


def acquire(store: Store, sweep_id: str, now: float, ttl_s: float = LEASE_TTL_S) -> Lease:
    """Take the sweep's lease; at once from a holder that died on this machine, else after it expired.

    Raises:
        LeaseHeldError: another controller is at work.
    """
    holder = this_holder()
    try:
        return store.acquire_lease(sweep_id, holder, now, ttl_s)
    except LeaseHeldError:
        current = store.fetch_lease(sweep_id)
        if current is None or not is_dead(current.holder):
            raise
        # Of two that find the holder dead, one gets its lease: for the other it is no longer the current one.
        return store.acquire_lease(sweep_id, holder, now, ttl_s, steal=current)


def stand_by(store: Store, sweep_id: str, clock: Clock) -> Lease | None:
    """Wait until no controller is at work on the sweep and take its lease; None when there is nothing left to do.

    A holder on another machine counts as gone when its lease stays as it is for its whole time to live, by this
    machine's steady clock: the clocks of the two need not agree.
    """
    watched: Lease | None = None
    since = clock.monotonic()
    while True:
        with suppress(StoreAwayError):
            [sweep] = store.fetch_sweeps(sweep_id)
            if sweep.status.ended or sweep.status is SweepStatus.PAUSED:
                return None
            current = store.fetch_lease(sweep_id)
            if current != watched:
                watched, since = current, clock.monotonic()
            is_silent = clock.monotonic() - since > LEASE_TTL_S
            with suppress(LeaseHeldError):
                if is_silent and current is not None:
                    return store.acquire_lease(sweep_id, this_holder(), clock.now(), LEASE_TTL_S, steal=current)
                return acquire(store, sweep_id, clock.now())
        threading.Event().wait(_LOOK_EVERY_S)


def is_controlled(store: Reader, sweep_id: str, now: float) -> bool:
    """Whether a controller is at work on the sweep, as far as can be told from here."""
    lease = store.fetch_lease(sweep_id)
    return lease is not None and lease.expires_at > now and not is_dead(lease.holder)
