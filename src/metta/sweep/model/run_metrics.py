"""What a run took, and what held it up: figures that its agents measured, summed up over its jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum

import msgspec

from metta.sweep.model.run import JobInfo, JobType, Outcome, RunInfo
from metta.sweep.model.usage import JobUsage, Pace

_GIB, _MIB = 1 << 30, 1 << 20
#: Metrics by which training loops tell how many samples they have seen.
_SAMPLES = ("samples", "samples_processed", "samples_seen", "num_samples", "examples")

#: What is shorter holds nobody up.
_SHORTEST_S = 1.0
#: As the founding document has it: of the training's time.
_MUCH_QUEUE = 0.1
_MUCH_STARTUP = 0.25
_LITTLE_GPU = 0.5
_BUSY_CPU = 0.8
_MUCH_WAITING = 0.2
#: A kernel lets a busy process wait some of the time also where there are processors enough.
_MUCH_CPU_WAIT = 0.3
_MUCH_WANTED = 0.25
_NEAR_LIMIT, _LITTLE_LEFT = 0.9, 0.05
_MUCH_SWAP = 64 * _MIB


class BottleneckKind(StrEnum):
    """What may hold a run up."""

    #: A GPU waits for processors that are busy, or for the disk.
    DATA_LOADING = "gpu starved by data loading"
    GPU_IDLE = "low gpu utilization"
    QUEUE = "high queue time"
    STARTUP = "start-up dominates"
    CPU = "too few processors"
    DISK = "waits for the disk"
    MEMORY = "memory near its limit"
    GPU_MEMORY = "gpu memory near its limit"
    SWAP = "swaps"


class Bottleneck(msgspec.Struct, frozen=True, kw_only=True):
    """Something that holds a run up, and how that can be told."""

    kind: BottleneckKind
    evidence: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.evidence}"


class RunMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """What a run took, all its jobs together. Times are in seconds; GB are GiB and MB are MiB, as everywhere here.

    A figure is None where nothing measured it: while the run's first seconds last, for jobs of before there were
    measurements, in simulated sweeps.
    """

    #: Ready to go on, and not going on: no slot was free, or its agent was not.
    queue_time: float
    #: Of train jobs, before their first report, beyond the time that a report takes later on.
    startup_time: float
    #: Of train jobs, without that.
    training_time: float
    eval_time: float
    #: From the run's creation to its end, or to now: waits for retries and verdicts included.
    total_time: float

    #: Share of the time in which the GPUs of the run were busy, from 0 to 1, over time.
    gpu_utilization: tuple[float, ...] = ()
    memory_peak_gb: float | None = None
    #: Read from disks and written to them.
    disk_io_gb: float | None = None
    #: Through the interfaces of its machines in the meantime: an upper bound.
    network_io_gb: float | None = None

    #: Between the first and the last report of steps; of whatever the code counts: steps, iterations, epochs.
    steps_per_second: float | None = None
    #: The last that it reported.
    samples_processed: int | None = None
    #: Of the checkpoints that it has on disk.
    checkpoint_size_mb: float = 0.0

    #: Processors kept busy while its jobs ran, on average.
    cpu_utilization: float | None = None
    gpu_memory_peak_gb: float | None = None
    bottlenecks: tuple[Bottleneck, ...] = ()

    def get_bottlenecks(self) -> list[str]:
        """What holds the run up, each with its evidence."""
        return [str(bottleneck) for bottleneck in self.bottlenecks]


def run_metrics(run: RunInfo, now: float | None = None) -> RunMetrics:
    """What a run took.

    Args:
        run: Which run.
        now: Seconds since the epoch, for a run that has not ended; without it, it is looked at up to the last that is
            known of it.
    """
    now = _last_known(run) if now is None else now
    used = [job.usage for job in run.jobs if job.usage is not None]
    queue_time = _queue_time(run, now)
    startup_time = sum((_startup(job) for job in run.jobs if job.type is JobType.TRAIN), 0.0)
    training_time = max(0.0, _seconds(run, JobType.TRAIN, now) - startup_time)
    cpu_seconds = _total(used, lambda usage: usage.cpu_seconds)
    measured_s = sum(usage.seconds for usage in used if usage.cpu_seconds is not None)
    samples = next((run.metrics[name] for name in _SAMPLES if name in run.metrics), None)
    return RunMetrics(
        queue_time=queue_time,
        startup_time=startup_time,
        training_time=training_time,
        eval_time=_seconds(run, JobType.EVAL, now),
        total_time=max(0.0, (now if run.ended_at is None else run.ended_at) - run.created_at),
        gpu_utilization=tuple(value for usage in used for value in usage.gpu_utilization),
        memory_peak_gb=_largest(used, lambda usage: usage.memory_peak_bytes),
        disk_io_gb=_in_gib(_total(used, _disk_bytes)),
        network_io_gb=_in_gib(_total(used, lambda usage: usage.network_bytes)),
        steps_per_second=_steps_per_second(run),
        samples_processed=None if samples is None else round(samples),
        checkpoint_size_mb=sum(checkpoint.size_bytes for checkpoint in run.checkpoints) / _MIB,
        cpu_utilization=cpu_seconds / measured_s if cpu_seconds is not None and measured_s > 0 else None,
        gpu_memory_peak_gb=_largest(used, lambda usage: usage.gpu_memory_peak_bytes),
        bottlenecks=tuple(_in_times(queue_time, startup_time, training_time)) + tuple(_in_usages(used)),
    )


# -------------------------------------------------------------------------------------------------------------- times


def _last_known(run: RunInfo) -> float:
    moments = [run.created_at, run.started_at, run.ended_at]
    for job in run.jobs:
        moments += [job.granted_at, job.started_at, job.ended_at]
        if job.started_at is not None and job.usage is not None:
            moments.append(job.started_at + job.usage.seconds)
    return max(moment for moment in moments if moment is not None)


def _queue_time(run: RunInfo, now: float) -> float:
    queued = 0.0
    ready: float | None = run.created_at
    for job in run.jobs:
        since = job.granted_at if ready is None else min(ready, job.granted_at)
        until = job.started_at if job.started_at is not None else job.ended_at
        queued += max(0.0, (now if until is None else until) - since)
        # After a training that succeeded, an evaluation could start; after a failure or a pause nothing could, yet.
        ready = job.ended_at if job.type is JobType.TRAIN and job.outcome is Outcome.SUCCEEDED else None
    if ready is not None and not run.status.ended:
        queued += max(0.0, now - ready)
    return queued


def _seconds(run: RunInfo, job_type: JobType, now: float) -> float:
    jobs = [(job.started_at, job.ended_at) for job in run.jobs if job.type is job_type]
    spans = [(now if ended is None else ended) - started for started, ended in jobs if started is not None]
    return sum((max(0.0, span) for span in spans), 0.0)


def _startup(job: JobInfo) -> float:
    """What of a job's time before its first report is no training, if from then on all goes at one pace."""
    pace = None if job.usage is None else job.usage.pace
    if pace is None or pace.count < 2:
        return 0.0
    return max(0.0, pace.first_s - (pace.last_s - pace.first_s) / (pace.count - 1))


def _steps_per_second(run: RunInfo) -> float | None:
    paces = [job.usage.pace for job in run.jobs if job.type is JobType.TRAIN and job.usage and job.usage.pace]
    steps, seconds = 0.0, 0.0
    for pace in paces:
        more_steps, more_seconds = _progress(pace)
        steps, seconds = steps + more_steps, seconds + more_seconds
    return steps / seconds if steps > 0 and seconds > 0 else None


def _progress(pace: Pace) -> tuple[float, float]:
    """Steps that were made between reports, and the seconds that they took."""
    if pace.first_step is None or pace.last_step is None or pace.first_step_s is None or pace.last_step_s is None:
        return 0.0, 0.0
    return pace.last_step - pace.first_step, pace.last_step_s - pace.first_step_s


# -------------------------------------------------------------------------------------------------------------- sums


def _disk_bytes(usage: JobUsage) -> int | None:
    if usage.read_bytes is None or usage.written_bytes is None:
        return None
    return usage.read_bytes + usage.written_bytes


def _total(used: Sequence[JobUsage], of: Callable[[JobUsage], float | None]) -> float | None:
    known = [value for usage in used if (value := of(usage)) is not None]
    return sum(known) if known else None


def _largest(used: Sequence[JobUsage], of: Callable[[JobUsage], int | None]) -> float | None:
    return _in_gib(max((value for usage in used if (value := of(usage)) is not None), default=None))


def _in_gib(size_bytes: float | None) -> float | None:
    return None if size_bytes is None else size_bytes / _GIB


# -------------------------------------------------------------------------------------------------------- bottlenecks


def _in_times(queue_time: float, startup_time: float, training_time: float) -> Iterator[Bottleneck]:
    if queue_time > max(_SHORTEST_S, _MUCH_QUEUE * training_time):
        evidence = f"waited {queue_time:.1f} s for its turn, trained {training_time:.1f} s"
        yield Bottleneck(kind=BottleneckKind.QUEUE, evidence=evidence)
    both = startup_time + training_time
    if startup_time > max(_SHORTEST_S, _MUCH_STARTUP * both):
        evidence = f"{startup_time:.1f} s of {both:.1f} s passed before the training got under way"
        yield Bottleneck(kind=BottleneckKind.STARTUP, evidence=evidence)


def _in_usages(used: Sequence[JobUsage]) -> Iterator[Bottleneck]:
    """Each kind once, with the evidence of the longest job that has it."""
    found: dict[BottleneckKind, Bottleneck] = {}
    for usage in sorted(used, key=lambda usage: usage.seconds, reverse=True):
        for bottleneck in _in_usage(usage):
            found.setdefault(bottleneck.kind, bottleneck)
    yield from found.values()


def _in_usage(usage: JobUsage) -> Iterator[Bottleneck]:
    yield from _in_memory(usage)
    if not usage.looks or usage.seconds < _SHORTEST_S:
        return
    busy = None if usage.cpu_seconds is None else usage.cpu_seconds / usage.seconds
    waits_for_disk = usage.disk_wait >= _MUCH_WAITING
    disk = f"waiting for a disk in {usage.disk_wait:.0%} of the looks"
    processors = "" if busy is None else f"{busy:.1f} of {usage.cpus} processors busy"
    if usage.gpu_utilization:
        mean = sum(usage.gpu_utilization) / len(usage.gpu_utilization)
        is_starved = waits_for_disk or (busy is not None and busy >= _BUSY_CPU * usage.cpus)
        if mean < _LITTLE_GPU:
            why = disk if waits_for_disk else processors
            evidence = f"its GPU was busy {mean:.0%} of the time" + (f", {why}" if why else "")
            kind = BottleneckKind.DATA_LOADING if is_starved else BottleneckKind.GPU_IDLE
            yield Bottleneck(kind=kind, evidence=evidence)
    if waits_for_disk:
        size = _disk_bytes(usage)
        rate = "" if size is None else f", {size / _MIB / usage.seconds:.3g} MiB/s read and written"
        yield Bottleneck(kind=BottleneckKind.DISK, evidence=disk + rate)
    wait = usage.cpu_wait
    # It wanted one in `busy / (1 - wait)` of the time.
    if wait is not None and wait >= _MUCH_CPU_WAIT and busy is not None and busy >= _MUCH_WANTED * (1 - wait):
        evidence = f"without one in {wait:.0%} of the time in which it wanted one, {processors}"
        yield Bottleneck(kind=BottleneckKind.CPU, evidence=evidence)


def _in_memory(usage: JobUsage) -> Iterator[Bottleneck]:
    peak, limit = usage.memory_peak_bytes, usage.memory_limit_bytes
    if peak is not None and limit is not None and peak >= _NEAR_LIMIT * limit:
        evidence = f"{peak / _GIB:.3g} GiB at its peak, {limit / _GIB:.3g} GiB allowed"
        yield Bottleneck(kind=BottleneckKind.MEMORY, evidence=evidence)
    elif usage.memory_left is not None and usage.memory_left_bytes is not None and usage.memory_left <= _LITTLE_LEFT:
        evidence = f"the machine had {usage.memory_left_bytes / _GIB:.3g} GiB ({usage.memory_left:.1%}) left at worst"
        yield Bottleneck(kind=BottleneckKind.MEMORY, evidence=evidence)
    if usage.swap_peak_bytes >= _MUCH_SWAP:
        evidence = f"{usage.swap_peak_bytes / _GIB:.3g} GiB of it lay in swap space at worst"
        yield Bottleneck(kind=BottleneckKind.SWAP, evidence=evidence)
    taken, there = usage.gpu_memory_peak_bytes, usage.gpu_memory_bytes
    if taken is not None and there is not None and taken >= _NEAR_LIMIT * there:
        evidence = f"{taken / _GIB:.3g} of {there / _GIB:.3g} GiB at its peak"
        yield Bottleneck(kind=BottleneckKind.GPU_MEMORY, evidence=evidence)
