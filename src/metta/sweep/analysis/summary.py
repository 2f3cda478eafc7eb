"""What a sweep came to: its best runs, what mattered, how it converged, what failed, what held it up, what it cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from metta.sweep.analysis.bottlenecks import SweepBottleneck, sweep_bottlenecks
from metta.sweep.analysis.comparable import best_first, comparable
from metta.sweep.analysis.curve import Curve, curve_of
from metta.sweep.analysis.importance import Importance, importance
from metta.sweep.errors import MissingExtraError
from metta.sweep.model.run import JobInfo, JobStatus, RunInfo
from metta.sweep.model.sweep import SweepMetadata

#: The part of the sweep, at its end, of which one asks what it still brought.
_LAST = 0.25


class Convergence(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the search was still finding better ones."""

    curve: Curve
    #: Runs that have ended since the best one did.
    runs_since_best: int
    #: The runs of the last quarter, and by how much they improved the best score; None where nothing was found before.
    last_runs: int
    last_gain: float | None


class FailureClass(msgspec.Struct, frozen=True, kw_only=True):
    """Failures of one kind at the same place."""

    #: As of `FailureKind`; None where it is not known, or was found after the job.
    kind: str | None
    #: Equal for failures at the same place of the code.
    signature: str | None
    attempts: int
    #: How many runs met it, and how many of those have failed for good.
    runs: int
    failed_runs: int
    #: Wall seconds of the attempts that ended so.
    seconds: float
    #: One of the runs, and what it said.
    example: str
    reason: str


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Compute seconds: wall time of jobs, added up."""

    total: float
    #: Of runs by their status.
    by_status: dict[str, float]
    #: Of one completed run; None without one.
    median_run: float | None
    #: From the sweep's creation to its end, or to the last that happened to a run.
    elapsed: float
    #: `total` as a part of what `max_parallel` slots could have done in that time; evaluations have slots of their own.
    used: float | None


class Analysis(msgspec.Struct, frozen=True, kw_only=True):
    """All of it."""

    best: tuple[RunInfo, ...]
    importance: Importance | None
    #: Why there is no importance.
    importance_note: str | None
    convergence: Convergence
    failures: tuple[FailureClass, ...]
    bottlenecks: tuple[SweepBottleneck, ...]
    cost: Cost


def analyse(sweep: SweepMetadata, runs: Sequence[RunInfo], *, top: int = 5) -> Analysis:
    """What came of a sweep, from all its runs."""
    found, note = _importance(sweep, runs)
    return Analysis(
        best=tuple(best_first(sweep.config, runs)[:top]),
        importance=found,
        importance_note=note,
        convergence=_convergence(sweep, runs),
        failures=_failures(runs),
        bottlenecks=tuple(sweep_bottlenecks(runs)),
        cost=_cost(sweep, runs),
    )


def _importance(sweep: SweepMetadata, runs: Sequence[RunInfo]) -> tuple[Importance | None, str | None]:
    compared = comparable(sweep.config, runs)
    try:
        found = importance(sweep.config.search_space, compared, maximize=sweep.config.direction == "maximize")
    except MissingExtraError as error:
        return None, str(error)
    if found is not None:
        return found, None
    return (
        None,
        f"nothing to learn from {len(compared.values)} comparable runs; "
        "it takes ten that differ in what they tried and in their score",
    )


def _convergence(sweep: SweepMetadata, runs: Sequence[RunInfo]) -> Convergence:
    curve = curve_of(sweep.config, runs)
    last_runs = round(curve.runs * _LAST)
    before, best = curve.after_runs(curve.runs - last_runs), curve.best
    return Convergence(
        curve=curve,
        runs_since_best=curve.runs - curve.improvements[-1].runs if curve.improvements else curve.runs,
        last_runs=last_runs,
        last_gain=None if before is None or best is None else abs(best - before),
    )


def _failures(runs: Iterable[RunInfo]) -> tuple[FailureClass, ...]:
    met: dict[tuple[str | None, str | None], list[tuple[RunInfo, JobInfo | None]]] = defaultdict(list)
    for run in runs:
        failed = [job for job in run.jobs if job.failure is not None]
        for job in failed:
            met[job.failure, job.signature].append((run, job))
        if run.status is JobStatus.FAILED and not failed:
            met[None, run.failure_reasons[-1] if run.failure_reasons else None].append((run, None))
    classes = [_failure_class(kind, signature, cases) for (kind, signature), cases in met.items()]
    return tuple(sorted(classes, key=lambda each: (-each.failed_runs, -each.attempts)))


def _failure_class(
    kind: str | None, signature: str | None, cases: Sequence[tuple[RunInfo, JobInfo | None]]
) -> FailureClass:
    runs = {run.run_id: run for run, _ in cases}
    example = cases[-1][0]
    return FailureClass(
        kind=None if kind is None else str(kind),
        signature=signature,
        attempts=len(cases),
        runs=len(runs),
        failed_runs=sum(run.status is JobStatus.FAILED for run in runs.values()),
        seconds=sum(_seconds(job) for _, job in cases if job is not None),
        example=example.run_id,
        reason=example.failure_reasons[-1] if example.failure_reasons else "",
    )


def _seconds(job: JobInfo) -> float:
    return 0.0 if job.started_at is None or job.ended_at is None else max(0.0, job.ended_at - job.started_at)


def _cost(sweep: SweepMetadata, runs: Sequence[RunInfo]) -> Cost:
    by_status: dict[str, float] = defaultdict(float)
    for run in runs:
        by_status[run.status.value] += run.cost
    whole = [run.cost for run in runs if run.status is JobStatus.COMPLETED]
    latest = max((run.ended_at or run.started_at or run.created_at for run in runs), default=sweep.created_at)
    elapsed = max(0.0, (sweep.ended_at or latest) - sweep.created_at)
    return Cost(
        total=sweep.cost,
        by_status=dict(sorted(by_status.items(), key=lambda item: -item[1])),
        median_run=median(whole) if whole else None,
        elapsed=elapsed,
        used=sweep.cost / (elapsed * sweep.config.max_parallel) if elapsed else None,
    )
