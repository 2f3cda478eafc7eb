"""The log as a stream: a part of it, or what is new from now on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from typing import NamedTuple

import msgspec

from metta.sweep.errors import ConfigError, StoreAwayError, did_you_mean
from metta.sweep.model.events import Body, Event, SweepEnded, SweepResumed
from metta.sweep.protocols import Reader

#: The types of events, by the names under which the log has them.
EVENT_TYPES: tuple[str, ...] = tuple(str(body.__struct_config__.tag) for body in Body.__args__)
#: What is new is waited for so long at a time.
_LOOK_EVERY_S = 1.0
#: Between two attempts at a store that is away: from the first to the last, doubling.
_SHORTEST_AWAY_S, _LONGEST_AWAY_S = 0.1, 2.0


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Which events are wanted: those that fit all that is said."""

    run_id: str | None = None
    #: Names of types.
    types: frozenset[str] = frozenset()

    @classmethod
    def of(cls, types: Collection[str] = (), run_id: str | None = None) -> Selection:
        """Events of these types, about this run; `job_*` stands for all types that begin so.

        Raises:
            ConfigError: there are no such events.
        """
        found = {pattern: [name for name in EVENT_TYPES if fnmatchcase(name, pattern)] for pattern in types}
        for pattern, names in found.items():
            if not names:
                raise ConfigError(f"type: no events are {pattern!r}; {did_you_mean(pattern, EVENT_TYPES)}")
        return cls(run_id=run_id, types=frozenset(name for names in found.values() for name in names))

    def includes(self, event: Event) -> bool:
        """Whether it is wanted."""
        return self.run_id in {None, event.run_id} and (not self.types or event.type in self.types)


ALL = Selection()


def select(
    reader: Reader, sweep_id: str, selection: Selection = ALL, *, after: int = 0, until: int | None = None
) -> Iterator[Event]:
    """The events of a log that are wanted, those numbered above `after` and up to `until`, as they are read."""
    for event in reader.read(sweep_id, after, run_id=selection.run_id):
        if until is not None and event.seq > until:
            return
        if selection.includes(event):
            yield event


def last(
    reader: Reader, sweep_id: str, selection: Selection, count: int, *, after: int = 0, until: int
) -> Iterable[Event]:
    """The last `count` of what `select` gives; reads the whole log only where it has to look for them."""
    if selection == ALL:
        return select(reader, sweep_id, after=max(after, until - count), until=until)
    return deque(select(reader, sweep_id, selection, after=after, until=until), maxlen=count)


class News(NamedTuple):
    """What one look at a log has brought."""

    #: Those that no look before has brought, in order.
    events: list[Event]
    #: Why there may be more that cannot be read just now.
    away: StoreAwayError | None = None


def looks(reader: Reader, sweep_id: str, *, after: int, every_s: float = _LOOK_EVERY_S) -> Iterator[News]:
    """Look at a log again and again, for as long as one likes: at once when it has grown, else after a while.

    Only what is new is read, and an absence of the store is waited out.

    Args:
        reader: Where the sweep is.
        sweep_id: Which sweep.
        after: Number of the last event that was seen.
        every_s: Seconds between two looks that bring nothing.
    """
    pause_s = 0.0
    while True:
        events: list[Event] = []
        away: StoreAwayError | None = None
        try:
            for event in reader.read(sweep_id, after):
                events.append(event)
                after = event.seq
        except StoreAwayError as error:
            away = error
        yield News(events, away)
        if away is None:
            pause_s = 0.0
            try:
                reader.wait_for_change(sweep_id, after, every_s)
                continue
            except StoreAwayError as error:
                yield News([], error)
        pause_s = min(2 * pause_s or _SHORTEST_AWAY_S, _LONGEST_AWAY_S)
        threading.Event().wait(pause_s)


def follow(
    reader: Reader,
    sweep_id: str,
    selection: Selection = ALL,
    *,
    after: int,
    on_away: Callable[[StoreAwayError], object] = lambda _: None,
    on_back: Callable[[], object] = lambda: None,
) -> Iterator[Event]:
    """The wanted events numbered above `after`, each once, as they come, until the sweep has ended.

    Args:
        reader: Where the sweep is.
        sweep_id: Which sweep.
        selection: What is wanted of it.
        after: Number of the last event that was seen.
        on_away: Told when the store cannot be reached, once an absence.
        on_back: Told when it can again.
    """
    is_over: bool | None = None
    is_away = False
    for news in looks(reader, sweep_id, after=after):
        if is_away and (news.events or news.away is None):
            on_back()
            is_away = False
        for event in news.events:
            if isinstance(event.body, SweepEnded | SweepResumed):
                is_over = isinstance(event.body, SweepEnded)
            if selection.includes(event):
                yield event
        if news.away is not None:
            if not is_away:
                on_away(news.away)
            is_away = True
        elif is_over is None:
            with suppress(StoreAwayError):
                is_over = all(sweep.status.ended for sweep in reader.fetch_sweeps(sweep_id))
        elif is_over and not news.events:
            return
