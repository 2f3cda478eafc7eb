"""Sample sweeps: a configuration, the events of a run's life, and histories at random."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import FailureKind, JobInfo, JobState, JobStatus, JobType, Outcome, Parent, RunInfo
from metta.sweep.model.space import Choice, LogUniform, SearchSpace
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.model.sweep import CommandTarget, SweepConfig, SweepStatus
from metta.sweep.model.usage import Curves, JobUsage

SWEEP = "sw33p"
START = 1_700_000_000.0


def sweep_config(**fields: Any) -> SweepConfig:
    """A valid configuration; `fields` replace those that matter to a test."""
    defaults: dict[str, Any] = {
        "name": "demo",
        "target": CommandTarget(argv=["train"]),
        "search_space": SearchSpace.of({"lr": LogUniform(1e-5, 1e-1)}),
        "metric": "reward",
        "seed": 7,
        "max_parallel": 4,
        "directory": "/sweeps/demo",
        "working_directory": "/code",
    }
    return SweepConfig(**{**defaults, **fields})


def sweep_created(sweep_id: str = SWEEP, *, at: float = START, **fields: Any) -> Event:
    """The first event of a sweep with this configuration."""
    return new_event(ev.SweepCreated(config=sweep_config(**fields)), sweep_id=sweep_id, at=at, actor="user")


def run_events(
    index: int,
    *,
    sweep_id: str = SWEEP,
    score: float | None = 1.0,
    at: float = START,
    config: dict[str, Any] | None = None,
) -> list[Event]:
    """The whole life of a run, an hour long; the first events of it alone make a run that is still on its way.

    Args:
        index: Which run of its sweep.
        sweep_id: Which sweep.
        score: Its reward; None for a run that fails because it reported none.
        at: When it was created.
        config: Its configuration.

    Returns:
        Run created, job granted, dispatched, started, metrics reported (not without a score), job exited, run
        completed.
    """
    run_id = ids.run_id(sweep_id, index)
    job_id = ids.job_id(run_id, JobType.TRAIN, 1)

    def event(body: Body, *, of_job: bool = True, at: float = at) -> Event:
        return new_event(body, sweep_id=sweep_id, at=at, actor="test", run_id=run_id, job_id=job_id if of_job else None)

    end: Body = ev.RunFailed(reason="reward was not reported") if score is None else ev.RunCompleted(score=score)
    return [
        event(ev.RunCreated(index=index, config=config or {"lr": 0.01}, reasons=("sample",)), of_job=False),
        event(ev.JobGranted(job_type=JobType.TRAIN, attempt=1, reasons=("sample",))),
        event(ev.JobDispatched(dispatcher="local")),
        event(ev.JobStarted(host="node", pid=4321, log="log")),
        *([] if score is None else [event(ev.MetricsReported(metrics={"reward": score}), at=at + 1800)]),
        event(ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=3600.0), at=at + 3600),
        event(end, of_job=False, at=at + 3600),
    ]


def random_history(seed: int, length: int = 60, *, sweep_id: str = SWEEP) -> list[Event]:
    """The log of a sweep in which anything happens that may: failures, losses, retries, pauses, changes of mind.

    Equal for equal arguments, but for the ids of the events.
    """
    author = _Author(seed, sweep_id)
    while len(author.history) < length:
        author.go_on()
    return author.history[:length]


_METRICS = ("reward", "loss")
_SPACES = (SearchSpace.of({"lr": LogUniform(1e-5, 1e-1)}), SearchSpace.of({"lr": Choice([0.001, 0.01, 0.1])}))
_FAILURES = {
    Outcome.FAILED: (FailureKind.USER_ERROR, FailureKind.OUT_OF_MEMORY),
    Outcome.KILLED: (FailureKind.KILLED, FailureKind.PREEMPTED),
    Outcome.TIMED_OUT: (FailureKind.TIMED_OUT,),
}
_SIGNATURES = (*["ValueError at train.py:7"] * 3, "KeyError at train.py:9", None)
_SHA256 = "0" * 64


class _Author:
    """Makes up a history, one thing that may happen after another."""

    def __init__(self, seed: int, sweep_id: str) -> None:
        self._choose = random.Random(seed)  # noqa: S311 (a test keeps no secrets)
        self._sweep_id = sweep_id
        self._state = EMPTY
        direction = self._choose.choice(["maximize", "minimize"])
        self.history: list[Event] = []
        fidelity = self._choose.choice([None, Fidelity(maximum=9)])
        self._add(ev.SweepCreated(config=sweep_config(direction=direction, fidelity=fidelity)))

    def go_on(self) -> None:
        """Something happens: to the sweep, to a new run, to one on its way or cancelled, or to one that has ended."""
        draw = self._choose.random()
        active = [run for run in self._runs() if not run.status.ended or run.status is JobStatus.CANCELLED]
        if self._state.sweep.status.ended:
            self._revise() if draw < 0.5 else self._resume()
        elif draw < (0.08 if self._state.unfinished else 0.4):
            self._about_the_sweep()
        elif draw < (0.13 if self._state.unfinished else 0.55):
            self._revise()
        elif not active or draw < 0.22:
            self._create()
        else:
            run = self._choose.choice(active)
            self._about_a_job(run, run.open_job) if run.open_job else self._about_a_run(run)

    def _add(self, body: Body, run: RunInfo | None = None, job_id: str | None = None) -> None:
        run_id = run.run_id if run else None
        if isinstance(body, ev.RunCreated):
            run_id = ids.run_id(self._sweep_id, body.index)
        event = new_event(body, sweep_id=self._sweep_id, at=self._now, actor="test", run_id=run_id, job_id=job_id)
        self._state = fold(self._state, [replace(event, seq=self._state.seq + 1)])
        self.history.append(event)

    @property
    def _now(self) -> float:
        return START + len(self.history)

    def _runs(self) -> list[RunInfo]:
        return sorted(self._state.runs.values(), key=lambda run: run.index)

    # ------------------------------------------------------------------------------------------------- the sweep

    def _about_the_sweep(self) -> None:
        if self._state.sweep.status is SweepStatus.PAUSED and self._choose.random() < 0.5:
            self._resume()
            return
        bodies: list[Body] = [
            ev.ControllerStarted(host="node", pid=1, fence=1, version="0"),
            ev.ControllerStopped(reason="interrupted"),
            ev.SweepStopRequested(reason="the user asked"),
            ev.DispatchFailed(dispatcher="local", reason="no such partition", retry_at=self._now + 8),
            ev.Notified(channel="$SLACK_URL", through=self._state.seq, title="news", best_score=0.5),
        ]
        if self._state.sweep.status is SweepStatus.RUNNING:
            bodies += [ev.SweepPaused(reason="the user asked")] * 2
        if not self._state.unfinished:
            bodies += [ev.SweepEnded(status=SweepStatus.STOPPED, reason="the user asked")] * 4
        self._add(self._choose.choice(bodies))

    def _resume(self) -> None:
        changes = self._choose.choice([{}, {"max_trials": self._choose.randint(10, 99)}])
        self._add(ev.SweepResumed(changes=changes))

    def _create(self) -> None:
        config = self._state.sweep.config.search_space.decode([self._choose.random()])
        created = ev.RunCreated(index=self._state.sweep.run_count, config=config, reasons=("sample",))
        parents = [run for run in self._runs() if run.checkpoints and run.rungs]
        if parents and self._choose.random() < 0.5:
            run, replaced = self._choose.choice(parents), self._choose.choice(self._runs())
            parent = Parent(
                run_id=run.run_id, level=run.rungs[-1].level, step=run.checkpoints[-1].step, replaces=replaced.run_id
            )
            created = replace(created, parent=parent, rungs=run.rungs)
        self._add(created)

    # -------------------------------------------------------------------------------------------- jobs, and runs

    def _about_a_job(self, run: RunInfo, job: JobInfo) -> None:
        steps: list[Body] = [
            ev.JobLost(reason="its agent is gone", failure=self._choose.choice([None, FailureKind.NODE_LOST])),
            ev.JobDispatched(dispatcher="local", reasons=("the only one",)),
        ]
        if job.state is JobState.RUNNING:
            names = self._choose.choice([_METRICS, _METRICS, _METRICS[:1]])
            metrics = {name: self._choose.gauss(0, 1) for name in names}
            steps += [ev.MetricsReported(metrics={**metrics, "epoch": float(self._choose.randint(1, 9))})] * 3
            steps += [self._exit()] * 4
            steps.append(ev.ResourcesMeasured(usage=self._usage()))
            step = self._choose.randint(1, 4)
            path = f"checkpoints/{step}"
            steps += [ev.CheckpointSaved(step=step, path=path, sha256=_SHA256, size_bytes=4096)] * 2
            if run.stop_reason is None:
                steps.append(ev.RunStopRequested(reason="others are better"))
        else:
            steps += [ev.JobStarted(host="node", pid=4321, log="log")] * 4
            if run.parent is not None:
                step, source = run.parent.step, run.parent.run_id
                path = f"checkpoints/{step}"
                copied = ev.CheckpointCopied(source=source, step=step, path=path, sha256=_SHA256, size_bytes=4096)
                steps += [copied] * 4
        self._add(self._choose.choice(steps), run, job.job_id)

    def _usage(self) -> JobUsage:
        return JobUsage(
            seconds=self._choose.randint(1, 99) / 4,
            cpu_seconds=self._choose.randint(0, 99) / 4,
            memory_peak_bytes=self._choose.randint(1, 1 << 34),
            curves=Curves(every_s=1.0, cpus=(0.5, 1.0)),
        )

    def _exit(self) -> ev.JobExited:
        outcome = self._choose.choice([Outcome.SUCCEEDED] * 9 + list(Outcome))
        # Quarters of a second add up exactly, in whatever order.
        seconds = self._choose.randint(0, 9) / 4
        # Without a failure, as versions before retries wrote it.
        if outcome not in _FAILURES or self._choose.random() < 0.2:
            return ev.JobExited(outcome=outcome, seconds=seconds, usage=self._choose.choice([None, self._usage()]))
        failure, signature = self._choose.choice(_FAILURES[outcome]), self._choose.choice(_SIGNATURES)
        return ev.JobExited(outcome=outcome, seconds=seconds, failure=failure, signature=signature, error=signature)

    def _about_a_run(self, run: RunInfo) -> None:
        if run.status is JobStatus.CANCELLED:
            self._requeue(run)
        elif run.status is JobStatus.RETRYING:
            self._after_a_failure(run)
        elif run.status is JobStatus.PAUSED and self._choose.random() < 0.5:
            self._add(ev.RunStopped(reason="others are better", partial_score=run.metrics.get("reward")), run)
        elif run.status is JobStatus.EVAL_DONE_NOT_COMPLETED or self._choose.random() < 0.2 + 0.3 * run.is_trained:
            self._end(run)
        else:
            waits_for_training = run.status in {JobStatus.PENDING, JobStatus.PAUSED}
            job_type = JobType.TRAIN if waits_for_training else JobType.EVAL
            attempt = run.attempts(job_type) + 1
            job_id = ids.job_id(run.run_id, job_type, attempt)
            until = self._choose.choice([None, 3.0]) if waits_for_training else None
            granted = ev.JobGranted(job_type=job_type, attempt=attempt, reasons=("its turn",), until=until)
            self._add(granted, run, job_id)

    def _after_a_failure(self, run: RunInfo) -> None:
        draw = self._choose.random()
        if draw < 0.2:
            partial = run.metrics.get(self._state.sweep.config.metric)
            self._add(ev.RunFailed(reason=run.failure_reasons[-1], partial_score=partial), run)
        elif draw < 0.3:
            self._add(ev.RunCancelled(reason="the user asked"), run)
        elif run.retry_at is not None:
            self._requeue(run)
        else:
            count = run.retry_count + self._choose.randint(0, 1)
            memory_gb = self._choose.choice([None, 2.0, 4.0])
            wait = ev.RunRetryScheduled(
                retry_at=self._now + 8, retry_count=count, reason="it may pass", memory_gb=memory_gb
            )
            self._add(wait, run)

    def _requeue(self, run: RunInfo) -> None:
        checkpoint = self._choose.choice([None, *(each.step for each in run.checkpoints)])
        self._add(ev.RunRequeued(reason="its turn has come", checkpoint=checkpoint), run)

    def _end(self, run: RunInfo) -> None:
        ends: list[Body] = [
            ev.RunFailed(reason="no reward", signature=self._choose.choice(["no reward", None])),
            ev.RunCancelled(reason="the user asked"),
        ]
        if run.status not in {JobStatus.PENDING, JobStatus.PAUSED}:
            ends += [ev.RunCompleted(score=self._choose.gauss(0, 1))] * 6
        self._add(self._choose.choice(ends), run)

    # ---------------------------------------------------------------------------------- what was, seen differently

    def _revise(self) -> None:
        """Somebody takes back, mends, amends or tries again what there is; most of it also after the sweep's end."""
        revisions: list[Callable[[], None]] = [self._amend, self._note]
        if self._runs():
            revisions.append(partial(self._repair, self._choose.choice(self._runs())))
        for run in self._runs():
            if run.status is JobStatus.ROLLED_BACK:
                revisions += [partial(self._add, ev.RunRestored(reason="the user asked"), run)] * 2
            elif run.status.ended:
                revisions.append(partial(self._roll_back, run))
            if run.status is JobStatus.FAILED and not self._state.sweep.status.ended:
                revisions.append(partial(self._requeue, run))
            if run.checkpoints:
                step = self._choose.choice(run.checkpoints).step
                revisions.append(partial(self._add, ev.CheckpointDeleted(step=step, reason="too many"), run))
        self._choose.choice(revisions)()

    def _roll_back(self, run: RunInfo) -> None:
        best_run_id, best_score = self._best(without=run)
        self._add(ev.RunRolledBack(reason="the user asked", best_run_id=best_run_id, best_score=best_score), run)

    def _repair(self, run: RunInfo) -> None:
        after = {"cost": run.cost + self._choose.randint(1, 9) / 4}
        self._add(ev.StateRepaired(problem="its cost was wrong", before={"cost": run.cost}, after=after), run)

    def _note(self) -> None:
        run = self._choose.choice([None, *self._runs()])
        self._add(ev.Noted(topic="note", text="the user thinks", data={"of": len(self.history)}), run)

    def _amend(self) -> None:
        metric, direction = self._choose.choice(_METRICS), self._choose.choice(["maximize", "minimize"])
        space = msgspec.to_builtins(self._choose.choice(_SPACES))
        changes = self._choose.choice([{"metric": metric}, {"direction": direction}, {"search_space": space}])
        if "metric" in changes:
            for run in self._runs():
                status = run.undone.status if run.undone else run.status
                if status in {JobStatus.COMPLETED, JobStatus.STOPPED, JobStatus.FAILED}:
                    self._add(ev.RunRescored(reason="another metric", score=run.metrics.get(metric)), run)
        best_run_id, best_score = self._best(changes.get("direction"))
        self._add(ev.SweepAmended(changes=changes, best_run_id=best_run_id, best_score=best_score))

    def _best(self, direction: str | None = None, without: RunInfo | None = None) -> tuple[str | None, float | None]:
        """The best run and its score, or nothing twice."""
        maximize = (direction or self._state.sweep.config.direction) == "maximize"
        scores = {
            run.run_id: run.score
            for run in self._runs()
            if run.status is JobStatus.COMPLETED and run.score is not None and run is not without
        }
        best = (max if maximize else min)(scores, key=lambda run_id: scores[run_id], default=None)
        return best, scores[best] if best else None
