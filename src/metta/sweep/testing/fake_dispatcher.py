"""A dispatcher whose compute does as it is told: it has room or none, fails, falls silent, loses jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from metta.sweep.errors import DispatchError
from metta.sweep.model.run import JobDefinition, Outcome
from metta.sweep.protocols import Placement, Standing


class FakeCompute:
    """What lies behind fake dispatchers, and outlives them as real compute outlives the process that uses it.

    Args:
        capacity: How many jobs fit at one time, as it says; None for no limit.
        room: How many it takes at one time, the others it leaves out: less than it says, as where there are quotas, or
            more, as where jobs queue; None for any number.
    """

    def __init__(self, capacity: int | None = None, room: int | None = None) -> None:
        self.capacity = capacity
        self.room = room
        #: Answers nothing: `dispatch` and `held` fail, and it says of no job whether it knows it.
        self.is_silent = False
        #: Answers, but takes no jobs, and this is why.
        self.refusal: str | None = None
        #: Called after each job that it takes; may raise, and so break a dispatch off in the middle.
        self.on_taken: Callable[[JobDefinition], object] | None = None
        #: Jobs that were offered, whatever became of them.
        self.offered: set[str] = set()
        #: How often each job was started.
        self.starts: dict[str, int] = {}
        #: Jobs that run or wait, and those that ended and are remembered.
        self.running: dict[str, JobDefinition] = {}
        self.ended: set[str] = set()
        self.cancelled: dict[str, Outcome] = {}

    def knows(self, job_id: str) -> bool:
        """Whether it would say so if it said anything."""
        return job_id in self.running or job_id in self.ended

    def take(self, job: JobDefinition) -> bool:
        """Start a job, unless it is known or there is no room; returns whether it is known now."""
        if not self.knows(job.job_id):
            if self.room is not None and len(self.running) >= self.room:
                return False
            self.running[job.job_id] = job
            self.starts[job.job_id] = self.starts.get(job.job_id, 0) + 1
            if self.on_taken is not None:
                self.on_taken(job)
        return True

    def finish(self, job_id: str) -> None:
        """The job comes to its end."""
        del self.running[job_id]
        self.ended.add(job_id)

    def lose(self, job_id: str) -> None:
        """The job is gone, and nobody remembers it."""
        del self.running[job_id]


class FakeDispatcher:
    """See `protocols.Dispatcher`; a new one for the same compute stands for that of a new process.

    Args:
        name: Its name.
        compute: What it dispatches to; one that takes everything if there is none.
    """

    def __init__(self, name: str = "fake", compute: FakeCompute | None = None) -> None:
        self.name = name
        self.compute = FakeCompute() if compute is None else compute
        self.is_closed = False

    def capacity(self) -> int | None:
        """See `Dispatcher.capacity`."""
        return self.compute.capacity

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        """See `Dispatcher.dispatch`."""
        self._check_voice()
        self.compute.offered |= {job.job_id for job in jobs}
        if self.compute.refusal is not None:
            raise DispatchError(self.compute.refusal)
        return {job.job_id: Placement(dispatcher=self.name) for job in jobs if self.compute.take(job)}

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        """See `Dispatcher.standing`."""
        if self.compute.is_silent:
            return dict.fromkeys(job_ids, Standing.UNKNOWN)
        return {job_id: Standing.KNOWN if self.compute.knows(job_id) else Standing.LOST for job_id in job_ids}

    def held(self) -> list[str]:
        """See `Dispatcher.held`; raises while the compute is silent."""
        self._check_voice()
        return list(self.compute.running)

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        """See `Dispatcher.cancel`."""
        self._check_voice()
        for job_id in job_ids:
            if job_id in self.compute.running:
                self.compute.finish(job_id)
                self.compute.cancelled[job_id] = outcome

    def close(self) -> None:
        """See `Dispatcher.close`."""
        self.is_closed = True

    def _check_voice(self) -> None:
        if self.compute.is_silent:
            raise DispatchError("connection timed out")
