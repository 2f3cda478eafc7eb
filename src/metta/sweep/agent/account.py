"""What one job has used so far, put together from what was seen of it."""

from __future__ import annotations

from collections.abc import Mapping

from metta.sweep.agent.counters import ProcessTree, Totals
from metta.sweep.agent.job import Job
from metta.sweep.agent.messages import Exited
from metta.sweep.agent.nvml import use_of
from metta.sweep.agent.sampler import JobSample, Sample
from metta.sweep.agent.timeline import Moment, Timeline
from metta.sweep.model.usage import STEP_METRICS, Curves, JobUsage, Pace

_GIB, _MIB = 1 << 30, 1 << 20
#: What a job has used is told after so long, and again whenever it has run so much longer.
_FIRST_TOLD_S, _TOLD_AGAIN = 10.0, 1.25


class Account:
    """The books of a job.

    Args:
        job: Which job; its process has begun.
        tree: Its processes.
        resource: The metric by which the sweep measures how far runs are, for want of one that counts steps.
        network: As of `Sampler.network`.
        is_first: Whether its process has worked on no other job before.
    """

    def __init__(
        self, job: Job, tree: ProcessTree, resource: str | None, network: int | None, *, is_first: bool = True
    ) -> None:
        assert job.began is not None
        self.job = job
        self.tree = tree
        self._began = self._seen_at = job.began
        self._before: Totals = tree.totals
        self._seen: Totals = tree.totals
        self._is_first = is_first
        self._network = network
        self._step_names = (*STEP_METRICS, *([] if resource is None else [resource]))
        self._timeline = Timeline()
        self._looks = self._waits_for_disk = 0
        self._memory_peak = self._swap_peak = 0
        self._room_left: int | None = None
        self._room_share: float | None = None
        self._gpu_memory_peak: int | None = None
        self._gpu_memory: int | None = None
        self._pace: Pace | None = None
        self._told_at = 0.0

    def reported(self, metrics: Mapping[str, float], now: float) -> None:
        """It has reported metrics."""
        at = round(now - self._began, 3)
        step = next((metrics[name] for name in self._step_names if name in metrics), None)
        before = self._pace
        if before is None:
            before = Pace(count=0, first_s=at, last_s=at)
        is_first_step = before.first_step is None and step is not None
        self._pace = Pace(
            count=before.count + 1,
            first_s=before.first_s,
            last_s=at,
            first_step=step if is_first_step else before.first_step,
            first_step_s=at if is_first_step else before.first_step_s,
            last_step=before.last_step if step is None else step,
            last_step_s=before.last_step_s if step is None else at,
        )

    def see(self, seen: JobSample, around: Sample, now: float) -> None:
        """It was looked at."""
        self.tree.update(seen.readings)
        self._looks += 1
        self._waits_for_disk += any(reading.process.state == "D" for reading in seen.readings)
        self._note_memory(seen)
        self._swap_peak = max(self._swap_peak, sum(reading.swapped for reading in seen.readings))
        if around.room is not None and (self._room_left is None or around.room.left < self._room_left):
            self._room_left = around.room.left
            self._room_share = around.room.left / max(1, around.room.whole)
        use = use_of(around.gpus, self.job.gpus, {reading.process.pid for reading in seen.readings})
        if use is not None:
            self._gpu_memory_peak = max(self._gpu_memory_peak or 0, use.memory)
            self._gpu_memory = use.memory_whole
        if (seconds := now - self._seen_at) > 0:
            used = self.tree.totals.since(self._seen)
            disk = (used.read_bytes + used.written_bytes) / seconds
            gpu = None if use is None else use.utilization
            self._timeline.add(Moment(used.cpu_seconds / seconds, seen.memory, disk, gpu))
            self._seen, self._seen_at = self.tree.totals, now

    def look_again(self) -> None:
        """It has come to its end, and its process goes on."""
        for reading in self.tree.look_again():
            self._memory_peak = max(self._memory_peak, reading.memory_peak)

    def finish(self, exited: Exited) -> None:
        """Its process has ended."""
        self.tree.finish(exited)
        if self._is_first:  # or else the peak may be that of an earlier job
            self._memory_peak = max(self._memory_peak, exited.memory_peak_bytes)

    def is_to_be_told(self, now: float) -> bool:
        """Whether it is time to write down what it has used so far; once asked, for the next time later."""
        at = now - self._began
        if at < max(_FIRST_TOLD_S, _TOLD_AGAIN * self._told_at):
            return False
        self._told_at = at
        return True

    def usage(self, now: float, network: int | None, *, with_curves: bool) -> JobUsage:
        """What it has used from its begin until now."""
        used = self.tree.totals.since(self._before)
        seconds = max(0.0, now - self._began)
        wanted = used.ran + used.waited
        points = self._timeline.points
        every_s = round(self._timeline.looks_a_point * (self._seen_at - self._began) / max(1, self._looks), 3)
        return JobUsage(
            seconds=round(seconds, 3),
            looks=self._looks,
            cpus=self.job.definition.resources.cpus,
            cpu_seconds=round(used.cpu_seconds, 3),
            cpu_wait=round(used.waited / wanted, 3) if wanted else None,
            memory_peak_bytes=self._memory_peak or None,
            memory_limit_bytes=self.job.memory_limit,
            memory_left_bytes=self._room_left,
            memory_left=None if self._room_share is None else round(self._room_share, 4),
            swap_peak_bytes=self._swap_peak,
            read_bytes=used.read_bytes if self.tree.has_io else None,
            written_bytes=used.written_bytes if self.tree.has_io else None,
            disk_wait=round(self._waits_for_disk / max(1, self._looks), 3),
            network_bytes=None if network is None or self._network is None else max(0, network - self._network),
            gpu_utilization=tuple(round(point.gpu, 3) for point in points if point.gpu is not None),
            gpu_memory_peak_bytes=self._gpu_memory_peak,
            gpu_memory_bytes=self._gpu_memory,
            pace=self._pace,
            curves=_curves(points, every_s) if with_curves and points else None,
        )

    def _note_memory(self, seen: JobSample) -> None:
        peaks = [reading.memory_peak for reading in seen.readings]
        self._memory_peak = max(self._memory_peak, seen.memory, *peaks)


def _curves(points: list[Moment], every_s: float) -> Curves:
    return Curves(
        every_s=every_s,
        cpus=tuple(round(point.cpus, 2) for point in points),
        memory_gb=tuple(round(point.memory / _GIB, 3) for point in points),
        disk_mb_s=tuple(round(point.disk / _MIB, 2) for point in points),
    )
