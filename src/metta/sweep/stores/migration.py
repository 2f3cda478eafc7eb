"""SQLite stores of earlier versions; what little differs in those of PostgreSQL is in `postgresql.py`.

Version 1 had no hashes. What its rows are when they get theirs is taken for what was written. Version 2 had heartbeats
without GPUs.
"""
# ruff: noqa: S608 (statements are put together from constants of this file)

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence

from metta.sweep.stores.hashes import event_hash, run_hash, sweep_hash
from metta.sweep.stores.rows import (
    EVENT_COLUMNS,
    GPUS_SINCE,
    RUN_COLUMNS,
    SCHEMA_QUERY,
    SCHEMA_TABLE,
    SCHEMA_VERSION,
    SWEEP_COLUMNS,
)

#: The version since which rows have hashes.
HASHES_SINCE = 2
#: Each table, what its rows are hashed by, and its columns without the hash.
_HASHED: dict[str, tuple[Callable[..., bytes], Sequence[str]]] = {
    "events": (event_hash, EVENT_COLUMNS[:-1]),
    "sweeps": (sweep_hash, SWEEP_COLUMNS[:-1]),
    "runs": (run_hash, RUN_COLUMNS[:-1]),
}

# As version 2 has them, whatever later versions will do. The tables are made anew, rather than given another column, so
# that a process of the old version which still writes is refused: it knows of no hashes, and they may not be NULL.
_TABLES = """
CREATE TABLE events (
    sweep_id VARCHAR NOT NULL, seq INTEGER NOT NULL, id VARCHAR NOT NULL, at FLOAT NOT NULL, actor VARCHAR NOT NULL,
    type VARCHAR NOT NULL, run_id VARCHAR, job_id VARCHAR, body BLOB NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (sweep_id, seq), UNIQUE (id)
) WITHOUT ROWID;
CREATE TABLE sweeps (
    sweep_id VARCHAR NOT NULL, name VARCHAR NOT NULL, created_at FLOAT NOT NULL, seq INTEGER NOT NULL,
    config BLOB NOT NULL, totals BLOB NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (sweep_id), UNIQUE (name)
);
CREATE TABLE runs (
    sweep_id VARCHAR NOT NULL, run_id VARCHAR NOT NULL, "index" INTEGER NOT NULL, status VARCHAR NOT NULL,
    score FLOAT, info BLOB NOT NULL, hash BLOB NOT NULL,
    PRIMARY KEY (sweep_id, run_id)
);
CREATE INDEX runs_by_index ON runs (sweep_id, "index");
CREATE INDEX runs_by_score ON runs (sweep_id, score);
"""


def migrate(connection: sqlite3.Connection) -> None:
    """Bring a store up to date, in one transaction; nothing is done when another process was faster."""
    _define_hashes(connection)
    connection.execute("BEGIN IMMEDIATE")
    try:
        [(version,)] = connection.execute(SCHEMA_QUERY)
        if version < HASHES_SINCE:
            for index in ("runs_by_index", "runs_by_score"):
                connection.execute(f"DROP INDEX {index}")
            for table in _HASHED:
                connection.execute(f"ALTER TABLE {table} RENAME TO {table}_1")
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            for table in _HASHED:
                connection.execute(f"INSERT INTO {table} {_with_hashes(table, f'{table}_1')}")
                connection.execute(f"DROP TABLE {table}_1")
        if version < GPUS_SINCE:
            connection.execute("ALTER TABLE heartbeats ADD COLUMN gpus BLOB")
        connection.execute(f"UPDATE {SCHEMA_TABLE} SET version = {SCHEMA_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # a full disk has ended it already
            connection.execute("ROLLBACK")
        raise


def show_as_current(connection: sqlite3.Connection) -> None:
    """Let a reader see a store of version 1 as one that has hashes, which only a writer may make of it."""
    _define_hashes(connection)
    for table in _HASHED:
        # A temporary view hides the table of its name.
        connection.execute(f"CREATE TEMP VIEW {table} AS {_with_hashes(table, f'main.{table}')}")


def _define_hashes(connection: sqlite3.Connection) -> None:
    for table, (hash_of, columns) in _HASHED.items():
        connection.create_function(f"hash_of_{table}", len(columns), hash_of, deterministic=True)


def _with_hashes(table: str, source: str) -> str:
    columns = ", ".join(f'"{column}"' for column in _HASHED[table][1])
    return f"SELECT {columns}, hash_of_{table}({columns}) AS hash FROM {source}"
