"""All of the controller's thinking, as pure functions of the state.

Decisions are event bodies. Each one is folded into the state before the next is made, so that a run completed in this
step already counts for the optimizer, the guards and the slots of this step.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from metta.sweep.controller.retries import MOST_REFUSALS, after_failure, is_due, waits_too_long
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event
from metta.sweep.model.fidelity import SECONDS
from metta.sweep.model.run import Inheritance, JobDefinition, JobInfo, JobStatus, JobType, Outcome, RunInfo
from metta.sweep.model.state import SweepState, fold
from metta.sweep.model.sweep import SweepConfig, SweepMetadata, SweepStatus
from metta.sweep.model.waiting import WITH_JOB, WITHOUT_JOB, WaitsFor
from metta.sweep.protocols import (
    BranchRun,
    CreateRuns,
    Finish,
    Guard,
    History,
    Optimizer,
    Scheduler,
    StartJob,
    StopRun,
)
from metta.sweep.schedulers.slots import Slots


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller wants to write: an event without its envelope."""

    body: ev.Body
    run_id: str | None = None
    job_id: str | None = None


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """The parts that decide, as the sweep's configuration names them."""

    optimizer: Optimizer
    scheduler: Scheduler
    guards: Sequence[Guard]


def decide(state: SweepState, policy: Policy, *, now: float, capacity: int | None, starting: bool) -> list[Decision]:
    """Everything to be written now, in order.

    Args:
        state: The sweep as the log tells it.
        policy: Who decides.
        now: Seconds since the epoch.
        capacity: How many jobs the dispatcher takes at one time.
        starting: Whether new jobs may start; False while the controller winds down.
    """
    if state.sweep.status.ended:
        return []
    plan = _Plan(state, now)
    if state.sweep.status is SweepStatus.STOPPING:
        _stop(plan)
        return plan.decisions
    _judge(plan)
    if plan.state.sweep.status is SweepStatus.RUNNING:
        _pause(plan)
    if starting and plan.state.sweep.status is SweepStatus.RUNNING:
        _requeue(plan)
        _start_wanted(plan, capacity)
        _start(plan, policy, capacity)
    return plan.decisions


def revive(state: SweepState, now: float) -> list[Decision]:
    """Runs to try again when a sweep is taken up after an interruption. Looks at all runs, so once a controller."""
    return [
        Decision(body=ev.RunRequeued(reason="interrupted before; the sweep goes on"), run_id=run.run_id)
        for run in state.runs.values()
        if run.status is JobStatus.CANCELLED and _was_interrupted(run)
    ]


def _was_interrupted(run: RunInfo) -> bool:
    """Whether the run ended with the interruption of its last job, and not later, while it waited for another."""
    job = run.jobs[-1] if run.jobs else None
    return job is not None and job.outcome is Outcome.INTERRUPTED and job.ended_at == run.ended_at


def jobs_to_dispatch(state: SweepState) -> list[JobDefinition]:
    """Jobs that were granted and, as far as the log tells, not taken by a dispatcher yet."""
    return [
        _definition(state, run, job)
        for run in state.waiting_for(WaitsFor.DISPATCH)
        if (job := run.open_job) is not None
    ]


def _definition(state: SweepState, run: RunInfo, job: JobInfo) -> JobDefinition:
    sweep = state.sweep
    resources = sweep.config.resources
    policy = sweep.retry_policy(job.type)
    return JobDefinition(
        job_id=job.job_id,
        run_id=run.run_id,
        sweep_id=run.sweep_id,
        type=job.type,
        attempt=job.attempt,
        config=run.config,
        retry_count=run.retry_count,
        max_retries=policy.limit,
        retry_delay_seconds=policy.retry_delay_seconds,
        failure_reasons=run.failure_reasons,
        checkpoints=run.usable_checkpoints,
        inheritance=_inheritance(state, run) if job.type is JobType.TRAIN else None,
        keep=job.keep,
        resources=resources if run.memory_gb is None else replace(resources, memory_gb=run.memory_gb),
        until=_until(sweep.config, run, job),
    )


def _inheritance(state: SweepState, run: RunInfo) -> Inheritance | None:
    """What a run has to get from its parent before it can begin; None for those that have something of their own."""
    parent = run.parent
    if parent is None or run.checkpoints:
        return None
    known = state.runs.get(parent.run_id)
    found = () if known is None else known.checkpoints
    older = tuple(checkpoint for checkpoint in found if checkpoint.step <= parent.step)
    return Inheritance(run_id=parent.run_id, checkpoints=older)


def _until(config: SweepConfig, run: RunInfo, job: JobInfo) -> float | None:
    """When a job is to end; of wall time only what is left counts, since each job measures its own."""
    if job.until is None or config.fidelity is None or config.fidelity.resource != SECONDS:
        return job.until
    return max(job.until - run.seconds, 0.0)


def jobs_to_stop(state: SweepState) -> dict[str, str]:
    """Ids of the jobs whose runs are given up, with the reasons."""
    return {
        job.job_id: run.stop_reason
        for run in state.waiting_for(WaitsFor.STOP, WaitsFor.DISPATCH)
        if run.stop_reason is not None and (job := run.open_job) is not None
    }


def open_jobs(state: SweepState) -> list[str]:
    """Ids of all jobs that may be executing."""
    return [job.job_id for run in state.waiting_for(*WITH_JOB) if (job := run.open_job) is not None]


class _Plan:
    """Decisions made so far, and the state as it will be after them."""

    def __init__(self, state: SweepState, now: float) -> None:
        self.state = state
        self.now = now
        self.decisions: list[Decision] = []

    def add(self, body: ev.Body, *, run_id: str | None = None, job_id: str | None = None) -> None:
        self.decisions.append(Decision(body=body, run_id=run_id, job_id=job_id))
        event = Event(
            id="",
            sweep_id=self.state.sweep.sweep_id,
            at=self.now,
            actor="controller",
            body=body,
            run_id=run_id,
            job_id=job_id,
            seq=self.state.seq + 1,
        )
        self.state = fold(self.state, [event])


def _stop(plan: _Plan) -> None:
    reason = plan.state.sweep.reason or "stopped"
    for run in plan.state.waiting_for(*WITHOUT_JOB):
        plan.add(ev.RunCancelled(reason=reason), run_id=run.run_id)
    if not plan.state.unfinished:
        plan.add(ev.SweepEnded(status=SweepStatus.STOPPED, reason=reason))


def _judge(plan: _Plan) -> None:
    """Complete, fail or retry the runs whose job is behind them."""
    sweep = plan.state.sweep
    final = JobStatus.TRAINING_DONE_NO_EVAL if sweep.config.evaluate is None else JobStatus.EVAL_DONE_NOT_COMPLETED
    trained = () if sweep.config.evaluate is not None else (WaitsFor.EVAL_SLOT,)
    for run in plan.state.waiting_for(WaitsFor.VERDICT, *trained):
        if run.status is final:
            plan.add(_verdict(run, sweep.config), run_id=run.run_id)
        elif run.stop_reason is not None:
            plan.add(_stopped(run, run.stop_reason, sweep.config), run_id=run.run_id)
        elif run.status is JobStatus.RETRYING and run.retry_at is None:
            plan.add(after_failure(sweep, run, plan.now), run_id=run.run_id)


def _verdict(run: RunInfo, config: SweepConfig) -> ev.RunCompleted | ev.RunFailed:
    reported = reported_by_last_job(run)
    if config.metric in reported:
        return ev.RunCompleted(score=run.metrics[config.metric])
    names = ", ".join(sorted(reported)) or "no metrics at all"
    job_type = run.jobs[-1].type
    return ev.RunFailed(
        reason=f"metric {config.metric!r} was not reported; {job_type} reported: {names}",
        signature=f"{job_type} without {config.metric}",
    )


def _stopped(run: RunInfo, reason: str, config: SweepConfig) -> ev.RunStopped:
    return ev.RunStopped(reason=reason, partial_score=run.metrics.get(config.metric))


def reported_by_last_job(run: RunInfo) -> set[str]:
    """The metrics that a run's result may be taken from.

    The last job has to have said them: what training reported is no evaluation, what a lost attempt reported no result.
    But an attempt that went on from a checkpoint goes on from what was reported by then, too.
    """
    last = run.jobs[-1]
    attempts = [job for job in run.jobs if job.type is last.type] if run.checkpoints else [last]
    return {name for job in attempts for name in job.reported}


def _pause(plan: _Plan) -> None:
    """Stop before a fault that is not the configurations' burns them all."""
    sweep = plan.state.sweep
    if _is_suspicious(sweep):
        # A second attempt that is still to come may show that the error passes; until then nothing new starts.
        if sweep.same_failures < 2 * sweep.config.same_error_limit and _is_retried(plan.state):
            return
        reason = f"{sweep.same_failures} jobs in a row failed in the same way: {sweep.failure_reason}"
        plan.add(ev.SweepPaused(reason=reason))
    elif sweep.dispatch_failures >= MOST_REFUSALS:
        plan.add(ev.SweepPaused(reason=f"no job could be dispatched, {sweep.dispatch_failures} times in a row"))


def _is_suspicious(sweep: SweepMetadata) -> bool:
    """Whether so many jobs in a row have failed in the same way that it looks like a fault of the code."""
    return 0 < sweep.config.same_error_limit <= sweep.same_failures


def _is_retried(state: SweepState) -> bool:
    """Whether a run that failed like the last one has another attempt before it."""
    signature = state.sweep.failure_signature
    return any(
        job.signature == signature
        for run_id in state.unfinished
        for job in [job for job in state.runs[run_id].jobs if not job.state.open][-1:]
    )


def _requeue(plan: _Plan) -> None:
    for run in plan.state.waiting_for(WaitsFor.RETRY):
        is_late = bool(run.jobs) and waits_too_long(run, plan.state.sweep.retry_policy(run.jobs[-1].type), plan.now)
        if is_late or is_due(run, plan.now):
            plan.add(ev.RunRequeued(reason="its wait is over"), run_id=run.run_id)


def _start_wanted(plan: _Plan, capacity: int | None) -> None:
    """Train the runs that users want after all; no scheduler is asked, since it has decided against them."""
    if wanted := [run for run in plan.state.waiting_for(WaitsFor.TRAIN_SLOT) if run.wanted]:
        for wish in Slots(plan.state, capacity).resume(wanted):
            _grant(plan, plan.state.runs[wish.run_id], replace(wish, reasons=("the user wants it",)))


def _start(plan: _Plan, policy: Policy, capacity: int | None) -> None:
    """Grant what the scheduler wishes and the guards allow; end the sweep when nothing is left."""
    refusals = [no for guard in policy.guards if (no := guard.refuse(plan.state, plan.now))]
    refusal = next((no for no in refusals if no.ends_paused), refusals[0] if refusals else None)
    end = refusal.reason if refusal else None
    ends_paused = refusal is not None and refusal.ends_paused
    for wish in policy.scheduler.schedule(plan.state, capacity):
        if isinstance(wish, StartJob):
            run = plan.state.runs[wish.run_id]
            if not (ends_paused and run.status is JobStatus.PAUSED):
                _grant(plan, run, wish)
        elif isinstance(wish, StopRun):
            _give_up(plan, plan.state.runs[wish.run_id], wish.reason)
        elif isinstance(wish, Finish):
            end, ends_paused = end or wish.reason, True
        elif refusal is None and not _is_suspicious(plan.state.sweep):
            if isinstance(wish, BranchRun):
                _branch(plan, policy.optimizer, wish)
            elif _suggest(plan, policy.optimizer, wish) < wish.count:
                count = len(plan.state.tried) or plan.state.sweep.run_count
                end, ends_paused = f"search space exhausted: {count} configurations were tried", True
    if end is not None and ends_paused:
        _leave_paused(plan, end)
    if end is not None and not plan.state.unfinished:
        plan.add(ev.SweepEnded(status=SweepStatus.COMPLETED, reason=end))


def _leave_paused(plan: _Plan, reason: str) -> None:
    """Stop the runs that wait for a decision once nothing runs any more that could bring one."""
    if plan.state.all_wait_for(WaitsFor.PROMOTION):
        for run in plan.state.waiting_for(WaitsFor.PROMOTION):
            _give_up(plan, run, reason)


def _give_up(plan: _Plan, run: RunInfo, reason: str) -> None:
    if run.wanted:
        return
    if run.open_job is None:
        plan.add(_stopped(run, reason, plan.state.sweep.config), run_id=run.run_id)
    else:
        plan.add(ev.RunStopRequested(reason=reason), run_id=run.run_id)


def _suggest(plan: _Plan, optimizer: Optimizer, wish: CreateRuns) -> int:
    """Create runs; returns how many there was something to try for."""
    suggestions = optimizer.suggest(History.of(plan.state, wish.exploration), wish.count)
    for suggestion in suggestions:
        body = ev.RunCreated(
            index=plan.state.sweep.run_count,
            config=suggestion.config,
            reasons=(*suggestion.reasons, *wish.reasons),
            acquisition=suggestion.acquisition,
        )
        _create(plan, body, wish)
    return len(suggestions)


def _branch(plan: _Plan, optimizer: Optimizer, wish: BranchRun) -> None:
    """Put a new run, which goes on from another's checkpoint, into the place of one that is given up or has failed."""
    state, parent = plan.state, wish.parent
    body = ev.RunCreated(
        index=state.sweep.run_count,
        config=wish.config,
        reasons=wish.reasons,
        parent=parent,
        rungs=tuple(rung for rung in state.runs[parent.run_id].rungs if rung.level <= parent.level),
    )
    history = replace(History.of(state), parent=parent, fixed=wish.fixed)
    for suggestion in optimizer.suggest(history, 1) if wish.ask else ():
        space = state.sweep.config.search_space
        config = space.completed({**suggestion.config, **wish.fixed}, [0.5] * len(space.dimensions))
        reasons = (*wish.reasons, *suggestion.reasons)
        body = replace(body, config=config, reasons=reasons, acquisition=suggestion.acquisition)
    replaced = state.runs[parent.replaces]
    if not replaced.status.ended:
        _give_up(plan, replaced, wish.reasons[0])
    _create(plan, body, wish)


def _create(plan: _Plan, body: ev.RunCreated, wish: CreateRuns | BranchRun) -> None:
    run_id = ids.run_id(plan.state.sweep.sweep_id, body.index)
    plan.add(body, run_id=run_id)
    start = StartJob(run_id=run_id, type=JobType.TRAIN, reasons=wish.reasons, until=wish.until)
    _grant(plan, plan.state.runs[run_id], start)


def _grant(plan: _Plan, run: RunInfo, wish: StartJob) -> None:
    attempt = run.attempts(wish.type) + 1
    until = None if run.wanted else wish.until
    plan.add(
        ev.JobGranted(job_type=wish.type, attempt=attempt, reasons=wish.reasons, until=until, keep=wish.keep),
        run_id=run.run_id,
        job_id=ids.job_id(run.run_id, wish.type, attempt),
    )
