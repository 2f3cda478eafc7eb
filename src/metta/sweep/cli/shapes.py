"""The JSON that scripts rely on: names and types here do not change."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from metta.sweep.analysis.progress import estimate_end
from metta.sweep.model.events import Event, JobExited, reasons_of
from metta.sweep.model.run import RunInfo
from metta.sweep.model.run_metrics import run_metrics
from metta.sweep.model.sweep import SweepMetadata

if TYPE_CHECKING:
    from metta.sweep.analysis.comparison import Comparison
    from metta.sweep.analysis.summary import Analysis
    from metta.sweep.observe.explanations import Explanation
    from metta.sweep.observe.replay import Moment


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
        "run_metrics": run_metrics_shape(run),
        "curves": {
            event.job_id: msgspec.to_builtins(event.body.usage.curves)
            for event in events
            if isinstance(event.body, JobExited)
            and event.body.usage is not None
            and event.body.usage.curves is not None
        },
    }


def run_metrics_shape(run: RunInfo) -> dict[str, Any]:
    """What a run took and what held it up, as in `show --json`."""
    metrics = run_metrics(run, None if run.status.ended else time.time())
    return {**msgspec.to_builtins(metrics), "bottlenecks": [msgspec.to_builtins(each) for each in metrics.bottlenecks]}


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


def moment_shape(past: Moment) -> dict[str, Any]:
    """A sweep as it was, as in `replay --json`: what `status --json` said then."""
    state = past.state
    return sweep_shape(state.sweep, state.best, now=past.at, controlled=past.controlled)


def event_shape(event: Event) -> dict[str, Any]:
    """One event, as a line of `events --json`."""
    body = msgspec.to_builtins(event.body)
    return {
        "seq": event.seq,
        "at": moment(event.at),
        "type": body.pop("type"),
        "actor": event.actor,
        "sweep_id": event.sweep_id,
        "run_id": event.run_id,
        "job_id": event.job_id,
        "body": body,
    }


def explanation_shape(explanation: Explanation) -> dict[str, Any]:
    """One decision, as in `why --json`."""
    return {
        "seq": explanation.seq,
        "at": moment(explanation.at),
        "type": explanation.type,
        "actor": explanation.actor,
        "job_id": explanation.job_id,
        "decision": explanation.decision,
        "because": list(explanation.because),
        "config": explanation.config,
        "acquisition": msgspec.to_builtins(explanation.acquisition),
        "parent": msgspec.to_builtins(explanation.parent),
        "details": explanation.details,
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


def analysis_shape(sweep: SweepMetadata, found: Analysis) -> dict[str, Any]:
    """What came of a sweep, as in `analyze --json`."""
    improvements = [
        {**msgspec.to_builtins(each), "at": moment(each.at)} for each in found.convergence.curve.improvements
    ]
    curve = {**msgspec.to_builtins(found.convergence.curve), "improvements": improvements}
    return {
        "sweep_id": sweep.sweep_id,
        "name": sweep.config.name,
        "status": sweep.status.value,
        "metric": sweep.config.metric,
        "direction": sweep.config.direction,
        "counts": {status.value: count for status, count in sweep.counts.items()},
        **msgspec.to_builtins(found),
        "best": [run_shape(run) for run in found.best],
        "convergence": {**msgspec.to_builtins(found.convergence), "curve": curve},
    }


def comparison_shape(
    sweeps: Sequence[SweepMetadata], found: Comparison, differing: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """Sweeps side by side, as in `compare --json`; each after the first with what differs from that."""
    sides = [
        {
            **msgspec.to_builtins(side),
            "metric": sweep.config.metric,
            "direction": sweep.config.direction,
            "best": side.curve.best,
            "differences": list(lines),
        }
        for sweep, side, lines in zip(sweeps, found.sides, ([], *differing), strict=True)
    ]
    return {**msgspec.to_builtins(found), "sides": sides}


def moment(at: float | None) -> str | None:
    """A time in ISO 8601, UTC."""
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds")


def print_json(value: Any) -> None:
    """To standard output, readable and complete."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")
