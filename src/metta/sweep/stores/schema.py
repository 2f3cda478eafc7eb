"""Tables of the SQL store: `events` is the truth; `sweeps` and `runs` are projections written along with it.

Their rows end with a hash of their other columns (`hashes.py`). Leases and heartbeats have none: they live for seconds.
"""

from __future__ import annotations

from sqlalchemy import Column, Connection, Float, Index, Integer, LargeBinary, MetaData, String, Table, insert

from metta.sweep.stores.rows import SCHEMA_TABLE, SCHEMA_VERSION

METADATA = MetaData()

#: Sorted by code points, as SQLite and Python do, whatever language a PostgreSQL server was set up for.
_TEXT = String().with_variant(String(collation="C"), "postgresql")

SCHEMA = Table(SCHEMA_TABLE, METADATA, Column("version", Integer, nullable=False))

EVENTS = Table(
    "events",
    METADATA,
    Column("sweep_id", _TEXT, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("id", _TEXT, nullable=False, unique=True),
    Column("at", Float, nullable=False),
    Column("actor", _TEXT, nullable=False),
    Column("type", _TEXT, nullable=False),
    Column("run_id", _TEXT),
    Column("job_id", _TEXT),
    #: JSON; see model/events.py.
    Column("body", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

SWEEPS = Table(
    "sweeps",
    METADATA,
    Column("sweep_id", _TEXT, primary_key=True),
    Column("name", _TEXT, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("seq", Integer, nullable=False),
    #: SweepConfig as JSON; apart from the rest because it hardly ever changes.
    Column("config", LargeBinary, nullable=False),
    #: SweepMetadata without its config, as JSON.
    Column("totals", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)

RUNS = Table(
    "runs",
    METADATA,
    Column("sweep_id", _TEXT, primary_key=True),
    Column("run_id", _TEXT, primary_key=True),
    Column("index", Integer, nullable=False),
    Column("status", _TEXT, nullable=False),
    Column("score", Float),
    #: RunInfo as JSON.
    Column("info", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Index("runs_by_index", "sweep_id", "index"),
    Index("runs_by_score", "sweep_id", "score"),
    # SQLite prefers the order of `runs_by_index` to it, with and without statistics.
    Index("runs_by_status", "sweep_id", "status").ddl_if(dialect="postgresql"),
)

LEASES = Table(
    "leases",
    METADATA,
    Column("sweep_id", _TEXT, primary_key=True),
    Column("holder", _TEXT),
    Column("fence", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),
)

HEARTBEATS = Table(
    "heartbeats",
    METADATA,
    Column("sweep_id", _TEXT, primary_key=True),
    Column("host", _TEXT, primary_key=True),
    Column("pid", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("jobs", Integer, nullable=False),
    #: JSON; nothing where there are none.
    Column("gpus", LargeBinary),
)


def create_tables(connection: Connection) -> None:
    """Make an empty store in a database that has none."""
    METADATA.create_all(connection, checkfirst=False)
    connection.execute(insert(SCHEMA).values(version=SCHEMA_VERSION))
