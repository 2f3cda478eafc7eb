"""The log as a stream: each event once, whatever becomes of the store in between."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.errors import ConfigError, StoreAwayError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.observe.streams import ALL, EVENT_TYPES, Selection, follow, last, select
from metta.sweep.protocols import Store
from metta.sweep.stores import open_reader, open_store
from metta.sweep.stores.memory import MemoryStore
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP
from postgresql import PostgresqlServer
from waiting import wait_until

END = new_event(
    ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done"), sweep_id=SWEEP, at=START + 9_999, actor="test"
)


def filled(events: Iterable[Event]) -> MemoryStore:
    store = MemoryStore()
    store.append(list(events))
    return store


@given(st.integers(0, 99), st.sampled_from([(), ("run_created",), ("job_*", "run_*")]), st.booleans(), st.data())
@settings(deadline=None, max_examples=50)
def test_what_is_selected_is_what_fits(seed: int, types: tuple[str, ...], of_one: bool, data: st.DataObject) -> None:
    store = filled(random_history(seed))
    events = list(store.read(SWEEP))
    run_id = next((event.run_id for event in events if event.run_id), None) if of_one else None
    after, until = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 70))
    selection = Selection.of(types, run_id)
    expected = [
        event
        for event in events
        if after < event.seq <= until
        and (run_id is None or event.run_id == run_id)
        and (not types or any(event.type.startswith(wanted.rstrip("*")) for wanted in types))
    ]
    assert list(select(store, SWEEP, selection, after=after, until=until)) == expected
    count = data.draw(st.integers(0, 9))
    shown = list(last(store, SWEEP, selection, count, after=after, until=min(until, 60)))
    assert shown == (expected[-count:] if count else [])


def test_types_that_there_are_not_are_refused_with_the_nearest() -> None:
    assert "run_completed" in EVENT_TYPES
    with pytest.raises(ConfigError, match="did you mean 'run_completed'"):
        Selection.of(["run_complete"])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        store.append([sweep_created(), *run_events(0)])
        yield store


class _Flaky:
    """A store that is away every other time that it is asked."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._calls = 0
        self.reads: list[tuple[int, str | None]] = []

    def __getattr__(self, name: str) -> object:
        self._calls += 1
        if self._calls % 2:
            raise StoreAwayError("not now")
        return getattr(self._store, name)

    def read(self, sweep_id: str, after: int = 0, *, run_id: str | None = None) -> Iterator[Event]:
        self.reads.append((after, run_id))
        for number, event in enumerate(self._store.read(sweep_id, after, run_id=run_id)):
            if number == 2:
                raise StoreAwayError("lost in the middle")
            yield event


def test_what_is_followed_comes_once_through_absences_of_the_store(store: Store) -> None:
    flaky = _Flaky(store)
    store.append([*run_events(1), END])
    said: list[str] = []
    followed = list(
        follow(
            flaky,  # type: ignore[arg-type]
            SWEEP,
            after=3,
            on_away=lambda error: said.append(str(error)),
            on_back=lambda: said.append("back"),
        )
    )
    assert [event.seq for event in followed] == list(range(4, 17))
    assert said
    # Nothing that was seen is read again.
    assert [after for after, _ in flaky.reads] == sorted(after for after, _ in flaky.reads)
    assert all(after >= 3 for after, _ in flaky.reads)


def test_what_comes_is_followed_to_the_end_of_the_sweep(store: Store, tmp_path: Path) -> None:
    """Also what is written about other runs is passed over only once."""
    followed: list[Event] = []
    begun = threading.Event()

    def watch() -> None:
        with closing(open_reader(str(tmp_path / "sweeps.db"))) as reader:
            begun.set()
            followed.extend(follow(reader, SWEEP, Selection.of(["run_*", "sweep_*"]), after=8))

    watching = threading.Thread(target=watch)
    watching.start()
    begun.wait()
    for event in run_events(1):
        store.append([event])
    store.append([END])
    watching.join(timeout=60)
    assert not watching.is_alive()
    assert [event.type for event in followed] == ["run_created", "run_completed", "sweep_ended"]


def test_a_sweep_that_has_ended_has_nothing_to_wait_for(store: Store) -> None:
    store.append([END])
    assert list(follow(store, SWEEP, ALL, after=9)) == []


def test_following_goes_on_when_a_server_is_back(postgresql_server: PostgresqlServer, postgresql_url: str) -> None:
    with closing(open_store(postgresql_url, create=True)) as store:
        store.append([sweep_created(), *run_events(0)])
    followed: list[int] = []
    away, back = threading.Event(), threading.Event()

    def watch() -> None:
        with closing(open_reader(postgresql_url)) as reader:
            for event in follow(reader, SWEEP, after=0, on_away=lambda _: away.set(), on_back=back.set):
                followed.append(event.seq)  # noqa: PERF401 (it is looked at meanwhile)

    watching = threading.Thread(target=watch)
    watching.start()
    wait_until(lambda: len(followed) == 8, what="the past")
    try:
        postgresql_server.stop()
        assert away.wait(60)
    finally:
        postgresql_server.start()
    assert back.wait(60)
    with closing(open_store(postgresql_url)) as store:
        store.append([*run_events(1), END])
    watching.join(timeout=60)
    assert followed == list(range(1, 17))
