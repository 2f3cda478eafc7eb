"""One controller at a time, with real processes that hold the lease, die, or live elsewhere."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import psutil
import pytest

from metta.sweep.controller import lease
from metta.sweep.controller.lease import LEASE_TTL_S, is_controlled, is_dead, stand_by, this_holder
from metta.sweep.errors import FencedError, LeaseHeldError
from metta.sweep.model import events as ev
from metta.sweep.model.events import new_event
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.protocols import Lease, Store
from metta.sweep.stores import open_store
from metta.sweep.testing import ManualClock, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

HOLDER = Path(__file__).with_name("lease_holder.py")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        store.append([sweep_created()])
        yield store


@contextmanager
def another_process(store: Store) -> Iterator[subprocess.Popen[str]]:
    """A process that tries to take the lease, and keeps it until it is killed."""
    command = [sys.executable, str(HOLDER), store.url, SWEEP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(process: subprocess.Popen[str]) -> str:
    """The name under which the process got the lease, or `held`."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_the_lease_of_a_process_that_was_killed_is_taken_over_at_once(store: Store) -> None:
    with another_process(store) as process:
        holder = answer(process)
        process.kill()
        process.wait()
    dead = store.fetch_lease(SWEEP)
    assert dead is not None
    assert dead.holder == holder
    now = time.time()
    assert dead.expires_at > now
    assert not is_controlled(store, SWEEP, now)

    taken = lease.acquire(store, SWEEP, now)
    assert (taken.holder, taken.fence, taken.expires_at) == (this_holder(), dead.fence + 1, now + LEASE_TTL_S)
    assert is_controlled(store, SWEEP, now)
    with pytest.raises(FencedError):
        store.append(run_events(0), fence=dead.fence)


def test_a_zombie_is_dead(store: Store) -> None:
    with another_process(store) as process:
        holder = answer(process)
        process.kill()
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
            pass
        assert is_dead(holder)
        assert lease.acquire(store, SWEEP, time.time()).fence == 2


def test_the_lease_of_a_living_process_is_respected(store: Store) -> None:
    with another_process(store) as process:
        holder = answer(process)
        now = time.time()
        assert is_controlled(store, SWEEP, now)
        with pytest.raises(LeaseHeldError, match=holder):
            lease.acquire(store, SWEEP, now)
        current = store.fetch_lease(SWEEP)
        assert current is not None
        assert current.holder == holder


def test_the_lease_of_a_living_process_that_let_it_expire_is_taken_over(store: Store) -> None:
    with another_process(store) as process:
        holder = answer(process)
        later = time.time() + LEASE_TTL_S + 1
        assert not is_dead(holder)
        assert not is_controlled(store, SWEEP, later)
        assert lease.acquire(store, SWEEP, later).fence == 2


def test_the_lease_of_another_machine_is_respected_until_it_expires(store: Store) -> None:
    elsewhere = "elsewhere/4026531836:1:1700000000.00"
    store.acquire_lease(SWEEP, elsewhere, now=100.0, ttl_s=LEASE_TTL_S)
    assert not is_dead(elsewhere)
    before = 100.0 + LEASE_TTL_S - 0.1
    assert is_controlled(store, SWEEP, before)
    with pytest.raises(LeaseHeldError, match="elsewhere"):
        lease.acquire(store, SWEEP, before)
    after = 100.0 + LEASE_TTL_S
    assert not is_controlled(store, SWEEP, after)
    assert lease.acquire(store, SWEEP, after).fence == 2


def test_of_many_that_find_the_holder_dead_one_gets_the_lease(store: Store) -> None:
    with another_process(store) as process:
        assert answer(process) != "held"
        process.kill()
        process.wait()
    with ExitStack() as stack:
        processes = [stack.enter_context(another_process(store)) for _ in range(3)]
        names = [answer(process) for process in processes]
        assert names.count("held") == 2
        current = store.fetch_lease(SWEEP)
        assert current is not None
        assert (current.holder in names, current.fence) == (True, 2)


def test_a_process_id_that_is_in_use_again_belongs_to_somebody_else() -> None:
    machine, pid, started = this_holder().rsplit(":", 2)
    assert not is_dead(f"{machine}:{pid}:{started}")
    assert is_dead(f"{machine}:{pid}:{float(started) - 60:.2f}")


def test_the_same_name_in_another_container_is_another_machine() -> None:
    machine, pid, started = this_holder().rsplit(":", 2)
    host, _, namespace = machine.rpartition("/")
    assert not is_dead(f"{host}/{int(namespace) + 1}:{pid}:{float(started) - 60:.2f}")


def test_a_holder_has_one_name_and_renews_under_it(store: Store) -> None:
    assert this_holder() == this_holder()
    first = lease.acquire(store, SWEEP, 100.0)
    assert lease.acquire(store, SWEEP, 110.0).fence == first.fence


def test_a_sweep_that_was_never_taken_or_was_given_up_is_not_controlled(store: Store) -> None:
    assert not is_controlled(store, SWEEP, 100.0)
    taken = lease.acquire(store, SWEEP, 100.0)
    assert is_controlled(store, SWEEP, 100.0)
    store.release_lease(taken)
    assert not is_controlled(store, SWEEP, 100.0)


class HurriedClock(ManualClock):
    """Steady time flies: whoever looks at it finds that seconds have passed. `on_look` happens meanwhile."""

    def __init__(self, on_look: Callable[[int], None]) -> None:
        super().__init__()
        self.looks = 0
        self._on_look = on_look

    def monotonic(self) -> float:
        self.looks += 1
        self._on_look(self.looks)
        self.advance(LEASE_TTL_S / 4)
        return super().monotonic()


@pytest.mark.parametrize("expires_in_s", [-1e6, 1e6], ids=["their clock is behind", "their clock is ahead"])
def test_a_standby_waits_as_long_as_a_holder_elsewhere_renews_whatever_the_clocks_say(
    store: Store, expires_in_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(lease, "acquire", refuse)  # an expired lease would be taken at once; here only silence counts
    elsewhere = "elsewhere/1:42:1.00"

    def renew(look: int) -> None:
        if look <= 20:
            store.acquire_lease(SWEEP, elsewhere, START + look, expires_in_s)

    clock = HurriedClock(renew)
    taken = stand_by(store, SWEEP, clock)
    assert taken is not None
    assert taken.holder == this_holder()
    assert clock.looks > 20
    with pytest.raises(FencedError):
        store.append(run_events(0)[:1], fence=taken.fence - 1)


def refuse(*_: object) -> Lease:
    raise LeaseHeldError("held")


@pytest.mark.parametrize("status", [SweepStatus.COMPLETED, SweepStatus.PAUSED])
def test_a_standby_has_nothing_to_do_when_the_sweep_is_over_or_paused(store: Store, status: SweepStatus) -> None:
    over = ev.SweepEnded(status=status, reason="done") if status.ended else ev.SweepPaused(reason="so")
    store.append([new_event(over, sweep_id=SWEEP, at=START, actor="test")])
    assert stand_by(store, SWEEP, ManualClock()) is None


def test_a_standby_takes_a_free_lease_at_once(store: Store) -> None:
    taken = stand_by(store, SWEEP, ManualClock())
    assert taken is not None
    assert taken.holder == this_holder()
