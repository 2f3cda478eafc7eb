"""A sweep seen from outside of its controller."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from metta.sweep.errors import StoreAwayError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.observe.watching import Sight, watch
from metta.sweep.protocols import Heartbeat, Store
from metta.sweep.stores import open_reader, open_store
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

END = new_event(ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done"), sweep_id=SWEEP, at=START, actor="test")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        store.append([sweep_created(), *run_events(0)])
        yield store


def test_it_is_seen_with_all_that_happens_until_it_has_ended(store: Store) -> None:
    with closing(open_reader(store.url)) as reader:
        sights = watch(reader, SWEEP)
        first = next(sights)
        assert (first.state, list(first.events)) == (fold(EMPTY, store.read(SWEEP)), list(store.read(SWEEP)))
        assert not first.signs.is_controlled
        store.append(run_events(1)[:3])
        beat = Heartbeat(sweep_id=SWEEP, host="node", pid=1, at=START, jobs=1)
        store.beat(beat)
        store.acquire_lease(SWEEP, "elsewhere/1:1:1", 1e12, 60.0)
        second = next(sights)
        assert [event.seq for event in second.events] == [9, 10, 11]
        assert (second.signs.heartbeats, second.signs.is_controlled) == ([beat], True)
        store.append([*run_events(1)[3:], END])
        [last] = sights
        assert last.state == fold(EMPTY, store.read(SWEEP))


def test_it_is_looked_at_once_a_second_when_nothing_happens(store: Store) -> None:
    with closing(open_reader(store.url)) as reader:
        sights = watch(reader, SWEEP)
        assert [len(next(sights).events) for _ in range(3)] == [8, 0, 0]


class _Leaving:
    """A store that can be away."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.is_away = threading.Event()

    def __getattr__(self, name: str) -> object:
        if self.is_away.is_set():
            raise StoreAwayError("unplugged")
        return getattr(self._store, name)


def test_an_absence_of_the_store_is_told_and_outlasted(store: Store) -> None:
    leaving = _Leaving(store)
    sights: Iterator[Sight] = watch(leaving, SWEEP)  # type: ignore[arg-type]
    assert next(sights).away is None
    leaving.is_away.set()
    away = next(sights)
    assert (str(away.away), away.state.seq, list(away.events)) == ("unplugged", 8, [])
    store.append([END])
    leaving.is_away.clear()
    seen: list[Event] = [event for sight in sights for event in sight.events]
    assert [event.body for event in seen] == [END.body]
