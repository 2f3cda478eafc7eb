"""From rows of the tables to the model's objects; none comes through whose hash does not fit."""
# ruff: noqa: PLR0917 (a row has as many columns as it has, and they come in this order)

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import msgspec

from metta.sweep.errors import DamagedStoreError, StoreError
from metta.sweep.model.events import Body, Event
from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import SweepConfig, SweepMetadata
from metta.sweep.protocols import GpuLoad, Heartbeat
from metta.sweep.stores.hashes import event_hash, hash_of, run_hash, sweep_hash

#: Written to the schema table of each store; a store of a later version is refused, one of an earlier version migrated.
SCHEMA_VERSION = 3
#: The version since which heartbeats have GPUs.
GPUS_SINCE = 3
SCHEMA_TABLE = "metta_sweep_schema"
SCHEMA_QUERY = "SELECT version FROM metta_sweep_schema"

#: What the functions below take, in their order.
EVENT_COLUMNS = ("sweep_id", "seq", "id", "at", "actor", "type", "run_id", "job_id", "body", "hash")
SWEEP_COLUMNS = ("sweep_id", "name", "created_at", "seq", "config", "totals", "hash")
RUN_COLUMNS = ("sweep_id", "run_id", "index", "status", "score", "info", "hash")

#: The next step for whoever meets damage.
RESCUE = "nothing was changed; save what can be read of it: metta sweep doctor --recover FILE"


class _Totals(SweepMetadata, frozen=True, kw_only=True):
    """SweepMetadata as its row holds it: the config has a column of its own."""

    config: SweepConfig | None = None  # type: ignore[assignment]


_TOTALS = tuple(name for name in SweepMetadata.__struct_fields__ if name != "config")
_decode_body: Callable[[bytes], Body] = msgspec.json.Decoder(Body).decode
_decode_totals = msgspec.json.Decoder(_Totals).decode
_decode_run = msgspec.json.Decoder(RunInfo).decode
_decode_gpus = msgspec.json.Decoder(tuple[GpuLoad, ...]).decode
_encode = msgspec.json.Encoder().encode


@lru_cache(maxsize=64)
def _decode_config(blob: bytes) -> SweepConfig:
    """Cached, so that a sweep's config, and what its search space has computed, is one object per process."""
    return msgspec.json.decode(blob, type=SweepConfig)


def encode_totals(sweep: SweepMetadata) -> bytes:
    """What the column `totals` holds."""
    return _encode({name: getattr(sweep, name) for name in _TOTALS})


def to_event(
    sweep_id: str,
    seq: int,
    id: str,  # noqa: A002 (the column's name)
    at: float,
    actor: str,
    type: str,  # noqa: A002 (the column's name)
    run_id: str | None,
    job_id: str | None,
    body: bytes,
    written: bytes,
) -> Event:
    """The event in a row of `events`."""
    # A log has many: taking the hash here first saves a call and a conversion, which hardly ever change anything.
    values = ("event", sweep_id, seq, id, at, actor, type, run_id, job_id, body)
    if hash_of(values) != written and event_hash(*values[1:]) != written:
        raise changed(f"sweep {sweep_id}: event {seq}")
    try:
        decoded = _decode_body(body)
    except msgspec.DecodeError as error:
        raise _from_elsewhere(f"sweep {sweep_id}: event {seq} of type {type!r}", error) from error
    return Event(id=id, sweep_id=sweep_id, at=at, actor=actor, body=decoded, run_id=run_id, job_id=job_id, seq=seq)


def to_sweep(
    sweep_id: str, name: str, created_at: float, seq: int, config: bytes, totals: bytes, written: bytes
) -> SweepMetadata:
    """The sweep in a row of `sweeps`."""
    if sweep_hash(sweep_id, name, created_at, seq, config, totals) != written:
        raise changed(f"sweep {sweep_id}: its row in the table of sweeps")
    try:
        decoded = _decode_totals(totals)
        return SweepMetadata(config=_decode_config(config), **{name: getattr(decoded, name) for name in _TOTALS})
    except msgspec.DecodeError as error:
        raise _from_elsewhere(f"sweep {sweep_id}", error) from error


def to_run(
    sweep_id: str, run_id: str, index: int, status: str, score: float | None, info: bytes, written: bytes
) -> RunInfo:
    """The run in a row of `runs`."""
    if run_hash(sweep_id, run_id, index, status, score, info) != written:
        raise changed(f"sweep {sweep_id}: the row of run {run_id}")
    try:
        return _decode_run(info)
    except msgspec.DecodeError as error:
        raise _from_elsewhere(f"sweep {sweep_id}: run {run_id}", error) from error


def to_heartbeat(sweep_id: str, host: str, pid: int, at: float, jobs: int, gpus: bytes | None) -> Heartbeat:
    """The heartbeat in a row of `heartbeats`."""
    decoded = () if gpus is None else _decode_gpus(gpus)
    return Heartbeat(sweep_id=sweep_id, host=host, pid=pid, at=at, jobs=jobs, gpus=decoded)


def changed(what: str) -> DamagedStoreError:
    """The error for a row that is not as it was written."""
    return DamagedStoreError(f"{what} is not as it was written: its hash does not fit; {RESCUE}")


def _from_elsewhere(what: str, error: msgspec.DecodeError) -> StoreError:
    return StoreError(
        f"{what} cannot be read ({error}); it was written so, perhaps by a newer version: upgrade metta-sweep"
    )
