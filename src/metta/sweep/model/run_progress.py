"""How far a run is: what an event means for it by what the sweep measures, after `run_transitions` has applied it."""

from __future__ import annotations

from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.fidelity import SECONDS, Fidelity
from metta.sweep.model.run import JobStatus, JobType, Rung, RunInfo


def with_score(run: RunInfo, metric: str, step: int) -> RunInfo:
    """A checkpoint just saved, with what its run had reached by then."""
    score = run.metrics.get(metric)
    checkpoints = [replace(each, score=score) if each.step == step else each for each in run.checkpoints]
    return replace(run, checkpoints=tuple(checkpoints))


def with_inheritance(run: RunInfo, metric: str, score: float | None) -> RunInfo:
    """A run that has just got its parent's checkpoint: what had been reported by then is where it goes on from.

    There may be nothing left for it to report, where that checkpoint is of the end.
    """
    if score is None or metric in run.metrics:
        return run
    job = replace(run.jobs[-1], reported=(*run.jobs[-1].reported, metric))
    return replace(run, metrics={**run.metrics, metric: score}, jobs=(*run.jobs[:-1], job))


def with_progress(
    run: RunInfo, fidelity: Fidelity | None, metric: str, event: Event, body: ev.MetricsReported
) -> RunInfo:
    """A run that has just reported, with how far that is, and the levels it has come to by it.

    What comes late or again, as from an attempt that goes on from an earlier checkpoint, changes nothing: the levels it
    tells of may have been decided about.
    """
    job = run.jobs[-1]
    if fidelity is None or job.type is not JobType.TRAIN:
        return run
    resource = body.metrics.get(fidelity.resource)
    if fidelity.resource == SECONDS:
        resource = run.seconds + max(0.0, event.at - (event.at if job.started_at is None else job.started_at))
    if resource is None or (run.progress is not None and resource <= run.progress):
        return run
    return _come_to(run, fidelity, metric, resource, event.seq)


def with_pause(run: RunInfo, fidelity: Fidelity | None, metric: str, event: Event) -> RunInfo:
    """A run whose job has just ended where it was to end: it has come to that level, whenever it reported last."""
    until = run.jobs[-1].until
    if fidelity is None or until is None or run.status is not JobStatus.PAUSED:
        return run
    return _come_to(run, fidelity, metric, max(until, run.progress or 0.0), event.seq)


def _come_to(run: RunInfo, fidelity: Fidelity, metric: str, resource: float, seq: int) -> RunInfo:
    run = replace(run, progress=resource)
    if (value := run.metrics.get(metric)) is None:
        return run
    reached = [level for level in fidelity.levels[len(run.rungs) :] if level <= resource]
    rungs = [Rung(level=level, value=value, seq=seq) for level in reached]
    return replace(run, rungs=(*run.rungs, *rungs)) if rungs else run
