"""What a job used of its machine, as its agent measured it."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

#: Metrics by which training loops tell how far they are, the finest first.
STEP_METRICS = ("step", "global_step", "steps", "iteration", "iterations", "batch", "epoch")


class _Measured(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    pass


class Pace(_Measured, frozen=True, kw_only=True):
    """When a job reported metrics, in seconds since its process began."""

    count: int
    first_s: float
    last_s: float
    #: The steps that it told of first and last, where its reports tell steps, and when it told them.
    first_step: float | None = None
    first_step_s: float | None = None
    last_step: float | None = None
    last_step_s: float | None = None


class Curves(_Measured, frozen=True, kw_only=True):
    """How the use of the machine went: at most sixty points a job, at equal distances, however long it ran."""

    #: Seconds from each point to the next. A point stands for all that was seen since the one before.
    every_s: float
    #: Processors kept busy, on average.
    cpus: tuple[float, ...] = ()
    #: The most memory, in GiB.
    memory_gb: tuple[float, ...] = ()
    #: Read and written, in MiB a second.
    disk_mb_s: tuple[float, ...] = ()


class JobUsage(_Measured, frozen=True, kw_only=True):
    """What all processes of a job used together, from its begin to its end or as far as it was looked at.

    A field is None where the machine does not tell it.
    """

    #: Wall time.
    seconds: float
    #: How often it was looked at while it ran. A short job is only counted up at its end.
    looks: int = 0
    #: Processors that it asked for.
    cpus: int = 1
    cpu_seconds: float | None = None
    #: Of the time in which its processes wanted a processor, the share in which they got none; main threads only.
    cpu_wait: float | None = None
    #: Resident memory, what they share with each other counted once.
    memory_peak_bytes: int | None = None
    #: That it may use.
    memory_limit_bytes: int | None = None
    #: The least that the machine or its control group had left for all while it ran, and what that was of the whole.
    memory_left_bytes: int | None = None
    memory_left: float | None = None
    swap_peak_bytes: int = 0
    #: From and to disks; what is found in the kernel's cache is not read from a disk.
    read_bytes: int | None = None
    written_bytes: int | None = None
    #: Share of the looks that found a process waiting for a disk.
    disk_wait: float = 0.0
    #: Through all interfaces of the machine but the loopback, in the meantime: an upper bound of the job's own.
    network_bytes: int | None = None
    #: Share of the time in which its GPUs were busy, over time, as far apart as the points of the curves.
    gpu_utilization: tuple[float, ...] = ()
    gpu_memory_peak_bytes: int | None = None
    #: Of the GPUs that it was found on.
    gpu_memory_bytes: int | None = None
    pace: Pace | None = None
    #: Kept in the log alone.
    curves: Curves | None = None


def numbers_of(measured: msgspec.Struct) -> Iterator[tuple[str, float]]:
    """All numbers of a measurement that may have fractions, by names that tell them apart."""
    for name in measured.__struct_fields__:
        value = getattr(measured, name)
        if isinstance(value, float):
            yield name, value
        elif isinstance(value, tuple):
            yield from ((f"{name} {number}", each) for number, each in enumerate(value))
        elif isinstance(value, msgspec.Struct):
            yield from ((f"{name} {inner}", each) for inner, each in numbers_of(value))
