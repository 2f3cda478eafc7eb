"""How many jobs fit on this machine: its processors, memory and GPUs, and what of them this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from metta.sweep.model.run import Resources

_GIB = 1 << 30
#: What a job that names no limit is thought to need: an interpreter with numerical libraries and a small data set.
_UNNAMED_MEMORY_GB = 1.0
#: Of the memory that is there, what is left to everything else.
_RESERVED = 0.1
#: Version 1 writes "no limit" as the greatest number of whole pages.
_NO_LIMIT = 1 << 60


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """One reason why not more jobs fit."""

    #: "GPUs", "processors" or "memory".
    name: str
    #: How many jobs it has room for; less than 1 where not even one fits.
    jobs: float
    #: What was found, and where.
    why: str


class Parallelism(msgspec.Struct, frozen=True, kw_only=True):
    """How many jobs to run at one time, and why."""

    jobs: int
    #: All that was looked at, the narrowest first.
    limits: tuple[Limit, ...]

    @property
    def decided_by(self) -> Limit:
        """The limit that leaves room for the fewest jobs."""
        return self.limits[0]

    def __str__(self) -> str:
        """What decided, and beside it what else was looked at."""
        first, *others = (f"{limit.name} ({limit.why})" for limit in self.limits)
        beside = f"; beside: {', '.join(others)}" if others else ""
        least = "; none would fit, but one is tried" if self.decided_by.jobs < 1 else ""
        return f"{self.jobs} at one time, by {first}{least}{beside}"


def detect(resources: Resources | None, root: Path = Path("/"), gpus: int | None = None) -> Parallelism:
    """How many jobs with such needs this process can run at one time; at least one.

    Without `resources` nothing is known of the jobs, and where there are GPUs each is thought to use one.

    Args:
        resources: What a job needs.
        root: Where `proc` and `sys` are.
        gpus: How many GPUs jobs may use, where that is known already.
    """
    needs = Resources() if resources is None else resources
    limits = [_processors(needs.cpus, root), _memory(needs.memory_gb, root)]
    if resources is None or needs.gpus:
        limits += _gpus(needs.gpus or 1, count_gpus() if gpus is None else gpus, is_needed=needs.gpus > 0)
    limits.sort(key=lambda limit: limit.jobs)
    return Parallelism(jobs=max(1, int(limits[0].jobs)), limits=tuple(limits))


def _processors(per_job: int, root: Path) -> Limit:
    found: list[tuple[float, str]] = [(len(os.sched_getaffinity(0)), "may be used by this process")]
    found += [(quota, f"allowed by {place}") for quota, place in cpu_quotas(root)]
    count, why = min(found, key=lambda pair: pair[0])
    # A quota of 1.5 runs one job well, and two at three quarters of their speed.
    return Limit(name="processors", jobs=count // per_job, why=f"{count:g} {why}, {per_job} a job")


def _memory(per_job_gb: float | None, root: Path) -> Limit:
    needed = _UNNAMED_MEMORY_GB if per_job_gb is None else per_job_gb
    found = [(free, place) for free, place in free_memory(root)]
    needs = f"{needed:g} a job" if per_job_gb is not None else f"{needed:g} taken as a job's need"
    if not found:
        return Limit(name="memory", jobs=float("inf"), why=f"nothing is known of it, {needs}")
    free, place = min(found)
    gib = free / _GIB * (1 - _RESERVED)
    return Limit(name="memory", jobs=gib // needed, why=f"{gib:.3g} GiB left by {place}, {needs}")


def _gpus(per_job: int, count: int, *, is_needed: bool) -> Iterator[Limit]:
    if count or is_needed:
        yield Limit(name="GPUs", jobs=count // per_job, why=f"{count} visible, {per_job} a job")


def count_gpus() -> int:
    """GPUs that jobs may use: those of CUDA_VISIBLE_DEVICES, else all of this machine.

    Asks the driver through nvidia-ml-py where it is installed, else through nvidia-smi.
    """
    from metta.sweep.agent.gpus import visible_gpus

    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        try:
            nvml: Any = import_module("pynvml")
        except ImportError:
            return len(visible_gpus())
        try:
            nvml.nvmlInit()
        except nvml.NVMLError:
            return 0  # no driver, no GPUs
        try:
            return int(nvml.nvmlDeviceGetCount())
        finally:
            nvml.nvmlShutdown()
    return len(visible_gpus())


def cpu_quotas(root: Path) -> Iterator[tuple[float, str]]:
    """Processors' worth of time that each control group around this process allows, where it has a limit."""
    for folder in _groups("cpu", root):
        quota, period = None, None
        with suppress(OSError, ValueError):
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
        if quota is not None and period is not None:
            with suppress(ValueError, ZeroDivisionError):  # "max" is no number, and no limit
                if (count := int(quota) / int(period)) > 0:
                    yield count, "the control group"


def free_memory(root: Path) -> Iterator[tuple[int, str]]:
    """Bytes that may still be taken: of the machine, and of each control group around this process with a limit."""
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024, "the machine"
    for folder in _groups("memory", root):
        with suppress(OSError, ValueError):
            is_second = (folder / "memory.max").is_file()
            limit = int((folder / ("memory.max" if is_second else "memory.limit_in_bytes")).read_text())
            used = int((folder / ("memory.current" if is_second else "memory.usage_in_bytes")).read_text())
            # What the kernel caches of files counts as used, but is given back when it is needed.
            cache = _statistic(folder / "memory.stat", "inactive_file" if is_second else "total_inactive_file")
            if limit < _NO_LIMIT:
                yield max(0, limit - max(0, used - cache)), "the control group"


def _statistic(path: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, of both versions, with all those around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if not names:  # version 2, mounted beside version 1 in its transition
            places = [mounts / "unified", mounts]
        elif controller in names.split(","):
            places = [mounts / names, mounts / controller]
        else:
            continue
        for place in places:
            if place.is_dir():
                yield from _with_those_around(place, path)
                break


def _with_those_around(place: Path, path: str) -> Iterator[Path]:
    """From the group to the root of the mount, whichever exist: a container sees its own group as the root."""
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    for length in range(len(parts), -1, -1):
        folder = place.joinpath(*parts[:length])
        if folder.is_dir():
            yield folder
