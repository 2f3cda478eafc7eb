"""The jobs of an agent: how they come to run, what they report, and how they end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import deque
from collections.abc import Coroutine, Mapping
from pathlib import Path

from metta.sweep.agent import failures
from metta.sweep.agent import messages as msg
from metta.sweep.agent.checkpoints import Shelf
from metta.sweep.agent.failures import Verdict, oom_kills
from metta.sweep.agent.gpus import named_gpus, visible_gpus
from metta.sweep.agent.job import Job
from metta.sweep.agent.memory import MemoryLimits
from metta.sweep.agent.nvml import loads
from metta.sweep.agent.orders import Orders
from metta.sweep.agent.recorder import Recorder
from metta.sweep.agent.spans import JobSpans
from metta.sweep.agent.telemetry import Telemetry
from metta.sweep.agent.workers import Worker, Workers
from metta.sweep.errors import MetricError
from metta.sweep.model import events as ev
from metta.sweep.model.fidelity import SECONDS
from metta.sweep.model.run import FailureKind, JobDefinition, Outcome
from metta.sweep.model.sweep import CommandTarget, SweepConfig
from metta.sweep.model.usage import JobUsage
from metta.sweep.protocols import Clock, GpuLoad
from metta.sweep.session import Ending

logger = logging.getLogger(__name__)

#: How often the files of commands are searched for new metrics.
_TAIL_EVERY_S = 0.2
#: Ids of ended jobs kept, so that a job offered twice around its end is not run twice.
_REMEMBERED = 4096
_PAUSE = Ending(Outcome.PAUSED, "the training has come as far as it was to")


class Jobs:
    """All of them: those that wait, those that run, and the ids of those that have ended.

    Args:
        config: The sweep.
        host: The name of this machine, for the log.
        socket_path: Where the agent listens.
        recorder: The way to the log.
        clock: The time.
        spans: Those of the jobs.
    """

    def __init__(
        self, config: SweepConfig, host: str, socket_path: Path, recorder: Recorder, clock: Clock, *, spans: JobSpans
    ) -> None:
        self._config = config
        self._host = host
        self._recorder = recorder
        self._spans = spans
        self._clock = clock
        self._shelf = Shelf(config, recorder, clock)
        self._orders = Orders(config, socket_path, self._shelf)
        self._workers = Workers(config, self)
        self._memory = MemoryLimits(self._workers.by_key)
        resource = None if config.fidelity is None else config.fidelity.resource
        self._telemetry = Telemetry(self._workers.by_key, resource, self._measured_use, clock)
        self._jobs: dict[str, Job] = {}
        self._waiting: deque[Job] = deque()
        self._ended: deque[str] = deque(maxlen=_REMEMBERED)
        self._free_gpus = self._all_gpus()
        self._tasks: set[asyncio.Task[None]] = set()
        self._oom_kills = 0

    def start(self) -> None:
        """Be ready to take jobs."""
        self._loop = asyncio.get_running_loop()
        self._oom_kills = oom_kills()
        self._workers.start()

    async def run(self) -> None:
        """Follow them, hold them to their limits and tidy up behind them, for ever."""
        await asyncio.gather(self._tail(), self._memory.run(), self._telemetry.run(), self._shelf.run())

    def close(self) -> None:
        """End their processes."""
        self._workers.close()

    @property
    def held(self) -> list[str]:
        """The ids of those that run or wait."""
        return list(self._jobs)

    @property
    def gpu_loads(self) -> tuple[GpuLoad, ...]:
        """What the GPUs do that jobs may use; nothing is known while there are no jobs."""
        return loads(self._telemetry.gpus, named_gpus())

    @property
    def is_tidying(self) -> bool:
        """Whether checkpoints are still to be removed."""
        return self._shelf.busy

    def knows(self, job_id: str) -> bool:
        """Whether it runs, waits or has ended."""
        return job_id in self._jobs or job_id in self._ended

    # ------------------------------------------------------------------------------------------------ what is asked

    def take(self, definition: JobDefinition) -> None:
        """Start a job as soon as there is room, unless it is known."""
        if self.knows(definition.job_id):
            return
        directory = self._orders.run_directory(definition)
        job = Job(definition, directory, self._orders.progress(definition))
        self._jobs[job.job_id] = job
        self._shelf.take(definition, directory)
        if not self._waiting:
            # Not now: the controller has other things to do than to wait for it.
            self._loop.call_soon(self._start_waiting)
        self._waiting.append(job)

    def cancel(self, job_id: str, outcome: Outcome, reason: str) -> None:
        """End a job, if it is there."""
        job = self._jobs.get(job_id)
        if job is None:
            return
        if outcome is Outcome.STOPPED:
            self._stop(job, Ending(outcome, failures.one_line(reason)))
        else:
            self._terminate(job, Verdict(outcome, reason))

    def report(self, job_id: str, metrics: Mapping[str, float], error: str | None) -> None:
        """One of its processes reports metrics, or something that is none.

        Raises:
            MetricError: it is a step back; the job is ended by it.
        """
        job = self._jobs[job_id]
        if error is not None:
            self._terminate(job, failures.of_report(error))
            return
        try:
            self._measured(job, dict(metrics))
        except MetricError as repeated:
            self._terminate(job, failures.of_exception(repeated))
            raise
        self._pause_where_due(job)

    def keep_checkpoint(self, job_id: str, saved: ev.CheckpointSaved) -> None:
        """One of its processes has saved a checkpoint."""
        self._read_tail(self._jobs[job_id])  # what it printed before is what the checkpoint's score is taken from
        self._shelf.saved(job_id, saved)

    def refuse(self, event: ev.Event) -> None:
        """The log has moved on without this job (it was given up as lost, say): nobody wants its results."""
        if isinstance(event.body, ev.CheckpointDeleted):
            return  # it went another way
        job_id = event.job_id or ""
        self._shelf.refused(job_id)
        self.cancel(job_id, Outcome.CANCELLED, "the sweep gave this job up")

    # ----------------------------------------------------------------------------------------------------- starting

    def _start_waiting(self) -> None:
        """Start the jobs that wait, as far as the GPUs go."""
        while self._waiting and self._workers.are_ready and len(self._free_gpus) >= self._config.resources.gpus:
            job = self._waiting.popleft()
            job.gpus = tuple(self._free_gpus.popleft() for _ in range(self._config.resources.gpus))
            try:
                self._start(job)
            except Exception as error:  # noqa: BLE001 (a job that cannot be started has to end)
                self._cannot_start(job, error)

    def on_ready(self) -> None:
        """See `Supervisor`."""
        self._start_waiting()

    def _start(self, job: Job) -> None:
        job.traceparent = self._spans.begin(job.definition)
        is_command = isinstance(self._orders.target(job.definition), CommandTarget)
        if job.definition.inheritance is not None or (is_command and job.definition.checkpoints):
            self._take_time_for(self._start_late(job))
        else:
            self._start_process(job)

    def _start_process(self, job: Job) -> None:
        target = self._orders.target(job.definition)
        if isinstance(target, CommandTarget):
            argv, job.tail = self._orders.command(job, target)
            self._workers.execute(job, argv, self._orders.environment(job))
        else:
            self._workers.call(job, self._orders.assignment(job, target))

    def _take_time_for(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start_late(self, job: Job) -> None:
        """Start a job once it has a copy of what it goes on from, or, a command, once it is known what that can be."""
        try:
            if job.definition.inheritance is not None:
                await self._shelf.inherit(job.job_id, job.log)
            if isinstance(self._orders.target(job.definition), CommandTarget):
                await self._shelf.resume(job.job_id, job.log)
            if self._awaits_start(job):
                self._start_process(job)
        except Exception as error:  # noqa: BLE001 (as in _start_waiting)
            if self._awaits_start(job):
                self._cannot_start(job, error)
        self._start_waiting()

    def _awaits_start(self, job: Job) -> bool:
        """Whether a job without a process is still to get one; if it was stopped meanwhile, it ends here."""
        if self._jobs.get(job.job_id) is not job:
            return False  # it was lost with the fork server
        if job.verdict is not None:
            self._end(job, None)
        return job.verdict is None

    def _cannot_start(self, job: Job, error: Exception) -> None:
        """End a job that never was, or it would be waited for for ever."""
        logger.exception("job %s cannot be started", job.job_id)
        job.verdict = failures.of_start(error)
        self._end(job, None)

    def on_started(self, job: Job, worker: Worker) -> None:
        """See `Supervisor`."""
        assert worker.pid is not None
        job.begin(self._clock.monotonic(), self._oom_kills)
        self._memory.watch(job)
        self._telemetry.begin(job, worker)
        gpus = tuple(int(gpu) for gpu in job.gpus if gpu.isdecimal())
        self._record(job, ev.JobStarted(host=self._host, pid=worker.pid, log=str(job.log), gpus=gpus))
        if self._config.job_timeout_s is not None:
            limit_s = self._config.job_timeout_s
            reason = f"ran longer than job_timeout_s = {limit_s:g}"
            verdict = Verdict(Outcome.TIMED_OUT, reason, FailureKind.TIMED_OUT)
            job.timers.append(self._loop.call_later(limit_s, self._terminate, job, verdict))
        if job.tail is not None and job.progress.resource == SECONDS and job.progress.until is not None:
            job.timers.append(self._loop.call_later(job.progress.until, self._stop, job, _PAUSE))
        if job.verdict is not None:
            self._workers.signal(job, signal.SIGTERM)

    # -------------------------------------------------------------------------------------------------- under way

    def on_message(self, job: Job, message: msg.JobNews) -> None:
        """See `Supervisor`."""
        if isinstance(message, msg.Measured):
            self._record(job, ev.MetricsReported(metrics=message.metrics))
        elif isinstance(message, ev.CheckpointSaved):
            self._shelf.saved(job.job_id, message)
        else:
            self._shelf.damaged(job.job_id, message)

    def _measured(self, job: Job, metrics: dict[str, float]) -> None:
        """A command, or a process beside a function, has reported; raises MetricError when that is a step back."""
        job.progress.advance(metrics)
        self._record(job, ev.MetricsReported(metrics=metrics))

    def _pause_where_due(self, job: Job) -> None:
        if job.progress.reached:
            self._stop(job, _PAUSE)

    def _record(self, job: Job, body: ev.Body) -> None:
        self._recorder.add(body, run_id=job.definition.run_id, job_id=job.job_id)
        if isinstance(body, ev.MetricsReported):
            self._shelf.measured(job.job_id, body.metrics)
            self._telemetry.reported(job, body.metrics)

    def _measured_use(self, job: Job, usage: JobUsage) -> None:
        self._record(job, ev.ResourcesMeasured(usage=usage))

    async def _tail(self) -> None:
        while True:
            # Before the next job starts rather than with each: reading what the kernel counts takes a while.
            self._oom_kills = oom_kills()
            await asyncio.sleep(_TAIL_EVERY_S)
            for job in list(self._jobs.values()):
                if job.began is not None:
                    self._read_tail(job)

    def _read_tail(self, job: Job, *, final: bool = False) -> None:
        if job.tail is None:
            return
        try:
            for metrics in job.tail.read(final=final):
                self._measured(job, metrics)
            # Only now: what it wrote in one go may end beyond its level, at its end even.
            self._pause_where_due(job)
        except MetricError as error:
            verdict = failures.of_exception(error)
            if job.has_exited:
                job.verdict = job.verdict or verdict
            else:
                self._terminate(job, verdict)

    # ------------------------------------------------------------------------------------------------------- ending

    def _stop(self, job: Job, ending: Ending) -> None:
        """Have a job come to its end: a function is asked to first, all else is terminated at once."""
        if job.is_settled or job.is_asked_to_stop:
            return
        verdict = failures.of_ending(ending)
        job.is_asked_to_stop = self._workers.stop(job, ending)
        if job.is_asked_to_stop:
            job.timers.append(self._loop.call_later(self._config.grace_s, self._terminate, job, verdict))
        else:
            self._terminate(job, verdict)

    def _terminate(self, job: Job, verdict: Verdict) -> None:
        """End a job's processes: politely, then not."""
        if job.is_settled:
            return
        job.verdict = verdict
        if job in self._waiting:
            self._waiting.remove(job)
            self._end(job, None)
            return
        self._workers.signal(job, signal.SIGTERM)
        job.timers.append(self._loop.call_later(self._config.grace_s, self._workers.signal, job, signal.SIGKILL))

    def on_ended(self, job: Job, exited: msg.Exited | None) -> None:
        """See `Supervisor`."""
        job.ended = self._clock.monotonic()
        if job.tail is not None and job.tail.behind:
            self._take_time_for(self._end_late(job, exited, job.tail.behind))
        else:
            self._finish(job, exited)

    async def _end_late(self, job: Job, exited: msg.Exited | None, behind: int) -> None:
        """End a job that wrote faster than it was read, without keeping all others waiting for it."""
        for _ in range(behind):
            self._read_tail(job)
            await asyncio.sleep(0)
        if self._jobs.get(job.job_id) is job:  # or else it was lost with the fork server
            self._finish(job, exited)

    def _finish(self, job: Job, exited: msg.Exited | None) -> None:
        self._read_tail(job, final=True)
        self._end(job, exited)
        self._start_waiting()

    def _end(self, job: Job, exited: msg.Exited | None) -> None:
        now = self._clock.monotonic() if job.ended is None else job.ended
        self._record(job, job.end(exited, now, self._telemetry.end(job, exited, now)))
        self._shelf.end(job.job_id)
        del self._jobs[job.job_id]
        self._ended.append(job.job_id)
        self._free_gpus.extend(job.gpus)

    def on_lost(self) -> None:
        """See `Supervisor`. They are forgotten, so that the controller learns that they are lost."""
        for job in self._jobs.values():
            job.forget()
            self._shelf.end(job.job_id)
        self._spans.abandon("the fork server died, and the job with it")
        self._telemetry.forget()
        self._jobs.clear()
        self._waiting.clear()
        self._free_gpus = self._all_gpus()

    def _all_gpus(self) -> deque[str]:
        return deque(visible_gpus() if self._config.resources.gpus else [])
