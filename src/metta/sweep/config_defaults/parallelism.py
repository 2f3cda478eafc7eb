"""How many jobs fit on this machine: its processors, memory and GPUs, and what of them this process may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from metta.sweep.agent.control_groups import cpu_quotas, memory_around
from metta.sweep.model.run import Resources

_GIB = 1 << 30
#: What a job that names no limit is thought to need: an interpreter with numerical libraries and a small data set.
_UNNAMED_MEMORY_GB = 1.0
#: Of the memory that is there, what is left to everything else.
_RESERVED = 0.1


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
    found = [(room.left, room.place) for room in memory_around(root)]
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
