"""The shell around `decide`: reads the log, writes decisions, acts on them. It holds nothing that the log does not."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from metta.sweep import registry
from metta.sweep.controller import lease as leases
from metta.sweep.controller.decide import Decision, Policy, decide, jobs_to_dispatch, open_jobs, revive
from metta.sweep.errors import DispatchError, InvalidTransition, NotFoundError, SweepError
from metta.sweep.guards.limits import BudgetLimit, TimeLimit, TrialLimit
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import Outcome
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepConfig, SweepStatus
from metta.sweep.protocols import Clock, Dispatcher, Observer, Standing, Store

#: With nothing to do, look around this often: for signals, lost jobs, limits of time.
_IDLE_S = 0.5
#: How often the dispatcher is asked for the jobs it knows.
_STANDING_EVERY_S = 1.0
#: Somebody writes to the log in the middle of every step, ever again: not a race but a fault.
_MOST_CONFLICTS = 20
#: The dispatcher refuses jobs step after step: the operator has to look at it.
_MOST_REFUSALS = 5


def policy_of(config: SweepConfig) -> Policy:
    """The deciding parts that a configuration names; raises a UsageError when they do not fit it."""
    optimizer = registry.optimizer(config.strategy.optimizer, config.strategy.optimizer_options)
    optimizer.check(config)
    return Policy(
        optimizer=optimizer,
        scheduler=registry.scheduler(config.strategy.scheduler, config.strategy.scheduler_options),
        guards=(TrialLimit(), BudgetLimit(), TimeLimit()),
    )


class SweepController:
    """Drives one sweep until it ends, or until it is asked to wind down. Can be killed anywhere and started again.

    Args:
        store: Where the sweep is.
        sweep_id: Which sweep.
        dispatcher: What runs its jobs.
        clock: The time.
        observer: Called after each step in which something happened, with the state and the new events.

    Raises:
        NotFoundError: the store has no such sweep.
        LeaseHeldError: another controller is at work on it.
    """

    def __init__(
        self, store: Store, sweep_id: str, dispatcher: Dispatcher, clock: Clock, observer: Observer | None = None
    ) -> None:
        self._store = store
        self._sweep_id = sweep_id
        self._dispatcher = dispatcher
        self._clock = clock
        self._observer = observer
        self._actor = f"controller@{socket.gethostname()}"
        #: Last event that `decide` has seen or written itself; what others wrote in between is still to be thought
        #: about.
        self._considered = 0
        #: What happened since the observer was told last; what happened before this controller is no news.
        self._events: list[Event] = []
        self.state = fold(EMPTY, store.read(sweep_id))
        if self.state.metadata is None:
            raise NotFoundError(f"store holds no sweep {sweep_id!r}")
        self._lease = leases.acquire(store, sweep_id, clock.now())
        self._renew_at = clock.now() + leases.RENEW_AFTER_S
        self._policy = policy_of(self.state.sweep.config)
        #: Jobs that this controller gave to the dispatcher; those whose dispatch is not yet in the log.
        self._handed_over: set[str] = set()
        self._unlogged: list[Decision] = []
        self._standing_at = 0.0
        self._conflicts = 0
        self._refusals = 0
        self._stop_requests = 0

    # ------------------------------------------------------------------------------------------------ lifetime

    def run(self) -> SweepState:
        """Work until the sweep has ended or, after `wind_down`, nothing runs any more; returns the last state."""
        self._append([self._started(), *revive(self.state, self._clock.now())])
        try:
            while not self._is_done():
                self.step()
                if not self._is_done():
                    self._store.wait_for_change(self._sweep_id, self._considered, _IDLE_S)
        except BaseException as error:
            # A farewell in the log if it can be had; what matters is the error itself.
            with suppress(SweepError):
                self._leave(f"{type(error).__name__}: {error}")
            raise
        self._leave("sweep ended" if self.state.sweep.status.ended else "wound down")
        return self.state

    def resume(self, changes: dict[str, Any]) -> None:
        """Take up an ended sweep again, or change limits of one; call it before `run`."""
        self._append([Decision(body=ev.SweepResumed(changes=changes))])

    def wind_down(self) -> int:
        """Ask the loop to end; safe in a signal handler. Once: start nothing more, let jobs finish. Twice: cancel.

        Returns:
            How often it has been asked.
        """
        self._stop_requests += 1
        return self._stop_requests

    def _is_done(self) -> bool:
        if self.state.sweep.status.ended:
            return True
        # The end of the last job may have been read while writing; its run still has to be judged.
        is_considered = self._considered == self.state.seq
        return bool(self._stop_requests) and not open_jobs(self.state) and is_considered

    def _started(self) -> Decision:
        body = ev.ControllerStarted(
            host=socket.gethostname(), pid=os.getpid(), fence=self._lease.fence, version=version("metta-sweep")
        )
        return Decision(body=body)

    def _leave(self, reason: str) -> None:
        self._dispatcher.close()
        self._append([*self._unlogged, Decision(body=ev.ControllerStopped(reason=reason))])
        self._notify()
        self._store.release_lease(self._lease)

    # ---------------------------------------------------------------------------------------------------- step

    def step(self) -> None:
        """One turn of the loop: catch up, look for losses, decide, write, act."""
        now = self._clock.now()
        self._renew_lease(now)
        self._catch_up()
        try:
            self._record_losses(now)
            self._considered = self.state.seq
            decisions = decide(
                self.state,
                self._policy,
                now=now,
                capacity=self._dispatcher.capacity(),
                starting=not self._stop_requests,
            )
            self._append([*self._unlogged, *decisions])
            self._unlogged = []
            self._conflicts = 0
        except InvalidTransition:
            # An agent wrote between our reading and our writing. Nothing of ours was written; think again.
            self._conflicts += 1
            if self._conflicts > _MOST_CONFLICTS:
                raise
            return
        finally:
            self._notify()
        self._dispatch()
        self._cancel()

    def _renew_lease(self, now: float) -> None:
        if now >= self._renew_at:
            lease = self._lease
            self._lease = self._store.acquire_lease(self._sweep_id, lease.holder, now, leases.LEASE_TTL_S)
            self._renew_at = now + leases.RENEW_AFTER_S

    def _catch_up(self) -> None:
        events = list(self._store.read(self._sweep_id, after=self.state.seq))
        self.state = fold(self.state, events)
        self._events += events

    def _append(self, decisions: Sequence[Decision]) -> None:
        if not decisions:
            return
        now = self._clock.now()
        events = [
            new_event(
                decision.body,
                sweep_id=self._sweep_id,
                at=now,
                actor=self._actor,
                run_id=decision.run_id,
                job_id=decision.job_id,
            )
            for decision in decisions
        ]
        stored = self._store.append(events, fence=self._lease.fence)
        if stored[0].seq == self.state.seq + 1:
            self.state = fold(self.state, stored)
            self._events += stored
            self._considered = self.state.seq
        else:
            self._catch_up()

    def _notify(self) -> None:
        events, self._events = self._events, []
        if events and self._observer is not None:
            self._observer(self.state, events)

    def _record_losses(self, now: float) -> None:
        if now < self._standing_at + _STANDING_EVERY_S:
            return
        self._standing_at = now
        dispatched = set(open_jobs(self.state)) - {job.job_id for job in jobs_to_dispatch(self.state)}
        known = dispatched | (self._handed_over & set(open_jobs(self.state)))
        if not known:
            return
        standing = self._dispatcher.standing(sorted(known))
        lost = {job_id for job_id, what in standing.items() if what is Standing.LOST}
        self._handed_over -= lost
        self._append(
            [
                Decision(
                    body=ev.JobLost(reason=f"{self._dispatcher.name} no longer knows it"), run_id=run_id, job_id=job_id
                )
                for run_id in self.state.unfinished
                if (job := self.state.runs[run_id].open_job) is not None and (job_id := job.job_id) in lost
            ]
        )

    def _dispatch(self) -> None:
        jobs = [job for job in jobs_to_dispatch(self.state) if job.job_id not in self._handed_over]
        if not jobs:
            return
        try:
            self._dispatcher.dispatch(jobs)
        except DispatchError:
            # The grants stay in the log, so the next step, or the next controller, offers the jobs again.
            self._refusals += 1
            if self._refusals > _MOST_REFUSALS:
                raise
            return
        self._refusals = 0
        self._handed_over = {job.job_id for job in jobs} | (self._handed_over & set(open_jobs(self.state)))
        self._unlogged += [
            Decision(body=ev.JobDispatched(dispatcher=self._dispatcher.name), run_id=job.run_id, job_id=job.job_id)
            for job in jobs
        ]

    def _cancel(self) -> None:
        if self.state.sweep.status is SweepStatus.STOPPING:
            outcome, reason = Outcome.CANCELLED, self.state.sweep.reason or "stopped"
        elif self._stop_requests > 1:
            outcome, reason = Outcome.INTERRUPTED, "the controller was interrupted twice"
        else:
            return
        if jobs := open_jobs(self.state):
            self._dispatcher.cancel(jobs, outcome, reason)
