"""A hash a row, so that a row which is not as it was written is found when it is read.

Each takes the row's other columns as a database gives them back. They stand for what the columns hold, not for how they
are kept: the same row hashes the same in SQLite and in PostgreSQL.
"""
# ruff: noqa: PLR0917 (a row has as many columns as it has, and they come in this order)

from __future__ import annotations

from hashlib import blake2b

import msgspec

#: Bytes of a hash: changes come from failing disks and slipped fingers, not from forgers.
SIZE = 8

# Values in msgpack carry their types and lengths, so that no two rows look the same.
_encode = msgspec.msgpack.Encoder().encode


def hash_of(values: tuple[object, ...]) -> bytes:
    """The hash of a row's table and columns, as they are."""
    return blake2b(_encode(values), digest_size=SIZE).digest()


def event_hash(
    sweep_id: str,
    seq: int,
    id: str,  # noqa: A002 (the column's name)
    at: float,
    actor: str,
    type: str,  # noqa: A002 (the column's name)
    run_id: str | None,
    job_id: str | None,
    body: bytes,
) -> bytes:
    """The hash of a row of `events`."""
    values = ("event", sweep_id, seq, id, _real(at), actor, type, run_id, job_id, body)
    return hash_of(values)


def sweep_hash(sweep_id: str, name: str, created_at: float, seq: int, config: bytes, totals: bytes) -> bytes:
    """The hash of a row of `sweeps`."""
    values = ("sweep", sweep_id, name, _real(created_at), seq, config, totals)
    return hash_of(values)


def run_hash(sweep_id: str, run_id: str, index: int, status: str, score: float | None, info: bytes) -> bytes:
    """The hash of a row of `runs`."""
    values = ("run", sweep_id, run_id, index, status, _real(score), info)
    return hash_of(values)


def _real(value: float | None) -> float | None:
    """As a column of floating-point numbers gives it back: SQLite knows neither integers nor -0.0 there.

    What is no number, which only a damaged row has, stays as it is.
    """
    try:
        return value + 0.0  # type: ignore[operator]
    except TypeError:
        return value
