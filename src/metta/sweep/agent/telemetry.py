"""Measuring what jobs use: a look at all of them once a second, and their counters at their end.

What the kernel counts to a process's very end (processor time, disk, the peak of its memory) costs nothing until then,
and is exact however short a job is. The looks add what only shows while it runs: processes that nobody waits for,
memory that several share, GPUs, waits, and how all of it went.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from metta.sweep.agent.account import Account
from metta.sweep.agent.counters import ProcessTree
from metta.sweep.agent.job import Job
from metta.sweep.agent.messages import Exited
from metta.sweep.agent.nvml import Gpu
from metta.sweep.agent.sampler import Sampler
from metta.sweep.agent.workers import Worker
from metta.sweep.model.fidelity import SECONDS
from metta.sweep.model.usage import JobUsage
from metta.sweep.protocols import Clock

#: Between two looks. A look takes a fraction of a millisecond a job (benchmarks/telemetry.py).
EVERY_S = 1.0


class Telemetry:
    """Keeps the books of an agent's jobs.

    Args:
        workers: All processes that work on jobs, by key; looked at anew each time.
        resource: The metric by which the sweep measures how far runs are.
        tell: Called now and then with what a job that goes on has used so far.
        clock: The time.
    """

    def __init__(
        self,
        workers: Mapping[str, Worker],
        resource: str | None,
        tell: Callable[[Job, JobUsage], object],
        clock: Clock,
    ) -> None:
        self._workers = workers
        self._resource = None if resource == SECONDS else resource
        self._tell = tell
        self._clock = clock
        self._sampler = Sampler()
        self._accounts: dict[str, Account] = {}
        #: By the worker's key: a process that works on many jobs brings along what it used for those before.
        self._trees: dict[str, ProcessTree] = {}
        self._needed = asyncio.Event()
        #: As they were at the last look; none without jobs.
        self.gpus: list[Gpu] = []

    def begin(self, job: Job, worker: Worker) -> None:
        """A process works on it from now on."""
        assert worker.pid is not None
        is_first = worker.key not in self._trees
        tree = self._trees.setdefault(worker.key, ProcessTree(worker.pid))
        if not is_first:
            # It was looked at when the job before ended, and has had nothing to do since.
            tree.forget_peaks()
        network = self._sampler.network()
        self._accounts[job.job_id] = Account(job, tree, self._resource, network, is_first=is_first)
        self._needed.set()

    def reported(self, job: Job, metrics: Mapping[str, float]) -> None:
        """It has reported metrics."""
        if (account := self._accounts.get(job.job_id)) is not None:
            account.reported(metrics, self._clock.monotonic())

    def end(self, job: Job, exited: Exited | None, now: float) -> JobUsage | None:
        """What a job has used that has ended at this time; None of a job that had no process.

        Args:
            job: Which job.
            exited: How its process ended; None where that goes on to other jobs.
            now: When it ended.
        """
        account = self._accounts.pop(job.job_id, None)
        if account is None:
            return None
        if exited is None:
            account.look_again()
        else:
            account.finish(exited)
            self._trees.pop(exited.key, None)
        return account.usage(now, self._sampler.network(), with_curves=True)

    def forget(self) -> None:
        """All processes are gone, and how they ended nobody knows."""
        self._accounts.clear()
        self._trees.clear()

    async def run(self) -> None:
        """Look for ever, while there are jobs."""
        while True:
            await self._needed.wait()
            await asyncio.sleep(EVERY_S)  # before: the shortest jobs are not worth a look
            if not self._accounts:
                self._needed.clear()
                self.gpus = []
                continue
            accounts = list(self._accounts.values())
            sample = await asyncio.to_thread(self._sampler.look, {account.tree.leader for account in accounts})
            self.gpus = sample.gpus
            now = self._clock.monotonic()
            for account in accounts:
                # It may have ended while we looked.
                is_there = self._accounts.get(account.job.job_id) is account
                seen = sample.jobs.get(account.tree.leader)
                if is_there and seen is not None:
                    account.see(seen, sample, now)
                    if account.is_to_be_told(now):
                        self._tell(account.job, account.usage(now, self._sampler.network(), with_curves=False))
            self._trees = {key: tree for key, tree in self._trees.items() if key in self._workers}
