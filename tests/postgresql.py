"""A real PostgreSQL server for tests: one a process, started at first use, with a database for each test.

Import the fixtures into a `conftest.py`: `from postgresql import postgresql_server, postgresql_url`.
"""

from __future__ import annotations

import atexit
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path

import psycopg
import pytest

_numbers = count()
#: A user who needs a password; all others are trusted.
GUARDED = "guarded"
_ACCESS = f"""
local all all trust
host all {GUARDED} 127.0.0.1/32 scram-sha-256
host all all 127.0.0.1/32 trust
"""
#: Nothing here outlives the test.
_SETTINGS = (
    "fsync=off",
    "full_page_writes=off",
    "autovacuum=off",
    "shared_buffers=32MB",
    "listen_addresses=127.0.0.1",
)


class PostgresqlServer:
    """A server of its own, in a folder of its own, that may be stopped and started."""

    def __init__(self) -> None:
        self._programs = _find_programs()
        # The server refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 else None
        self.folder = Path(tempfile.mkdtemp(prefix="metta-postgresql-"))
        if self._user is not None:
            account = pwd.getpwnam(self._user)
            os.chown(self.folder, account.pw_uid, account.pw_gid)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._run("initdb", "--username=test", "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
        (self.folder / "data" / "pg_hba.conf").write_text(_ACCESS)
        self._is_running = False
        self.start()

    def start(self) -> None:
        """Returns when it takes connections."""
        if not self._is_running:
            options = [f"-p {self.port}", f"-k {self.folder}", *(f"-c {setting}" for setting in _SETTINGS)]
            log = str(self.folder / "log")
            self._run("pg_ctl", "start", "--wait", "--log", log, "--options", " ".join(options))
            self._is_running = True

    def stop(self, mode: str = "immediate") -> None:
        """As if it crashed (`immediate`), or after telling its clients (`fast`)."""
        if self._is_running:
            self._run("pg_ctl", "stop", "--wait", "--mode", mode)
            self._is_running = False

    def url(self, database: str, user: str = "test") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[object, ...]]:
        """As the superuser."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        said = self.folder / "said"
        with said.open("w") as output:  # not a pipe: the server would keep it open
            done = subprocess.run(
                [self._programs / program, "-D", self.folder / "data", *arguments],
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
                cwd=self.folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            logs = [file.read_text() for file in (said, self.folder / "log") if file.exists()]
            pytest.fail(f"{program} {' '.join(arguments)}: exit code {done.returncode}\n" + "\n".join(logs))


def _find_programs() -> Path:
    on_path = [Path(found).resolve().parent for found in [shutil.which("pg_ctl")] if found]
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: int(folder.parent.name))
    for folder in [*on_path, *reversed(debian)]:
        if (folder / "pg_ctl").exists() and (folder / "initdb").exists():
            return folder
    pytest.fail("these tests need a PostgreSQL server: apt-get install --yes postgresql", pytrace=False)


@cache
def _server() -> PostgresqlServer:
    server = PostgresqlServer()
    atexit.register(server.remove)
    return server


@pytest.fixture
def postgresql_server() -> Iterator[PostgresqlServer]:
    """Runs before the test and after it, whatever the test does to it."""
    server = _server()
    server.start()
    yield server
    server.start()


@pytest.fixture
def postgresql_url(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """Of an empty database."""
    name = f"test{next(_numbers)}"
    postgresql_server.execute(f"CREATE DATABASE {name}")
    yield postgresql_server.url(name)
    postgresql_server.start()
    postgresql_server.execute(f"DROP DATABASE {name} WITH (FORCE)")
