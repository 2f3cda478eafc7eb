"""Tells people of a sweep, at least once and hardly ever twice, whoever is killed meanwhile.

How far a channel knows of the sweep is an event of its log (`Notified`), written after the channel has taken a message.
Whoever tells it begins behind that; of several, the one that holds the lease `SWEEP/notifier` sends.
"""

from __future__ import annotations

import logging
import math
import socket
from itertools import takewhile
from pathlib import Path

import msgspec

from metta.sweep.controller import lease as leases
from metta.sweep.errors import LeaseHeldError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.notify import NoticeKind, Notify, Told
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.notifications.channels import Channel, default_notify, open_channels
from metta.sweep.observe.notifications.notices import Message, News, Notice, Surroundings, message, notices
from metta.sweep.observe.notifications.surroundings import look_around
from metta.sweep.protocols import Clock, Store

logger = logging.getLogger(__name__)

#: Between two attempts at a channel that does not take a message: from the first to the last, doubling.
_FIRST_RETRY_S, _LAST_RETRY_S = 2.0, 300.0
#: What the log does not say is looked for this often.
_LOOK_AROUND_EVERY_S = 15.0
#: Longer than any channel takes to answer or to be given up; a sender on another machine that died is waited for.
_SENDING_TTL_S = 120.0
#: After so many events with nothing to tell, that is written down, so that nobody has to read them again.
_MOST_UNTOLD = 10_000


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt to tell a channel something."""

    sweep_id: str
    channel: str
    message: Message
    #: What went wrong; None when the channel took it.
    problem: str | None = None


class _Line:
    """A channel, and how far it knows of the sweep."""

    def __init__(self, channel: Channel, told: Told) -> None:
        self.channel = channel
        self.told = told
        self.news = News.since(told)
        self.failures = 0
        #: By the steady clock.
        self.retry_at = -math.inf
        #: Of a message that was taken while the store was away.
        self.unwritten: Event | None = None


class Notifier:
    """Tells the channels of one sweep what happens in it.

    Args:
        store: Where the sweep is.
        sweep_id: Which sweep.
        clock: The time.
        instead: Who is told, instead of whom the sweep names, or METTA_SWEEP_NOTIFY where it names nobody.
    """

    def __init__(self, store: Store, sweep_id: str, clock: Clock, instead: Notify | None = None) -> None:
        self._store = store
        self._sweep_id = sweep_id
        self._clock = clock
        self._instead = instead
        self._actor = f"notifier@{socket.gethostname()}"
        self._notify: Notify | None = None
        self._lines: list[_Line] = []
        self._around: Surroundings | None = None
        self._look_at = -math.inf

    @property
    def has_channels(self) -> bool:
        """Whether anybody is told."""
        return bool(self._lines)

    def open(self, sweep: SweepMetadata) -> None:
        """Find the channels that the sweep names now. One that is new is told what happens from here on.

        Raises:
            UsageError: a channel cannot be opened.
        """
        notify = self._instead or sweep.config.notify or default_notify()
        if notify == self._notify:
            return
        self._notify, self._lines = None, []
        lines: list[_Line] = []
        for channel in () if notify is None else open_channels(notify, Path(sweep.config.working_directory)):
            told = sweep.notified.get(channel.name)
            if told is None:
                told = Told(through=sweep.seq, best_score=sweep.best_score)
                self._store.append([self._notified(channel.name, told)])
            lines.append(_Line(channel, told))
        # Only now: what cannot be opened, or written down, is to be tried again.
        self._notify, self._lines = notify, lines

    def look(self, *, is_last: bool = False) -> list[Delivery]:
        """See what is new and tell it where it is time to; takes as long as the channels take.

        Args:
            is_last: Whether nobody will look again soon, so that nothing should wait for its time.

        Returns:
            What was tried.

        Raises:
            StoreError: the store cannot be read or written just now.
        """
        deliveries: list[Delivery] = []
        for line in self._lines:
            self._write(line)
        [sweep] = self._store.fetch_sweeps(self._sweep_id)
        for line in self._lines:
            self._read(line, sweep)
        if self._lines:
            # Read again: the totals have to know of everything that the news do.
            [sweep] = self._store.fetch_sweeps(self._sweep_id)
            around = self._surroundings(sweep)
            for line in self._lines:
                found = self._untold(line, sweep, around)
                if found and self._is_due(line, found, around.now, is_last=is_last):
                    deliveries += self._tell(line)
                elif not found and line.news.through - line.told.through > _MOST_UNTOLD:
                    line.unwritten = self._notified(
                        line.channel.name, msgspec.structs.replace(line.told, through=line.news.through)
                    )
        return deliveries

    def untold(self) -> list[str]:
        """The channels that have yet to be told something."""
        [sweep] = self._store.fetch_sweeps(self._sweep_id)
        around = self._surroundings(sweep)
        return [line.channel.name for line in self._lines if self._untold(line, sweep, around)]

    # ------------------------------------------------------------------------------------------------- reading

    def _read(self, line: _Line, sweep: SweepMetadata) -> None:
        """Take in what is new; from the channel's place in the log on, if somebody else has told it something."""
        told = sweep.notified.get(line.channel.name, line.told)
        if told != line.told:
            line.told, line.news = told, News.since(told)
        if sweep.seq == line.news.through:
            return
        # No more than the sweep knows of: a message must not say that it has ended and goes on.
        unread = self._store.read(self._sweep_id, after=line.news.through)
        events = list(takewhile(lambda event: event.seq <= sweep.seq, unread))
        failed = [event.run_id for event in events if isinstance(event.body, ev.RunFailed) and event.run_id]
        runs = {run.run_id: run for run in self._store.fetch_runs(self._sweep_id, run_ids=failed)} if failed else {}
        for event in events:
            line.news = line.news.after(event, sweep.config.direction, runs)

    def _surroundings(self, sweep: SweepMetadata, *, anew: bool = False) -> Surroundings:
        if anew or self._around is None or self._clock.monotonic() >= self._look_at or sweep.status.ended:
            self._look_at = self._clock.monotonic() + _LOOK_AROUND_EVERY_S
            self._around = look_around(self._store, sweep, self._clock.now())
        return msgspec.structs.replace(self._around, now=self._clock.now())

    # ------------------------------------------------------------------------------------------------- telling

    def _untold(self, line: _Line, sweep: SweepMetadata, around: Surroundings) -> list[Notice]:
        assert self._notify is not None
        return notices(line.news, sweep, line.told, around, self._notify)

    def _is_due(self, line: _Line, found: list[Notice], now: float, *, is_last: bool) -> bool:
        assert self._notify is not None
        if line.unwritten is not None or (self._clock.monotonic() < line.retry_at and not is_last):
            return False
        since_s = math.inf if line.told.at is None else abs(now - line.told.at)
        return is_last or any(notice.urgent for notice in found) or since_s >= self._notify.every_minutes * 60

    def _tell(self, line: _Line) -> list[Delivery]:
        """Send what there is, unless another process is just about to; afterwards write down that it was taken."""
        try:
            name = f"{self._sweep_id}/notifier"
            lease = leases.acquire(self._store, name, self._clock.now(), _SENDING_TTL_S)
        except LeaseHeldError:
            return []
        try:
            [sweep] = self._store.fetch_sweeps(self._sweep_id)
            self._read(line, sweep)
            around = self._surroundings(sweep, anew=True)  # a controller may just have come back
            if sweep.best_run_id is not None:
                [best] = self._store.fetch_runs(self._sweep_id, run_ids=(sweep.best_run_id,))
                around = msgspec.structs.replace(around, best=best)
            found = self._untold(line, sweep, around)
            if not found:
                return []  # another process has told it
            text = message(sweep, found)
            problem = line.channel.send(text)
            if problem is None:
                self._taken(line, sweep, found, text)
            else:
                self._refused(line, problem)
            return [Delivery(sweep_id=self._sweep_id, channel=line.channel.name, message=text, problem=problem)]
        finally:
            self._store.release_lease(lease)

    def _taken(self, line: _Line, sweep: SweepMetadata, found: list[Notice], text: Message) -> None:
        line.failures, line.retry_at = 0, -math.inf
        tells_best = any(notice.kind in {NoticeKind.NEW_BEST, NoticeKind.SWEEP_ENDED} for notice in found)
        told = line.told.after(
            through=line.news.through,
            at=self._clock.now(),
            best_score=sweep.best_score if tells_best else line.news.known_score,
            once=tuple(notice.once for notice in found if notice.once is not None),
        )
        line.unwritten = self._notified(line.channel.name, told, text.title)
        line.told, line.news = told, line.news.told(told)
        self._write(line)

    def _refused(self, line: _Line, problem: str) -> None:
        wait_s = min(_FIRST_RETRY_S * 2**line.failures, _LAST_RETRY_S)
        line.failures += 1
        line.retry_at = self._clock.monotonic() + wait_s
        logger.warning(
            "sweep %s: %s (%s) did not take a message, it is tried again in %.3g s: %s",
            *(self._sweep_id, line.channel.name, line.channel.service, wait_s, problem),
        )

    def _write(self, line: _Line) -> None:
        """Write down what a channel has taken, or that there has been nothing to tell it for long."""
        if line.unwritten is None:
            return
        [written] = self._store.append([line.unwritten])
        line.unwritten = None
        assert isinstance(written.body, ev.Notified)
        # As the log has it, so that it is not taken for what another process wrote.
        [sweep] = self._store.fetch_sweeps(self._sweep_id)
        line.told = sweep.notified[line.channel.name]

    def _notified(self, channel: str, told: Told, title: str = "") -> Event:
        body = ev.Notified(
            channel=channel, through=told.through, title=title, best_score=told.best_score, once=told.once
        )
        return new_event(body, sweep_id=self._sweep_id, at=self._clock.now(), actor=self._actor)
