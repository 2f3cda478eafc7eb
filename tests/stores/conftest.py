"""Stores in both databases."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from metta.sweep.protocols import Store
from metta.sweep.stores import open_store
from metta.sweep.testing import sweep_created
from postgresql import postgresql_server, postgresql_url  # noqa: F401 (fixtures)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a store that does not exist yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/sweeps.db"
    return str(request.getfixturevalue("postgresql_url"))


@pytest.fixture
def any_store(url: str) -> Iterator[Store]:
    """A store with one sweep."""
    with closing(open_store(url, create=True)) as store:
        store.append([sweep_created()])
        yield store


@pytest.fixture
def execute(url: str) -> Callable[..., int]:
    """Does something to the database that the store knows nothing of; returns how many rows it changed."""

    def execute(statement: str, *values: object) -> int:
        if url.startswith("sqlite"):
            with closing(sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)) as file:
                return file.execute(statement, values).rowcount
        with psycopg.connect(url, autocommit=True) as connection:
            return connection.execute(statement.replace("?", "%s").encode(), values).rowcount

    return execute
