"""Tables of the SQL store: `events` is the truth; `sweeps` and `runs` are projections written along with it."""

from __future__ import annotations

from sqlalchemy import Column, Float, Index, Integer, LargeBinary, MetaData, String, Table

from metta.sweep.stores.reader import SCHEMA_TABLE

METADATA = MetaData()

SCHEMA = Table(SCHEMA_TABLE, METADATA, Column("version", Integer, nullable=False))

EVENTS = Table(
    "events",
    METADATA,
    Column("sweep_id", String, primary_key=True),
    Column("seq", Integer, primary_key=True),
    Column("id", String, nullable=False, unique=True),
    Column("at", Float, nullable=False),
    Column("actor", String, nullable=False),
    Column("type", String, nullable=False),
    Column("run_id", String),
    Column("job_id", String),
    #: JSON; see model/events.py.
    Column("body", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

SWEEPS = Table(
    "sweeps",
    METADATA,
    Column("sweep_id", String, primary_key=True),
    Column("name", String, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("seq", Integer, nullable=False),
    #: SweepConfig as JSON; apart from the rest because it hardly ever changes.
    Column("config", LargeBinary, nullable=False),
    #: SweepMetadata without its config, as JSON.
    Column("totals", LargeBinary, nullable=False),
)

RUNS = Table(
    "runs",
    METADATA,
    Column("sweep_id", String, primary_key=True),
    Column("run_id", String, primary_key=True),
    Column("index", Integer, nullable=False),
    Column("status", String, nullable=False),
    Column("score", Float),
    #: RunInfo as JSON.
    Column("info", LargeBinary, nullable=False),
    Index("runs_by_index", "sweep_id", "index"),
    Index("runs_by_status", "sweep_id", "status"),
    Index("runs_by_score", "sweep_id", "score"),
)

LEASES = Table(
    "leases",
    METADATA,
    Column("sweep_id", String, primary_key=True),
    Column("holder", String),
    Column("fence", Integer, nullable=False),
    Column("expires_at", Float, nullable=False),
)

HEARTBEATS = Table(
    "heartbeats",
    METADATA,
    Column("sweep_id", String, primary_key=True),
    Column("host", String, primary_key=True),
    Column("pid", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("jobs", Integer, nullable=False),
)
