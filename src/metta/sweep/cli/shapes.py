"""The JSON that scripts rely on: names and types here do not change."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from metta.sweep.analysis.progress import estimate_end
from metta.sweep.model.events import Event, reasons_of
from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import SweepMetadata


def run_shape(run: RunInfo) -> dict[str, Any]:
    """One run, as in `best --json`, `list SWEEP --json` and `status --runs --json`."""
    return {
        "run_id": run.run_id,
        "sweep_id": run.sweep_id,
        "index": run.index,
        "status": run.status.value,
        "score": run.score,
        "cost": run.cost,
        "config": run.config,
        "metrics": run.metrics,
        "started_at": moment(run.started_at),
        "ended_at": moment(run.ended_at),
        "failure_reasons": list(run.failure_reasons),
        "partial_score": run.partial_score,
        "progress": run.progress,
        "stop_reason": run.stop_reason,
        "parent": msgspec.to_builtins(run.parent),
    }


def run_detail_shape(run: RunInfo, events: Sequence[Event]) -> dict[str, Any]:
    """One run with its jobs and checkpoints, as in `show --json`."""
    jobs = [
        {
            **msgspec.to_builtins(job),
            **{name: moment(getattr(job, name)) for name in ("granted_at", "started_at", "ended_at")},
        }
        for job in run.jobs
    ]
    checkpoints = [
        {**msgspec.to_builtins(checkpoint), "score": checkpoint.score, "at": moment(checkpoint.at)}
        for checkpoint in run.checkpoints
    ]
    return {
        **run_shape(run),
        "reports": run.reports,
        "reasons": reasons_of(events),
        "jobs": jobs,
        "checkpoints": checkpoints,
    }


def sweep_shape(sweep: SweepMetadata, best: RunInfo | None, *, now: float, controlled: bool) -> dict[str, Any]:
    """One sweep, as in `status --json`."""
    return {
        "sweep_id": sweep.sweep_id,
        "name": sweep.config.name,
        "status": sweep.status.value,
        "reason": sweep.reason,
        "counts": {status.value: count for status, count in sweep.counts.items()},
        "best": run_shape(best) if best is not None else None,
        "seq": sweep.seq,
        "eta": moment(estimate_end(sweep, now)),
        "controlled": controlled,
        "metric": sweep.config.metric,
        "direction": sweep.config.direction,
        "max_trials": sweep.config.max_trials,
        "cost": sweep.cost,
        "created_at": moment(sweep.created_at),
        "ended_at": moment(sweep.ended_at),
    }


def sweep_row_shape(sweep: SweepMetadata, best: RunInfo | None) -> dict[str, Any]:
    """One sweep in `list --json`: the keys of a run, filled with the sweep's own and its best run's values."""
    return {
        "sweep_id": sweep.sweep_id,
        "name": sweep.config.name,
        "run_id": sweep.best_run_id,
        "status": sweep.status.value,
        "counts": {status.value: count for status, count in sweep.counts.items()},
        "score": sweep.best_score,
        "cost": sweep.cost,
        "config": best.config if best is not None else None,
        "metrics": best.metrics if best is not None else None,
        "started_at": moment(sweep.created_at),
        "ended_at": moment(sweep.ended_at),
        "failure_reasons": list(best.failure_reasons) if best is not None else [],
    }


def moment(at: float | None) -> str | None:
    """A time in ISO 8601, UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def print_json(value: Any) -> None:
    """To standard output, readable and complete."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
