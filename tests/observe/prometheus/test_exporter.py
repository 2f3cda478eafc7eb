"""Scrapes: what is new is read and nothing else, whatever becomes of the store in between."""

from __future__ import annotations

import socket
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from metta.sweep.clock import SystemClock
from metta.sweep.errors import ConfigError, StoreAwayError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.observe.prometheus import exporter
from metta.sweep.observe.prometheus.exporter import StoreCollector, exposition, serve
from metta.sweep.protocols import Heartbeat, Reader, Store
from metta.sweep.stores import open_reader, open_store
from metta.sweep.stores.hashes import event_hash
from metta.sweep.stores.rows import EVENT_COLUMNS
from metta.sweep.testing import ManualClock, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP
from postgresql import PostgresqlServer

HOUR = 3600.0


def ended(at: float, sweep_id: str = SWEEP) -> Event:
    return new_event(
        ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done"), sweep_id=sweep_id, at=at, actor="controller"
    )


class Scrapes:
    """An exporter, and what it says."""

    def __init__(self, url: str, clock: ManualClock) -> None:
        self.reads: list[tuple[str, int]] = []
        #: Number of the event that the store goes away before.
        self.lose_after: int | None = None
        self._url = url
        self.collector = StoreCollector(self._open, clock)

    def _open(self) -> Reader:
        reader = open_reader(self._url)
        read = reader.read

        def noted(sweep_id: str, after: int = 0, *, run_id: str | None = None) -> Iterator[Event]:
            for event in read(sweep_id, after, run_id=run_id):
                if event.seq == self.lose_after:
                    raise StoreAwayError("lost in the middle")
                self.reads.append((sweep_id, event.seq))
                yield event

        reader.read = noted  # type: ignore[method-assign]
        return reader

    def __call__(self) -> dict[tuple[str, str], float]:
        """Values of all samples but those of histograms, by name and the label `sweep`, summed over other labels."""
        found: dict[tuple[str, str], float] = {}
        for family in text_string_to_metric_families(exposition(self.collector)):
            for sample in family.samples:
                key = sample.name, sample.labels.get("sweep", "")
                found[key] = found.get(key, 0) + sample.value
        return found


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START + HOUR)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        store.append([sweep_created(), *run_events(0)])
        yield store


@pytest.fixture
def scrape(store: Store, clock: ManualClock) -> Scrapes:
    return Scrapes(store.url, clock)


def test_each_event_is_read_once(store: Store, scrape: Scrapes) -> None:
    assert scrape()["metta_sweep_runs_created_total", SWEEP] == 1
    assert scrape()["metta_sweep_runs_created_total", SWEEP] == 1
    store.append(run_events(1)[:3])
    assert scrape()["metta_sweep_runs_created_total", SWEEP] == 2
    assert scrape()["metta_sweep_jobs_started_total", SWEEP] == 1
    store.append(run_events(1)[3:])
    last = scrape()
    assert last["metta_sweep_jobs_started_total", SWEEP] == 2
    # But for the last one that is known, by which another log would show.
    assert scrape.reads == [(SWEEP, seq) for seq in [*range(1, 9), *range(8, 12), *range(11, 16)]]
    # A new exporter comes to the same numbers.
    again = Scrapes(store.url, ManualClock(START + HOUR))()
    assert {key: value for key, value in again.items() if "scrape_duration" not in key[0]} == {
        key: value for key, value in last.items() if "scrape_duration" not in key[0]
    }


def test_what_was_read_of_a_long_log_is_kept_when_the_store_goes_away(
    store: Store, scrape: Scrapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_PAGE", 3)
    scrape.lose_after = 8
    assert scrape()["metta_sweep_store_up", ""] == 0
    scrape.lose_after = None
    assert scrape()["metta_sweep_runs_ended_total", SWEEP] == 1
    assert scrape.reads == [(SWEEP, seq) for seq in [1, 2, 3, 4, 5, 6, 7, 6, 7, 8]]


def test_sweeps_that_ended_long_ago_are_left_out_until_they_go_on(
    store: Store, scrape: Scrapes, clock: ManualClock
) -> None:
    store.append([sweep_created("other", name="other", at=START), *run_events(0, sweep_id="other")])
    store.append([ended(START + HOUR)])
    clock.advance(HOUR)
    assert scrape()["metta_sweep_info", SWEEP] == 1
    clock.advance(1)
    seen = scrape()
    assert {sweep for _, sweep in seen} == {"", "other"}
    resumed = new_event(ev.SweepResumed(), sweep_id=SWEEP, at=clock.now(), actor="user")
    store.append([resumed])
    assert scrape()["metta_sweep_runs_ended_total", SWEEP] == 1


def test_agents_that_are_long_gone_are_left_out(store: Store, scrape: Scrapes, clock: ManualClock) -> None:
    store.beat(Heartbeat(sweep_id=SWEEP, host="node", pid=1, at=clock.now(), jobs=2))
    assert scrape()["metta_sweep_agent_jobs", SWEEP] == 2
    clock.advance(HOUR)
    assert scrape()["metta_sweep_agent_last_seen_timestamp_seconds", SWEEP] == START + HOUR
    clock.advance(1)
    assert ("metta_sweep_agent_jobs", SWEEP) not in scrape()


def test_a_controller_is_up_while_its_lease_lives(store: Store, scrape: Scrapes, clock: ManualClock) -> None:
    assert scrape()["metta_sweep_controller_up", SWEEP] == 0
    lease = store.acquire_lease(SWEEP, "elsewhere/1:1:1.0", clock.now(), ttl_s=12)
    assert scrape()["metta_sweep_controller_up", SWEEP] == 1
    clock.advance(13)
    assert scrape()["metta_sweep_controller_up", SWEEP] == 0
    store.release_lease(lease)


def test_a_damaged_log_is_told_and_hides_no_other(store: Store, scrape: Scrapes, tmp_path: Path) -> None:
    store.append([sweep_created("other", name="other")])
    with closing(sqlite3.connect(tmp_path / "sweeps.db")) as connection, connection:
        connection.execute("UPDATE events SET at = at + 1 WHERE sweep_id = ? AND seq = 3", (SWEEP,))
    seen = scrape()
    assert seen["metta_sweep_store_up", ""] == 1
    assert seen["metta_sweep_log_readable", SWEEP] == 0
    assert seen["metta_sweep_log_readable", "other"] == 1
    assert ("metta_sweep_runs", SWEEP) not in seen


def test_a_log_of_a_later_version_hides_no_other(store: Store, scrape: Scrapes, tmp_path: Path) -> None:
    store.append([sweep_created("other", name="other")])
    columns = [column for column in EVENT_COLUMNS if column != "hash"]
    with closing(sqlite3.connect(tmp_path / "sweeps.db")) as connection, connection:
        [row] = connection.execute(f"SELECT {', '.join(columns)} FROM events WHERE sweep_id = ? AND seq = 3", (SWEEP,))
        later = {**dict(zip(columns, row, strict=True)), "type": "of_tomorrow", "body": b'{"type":"of_tomorrow"}'}
        connection.execute(
            "UPDATE events SET type = ?, body = ?, hash = ? WHERE sweep_id = ? AND seq = 3",
            (later["type"], later["body"], event_hash(**later), SWEEP),
        )
    seen = scrape()
    assert seen["metta_sweep_store_up", ""] == 1
    assert seen["metta_sweep_log_readable", SWEEP] == 0
    assert seen["metta_sweep_log_readable", "other"] == 1


def test_a_store_that_is_put_back_from_a_backup_is_read_anew(store: Store, scrape: Scrapes, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "sweeps.db")) as connection:
        connection.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
    store.append(run_events(1))
    assert scrape()["metta_sweep_runs_created_total", SWEEP] == 2
    store.close()
    (tmp_path / "backup.db").replace(tmp_path / "sweeps.db")
    assert scrape()["metta_sweep_runs_created_total", SWEEP] == 1
    assert scrape()["metta_sweep_runs_created_total", SWEEP] == 1
    assert scrape.reads[-9:] == [(SWEEP, 15), *((SWEEP, seq) for seq in range(1, 9))]


def test_a_store_that_was_put_back_and_has_gone_on_is_read_anew(store: Store, scrape: Scrapes, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "sweeps.db")) as connection:
        connection.execute("VACUUM INTO ?", (str(tmp_path / "backup.db"),))
    store.append(run_events(1)[:2])
    assert scrape()["metta_sweep_runs_created_total", SWEEP] == 2
    store.close()
    (tmp_path / "backup.db").replace(tmp_path / "sweeps.db")
    with closing(open_store(store.url)) as restored:
        restored.append([event for index in range(1, 4) for event in run_events(index)[:1]])
    for _ in range(2):
        seen = scrape()
        assert seen["metta_sweep_log_readable", SWEEP] == 1
        assert seen["metta_sweep_runs_created_total", SWEEP] == 4
        assert seen["metta_sweep_jobs_started_total", SWEEP] == 1


def test_a_store_that_is_away_is_a_metric(postgresql_server: PostgresqlServer, postgresql_url: str) -> None:
    with closing(open_store(postgresql_url, create=True)) as store:
        store.append([sweep_created(), *run_events(0)])
    scrape = Scrapes(postgresql_url, ManualClock(START))
    before = scrape()
    assert before["metta_sweep_store_up", ""] == 1
    try:
        postgresql_server.stop()
        away = scrape()
        assert away["metta_sweep_store_up", ""] == 0
        assert {sweep for _, sweep in away} == {""}
        # Also one that starts in the meantime.
        late = Scrapes(postgresql_url, ManualClock(START))
        assert late()["metta_sweep_store_up", ""] == 0
    finally:
        postgresql_server.start()
    for each in (scrape, late):
        back = each()
        assert back["metta_sweep_store_up", ""] == 1
        assert back["metta_sweep_runs_created_total", SWEEP] == before["metta_sweep_runs_created_total", SWEEP]
    assert scrape.reads == [(SWEEP, seq) for seq in range(1, 9)]


def test_many_may_scrape_at_one_time(store: Store, scrape: Scrapes) -> None:
    server = serve(scrape.collector, "127.0.0.1", 0)
    texts: list[str] = []

    def get() -> None:
        for _ in range(5):
            with urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
                texts.append(answer.read().decode())

    threads = [threading.Thread(target=get) for _ in range(8)]
    try:
        for thread in threads:
            thread.start()
        for index in range(1, 20):
            store.append(run_events(index))
        for thread in threads:
            thread.join(timeout=60)
    finally:
        server.shutdown()
        server.server_close()
    assert len(texts) == 40
    assert all("metta_sweep_store_up 1.0" in text for text in texts)
    assert scrape()["metta_sweep_runs_ended_total", SWEEP] == 20
    # What is written while a scrape reads is seen by it, and left to the next.
    assert set(scrape.reads) == {(SWEEP, seq) for seq in range(1, 2 + 20 * 7)}
    assert len(scrape.reads) <= len(set(scrape.reads)) + 2 * 41


def test_an_address_that_cannot_be_listened_on_is_named(store: Store) -> None:
    collector = StoreCollector(lambda: open_reader(store.url), SystemClock())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port: {port} on 127.0.0.1 is taken.*--port"):
            serve(collector, "127.0.0.1", port)
    with pytest.raises(ConfigError, match=r"host: cannot listen on 192\.0\.2\.1.*--host"):
        serve(collector, "192.0.2.1", 0)
    with pytest.raises(ConfigError, match=r"host: cannot listen on no such host.*--host"):
        serve(collector, "no such host", 0)
    with pytest.raises(ConfigError, match=r"host: cannot listen on a\.\.b.*--host"):
        serve(collector, "a..b", 0)
