"""What is left to do in a sweep and how long such work took so far, read off its state for the estimate of its end."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import msgspec

from metta.sweep.model.run import JobStatus, JobType, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.trail import Trail

#: Ended runs that durations are taken from: the latest, because what a search tries changes as it goes on. For each
#: slot so many at least, or runs that are short, and therefore end first, would count for too much.
_SAMPLED, _SAMPLED_PER_SLOT = 200, 4


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """All that the end of a sweep depends on. Times are in seconds, moments in seconds from now."""

    #: Train jobs at one time, and eval jobs.
    train_slots: int
    eval_slots: int
    #: Times that the latest runs have spent in train jobs, and in eval jobs: all attempts, with what it took to start
    #: them. Failed runs are among them, so their share is part of what is expected.
    trained_s: list[float]
    evaluated_s: list[float]
    #: Times that the runs in training have spent in it already, and those in evaluation in that.
    in_training_s: list[float]
    in_evaluation_s: list[float]
    #: Moments from which the runs that wait for a train job may have it.
    waiting: list[float]
    #: Runs that wait for an eval job.
    unevaluated: int
    #: New runs to come; None where only a budget ends the sweep.
    new_runs: int | None
    #: No new run starts later than this.
    last_start: float | None
    #: Nor once the jobs together have used so much more.
    compute_left_s: float | None

    @property
    def is_bounded(self) -> bool:
        """Whether the sweep has an end that could be estimated."""
        return not (self.new_runs is None and self.last_start is None and self.compute_left_s is None)


def workload_of(state: SweepState, now: float, capacity: int | None = None) -> Workload:
    """What is left to do of a sweep.

    Looks at the runs that have not ended and at the latest of those that have, so it takes no longer in a sweep of a
    million runs than in one of a thousand.
    """
    config = state.sweep.config
    slots = config.max_parallel if capacity is None else max(1, min(config.max_parallel, capacity))
    ended = list(islice(_ended(state), max(_SAMPLED, _SAMPLED_PER_SLOT * slots)))
    trained = [_time_in(run, JobType.TRAIN, run.created_at) for run in ended]
    evaluated = [_time_in(run, JobType.EVAL, run.created_at) for run in ended] if config.evaluate is not None else []
    in_training: list[float] = []
    in_evaluation: list[float] = []
    waiting: list[float] = []
    unevaluated = 0
    spent_s = state.sweep.cost
    for run_id in sorted(state.unfinished):
        run = state.runs[run_id]
        job = run.open_job
        waits_for_evaluation = job is None and run.status is JobStatus.TRAINING_DONE_NO_EVAL
        if job is not None:
            (in_training if job.type is JobType.TRAIN else in_evaluation).append(_time_in(run, job.type, now))
            spent_s += max(0.0, now - job.started_at) if job.started_at is not None else 0.0
        elif waits_for_evaluation:
            unevaluated += 1
        elif run.status is not JobStatus.EVAL_DONE_NOT_COMPLETED:
            waiting.append(max(0.0, run.retry_at - now) if run.retry_at is not None else 0.0)
        if waits_for_evaluation or (job is not None and job.type is JobType.EVAL):
            trained.append(_time_in(run, JobType.TRAIN, now))
    total = _total_runs(state)
    return Workload(
        train_slots=slots,
        eval_slots=config.max_parallel_eval,
        trained_s=trained,
        evaluated_s=evaluated,
        in_training_s=in_training,
        in_evaluation_s=in_evaluation,
        waiting=sorted(waiting),
        unevaluated=unevaluated if config.evaluate is not None else 0,
        new_runs=None if total is None else max(0, total - state.sweep.trial_count),
        last_start=None if config.max_hours is None else state.sweep.created_at + config.max_hours * 3600 - now,
        compute_left_s=None if config.budget_hours is None else config.budget_hours * 3600 - spent_s,
    )


def progress_of(state: SweepState) -> float | None:
    """The part of its limits that a sweep has used, from 0 to 1; None where it has none.

    A pure function of the state, so the time that counts against `max_hours` is that of the latest end of a run.
    """
    sweep = state.sweep
    config = sweep.config
    parts: list[float] = []
    total = _total_runs(state)
    if total is not None:
        parts.append(sweep.ended_count / total if total else 1.0)
    if config.budget_hours is not None:
        parts.append(sweep.cost / (config.budget_hours * 3600))
    if config.max_hours is not None:
        ended_at = next((run.ended_at for run in _ended(state) if run.ended_at is not None), sweep.created_at)
        parts.append((ended_at - sweep.created_at) / (config.max_hours * 3600))
    return min(1.0, max(0.0, *parts)) if parts else None


def _total_runs(state: SweepState) -> int | None:
    """All runs that there can be, as far as the limit or a finite space says."""
    config = state.sweep.config
    cardinality = config.search_space.cardinality
    in_space = None if cardinality is None else state.sweep.trial_count + max(0, cardinality - len(state.tried))
    totals = [total for total in (config.max_trials, in_space) if total is not None]
    return min(totals) if totals else None


def _ended(state: SweepState) -> Iterator[RunInfo]:
    """Runs that were completed or failed, the latest first."""
    seen: set[str] = set()
    entry: Trail | None = state.trail
    while entry is not None:
        run = state.runs[entry.run_id]
        if entry.run_id not in seen and run.status in {JobStatus.COMPLETED, JobStatus.FAILED}:
            seen.add(entry.run_id)
            yield run
        entry = entry.earlier


def _time_in(run: RunInfo, job_type: JobType, now: float) -> float:
    """How long a run has held slots of this kind: from the grant of each attempt to its end, or until now."""
    jobs = [job for job in run.jobs if job.type is job_type]
    return sum(max(0.0, (now if job.ended_at is None else job.ended_at) - job.granted_at) for job in jobs)
