"""What must always hold of a run, and how a run of which it doesn't is mended: pure functions of the run.

The fold never makes such a run. They come from logs of other versions, from repairs and recoveries, from slipped
fingers in a database, and from faults of our own; found early, they are lines of a report rather than a riddle.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeAlias

import msgspec
from msgspec.structs import replace

from metta.sweep.model.events import StateRepaired
from metta.sweep.model.run import JobInfo, JobState, JobStatus, JobType, Outcome, RunInfo, Undone


class IssueKind(StrEnum):
    """What is wrong."""

    # Of a run by itself.
    OVER = "over"
    NUMBERS = "numbers"
    JOBS = "jobs"
    STATUS = "status"
    ROLLBACK = "rollback"
    SCORE = "score"
    TIMES = "times"
    RETRY = "retry"
    CHECKPOINTS = "checkpoints"
    # Of a run and the world around it.
    NOT_DISPATCHED = "not_dispatched"
    UNDECIDED = "undecided"
    JOB_LOST = "job_lost"
    SILENT_AGENT = "silent_agent"
    STRAY_JOB = "stray_job"
    CLOCK = "clock"
    # Of a sweep as a whole.
    TOTALS = "totals"
    BEST = "best"
    LINEAGE = "lineage"
    # Of what keeps it; looked at by `metta sweep doctor`.
    STORE = "store"
    LOG = "log"
    PROJECTIONS = "projections"
    LEASE = "lease"
    AGENT = "agent"
    CHECKPOINT_FILE = "checkpoint_file"
    DISK = "disk"


class Flaw(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is wrong with a run, and the run without it."""

    kind: IssueKind
    problem: str
    before: RunInfo
    after: RunInfo

    @property
    def repair(self) -> StateRepaired:
        """The event that mends it."""
        names = [name for name in RunInfo.__struct_fields__ if self._differs(name)]
        before, after = ({name: _plain(getattr(run, name)) for name in names} for run in (self.before, self.after))
        return StateRepaired(problem=self.problem, before=before, after=after)

    def _differs(self, name: str) -> bool:
        before, after = getattr(self.before, name), getattr(self.after, name)
        return before is not after and before != after  # NaN, which another rule mends, is not even equal to itself


def _plain(value: Any) -> Any:
    """In JSON's terms, as it comes back from the log."""
    return msgspec.json.decode(msgspec.json.encode(value))


def flaws_of(run: RunInfo, metric: str | None = None, *, is_over: bool = False) -> list[Flaw]:
    """All that is wrong with a run; each flaw begins where the one before it is mended, so the last leaves it sound.

    Args:
        run: The run.
        metric: The sweep's metric, from which a missing score is taken.
        is_over: Whether the sweep has ended, and with it all of its runs.
    """
    flaws: list[Flaw] = []
    for kind, rule in _RULES.items():
        problems, sound = rule(run, metric, is_over)
        if problems:
            flaws.append(Flaw(kind=kind, problem="; ".join(problems), before=run, after=sound))
            run = sound
    return flaws


_Finding: TypeAlias = tuple[list[str], RunInfo]
_Rule: TypeAlias = Callable[[RunInfo, str | None, bool], _Finding]


def _changed(run: RunInfo, findings: Mapping[str, tuple[str, Any]]) -> _Finding:
    """By field: what is wrong with it, and what it should be."""
    changes = {name: value for name, (_, value) in findings.items()}
    return [problem for problem, _ in findings.values()], replace(run, **changes) if changes else run


def _not_over(run: RunInfo, _metric: str | None, is_over: bool) -> _Finding:
    if not is_over or run.status.ended:
        return [], run
    problem = f"it is {run.status} though its sweep has ended"
    reasons = (*run.failure_reasons, "the sweep ended without it")
    return [problem], replace(run, status=JobStatus.CANCELLED, failure_reasons=reasons)


def _numbers(run: RunInfo, _metric: str | None, _is_over: bool) -> _Finding:
    found: dict[str, tuple[str, Any]] = {}
    for name in ("score", "partial_score"):
        if not _is_number(value := getattr(run, name)):
            found[name] = f"{name} is {value}, no finite number", None
    if bad := [name for name, value in run.metrics.items() if not _is_number(value)]:
        good = {name: value for name, value in run.metrics.items() if name not in bad}
        found["metrics"] = f"no finite numbers: metrics {', '.join(bad)}", good
    if not _is_number(run.cost) or run.cost < 0:
        found["cost"] = f"cost is {run.cost} s", _time_spent(run)
    for name in ("reports", "retry_count"):
        if (count := getattr(run, name)) < 0:
            found[name] = f"{name} is {count}", 0
    if run.memory_gb is not None and not (_is_number(run.memory_gb) and run.memory_gb > 0):
        found["memory_gb"] = f"memory_gb is {run.memory_gb}", None
    return _changed(run, found)


def _is_number(value: float | None) -> bool:
    return value is None or math.isfinite(value)


def _time_spent(run: RunInfo) -> float:
    spans = [
        job.ended_at - job.started_at for job in run.jobs if job.started_at is not None and job.ended_at is not None
    ]
    return sum(max(0.0, span) for span in spans)


# ---------------------------------------------------------------------------------------------------------------- jobs


def _jobs(run: RunInfo, _metric: str | None, _is_over: bool) -> _Finding:
    problems: list[str] = []
    jobs: list[JobInfo] = []
    for position, job in enumerate(run.jobs, start=1):
        found = _job_findings(run, job, is_last=position == len(run.jobs))
        problems += [f"job {job.job_id} {problem}" for problem, _ in found]
        for _, changes in found:
            job = replace(job, **changes)  # noqa: PLW2901 (one finding after the other)
        jobs.append(job)
    return problems, replace(run, jobs=tuple(jobs)) if problems else run


def _job_findings(run: RunInfo, job: JobInfo, *, is_last: bool) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    state, started_at, ended_at = job.state, job.started_at, job.ended_at
    if job.outcome is not None and state is not JobState.EXITED:
        found.append((f"is {state} though it {job.outcome}", {"state": (state := JobState.EXITED)}))
    elif job.outcome is None and state is JobState.EXITED:
        found.append(("has exited without an outcome", {"state": (state := JobState.LOST)}))
    elif state.open and not is_last:
        found.append((f"is {state} though another attempt followed", {"state": (state := JobState.LOST)}))
    elif state.open and run.status.ended:
        found.append((f"is {state} though its run is {run.status}", {"state": (state := JobState.LOST)}))
    if state is JobState.RUNNING and started_at is None:
        found.append(("runs without a start time", {"started_at": (started_at := job.granted_at)}))
    first = job.granted_at if started_at is None else started_at
    if state.open and ended_at is not None:
        found.append((f"is {state} and has a time of its end", {"ended_at": None}))
    elif not state.open and ended_at is None:
        found.append(("ended without a time", {"ended_at": first}))
    elif ended_at is not None and started_at is not None and ended_at < started_at:
        problem = f"ended {started_at - ended_at:.3g} s before it started: a clock was set or differs"
        found.append((problem, {"ended_at": started_at}))
    if unknown := [name for name in job.reported if name not in run.metrics]:
        reported = tuple(name for name in job.reported if name in run.metrics)
        found.append((f"reported {', '.join(unknown)}, of which there is no value", {"reported": reported}))
    return found


def _given_up(run: RunInfo) -> tuple[JobInfo, ...]:
    """The run's jobs, the last one as lost."""
    job = run.jobs[-1]
    ended_at = job.granted_at if job.started_at is None else job.started_at
    return (*run.jobs[:-1], replace(job, state=JobState.LOST, ended_at=ended_at))


# -------------------------------------------------------------------------------------------------------------- status

_BEFORE = {JobType.TRAIN: JobStatus.PENDING, JobType.EVAL: JobStatus.TRAINING_DONE_NO_EVAL}
_DURING = {JobType.TRAIN: JobStatus.IN_TRAINING, JobType.EVAL: JobStatus.IN_EVAL}
_AFTER = {JobType.TRAIN: JobStatus.TRAINING_DONE_NO_EVAL, JobType.EVAL: JobStatus.EVAL_DONE_NOT_COMPLETED}
_LEFT_BY = {
    Outcome.CANCELLED: JobStatus.CANCELLED,
    Outcome.INTERRUPTED: JobStatus.CANCELLED,
    Outcome.PAUSED: JobStatus.PAUSED,
    Outcome.STOPPED: JobStatus.PAUSED,
}


def _status(run: RunInfo, _metric: str | None, _is_over: bool) -> _Finding:
    if run.status in _fitting(run):
        return [], run
    has_evaluated = any(job.type is JobType.EVAL for job in run.jobs)
    if has_evaluated and not run.is_trained:
        problem = f"it is {run.status}: evaluated without completing training"
    elif run.status is JobStatus.COMPLETED:
        problem = "completed without a job that trained it" if run.jobs else "completed without any job"
    else:
        problem = f"it is {run.status}, {_standing(run)}"
    if run.status is JobStatus.COMPLETED:
        return [problem], _failed(run, problem)
    if run.open_job is not None and run.open_job.type is JobType.EVAL and not run.is_trained:
        return [problem], replace(run, jobs=_given_up(run), status=JobStatus.PENDING)
    return [problem], replace(run, status=_left_by(run))


def _fitting(run: RunInfo) -> set[JobStatus]:
    """What a run with these jobs may be."""
    job = run.jobs[-1] if run.jobs else None
    if job is not None and job.state.open:
        if job.type is JobType.EVAL and not run.is_trained:
            return set()
        return {_DURING[job.type] if job.state is JobState.RUNNING else _BEFORE[job.type]}
    fitting = {JobStatus.STOPPED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.ROLLED_BACK}
    if job is not None and job.outcome in {Outcome.PAUSED, Outcome.STOPPED}:
        fitting.add(JobStatus.PAUSED)
    if run.is_trained:
        fitting |= {JobStatus.COMPLETED, JobStatus.TRAINING_DONE_NO_EVAL}
    if not run.is_trained or run.resume_from is not None:
        fitting.add(JobStatus.PENDING)
    if job is not None and job.outcome is Outcome.SUCCEEDED and job.type is JobType.EVAL and run.is_trained:
        fitting.add(JobStatus.EVAL_DONE_NOT_COMPLETED)
    if job is not None and job.outcome is not Outcome.SUCCEEDED and job.failure is not None:
        fitting.add(JobStatus.RETRYING)
    return fitting


def _left_by(run: RunInfo) -> JobStatus:
    """Where the last job has left the run, nothing else being known."""
    job = run.jobs[-1] if run.jobs else None
    waiting = JobStatus.TRAINING_DONE_NO_EVAL if run.is_trained and run.resume_from is None else JobStatus.PENDING
    if job is None or (job.type is JobType.EVAL and not run.is_trained):
        return JobStatus.PENDING
    if job.state.open:
        return _DURING[job.type] if job.state is JobState.RUNNING else _BEFORE[job.type]
    if job.outcome is Outcome.SUCCEEDED:
        return _AFTER[job.type]
    if job.outcome in _LEFT_BY:
        return _LEFT_BY[job.outcome]
    if job.failure is not None:
        return JobStatus.RETRYING
    return waiting if job.state is JobState.LOST else JobStatus.FAILED


def _standing(run: RunInfo) -> str:
    if not run.jobs:
        return "but has no job"
    job = run.jobs[-1]
    return f"but its last job {job.job_id} {f'has {job.outcome}' if job.outcome else f'is {job.state}'}"


def _failed(run: RunInfo, reason: str) -> RunInfo:
    return replace(run, status=JobStatus.FAILED, score=None, failure_reasons=(*run.failure_reasons, reason))


# -------------------------------------------------------------------------------------------------------- what follows


def _rollback(run: RunInfo, _metric: str | None, _is_over: bool) -> _Finding:
    undone = run.undone
    found: dict[str, tuple[str, Any]] = {}
    if run.status is not JobStatus.ROLLED_BACK:
        if undone is not None:
            found = {"undone": (f"it is {run.status} and rolled back at once", None)}
    elif undone is None:
        # What it was is not known; cancelled it can be tried again once it is restored.
        undone = Undone(status=JobStatus.CANCELLED, at=run.ended_at or run.created_at)
        found = {"undone": ("rolled back without what it was before", undone)}
    elif not undone.status.ended or undone.status is JobStatus.ROLLED_BACK:
        problem = f"rolled back from {undone.status}, which is no end"
        found = {"undone": (problem, replace(undone, status=JobStatus.CANCELLED, score=None))}
    elif (undone.status is JobStatus.COMPLETED) != (undone.score is not None and _is_number(undone.score)):
        status = JobStatus.FAILED if undone.status is JobStatus.COMPLETED else undone.status
        problem = f"rolled back from {undone.status} with the score {undone.score}"
        found = {"undone": (problem, replace(undone, status=status, score=None))}
    return _changed(run, found)


def _score(run: RunInfo, metric: str | None, _is_over: bool) -> _Finding:
    if run.status is not JobStatus.COMPLETED:
        found = {} if run.score is None else {"score": (f"it has a score though it is {run.status}", None)}
        return _changed(run, found)
    if run.score is not None:
        return [], run
    if metric is not None and metric in run.metrics:
        return _changed(run, {"score": ("completed without a score", run.metrics[metric])})
    return ["completed without a score"], _failed(run, f"no value of the metric {metric or 'that counts'} is known")


def _times(run: RunInfo, _metric: str | None, _is_over: bool) -> _Finding:
    found: dict[str, tuple[str, Any]] = {}
    started_at, ended_at = run.started_at, run.ended_at
    if started_at is None:
        started_at = next((job.started_at for job in run.jobs if job.started_at is not None), None)
        if started_at is None and run.status is JobStatus.COMPLETED:
            started_at = run.jobs[0].granted_at
        if started_at is not None:
            found["started_at"] = f"{run.status} without start time", started_at
    latest = max((job.ended_at for job in run.jobs if job.ended_at is not None), default=None)
    if not run.status.ended:
        if ended_at is not None:
            found["ended_at"] = f"it is {run.status} and has a time of its end", None
    elif ended_at is None:
        known = [at for at in (latest, started_at, run.created_at) if at is not None]
        found["ended_at"] = f"{run.status} without a time of its end", max(known)
    elif started_at is not None and ended_at < started_at:
        problem = f"ended {started_at - ended_at:.3g} s before it started: a clock was set or differs"
        found["ended_at"] = problem, max(started_at, latest or started_at)
    return _changed(run, found)


def _retry(run: RunInfo, _metric: str | None, _is_over: bool) -> _Finding:
    if run.retry_at is None or (run.status is JobStatus.RETRYING and math.isfinite(run.retry_at)):
        return [], run
    return _changed(run, {"retry_at": (f"it is {run.status} and is to be retried at {run.retry_at:.0f}", None)})


def _checkpoints(run: RunInfo, _metric: str | None, _is_over: bool) -> _Finding:
    by_step = {each.step: each if _is_number(each.score) else replace(each, score=None) for each in run.checkpoints}
    sound = tuple(by_step[step] for step in sorted(by_step))
    if sound == run.checkpoints:
        return [], run
    return _changed(run, {"checkpoints": ("checkpoints are out of order, double, or have scores that are none", sound)})


#: In this order: what a later one looks at, the earlier ones have mended.
_RULES: dict[IssueKind, _Rule] = {
    IssueKind.OVER: _not_over,
    IssueKind.NUMBERS: _numbers,
    IssueKind.JOBS: _jobs,
    IssueKind.STATUS: _status,
    IssueKind.ROLLBACK: _rollback,
    IssueKind.SCORE: _score,
    IssueKind.TIMES: _times,
    IssueKind.RETRY: _retry,
    IssueKind.CHECKPOINTS: _checkpoints,
}
