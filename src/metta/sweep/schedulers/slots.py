"""Free slots, and the jobs of existing runs that go into them first: what all schedulers have in common."""

from __future__ import annotations

from metta.sweep.model.run import JobType, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.waiting import WaitsFor
from metta.sweep.protocols import StartJob


class Slots:
    """How many jobs of each kind may start beside those that are open.

    Args:
        state: The sweep.
        capacity: As of `Scheduler.schedule`.
    """

    def __init__(self, state: SweepState, capacity: int | None) -> None:
        config = state.sweep.config
        self._free = {JobType.EVAL: config.max_parallel_eval, JobType.TRAIN: config.max_parallel}
        self._room = capacity
        self._state = state
        self.take(JobType.TRAIN, state.count_waiting(WaitsFor.TRAINING))
        self.take(JobType.EVAL, state.count_waiting(WaitsFor.EVALUATION))
        for run in state.waiting_for(WaitsFor.DISPATCH, WaitsFor.STOP):
            assert run.open_job is not None
            self.take(run.open_job.type)
        limit = config.max_trials
        self._trials = None if limit is None else limit - state.sweep.trial_count
        self._most_trained = config.max_parallel

    def take(self, job_type: JobType, count: int = 1) -> None:
        """These will be open too."""
        self._free[job_type] -= count
        self._room = None if self._room is None else self._room - count

    def free(self, job_type: JobType) -> int:
        """How many more jobs of this kind may start."""
        free = self._free[job_type]
        return max(0, free if self._room is None else min(free, self._room))

    @property
    def paused(self) -> list[RunInfo]:
        """Runs trained up to some level that nothing is decided about, oldest first."""
        return self._state.waiting_for(WaitsFor.PROMOTION)

    @property
    def new(self) -> int:
        """How many new runs may start."""
        free = self.free(JobType.TRAIN)
        return free if self._trials is None else max(0, min(free, self._trials))

    @property
    def are_trials_left(self) -> bool:
        """Whether the limit of trials allows for another run."""
        return self._trials is None or self._trials > 0

    @property
    def reason(self) -> str:
        """How many train slots are taken."""
        return f"{self._most_trained - self._free[JobType.TRAIN]} of {self._most_trained} train slots are taken"

    def fill(self) -> list[StartJob]:
        """Jobs for the runs that wait, oldest first; eval jobs before train jobs."""
        wishes: list[StartJob] = []
        for job_type, slot in ((JobType.EVAL, WaitsFor.EVAL_SLOT), (JobType.TRAIN, WaitsFor.TRAIN_SLOT)):
            for run in self._state.waiting_for(slot)[: self.free(job_type)]:
                reason = f"run {run.index} is next for {job_type}; {self._free[job_type]} free {job_type} slots"
                # A job that takes the place of one that was lost is to come as far as that one was.
                lost = next((job for job in reversed(run.jobs) if job.type is job_type), None)
                until, keep = (None, ()) if lost is None else (lost.until, lost.keep)
                wishes.append(StartJob(run_id=run.run_id, type=job_type, reasons=(reason,), until=until, keep=keep))
                self.take(job_type)
        return wishes

    def resume(self, runs: list[RunInfo]) -> list[StartJob]:
        """Jobs that train paused runs to their end, oldest first."""
        wishes: list[StartJob] = []
        for run in sorted(runs, key=lambda run: run.index)[: self.free(JobType.TRAIN)]:
            wishes.append(StartJob(run_id=run.run_id, type=JobType.TRAIN, reasons=(f"run {run.index} goes on",)))
            self.take(JobType.TRAIN)
        return wishes
