"""What processes have used, by the kernel's counters, and what a tree of them has used together."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from metta.sweep.agent.messages import Exited
from metta.sweep.agent.processes import Process, read_file, read_process

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_IO = re.compile(rb"^(?:read_bytes|write_bytes): (\d+)$", re.MULTILINE)
_MEMORY = re.compile(rb"^Vm(HWM|Swap):\s+(\d+) kB$", re.MULTILINE)
#: Lets the peak of a process's memory begin anew (proc(5)).
_RESET_PEAK = "5"
_NEAR = 1.02


class Reading(NamedTuple):
    """The counters of a process at one moment; bytes and nanoseconds."""

    process: Process
    #: From and to disks, those of its children that have ended included; None where the kernel does not tell.
    io: tuple[int, int] | None
    memory_peak: int
    swapped: int
    #: Its main thread, on a processor and waiting for one.
    ran: int
    waited: int


def read_counters(process: Process) -> Reading:
    """The counters of a process that was just found."""
    read, written, ran, waited = None, None, 0, 0
    # Of a process that is ending, or has become another user's, not everything can be read.
    with suppress(OSError, ValueError):
        read, written = map(int, _IO.findall(read_file(process.pid, "io")))
    memory: dict[bytes, int] = {}
    with suppress(OSError):
        content = read_file(process.pid, "status")
        memory = {name: int(size) * 1024 for name, size in _MEMORY.findall(content)}
    with suppress(OSError, ValueError):
        ran, waited, _ = map(int, read_file(process.pid, "schedstat").split())
    return Reading(
        process=process,
        io=None if read is None or written is None else (read, written),
        memory_peak=memory.get(b"HWM", process.resident),
        swapped=memory.get(b"Swap", 0),
        ran=ran,
        waited=waited,
    )


class Totals(NamedTuple):
    """What processes have used together."""

    cpu_seconds: float = 0.0
    read_bytes: int = 0
    written_bytes: int = 0
    ran: int = 0
    waited: int = 0

    def since(self, before: Totals) -> Totals:
        """What they have used beyond what they had before."""
        return Totals(
            self.cpu_seconds - before.cpu_seconds,
            self.read_bytes - before.read_bytes,
            self.written_bytes - before.written_bytes,
            self.ran - before.ran,
            self.waited - before.waited,
        )


class ProcessTree:
    """A process and its descendants, of which some come and go.

    What a process has used passes on to its parent when it ends and the parent waits for it; of those that end without
    a parent in the tree, what they had used when they were last seen is added.

    Args:
        leader: The process that leads their session.
    """

    def __init__(self, leader: int) -> None:
        self.leader = leader
        self.totals = Totals()
        #: Whether the kernel tells what they read and wrote.
        self.has_io = True
        self._readings: dict[int, Reading] = {}
        self._gone = Totals()
        self._ran = self._waited = 0

    @property
    def pids(self) -> list[int]:
        """Those that were there when it was last looked at."""
        return list(self._readings) or [self.leader]

    def update(self, readings: Iterable[Reading]) -> None:
        """Take down what all of them have used by now."""
        now = {reading.process.pid: self._known(reading) for reading in readings}
        for pid, before in self._readings.items():
            if not _is_same(before, now.get(pid)) and not self._has_passed_on(before, now):
                self._gone = _sum([self._gone, _own(before)])
        for pid, reading in now.items():
            last = self._readings.get(pid)
            is_known = last is not None and _is_same(last, reading)
            self._ran += max(0, reading.ran - (last.ran if last is not None and is_known else 0))
            self._waited += max(0, reading.waited - (last.waited if last is not None and is_known else 0))
        if (leader := now.get(self.leader)) is not None:
            self.has_io = leader.io is not None
        self._readings = now
        self._count(_sum([self._gone, *map(_own, now.values())]))

    def look_again(self) -> list[Reading]:
        """Read the counters of those that are known, without looking for others."""
        found = [process for pid in self.pids if (process := read_process(pid)) is not None]
        readings = [read_counters(process) for process in found]
        self.update(readings)
        return readings

    def forget_peaks(self) -> None:
        """From now on the kernel tells peaks of memory since now; where it would tell the same anyway, that is left."""
        for pid, reading in self._readings.items():
            if reading.memory_peak > _NEAR * reading.process.resident:
                with suppress(OSError):
                    Path(f"/proc/{pid}/clear_refs").write_text(_RESET_PEAK)

    def finish(self, exited: Exited) -> None:
        """The leader has ended: it, and those it had waited for, are counted to their very end."""
        leader = Totals(exited.cpu_seconds, exited.read_bytes, exited.written_bytes)
        self._count(_sum([self._gone, leader]))

    def _count(self, found: Totals) -> None:
        # Looks one by one, in the middle of what goes on, may miss what passes from one process to another meanwhile.
        before = self.totals
        self.totals = Totals(
            max(before.cpu_seconds, found.cpu_seconds),
            max(before.read_bytes, found.read_bytes),
            max(before.written_bytes, found.written_bytes),
            self._ran,
            self._waited,
        )

    def _known(self, reading: Reading) -> Reading:
        """What was known of a process stands in for what it does not tell any more, as it is ending."""
        before = self._readings.get(reading.process.pid)
        if reading.io is None and before is not None and _is_same(before, reading):
            return reading._replace(io=before.io)
        return reading

    def _has_passed_on(self, ended: Reading, now: dict[int, Reading]) -> bool:
        parent = self._readings.get(ended.process.parent)
        while parent is not None:
            if _is_same(parent, now.get(parent.process.pid)):
                return True
            parent = self._readings.get(parent.process.parent)
        return False


def _is_same(before: Reading, now: Reading | None) -> bool:
    return now is not None and before.process.started == now.process.started


def _own(reading: Reading) -> Totals:
    read, written = reading.io or (0, 0)
    return Totals(reading.process.ticks / _TICKS_A_SECOND, read, written)


def _sum(totals: Iterable[Totals]) -> Totals:
    cpu_seconds, read, written = 0.0, 0, 0
    for each in totals:
        cpu_seconds, read, written = (
            cpu_seconds + each.cpu_seconds,
            read + each.read_bytes,
            written + each.written_bytes,
        )
    return Totals(cpu_seconds, read, written)
