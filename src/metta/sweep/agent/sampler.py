"""One look at all jobs of an agent: their processes and the machine around them."""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from metta.sweep.agent.control_groups import Room, memory_around
from metta.sweep.agent.counters import Reading, read_counters
from metta.sweep.agent.nvml import Gpu, Nvml, open_nvml
from metta.sweep.agent.processes import JobProcesses, Process, proportional_size

#: To find out what processes share the kernel walks all their pages, for at most one part in so many of the time.
_WALKS_SHARE = 500
#: The machine's counters are read no more often, however many jobs begin and end.
_NETWORK_AGE_S = 0.2


class JobSample(NamedTuple):
    """What the processes of a job use, and have used."""

    readings: list[Reading]
    #: Bytes, what they share counted once.
    memory: int


class Sample(NamedTuple):
    """One look."""

    #: By the process that leads the job's session.
    jobs: dict[int, JobSample]
    #: The least that is left of the machine or of a control group around it.
    room: Room | None
    gpus: list[Gpu]


class _Walk(NamedTuple):
    #: What the processes used together, by what they seemed to.
    share: float
    #: Not before this time again.
    due: float


class Sampler:
    """Looks at jobs; meant for one thread, apart from `network`, which is for another."""

    def __init__(self) -> None:
        self._processes = JobProcesses()
        self._walks: dict[int, _Walk] = {}
        self._nvml: Nvml | None = None
        self._has_begun = False
        self._network: tuple[float, int | None] = (float("-inf"), None)

    def look(self, leaders: Collection[int]) -> Sample:
        """What the jobs of these processes use; those that have ended are left out."""
        if not self._has_begun:
            self._has_begun = True
            self._nvml = open_nvml()
        self._walks = {leader: walk for leader, walk in self._walks.items() if leader in leaders}
        jobs = {
            leader: JobSample([read_counters(process) for process in processes], self._memory(leader, processes))
            for leader, processes in self._processes.look(leaders).items()
        }
        room = min(memory_around(Path("/")), key=lambda room: room.left / max(1, room.whole), default=None)
        return Sample(jobs, room, [] if self._nvml is None else self._nvml.read())

    def network(self) -> int | None:
        """Bytes that have gone through the interfaces of this machine, but for the loopback; None where unknown."""
        read_at, seen = self._network
        now = time.monotonic()
        if now - read_at > _NETWORK_AGE_S:
            seen = None
            with suppress(OSError, ValueError, IndexError):
                seen = network_bytes(Path("/proc/net/dev").read_text())
            self._network = now, seen
        return seen

    def _memory(self, leader: int, processes: list[Process]) -> int:
        """Forked workers share most of what they hold, and would be counted many times over."""
        resident = sum(process.resident for process in processes)
        if len(processes) == 1:
            return resident
        last = self._walks.get(leader)
        begin = time.monotonic()
        if last is None or begin >= last.due:
            used = sum(proportional_size(process.pid) for process in processes)
            end = time.monotonic()
            last = _Walk(min(1.0, used / max(1, resident)), end + _WALKS_SHARE * (end - begin))
            self._walks[leader] = last
        return round(resident * last.share)


def network_bytes(table: str) -> int:
    """Bytes received and sent, by the kernel's table of interfaces, without the loopback."""
    total = 0
    for line in table.splitlines()[2:]:
        name, _, counters = line.partition(":")
        if name.strip() != "lo":
            fields = counters.split()
            total += int(fields[0]) + int(fields[8])
    return total
