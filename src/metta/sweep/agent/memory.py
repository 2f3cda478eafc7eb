"""Memory limits: what the processes of each job use together, looked at again and again, and the end of those over it.

What counts is the proportional set size (PSS): memory that a job shares with others, such as the fork server's imports,
counts to each by its share. The kernel finds it by walking all pages, 20 ms for each GiB. The resident set size costs
nothing to read and is never less, so the walk is left for jobs that are over their limit by that measure. The peak of a
job that never was is therefore an upper bound.

What a job takes between two looks is over its limit for that long: they follow each other the faster, the less is left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from metta.sweep.agent.failures import Verdict
from metta.sweep.agent.job import Job
from metta.sweep.agent.processes import JobProcesses, proportional_size
from metta.sweep.agent.workers import Worker
from metta.sweep.model.run import FailureKind, Outcome

_GIB = 1 << 30
#: Writing to fresh memory is hardly ever faster; it takes so long to use up what is left below a limit.
_FASTEST_GROWTH = 8 * _GIB
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.25
#: Walks over a job's pages take at most one part in so many of the time, unless the job has grown to its limit since.
_WALKS_SHARE = 20


class Usage(NamedTuple):
    """What a job was found to use."""

    used: int
    #: Its processes.
    pids: list[int]


class MemorySampler:
    """Finds the memory that jobs use."""

    def __init__(self) -> None:
        self._processes = JobProcesses()
        self._walks: dict[int, _Walk] = {}

    def sample(self, limits: Mapping[int, int]) -> dict[int, Usage]:
        """What jobs use.

        Args:
            limits: Of each job, the process that leads its session and the number of bytes it may use.
        """
        self._walks = {leader: walk for leader, walk in self._walks.items() if leader in limits}
        usages: dict[int, Usage] = {}
        for leader, processes in self._processes.look(limits).items():
            pids = [process.pid for process in processes]
            resident = sum(process.resident for process in processes)
            usages[leader] = Usage(self._used(leader, pids, resident, limits[leader]), pids)
        return usages

    def _used(self, leader: int, pids: list[int], resident: int, limit: int) -> int:
        if resident <= limit:
            self._walks.pop(leader, None)
            return resident
        last = self._walks.get(leader)
        if last is not None and time.monotonic() < last.due:
            grown = last.used + max(0, resident - last.resident)
            if grown <= limit:
                return grown
        begin = time.monotonic()
        used = sum(map(proportional_size, pids))
        end = time.monotonic()
        self._walks[leader] = _Walk(used=used, resident=resident, due=end + _WALKS_SHARE * (end - begin))
        return used


class _Walk(NamedTuple):
    used: int
    #: The resident set size at that time.
    resident: int
    #: Not before this time again.
    due: float


class MemoryLimits:
    """Kills jobs that use more memory than they may, at once: the time to clean up is what would take the machine down.

    Args:
        workers: All processes that work on jobs, by whatever key; looked at anew each time.
    """

    def __init__(self, workers: Mapping[str, Worker]) -> None:
        self._workers = workers
        self._sampler = MemorySampler()
        self._needed = asyncio.Event()

    def watch(self, job: Job) -> None:
        """A job has begun; without a limit it costs nothing."""
        if job.memory_limit is not None:
            self._needed.set()

    async def run(self) -> None:
        """Watch for ever, while there is a job with a limit."""
        while True:
            await self._needed.wait()
            jobs = {worker.pid: worker.job for worker in self._workers.values() if worker.pid and worker.job}
            limits = {pid: job.memory_limit for pid, job in jobs.items() if job.memory_limit is not None}
            if not limits:
                self._needed.clear()
                continue
            usages = await asyncio.to_thread(self._sampler.sample, limits)
            # A job that begins during the pause has all of its limit left.
            left = min(_LONGEST_PAUSE_S * _FASTEST_GROWTH, *limits.values())
            for pid, usage in usages.items():
                job = jobs[pid]
                if all(worker.job is not job for worker in self._workers.values()):
                    continue  # it ended while we looked; a reused worker may have the next one
                job.memory_peak = max(job.memory_peak, usage.used)
                if usage.used > limits[pid]:
                    if job.verdict is None and job.finished is None:
                        reason = f"used {usage.used / _GIB:.4g} GiB, memory_gb = {limits[pid] / _GIB:g}"
                        job.verdict = Verdict(Outcome.KILLED, reason, FailureKind.OUT_OF_MEMORY)
                    _kill(usage.pids)
                left = min(left, limits[pid] - usage.used)
            await asyncio.sleep(max(_SHORTEST_PAUSE_S, left / _FASTEST_GROWTH))


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
