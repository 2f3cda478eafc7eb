"""Which processes belong to which job, and the memory that they use: found anew at each look, in `/proc`."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import NamedTuple

_PAGE_BYTES = resource.getpagesize()
_LONGEST_FILE = 1 << 14


class Process(NamedTuple):
    """A process at one moment."""

    pid: int
    parent: int
    session: int
    #: `D` is a wait for a disk.
    state: str
    #: Clock ticks since the machine was started: tells it from another that has its id later.
    started: int
    #: Clock ticks of its own, and of its children that have ended and were waited for.
    ticks: int
    #: Bytes.
    resident: int


def read_file(pid: int, name: str) -> bytes:
    """What the kernel says of a process in one of its short files.

    Not by `pathlib`, with which it takes four times as long: it is read for each process, job and second.

    Raises:
        OSError: the process has ended, or is not ours.
    """
    descriptor = os.open(f"/proc/{pid}/{name}", os.O_RDONLY)
    try:
        return os.read(descriptor, _LONGEST_FILE)
    finally:
        os.close(descriptor)


def read_process(pid: int) -> Process | None:
    """The process with this id; None when it has ended."""
    try:
        content = read_file(pid, "stat")
    except OSError:
        return None
    # The second field is the program's name in parentheses, which may hold anything.
    fields = content[content.rindex(b")") + 2 :].split()
    return Process(
        pid=pid,
        parent=int(fields[1]),
        session=int(fields[3]),
        state=chr(fields[0][0]),
        started=int(fields[19]),
        ticks=sum(map(int, fields[11:15])),
        resident=int(fields[21]) * _PAGE_BYTES,
    )


def proportional_size(pid: int) -> int:
    """Bytes of memory that a process uses, with its share of what it shares; the kernel walks all its pages for it."""
    with suppress(OSError):
        for line in read_file(pid, "smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) * 1024
    # It has ended, or the kernel does not let us look.
    process = read_process(pid)
    return process.resident if process is not None else 0


class JobProcesses:
    """Finds the processes of jobs among the descendants of this process."""

    def __init__(self) -> None:
        self._root = os.getpid()
        #: Processes that are not descended from this one. Nothing turns one of them into one of ours.
        self._foreign: set[int] = set()
        #: Process to leader, as of the last look: one that left its session and lost its parent is known by it.
        self._leaders: dict[int, int] = {}

    def look(self, leaders: Collection[int]) -> dict[int, list[Process]]:
        """The processes of jobs, by the processes that lead the jobs' sessions."""
        ours = self._descendants()
        found: dict[int, int] = {}
        for pid in ours:
            if leader := self._leader(pid, ours, leaders):
                found[pid] = leader
        self._leaders = found
        jobs: dict[int, list[Process]] = {}
        for pid, leader in found.items():
            jobs.setdefault(leader, []).append(ours[pid])
        return jobs

    def _descendants(self) -> dict[int, Process]:
        listed = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
        self._foreign &= listed
        processes = {pid: process for pid in listed - self._foreign if (process := read_process(pid)) is not None}
        ours: dict[int, Process] = {}
        for pid in processes:
            ancestors, process_id = [], pid
            while process_id != self._root and process_id not in ours and process_id in processes:
                ancestors.append(process_id)
                process_id = processes[process_id].parent
            if process_id == self._root or process_id in ours:
                ours |= {ancestor: processes[ancestor] for ancestor in ancestors}
            elif process_id in self._foreign or process_id == 0:
                self._foreign.update(ancestors)
        return ours

    def _leader(self, pid: int, ours: Mapping[int, Process], leaders: Collection[int]) -> int | None:
        while pid in ours:
            if ours[pid].session in leaders:
                return ours[pid].session
            if (before := self._leaders.get(pid)) in leaders:
                return before
            pid = ours[pid].parent
        return None
