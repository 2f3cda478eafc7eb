"""A sweep as it was: the same fold, over a part of the log."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile

import msgspec

from metta.sweep.model.events import ControllerStarted, ControllerStopped, Event
from metta.sweep.model.state import EMPTY, SweepState, fold

#: A timeline keeps the state after so many events each. States share what they have in common, so that costs little,
#: and nothing in the past is farther away than this.
_KEPT_EVERY = 500


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep after some event."""

    state: SweepState = EMPTY
    #: The event; None before the first.
    event: Event | None = None
    #: Whether a controller was at work as far as the log tells: one that is killed leaves no word.
    controlled: bool = False

    @property
    def seq(self) -> int:
        """Number of the event; 0 before the first."""
        return self.state.seq

    @property
    def at(self) -> float:
        """Time of the event, in seconds since the epoch, by the clock of whoever wrote it."""
        return 0.0 if self.event is None else self.event.at

    def after(self, events: Iterable[Event]) -> Moment:
        """The moment when these have happened, too; takes time in proportion to them alone.

        Raises:
            InvalidTransition: one does not fit what is before it.
        """
        event, controlled = self.event, self.controlled

        def passing() -> Iterator[Event]:
            nonlocal event, controlled
            for passed in events:
                event = passed
                controlled = _controlled(passed, before=controlled)
                yield passed

        state = fold(self.state, passing())
        return Moment(state=state, event=event, controlled=controlled)


def _controlled(event: Event, *, before: bool) -> bool:
    return isinstance(event.body, ControllerStarted) or (before and not isinstance(event.body, ControllerStopped))


BEGINNING = Moment()


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Where in a log: after the event of that number, or what was known at that time; without either at its end.

    Of a time, the first event that is later ends what was known: a log is in the order in which it was written, and
    what an agent could not deliver for a while was known by nobody.
    """

    seq: int | None = None
    #: Seconds since the epoch.
    at: float | None = None

    def includes(self, event: Event) -> bool:
        """Whether the event had happened by then."""
        return (self.seq is None or event.seq <= self.seq) and (self.at is None or event.at <= self.at)


def moment_at(events: Iterable[Event], point: Point) -> Moment:
    """The sweep at that point, by one fold over the log up to there.

    Raises:
        InvalidTransition: an event does not fit what is before it.
    """
    return BEGINNING.after(takewhile(point.includes, events))


class Timeline:
    """A log to go through in either direction. A step takes no longer late in a sweep than early.

    Args:
        events: The log from its first event on; read as far as somebody wants to see.
    """

    def __init__(self, events: Iterable[Event]) -> None:
        self._unread = iter(events)
        self._read: list[Event] = []
        #: The moments after 0, `_KEPT_EVERY`, 2 * `_KEPT_EVERY`, ... events, as far as anybody has been.
        self._kept = [BEGINNING]
        self._last = BEGINNING

    def event(self, seq: int) -> Event | None:
        """The event of that number; None beyond the end."""
        self._read.extend(islice(self._unread, max(0, seq - len(self._read))))
        return self._read[seq - 1] if 0 < seq <= len(self._read) else None

    def last_before(self, point: Point, start: int = 0) -> int:
        """Number of the last event, from `start` on, that had happened at a point; `start` where none had."""
        seq = start
        while (event := self.event(seq + 1)) is not None and point.includes(event):
            seq += 1
        return seq

    def at(self, seq: int) -> Moment:
        """The sweep after the event of that number; at the log's end for numbers beyond it.

        Raises:
            InvalidTransition: an event does not fit what is before it.
        """
        self.event(seq)
        seq = min(max(seq, 0), len(self._read))
        moment = self._kept[bisect_right(self._kept, seq, key=lambda kept: kept.seq) - 1]
        if moment.seq <= self._last.seq <= seq:
            moment = self._last
        while moment.seq < seq:
            until = min(seq, (moment.seq // _KEPT_EVERY + 1) * _KEPT_EVERY)
            moment = moment.after(self._read[moment.seq : until])
            if moment.seq == len(self._kept) * _KEPT_EVERY:
                self._kept.append(moment)
        self._last = moment
        return moment
