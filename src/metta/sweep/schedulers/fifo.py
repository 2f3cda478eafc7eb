"""First come, first served: keep every slot busy, evaluate what is trained, end when nothing is left."""

from __future__ import annotations

from metta.sweep.model.run import JobStatus, JobType, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.protocols import CreateRuns, StartJob, Wish

_WAITS_FOR = {JobStatus.PENDING: JobType.TRAIN, JobStatus.TRAINING_DONE_NO_EVAL: JobType.EVAL}


class FifoScheduler:
    """Runs at most `max_parallel` train jobs and `max_parallel_eval` eval jobs, oldest runs first.

    Eval jobs come before new training where capacity is shared, so that results, and the best so far, are known early.
    """

    def schedule(self, state: SweepState, capacity: int | None) -> list[Wish]:
        """See `Scheduler.schedule`."""
        config = state.sweep.config
        slots = {JobType.EVAL: config.max_parallel_eval, JobType.TRAIN: config.max_parallel}
        room = capacity
        waiting: dict[JobType, list[RunInfo]] = {JobType.EVAL: [], JobType.TRAIN: []}
        for run_id in state.unfinished:
            run = state.runs[run_id]
            if run.open_job is not None:
                slots[run.open_job.type] -= 1
                room = None if room is None else room - 1
            elif run.status in _WAITS_FOR:
                waiting[_WAITS_FOR[run.status]].append(run)

        wishes: list[Wish] = []
        for job_type, runs in waiting.items():
            limit = _least(slots[job_type], room)
            for run in sorted(runs, key=lambda run: run.index)[:limit]:
                reason = f"run {run.index} is next for {job_type}; {slots[job_type]} free {job_type} slots"
                wishes.append(StartJob(run_id=run.run_id, type=job_type, reasons=(reason,)))
                slots[job_type] -= 1
                room = None if room is None else room - 1
        new = _least(slots[JobType.TRAIN], room, _trials_left(state))
        if new > 0:
            busy = config.max_parallel - slots[JobType.TRAIN]
            wishes.append(CreateRuns(count=new, reasons=(f"{busy} of {config.max_parallel} train slots are taken",)))
        return wishes


def _trials_left(state: SweepState) -> int | None:
    limit = state.sweep.config.max_trials
    return None if limit is None else limit - state.sweep.trial_count


def _least(number: int, *limits: int | None) -> int:
    return max(0, min([number, *(limit for limit in limits if limit is not None)]))
