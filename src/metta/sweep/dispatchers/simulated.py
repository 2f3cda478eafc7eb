"""Jobs that happen in virtual time alone: whole sweeps in seconds, by the same controller, schedulers and guards.

Simulated are the clock, the store's waiting and the jobs; nothing is executed. When the controller waits, time jumps to
the next thing that is due, and what the agents would have written is appended. Equal seeds make equal logs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

import msgspec
from msgspec.structs import replace

from metta.sweep.controller.decide import jobs_to_dispatch
from metta.sweep.dispatchers.job_models import Course, JobModel, MadeUpJobs, Report, generator_of, resumed_from
from metta.sweep.dispatchers.virtual_time import HOST, PID, SimulatedClock, SimulatedStore
from metta.sweep.errors import ConfigError, InvalidTransition
from metta.sweep.model import events as ev
from metta.sweep.model.events import new_event
from metta.sweep.model.fidelity import SECONDS
from metta.sweep.model.run import FailureKind, Inheritance, JobDefinition, JobState, JobType, Outcome
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Placement, Standing, Store

__all__ = [
    "Course",
    "JobModel",
    "MadeUpJobs",
    "Report",
    "SimulatedClock",
    "SimulatedDispatcher",
    "SimulatedStore",
    "resumed_from",
]

_AGENT = f"agent@{HOST}"


class _Job(msgspec.Struct):
    """A job on a simulated worker."""

    definition: JobDefinition
    #: What is still to happen to it, with its times.
    plan: Iterator[tuple[float, ev.Body]]
    #: Of its process, once there is one.
    started_at: float | None = None
    #: A job that is cancelled or done: what its plan still has put down in the agenda is void.
    is_over: bool = False


class SimulatedDispatcher:
    """See `protocols.Dispatcher`: workers that run jobs as a model says, in the time of a `SimulatedClock`.

    Their jobs do not run in real time, nor without this object; a controller that dies and the next one share it.

    Args:
        store: Where the sweep is; for a controller that is to wait in virtual time a `SimulatedStore`.
        sweep_id: The sweep.
        config: Its configuration.
        clock: The time.
        model: What jobs do; made-up curves without one.
        workers: How many jobs fit at one time; None for no limit.
        startup_seconds: From the dispatch of a job to its start.
        failure_rate: Share of jobs whose code raises an error somewhere on the way.
        preemption_rate: Share of jobs whose node is taken from them somewhere on the way.
        straggler_rate: Share of jobs that take `straggler_factor` times as long.
        straggler_factor: How much slower they are.
        seed: Of what happens to jobs by chance; the sweep's without one. Each job's draws depend on it and the job
            alone.
        on_dispatch: Told of each job that is taken.
    """

    name = "simulated"

    def __init__(
        self,
        store: Store,
        sweep_id: str,
        config: SweepConfig,
        clock: SimulatedClock,
        model: JobModel | None = None,
        *,
        workers: int | None = 10_000,
        startup_seconds: float = 1.0,
        failure_rate: float = 0.0,
        preemption_rate: float = 0.0,
        straggler_rate: float = 0.0,
        straggler_factor: float = 5.0,
        seed: int | None = None,
        on_dispatch: Callable[[JobDefinition], object] | None = None,
    ) -> None:
        rates = {
            "failure_rate": failure_rate,
            "preemption_rate": preemption_rate,
            "straggler_rate": straggler_rate,
        }
        for option, rate in rates.items():
            if not 0 <= rate <= 1:
                raise ConfigError(f"{option}: expected a share of jobs from 0 to 1, got {rate}")
        for option, value, least in (
            ("startup_seconds", startup_seconds, 0),
            ("straggler_factor", straggler_factor, 1),
        ):
            if value < least:
                raise ConfigError(f"{option}: expected at least {least}, got {value}")
        self._store = store
        self._sweep_id = sweep_id
        self._config = config
        self._clock = clock
        self._model = MadeUpJobs(config) if model is None else model
        self._workers = workers
        self._startup_s = startup_seconds
        self._failure_rate, self._preemption_rate, self._straggler_rate = rates.values()
        self._straggler_factor = straggler_factor
        self._seed = config.seed if seed is None else seed
        self._on_dispatch = on_dispatch
        self._jobs: dict[str, _Job] = {}
        self._ended: set[str] = set()

    def capacity(self) -> int | None:
        """See `Dispatcher.capacity`."""
        return self._workers

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        """See `Dispatcher.dispatch`."""
        return {job.job_id: Placement(dispatcher=self.name) for job in jobs if self._take(job)}

    def _take(self, job: JobDefinition) -> bool:
        if job.job_id in self._jobs or job.job_id in self._ended:
            return True
        if self._workers is not None and len(self._jobs) >= self._workers:
            return False
        self._begin(job, is_started=False)
        if self._on_dispatch is not None:
            self._on_dispatch(job)
        return True

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        """See `Dispatcher.standing`."""
        return {
            job_id: Standing.KNOWN if job_id in self._jobs or job_id in self._ended else Standing.LOST
            for job_id in job_ids
        }

    def held(self) -> list[str]:
        """See `Dispatcher.held`."""
        return list(self._jobs)

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        """See `Dispatcher.cancel`: simulated jobs end at the first signal, with the next jump of time."""
        for job_id in job_ids:
            job = self._jobs.get(job_id)
            if job is not None and not job.is_over:
                job.is_over = True
                self._clock.call_at(self._clock.now(), job_id, partial(self._exit, job, outcome, reason))

    def close(self) -> None:
        """See `Dispatcher.close`."""

    def adopt(self) -> None:
        """Take over the jobs that a copy of a real sweep has for running, as if each had begun just now."""
        state = fold(EMPTY, self._store.read(self._sweep_id))
        granted = {job.job_id for job in jobs_to_dispatch(state)}
        for run_id in sorted(state.unfinished):
            run = state.runs[run_id]
            job = run.open_job
            if job is not None and job.job_id not in granted and job.job_id not in self._jobs:
                definition = JobDefinition(
                    job_id=job.job_id,
                    run_id=run_id,
                    sweep_id=self._sweep_id,
                    type=job.type,
                    attempt=job.attempt,
                    config=run.config,
                    checkpoints=run.usable_checkpoints,
                    until=job.until,
                )
                self._begin(definition, is_started=job.state is JobState.RUNNING)

    # --------------------------------------------------------------------------------------------- what jobs do

    def _begin(self, definition: JobDefinition, *, is_started: bool) -> None:
        now = self._clock.now()
        job = _Job(definition, iter(()), started_at=now if is_started else None)
        job.plan = self._plan(definition, now, is_started=is_started)
        self._jobs[definition.job_id] = job
        self._put_down_next(job)

    def _put_down_next(self, job: _Job) -> None:
        at, body = next(job.plan)
        self._clock.call_at(at, job.definition.job_id, partial(self._happen, job, body))

    def _happen(self, job: _Job, body: ev.Body) -> None:
        if job.is_over:
            return
        if isinstance(body, ev.JobStarted):
            job.started_at = self._clock.now()
        self._record(job, body)
        if isinstance(body, ev.JobExited):
            self._forget(job)
        else:
            self._put_down_next(job)

    def _exit(self, job: _Job, outcome: Outcome, reason: str) -> None:
        seconds = 0.0 if job.started_at is None else self._clock.now() - job.started_at
        self._record(job, ev.JobExited(outcome=outcome, seconds=seconds, error=reason))
        self._forget(job)

    def _forget(self, job: _Job) -> None:
        job.is_over = True
        del self._jobs[job.definition.job_id]
        self._ended.add(job.definition.job_id)

    def _record(self, job: _Job, body: ev.Body) -> None:
        definition = job.definition
        event = new_event(
            body,
            sweep_id=self._sweep_id,
            at=self._clock.now(),
            actor=_AGENT,
            run_id=definition.run_id,
            job_id=definition.job_id,
        )
        with suppress(InvalidTransition):  # the log has given the job up; what it still says is no news of its run
            self._store.append([event])

    def _plan(self, job: JobDefinition, now: float, *, is_started: bool) -> Iterator[tuple[float, ev.Body]]:
        """All that happens to a job nobody cancels, with its times."""
        began = now if is_started else now + self._startup_s
        if job.inheritance is not None:
            yield began, _copied(job, job.inheritance)
            if not job.inheritance.checkpoints:
                return
        if not is_started:
            yield began, ev.JobStarted(host=HOST, pid=PID, log="")
        course = self._troubled(self._model(job), job)
        for report in course.reports:
            if report.seconds > course.seconds:
                break
            yield began + report.seconds, ev.MetricsReported(metrics=report.metrics)
            if (step := self._paused_at(job, report)) is not None:
                yield began + report.seconds, _checkpoint(job, step)
                yield began + report.seconds, ev.JobExited(outcome=Outcome.PAUSED, seconds=report.seconds)
                return
        yield (
            began + course.seconds,
            ev.JobExited(
                outcome=course.outcome,
                seconds=course.seconds,
                error=course.error,
                failure=course.failure,
                signature=course.signature,
            ),
        )

    def _paused_at(self, job: JobDefinition, report: Report) -> int | None:
        """The step at which a job pauses that has reported this; None when it goes on."""
        fidelity = self._config.fidelity
        if fidelity is None or job.until is None or job.type is not JobType.TRAIN or job.until >= fidelity.maximum:
            return None
        if fidelity.resource == SECONDS:
            # Each job measures its own time, and is told what its run has left of it.
            return int(resumed_from(job) + report.seconds) if report.seconds >= job.until else None
        reached = report.metrics.get(fidelity.resource)
        return int(reached) if reached is not None and job.until <= reached < fidelity.maximum else None

    def _troubled(self, course: Course, job: JobDefinition) -> Course:
        """What becomes of a course by bad luck."""
        if not (self._failure_rate or self._preemption_rate or self._straggler_rate):
            return course
        failure, preemption, straggling, share = map(float, generator_of(self._seed, job.job_id).random(4))
        if straggling < self._straggler_rate:
            factor = self._straggler_factor
            reports = [Report(report.seconds * factor, report.metrics) for report in course.reports]
            course = replace(course, reports=reports, seconds=course.seconds * factor)
        if failure < self._failure_rate:
            outcome, kind, error = Outcome.FAILED, FailureKind.USER_ERROR, "simulated failure"
        elif preemption < self._preemption_rate:
            outcome, kind, error = Outcome.KILLED, FailureKind.PREEMPTED, "simulated preemption"
        else:
            return course
        # Without a signature: what strikes at random is no typo, and pauses no sweep.
        return replace(course, seconds=course.seconds * share, outcome=outcome, failure=kind, error=error)


def _checkpoint(job: JobDefinition, step: int) -> ev.CheckpointSaved:
    made_up = hashlib.sha256(f"{job.job_id}:{step}".encode()).hexdigest()
    return ev.CheckpointSaved(step=step, path=f"checkpoints/simulated-{step}", sha256=made_up, size_bytes=0)


def _copied(job: JobDefinition, inheritance: Inheritance) -> ev.CheckpointCopied | ev.JobExited:
    """What the agent says before it starts a job that goes on from another run's checkpoint."""
    if not inheritance.checkpoints:
        error = f"run {inheritance.run_id}, from which it was to go on, has no checkpoint"
        return ev.JobExited(outcome=Outcome.FAILED, error=error, failure=FailureKind.USER_ERROR)
    parent = inheritance.checkpoints[-1]
    saved = _checkpoint(job, parent.step)
    return ev.CheckpointCopied(
        source=inheritance.run_id,
        step=parent.step,
        path=saved.path,
        sha256=parent.sha256,
        size_bytes=0,
        score=parent.score,
    )
