"""Answers Prometheus: looks at a store at each scrape, and reads only what is new in it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from metta.sweep.controller.lease import is_controlled
from metta.sweep.errors import ConfigError, InvalidTransition, StoreAwayError, StoreError
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.prometheus.families import Sight, families
from metta.sweep.observe.prometheus.totals import Totals
from metta.sweep.observe.streams import select
from metta.sweep.protocols import Clock, Reader

#: Sweeps that have ended, and agents that are gone, are shown for so long: a scrape every 15 seconds sees how they
#: ended many times over, and labels do not become more and more in a store that is used for years.
SHOWN_AFTER_END_S = 3600.0
#: Events after which what was read is kept, should the store go away in the middle of a long log.
_PAGE = 5_000


class StoreCollector(Collector):
    """Makes metrics of all sweeps of a store that have not ended, or not long ago.

    The log of a sweep is read once; after that a scrape reads what was written since the one before it. A store that is
    away is a metric as well: `metta_sweep_store_up` is 0 then, and nothing is said of its sweeps.

    Args:
        open_reader: Opens the store. Each scrape does that, so that it sees what is there now: files are replaced.
        clock: What time it is.
        shown_after_end_s: Sweeps that ended longer ago are left out, and agents that were last seen longer ago.
    """

    def __init__(
        self, open_reader: Callable[[], Reader], clock: Clock, *, shown_after_end_s: float = SHOWN_AFTER_END_S
    ) -> None:
        self._open_reader = open_reader
        self._clock = clock
        self._shown_after_end_s = shown_after_end_s
        #: By sweep id.
        self._totals: dict[str, Totals] = {}
        # Each scrape has a thread of its own.
        self._lock = threading.Lock()

    def describe(self) -> list[Metric]:
        """The metrics without samples, for which nobody has to look at the store."""
        return list(families([], store_up=False, seconds=0.0))

    def collect(self) -> Iterator[Metric]:
        """The metrics as of now."""
        with self._lock:
            begin = self._clock.monotonic()
            try:
                with closing(self._open_reader()) as reader:
                    sights, damaged = self._look(reader)
                store_up = True
            except StoreError:
                sights, damaged, store_up = [], [], False
            seconds = self._clock.monotonic() - begin
        yield from families(sights, damaged, store_up=store_up, seconds=seconds)

    def _look(self, reader: Reader) -> tuple[list[Sight], list[SweepMetadata]]:
        """The sweeps that are shown, and those that cannot be."""
        now = self._clock.now()
        sights, damaged = [], []
        shown = [sweep for sweep in reader.fetch_sweeps() if self._is_shown(sweep, now)]
        self._totals = {each.sweep_id: self._totals.get(each.sweep_id, Totals()) for each in shown}
        for sweep in shown:
            try:
                self._catch_up(reader, sweep)
            except StoreAwayError:
                raise
            except (StoreError, InvalidTransition):  # changed since it was written, or written by a later version
                damaged.append(sweep)
            else:
                sights.append(self._sight(reader, sweep.sweep_id, now))
        return sights, damaged

    def _sight(self, reader: Reader, sweep_id: str, now: float) -> Sight:
        beats = reader.fetch_heartbeats(sweep_id)
        return Sight(
            totals=self._totals[sweep_id],
            now=now,
            controlled=is_controlled(reader, sweep_id, now),
            heartbeats=[beat for beat in beats if now - beat.at <= self._shown_after_end_s],
        )

    def _is_shown(self, sweep: SweepMetadata, now: float) -> bool:
        return not sweep.status.ended or sweep.ended_at is None or now - sweep.ended_at <= self._shown_after_end_s

    def _catch_up(self, reader: Reader, sweep: SweepMetadata) -> None:
        known = self._totals[sweep.sweep_id]
        if known.state.seq == sweep.seq:
            return
        # From the last event that is known: where that is another one now, the store was put back from a backup, and
        # may have gone on from there.
        events = iter(select(reader, sweep.sweep_id, after=max(0, known.state.seq - 1), until=sweep.seq))
        if known.state.seq and ((last := next(events, None)) is None or last.id != known.last_event_id):
            known = Totals()
            events = iter(select(reader, sweep.sweep_id, until=sweep.seq))
        while known.state.seq < sweep.seq and (page := list(islice(events, _PAGE))):
            known = self._totals[sweep.sweep_id] = known.after(page)


def exposition(collector: StoreCollector) -> str:
    """The metrics as of now in Prometheus' text format."""
    return generate_latest(_registry(collector)).decode()


def serve(collector: StoreCollector, host: str, port: int) -> WSGIServer:
    """Answer Prometheus at this address, in threads of their own, until the server is shut down.

    Args:
        collector: What is served, at `/metrics`.
        host: Name or address of the interface to listen on.
        port: 0 takes a free one.

    Returns:
        The server; `server_port` is the port.

    Raises:
        ConfigError: the address cannot be listened on.
    """
    try:
        server, _ = start_http_server(port, host, registry=_registry(collector))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port: {port} on {host} is taken, perhaps by another serve-metrics; give a free one with --port, "
                "or 0 to have one chosen"
            ) from error
        raise _unfit(host, port, error.strerror) from error
    except UnicodeError as error:
        raise _unfit(host, port, "that is no name of a host") from error
    return server


def _unfit(host: str, port: int, problem: str | None) -> ConfigError:
    return ConfigError(
        f"host: cannot listen on {host}, port {port}: {problem}; "
        "give an address of this machine with --host, 0.0.0.0 for all of them"
    )


def _registry(collector: StoreCollector) -> CollectorRegistry:
    """Of this collector alone: metrics of the exporter's own process would be taken for those of a sweep."""
    registry = CollectorRegistry()
    registry.register(collector)
    return registry
