"""What is particular to PostgreSQL: servers that stop and start, locks, wake-ups, URLs, passwords."""

from __future__ import annotations

import logging
import socket
import subprocess
import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from urllib.parse import quote

import psycopg
import pytest

from metta.sweep.errors import (
    ConfigError,
    MissingExtraError,
    NameTakenError,
    StoreAwayError,
    StoreError,
)
from metta.sweep.protocols import Heartbeat, Store
from metta.sweep.stores import display_url, open_reader, open_store, postgresql
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.stores import contents, projections_equal_fold
from metta.sweep.testing.sweeps import SWEEP
from postgresql import GUARDED, PostgresqlServer
from stores.writing import acknowledged, appender, go
from waiting import wait_until


@pytest.fixture
def store(postgresql_url: str) -> Iterator[Store]:
    """A store with one sweep."""
    with closing(open_store(postgresql_url, create=True)) as store:
        store.append([sweep_created()])
        yield store


@contextmanager
def other_connection(url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url) as connection:
        yield connection


def activity(server: PostgresqlServer, url: str, condition: str) -> list[tuple[object, ...]]:
    """Connections of the store that `condition` is true of."""
    database = url.rpartition("/")[2]
    return server.execute(
        f"SELECT pid, query FROM pg_stat_activity WHERE datname = '{database}' AND "
        f"application_name = 'metta-sweep' AND {condition}"
    )


# ----------------------------------------------------------------------------------------------- a server that is away


@pytest.mark.parametrize("mode", ["immediate", "fast"])
def test_everything_fails_while_the_server_is_away_and_works_on_the_same_store_afterwards(
    store: Store, postgresql_server: PostgresqlServer, mode: str
) -> None:
    store.append(run_events(0))
    lease = store.acquire_lease(SWEEP, "first", now=100.0, ttl_s=30.0)
    before = contents(store)
    calls = (
        lambda: list(store.read(SWEEP)),
        lambda: store.wait_for_change(SWEEP, 0, 60.0),
        lambda: store.wait_for_change(SWEEP, 8, 60.0),
        store.fetch_sweeps,
        lambda: store.fetch_runs(SWEEP),
        lambda: store.fetch_lease(SWEEP),
        lambda: store.fetch_heartbeats(SWEEP),
        lambda: store.append(run_events(1)),
        lambda: store.acquire_lease(SWEEP, "first", 100.0, 30.0),
        lambda: store.release_lease(lease),
        lambda: store.beat(Heartbeat(sweep_id=SWEEP, host="node", pid=1, at=1.0, jobs=0)),
        lambda: store.rebuild(SWEEP),
        lambda: store.projection_differences(SWEEP),
    )
    postgresql_server.stop(mode)
    for call in calls:
        with pytest.raises(StoreAwayError, match=r"store postgresql://.*(refused|terminat|closed)"):
            call()
    postgresql_server.start()
    assert contents(store) == before
    store.append(run_events(1))
    projections_equal_fold(store)
    assert store.projection_differences(SWEEP) == []


def test_a_restart_between_two_calls_goes_unnoticed(store: Store, postgresql_server: PostgresqlServer) -> None:
    assert not store.wait_for_change(SWEEP, 1, 0.01)  # now all of its connections are open
    for number in range(2):
        postgresql_server.stop()
        postgresql_server.start()
        store.append(run_events(number))
    postgresql_server.stop()
    postgresql_server.start()
    assert len(list(store.read(SWEEP))) == 15
    postgresql_server.stop()
    postgresql_server.start()
    assert not store.wait_for_change(SWEEP, 15, 0.01)


def test_waiting_ends_at_once_when_the_server_stops(store: Store, postgresql_server: PostgresqlServer) -> None:
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(store.wait_for_change, SWEEP, 1, 250.0)
        wait_until(lambda: activity(postgresql_server, store.url, "query LIKE 'LISTEN%'"))
        postgresql_server.stop()
        with pytest.raises(StoreAwayError):
            waiting.result(timeout=60)


def test_a_store_that_cannot_be_reached_is_away_from_the_beginning(postgresql_url: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"postgresql://test@127.0.0.1:{nobody.getsockname()[1]}/sweeps"
        for look in (open_reader, open_store):
            with pytest.raises(StoreAwayError, match="refused"):
                look(url)


def test_a_commit_of_which_nobody_knows_may_be_repeated(
    store: Store, postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = run_events(0)
    commit = psycopg.Connection.commit

    def committed_but_not_told(connection: psycopg.Connection) -> None:
        commit(connection)
        monkeypatch.setattr(psycopg.Connection, "commit", commit)
        postgresql_server.stop()
        connection.execute("SELECT 1")  # finds that the connection is lost

    monkeypatch.setattr(psycopg.Connection, "commit", committed_but_not_told)
    with pytest.raises(StoreAwayError):
        store.append(events, expected_seq=1)
    postgresql_server.start()
    assert [event.seq for event in store.append(events, expected_seq=1)] == list(range(2, 9))
    projections_equal_fold(store)


def test_a_session_that_an_administrator_ends_is_replaced(store: Store, postgresql_server: PostgresqlServer) -> None:
    for number in range(3):
        store.append(run_events(number))
        postgresql_server.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE application_name = 'metta-sweep'"
        )
    assert len(projections_equal_fold(store).runs) == 3


# --------------------------------------------------------------------------------------------- order, locks, wake-ups


def test_numbers_follow_the_order_of_commits(store: Store, postgresql_server: PostgresqlServer) -> None:
    """Who comes later waits for who came first, so nobody ever reads past an event that is still to be committed."""
    with closing(open_store(store.url)) as other, ThreadPoolExecutor() as pool:
        with store._database.transaction(SWEEP):  # type: ignore[attr-defined]
            later = pool.submit(other.append, run_events(0))
            wait_until(lambda: activity(postgresql_server, store.url, "wait_event = 'advisory'"))
            assert [event.seq for event in store.read(SWEEP)] == [1]
            with closing(open_store(store.url)) as third:
                third.append([sweep_created("other", name="other")])  # no other sweep has to wait
        assert [event.seq for event in later.result()] == list(range(2, 9))


def test_hosts_that_append_at_one_time_lose_nothing(store: Store) -> None:
    hosts = 3
    store.append([event for index in range(hosts) for event in run_events(index)[:4]])
    first = len(list(store.read(SWEEP))) + 1
    contexts = [appender(store.url, "reports", index, 40, f"agent@host{index}") for index in range(hosts)]
    with contexts[0] as one, contexts[1] as two, contexts[2] as three:
        go(one, two, three)
        written = [acknowledged(process.communicate()[0]) for process in (one, two, three)]
    events = list(store.read(SWEEP, after=first - 1))
    assert {event.seq: event.id for event in events} == written[0] | written[1] | written[2]
    assert sorted(seq for mine in written for seq in mine) == list(range(first, first + 40 * hosts))
    assert {event.actor for event in events} == {f"agent@host{index}" for index in range(hosts)}
    projections_equal_fold(store)


def test_a_name_is_given_once_however_many_want_it(store: Store) -> None:
    def create(number: int) -> bool:
        with closing(open_store(store.url)) as other:
            try:
                other.append([sweep_created(f"other{number}", name="wanted")])
            except NameTakenError:
                return False
            return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(create, range(4))) == 1


def test_many_may_create_one_store_at_one_time(postgresql_url: str) -> None:
    with ThreadPoolExecutor(6) as pool:
        for store in pool.map(lambda _: open_store(postgresql_url, create=True), range(6)):
            store.close()
    with closing(open_reader(postgresql_url)) as reader:
        assert reader.fetch_sweeps() == []


def test_a_lock_that_is_never_let_go_is_reported(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "LOCK_TIMEOUT_S", 0.05)
    with closing(open_store(store.url)) as hasty:
        locked = pytest.raises(StoreAwayError, match=r"lock timeout; another process has kept it locked")
        with store._database.transaction(SWEEP), locked:  # type: ignore[attr-defined]
            hasty.append(run_events(0))
        hasty.append(run_events(0))
    projections_equal_fold(store)


def test_a_statement_that_takes_too_long_is_given_up(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgresql, "STATEMENT_TIMEOUT_S", 0.05)
    with closing(open_reader(store.url)) as reader, other_connection(store.url) as connection:
        connection.execute("LOCK TABLE sweeps")
        with pytest.raises(StoreAwayError, match="statement timeout"):
            reader.fetch_sweeps()
        connection.rollback()
        assert len(reader.fetch_sweeps()) == 1


def test_a_write_elsewhere_wakes_who_waits_without_a_look_in_between(
    store: Store, postgresql_server: PostgresqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    with closing(open_reader(store.url)) as reader, ThreadPoolExecutor() as pool:
        fetch = reader._database.fetch  # type: ignore[attr-defined]
        monkeypatch.setattr(reader._database, "fetch", lambda *query: (looks.append(query), fetch(*query))[1])  # type: ignore[attr-defined]
        waiting = pool.submit(reader.wait_for_change, SWEEP, 1, 250.0)
        wait_until(lambda: activity(postgresql_server, store.url, "query LIKE 'LISTEN%' AND state = 'idle'"))
        store.append([sweep_created("other", name="other")])
        store.acquire_lease(SWEEP, "first", now=100.0, ttl_s=30.0)
        store.append(run_events(0))
        assert waiting.result(timeout=60)
    # Before it listened, after that, and when it was told.
    assert len(looks) == 3


def test_several_may_wait_at_one_time(store: Store, postgresql_server: PostgresqlServer) -> None:
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(store.wait_for_change, SWEEP, 1, 250.0) for _ in range(3)]
        wait_until(lambda: len(activity(postgresql_server, store.url, "query LIKE 'LISTEN%'")) == 3)
        store.append(run_events(0))
        assert all(one.result(timeout=60) for one in waiting)
    # Nothing is kept for those who no longer wait.
    assert len(activity(postgresql_server, store.url, "query LIKE 'UNLISTEN%'")) == 3


# ---------------------------------------------------------------------------------------------------- where and by whom


def test_looking_does_not_wait_for_sqlalchemy(store: Store) -> None:
    script = (
        "import sys; from metta.sweep.stores import open_reader; "
        "print(open_reader(sys.argv[1]).fetch_sweeps()[0].sweep_id, 'sqlalchemy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, store.url], capture_output=True, text=True, check=True)
    assert done.stdout == f"{SWEEP} False\n"


def test_what_does_not_exist_is_not_created_by_looking_at_it(postgresql_url: str) -> None:
    for look in (open_reader, open_store):
        with pytest.raises(StoreError, match="holds no sweeps"):
            look(postgresql_url)
    with other_connection(postgresql_url) as connection:
        assert connection.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (0,)


def test_tables_of_another_program_are_left_alone(postgresql_url: str) -> None:
    with other_connection(postgresql_url) as connection:
        connection.execute("CREATE TABLE runs (id integer)")
    with pytest.raises(StoreError, match=r'"runs" already exists; another program .*options=-csearch_path'):
        open_store(postgresql_url, create=True)
    with other_connection(postgresql_url) as connection:
        connection.execute("CREATE SCHEMA sweeps")
    with closing(open_store(f"{postgresql_url}?options=-csearch_path%3Dsweeps", create=True)) as store:
        store.append(random_history(seed=1))
        with closing(open_reader(store.url)) as other:
            assert contents(other) == contents(store)


def test_a_store_of_a_later_version_is_left_alone(store: Store) -> None:
    with other_connection(store.url) as connection:
        connection.execute("UPDATE metta_sweep_schema SET version = 99")
    for look in (open_reader, open_store):
        with pytest.raises(StoreError, match="has schema 99, this version reads up to 3; upgrade metta-sweep"):
            look(store.url)


def test_a_missing_database_is_no_outage(postgresql_server: PostgresqlServer) -> None:
    with pytest.raises(StoreError, match='"nowhere" does not exist; have it created') as caught:
        open_store(postgresql_server.url("nowhere"), create=True)
    assert not isinstance(caught.value, StoreAwayError)


def test_postgres_is_another_name_for_it_and_sockets_do_as_well(
    store: Store, postgresql_server: PostgresqlServer
) -> None:
    database = store.url.rpartition("/")[2]
    for url in (
        store.url.replace("postgresql://", "postgres://"),
        f"postgresql:///{database}?host={quote(str(postgresql_server.folder), safe='')}"
        f"&port={postgresql_server.port}&user=test",
    ):
        with closing(open_reader(url)) as reader:
            assert len(reader.fetch_sweeps()) == 1


def test_a_closed_store_stays_closed(store: Store, postgresql_server: PostgresqlServer) -> None:
    store.close()
    store.close()
    for use in (store.fetch_sweeps, lambda: store.append(run_events(0)), lambda: store.wait_for_change(SWEEP, 9, 9.0)):
        with pytest.raises(StoreError, match="is closed"):
            use()
    wait_until(lambda: not activity(postgresql_server, store.url, "true"))


def test_psycopg_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    monkeypatch.delitem(sys.modules, "metta.sweep.stores.postgresql")
    with pytest.raises(MissingExtraError, match=r'pip install "metta-sweep\[postgresql\]"'):
        open_store("postgresql://host/sweeps")


# ---------------------------------------------------------------------------------------------------------- passwords

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:hunter2@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://me:hunter2@host,other/db?sslmode=require", "postgresql://me:***@host,other/db?sslmode=require"),
        ("postgresql://me:hun@hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hun/hunter2@host/db", "postgresql://me:***@host/db"),
        ("postgresql://me:hun?hunter2#x@host/db", "postgresql://me:***@host/db"),
        ("postgresql://:hunter2@host/db", "postgresql://:***@host/db"),
        ("postgres://host/db?user=me&password=hunter2&port=1", "postgres://host/db?user=me&password=***&port=1"),
        ("postgres://host/db?sslpassword=hunter2", "postgres://host/db?sslpassword=***"),
        ("https://me:hunter2@host/db", "https://me:***@host/db"),
        ("sqlite:////data/sweeps.db", "sqlite:////data/sweeps.db"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, shown: str) -> None:
    assert display_url(url) == shown


def everything_said_by(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error) + repr(error.args)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hunter2@127.0.0.1:{closed}/db",
        "postgresql://me:hun@hunter2@127.0.0.1:{closed}/db",
        "postgresql://me:12/hunter2@127.0.0.1:{closed}/db",
        "postgresql://me:hun/hunter2@127.0.0.1:{closed}/db",
        "postgresql://me:hun%hunter2@127.0.0.1:{closed}/db",
        "postgresql://me:hunter2@127.0.0.1:{closed}/db?no_such_option=1",
        "postgresql://127.0.0.1:{closed}/db?user=me&password=hunter2",
        "mysql://me:hunter2@host/db",
    ],
)
def test_no_error_tells_a_password(url: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        for look in (open_reader, open_store):
            with pytest.raises((StoreError, ConfigError), match=r"\*\*\*") as caught:
                look(url.format(closed=nobody.getsockname()[1]))
            assert SECRET not in everything_said_by(caught.value)


def test_a_server_that_wants_a_password_is_told_it_and_nobody_else(
    store: Store, postgresql_server: PostgresqlServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    database = store.url.rpartition("/")[2]
    postgresql_server.execute(f"DROP ROLE IF EXISTS {GUARDED}")
    postgresql_server.execute(f"CREATE ROLE {GUARDED} LOGIN SUPERUSER PASSWORD '{SECRET}'")
    url = postgresql_server.url(database, GUARDED)
    with_password = url.replace(f"{GUARDED}@", f"{GUARDED}:{SECRET}@")
    for wrong, cause in ((url, "no password supplied"), (url.replace("@", ":hunter3@"), "password authentication")):
        with pytest.raises(StoreError, match=rf"{cause}.*PGPASSWORD.*\.pgpass") as caught:
            open_store(wrong)
        assert not isinstance(caught.value, StoreAwayError)
        assert "hunter3" not in everything_said_by(caught.value)
    with closing(open_store(with_password)) as guarded:
        guarded.append(run_events(0))
        assert guarded.url == with_password
        assert SECRET not in repr(guarded) + repr(vars(guarded._database)["_writer"])  # type: ignore[attr-defined]
        postgresql_server.stop()
        with pytest.raises(StoreAwayError, match=rf"{GUARDED}:\*\*\*@") as caught:
            guarded.fetch_sweeps()
        assert SECRET not in everything_said_by(caught.value)
        postgresql_server.start()
    monkeypatch.setenv("PGPASSWORD", SECRET)
    with closing(open_reader(url)) as reader:
        assert len(reader.fetch_runs(SWEEP)) == 1
    assert SECRET not in caplog.text
