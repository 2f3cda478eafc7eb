"""A run as it goes on: what its jobs print and what happens to it, in order."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from metta.sweep.errors import StoreAwayError
from metta.sweep.model.events import Event, JobExited, JobLost, JobStarted, MetricsReported
from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.logs import GrowingLog, Lines
from metta.sweep.observe.streams import looks
from metta.sweep.observe.watching import present
from metta.sweep.protocols import Reader

#: How often the log is looked at.
_LOOK_EVERY_S = 0.2
#: Of what was printed before, and reported.
_PAST_BYTES, _PAST_REPORTS = 2_000, 5
#: Of what is printed between two looks: more could not be shown, nor read, as fast as it may come.
_MOST_BYTES = 1 << 18


class Glance(NamedTuple):
    """One look at a run."""

    sweep: SweepMetadata
    run: RunInfo
    #: What is new: lines of its log, and events, in order as far as it can be told.
    news: Sequence[str | Event]
    #: Why the log of events is not up to date.
    away: StoreAwayError | None = None


def tail(reader: Reader, run: RunInfo) -> Iterator[Glance]:
    """Follow a run until it, or its sweep, has ended.

    The first look brings what has happened to it so far and the end of what its last job has printed. What a job prints
    comes before the event by which it ends. An absence of the store is waited out; logs go on meanwhile.

    Args:
        reader: Where the run is.
        run: Which run.
    """
    [sweep] = reader.fetch_sweeps(run.sweep_id)
    log = _Log()
    past: list[str | Event] = _without_old_reports(
        [event for event in reader.read(run.sweep_id, run_id=run.run_id) if event.seq <= sweep.seq]
    )
    [run] = reader.fetch_runs(run.sweep_id, run_ids=[run.run_id])
    if run.jobs and (path := run.jobs[-1].log) is not None:
        log.open(path, last=_PAST_BYTES)
    for events, away in looks(reader, run.sweep_id, after=sweep.seq, every_s=_LOOK_EVERY_S):
        mine = [event for event in events if event.run_id == run.run_id]
        news = [*past, *_in_order(mine, log)]
        past = []
        if events:
            with suppress(StoreAwayError):
                sweep = present(reader, run.sweep_id)
                [run] = reader.fetch_runs(run.sweep_id, run_ids=[run.run_id])
        is_over = run.status.ended or sweep.status.ended
        if is_over:
            news += log.rest()
        yield Glance(sweep, run, news, away)
        if is_over:
            return
        # Events may come one by one, and far more often.
        threading.Event().wait(_LOOK_EVERY_S / 2)


def _without_old_reports(events: Sequence[Event]) -> list[str | Event]:
    reports = [event.seq for event in events if isinstance(event.body, MetricsReported)]
    old = set(reports[:-_PAST_REPORTS])
    return [event for event in events if event.seq not in old]


def _in_order(events: Sequence[Event], log: _Log) -> Iterator[str | Event]:
    for event in events:
        yield from log.new()
        if isinstance(event.body, JobExited | JobLost):
            yield from log.rest()
        yield event
        if isinstance(event.body, JobStarted):
            log.open(event.body.log)
    yield from log.new()


class _Log:
    """The log of the job at hand."""

    def __init__(self) -> None:
        self._log: GrowingLog | None = None
        self._lines = Lines()

    def open(self, path: str, *, last: int | None = None) -> None:
        self._log = GrowingLog(Path(path), last=last)

    def new(self) -> Iterator[str]:
        if self._log is None:
            return
        try:
            if left_out := self._log.skip(_MOST_BYTES):
                yield from self._lines.rest()
                yield f"({left_out:,} bytes are left out here; all of them: metta sweep logs)"
            yield from self._lines.of(self._log.new())
        except OSError as error:
            yield f"(the log {self._log.path} cannot be read from here: {error.strerror})"
            self._log = None

    def rest(self) -> Iterator[str]:
        yield from self.new()
        yield from self._lines.rest()
