"""A sweep in virtual time: every decision is the controller's own, jobs are learning curves."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count

from msgspec.structs import replace

from metta.sweep import registry
from metta.sweep.controller import revisions
from metta.sweep.controller.decide import Policy, decide, jobs_to_dispatch, jobs_to_stop
from metta.sweep.guards.limits import TrialLimit
from metta.sweep.model import events as ev
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobDefinition, Outcome
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import Strategy
from metta.sweep.testing.sweeps import START, SWEEP, sweep_created

EPOCHS = 27
FIDELITY = Fidelity(maximum=EPOCHS)

Curve = Callable[[int, int], float]
Seconds = Callable[[int], float]


class Halving:
    """Runs a sweep to its end; `history` is its log.

    Args:
        curve: The reward of the run of some index after some epoch.
        seconds: What an epoch of the run of some index takes.
        fresh: Whether every decision is made by new parts, as if the controller had been killed before it.
    """

    def __init__(
        self,
        strategy: Strategy,
        curve: Curve,
        seconds: Seconds = lambda _: 1.0,
        *,
        fresh: bool = False,
        **fields: object,
    ) -> None:
        self._curve, self._seconds, self._fresh = curve, seconds, fresh
        self._due: list[tuple[float, int, Body, str, str]] = []
        self._numbers = count()
        self._running: set[str] = set()
        self._now = START
        self.history: list[Event] = []
        self.state = EMPTY
        settings = {"fidelity": FIDELITY, "max_trials": 27, "max_parallel": 4, **fields}
        self._add([sweep_created(strategy=strategy, **settings).body])
        self._policy = self._new_policy()

    def _new_policy(self) -> Policy:
        config = self.state.sweep.config
        scheduler = registry.scheduler(config.strategy.scheduler, config.strategy.scheduler_options)
        scheduler.check(config)
        return Policy(optimizer=registry.optimizer("random", {}), scheduler=scheduler, guards=(TrialLimit(),))

    def run(self, most_steps: int = 100_000) -> SweepState:
        for _ in range(most_steps):
            self._decide()
            if self.state.sweep.status.ended:
                return self.state
            assert self._due, "nothing runs, and the sweep has not ended"
            self._now, _, body, run_id, job_id = heapq.heappop(self._due)
            if job_id in self._running:
                self._add([body], run_id, job_id)
                if isinstance(body, ev.JobExited):
                    self._running.discard(job_id)
        raise AssertionError("the sweep does not end")

    def want(self, run_id: str) -> None:
        """As `metta sweep resume RUN` does."""
        for decision in revisions.resume_run(self.state.sweep, self.state.runs[run_id], None):
            self._add([decision.body], decision.run_id)

    def _decide(self) -> None:
        if self._fresh:
            self._policy = self._new_policy()
        for decision in decide(self.state, self._policy, now=self._now, capacity=None, starting=True):
            self._add([decision.body], decision.run_id, decision.job_id)
        for job in jobs_to_dispatch(self.state):
            self._start(job)
        for job_id, reason in jobs_to_stop(self.state).items():
            if job_id in self._running:
                run_id = next(run for run in self.state.unfinished if job_id.startswith(run))
                self._running.discard(job_id)
                self._add([ev.JobExited(outcome=Outcome.STOPPED, error=reason)], run_id, job_id)
                self._decide()

    def _start(self, job: JobDefinition) -> None:
        self._running.add(job.job_id)
        self._add(
            [ev.JobDispatched(dispatcher="virtual"), ev.JobStarted(host="n", pid=1, log="l")], job.run_id, job.job_id
        )
        run = self.state.runs[job.run_id]
        begin = int(run.progress or 0)
        last = int(job.until or EPOCHS)
        at = self._now
        for epoch in range(begin + 1, last + 1):
            at += self._seconds(run.index)
            metrics = {"epoch": float(epoch), "reward": self._curve(run.index, epoch)}
            self._later(at, ev.MetricsReported(metrics=metrics), job)
        outcome = Outcome.SUCCEEDED if job.until is None else Outcome.PAUSED
        self._later(at, ev.JobExited(outcome=outcome, seconds=at - self._now), job)

    def _later(self, at: float, body: Body, job: JobDefinition) -> None:
        heapq.heappush(self._due, (at, next(self._numbers), body, job.run_id, job.job_id))

    def _add(self, bodies: Sequence[Body], run_id: str | None = None, job_id: str | None = None) -> None:
        for body in bodies:
            event = new_event(body, sweep_id=SWEEP, at=self._now, actor="t", run_id=run_id, job_id=job_id)
            event = replace(event, seq=self.state.seq + 1)
            self.state = fold(self.state, [event])
            self.history.append(event)
