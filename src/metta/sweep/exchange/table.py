"""A sweep's runs as a table: CSV and Parquet."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec

from metta.sweep.errors import MissingExtraError
from metta.sweep.model.run import RunInfo

_PLAIN = (bool, int, float, str)


def columns(runs: Sequence[RunInfo]) -> dict[str, list[Any]]:
    """A column for each fact, a row for each run in order of their indices; None for what a run does not have.

    Values of parameters that are no single number or word stand as JSON, and so do all of a parameter's or metric's
    values where they are of several types.
    """
    table: dict[str, list[Any]] = {
        "run_id": [run.run_id for run in runs],
        "index": [run.index for run in runs],
        "status": [run.status.value for run in runs],
        "score": [run.score for run in runs],
        "partial_score": [run.partial_score for run in runs],
        "cost": [run.cost for run in runs],
        "progress": [run.progress for run in runs],
        "created_at": [_moment(run.created_at) for run in runs],
        "started_at": [_moment(run.started_at) for run in runs],
        "ended_at": [_moment(run.ended_at) for run in runs],
        "failure": [run.failure_reasons[-1] if run.failure_reasons else None for run in runs],
        "parent": [run.parent.run_id if run.parent is not None else None for run in runs],
    }
    for group in ("config", "metrics"):
        of_runs = [getattr(run, group) for run in runs]
        for name in dict.fromkeys(name for values in of_runs for name in values):
            table[f"{group}.{name}"] = _of_one_type([values.get(name) for values in of_runs])
    return table


def to_csv(runs: Sequence[RunInfo]) -> str:
    """As CSV (RFC 4180), with a line of headings."""
    table = columns(runs)
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue()


def to_parquet(runs: Sequence[RunInfo], path: Path) -> None:
    """As a Parquet file.

    Raises:
        MissingExtraError: PyArrow is not installed.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError(
            'export: Parquet needs PyArrow; install it with: pip install "metta-sweep[parquet]"'
        ) from error
    parquet.write_table(pyarrow.table(columns(runs)), path)


def _of_one_type(values: list[Any]) -> list[Any]:
    kinds = {type(value) for value in values if value is not None}
    if len(kinds) <= 1 and kinds <= set(_PLAIN):
        return values
    if kinds <= {int, float}:
        return [None if value is None else float(value) for value in values]
    return [None if value is None else msgspec.json.encode(value).decode() for value in values]


def _moment(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")
