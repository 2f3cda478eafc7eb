"""The shell around `decide`: reads the log, writes decisions, acts on them. It holds nothing that the log does not."""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from typing import Any, TypeVar

from metta.sweep.controller import lease as leases
from metta.sweep.controller.backups import AutomaticBackups
from metta.sweep.controller.decide import Decision, decide, jobs_to_dispatch, jobs_to_stop, open_jobs, revive
from metta.sweep.controller.policy import policy_of
from metta.sweep.controller.retries import dispatch_delay_s, may_dispatch, next_deadline
from metta.sweep.controller.revisions import resume_sweep
from metta.sweep.controller.validator import StateValidator
from metta.sweep.errors import (
    DispatchError,
    FencedError,
    InvalidTransition,
    LeaseHeldError,
    NotFoundError,
    StaleWriteError,
    StoreAwayError,
    SweepError,
)
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import FailureKind, JobDefinition, Outcome
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.model.waiting import WITH_JOB
from metta.sweep.observe.log_lines import log_events
from metta.sweep.observe.tracing.spans import NO_TRACING, Tracing
from metta.sweep.protocols import Clock, Dispatcher, Lease, Observer, Placement, Standing, Store

#: With nothing to do, look around this often: for signals, lost jobs, limits of time.
_IDLE_S = 0.5
#: How often the dispatcher is asked for the jobs it knows, and the state looked through.
_STANDING_EVERY_S = 1.0
#: How often it is asked for jobs of which the log knows nothing.
_STRAYS_EVERY_S = 10.0
#: Somebody writes to the log in the middle of every step, ever again: not a race but a fault.
_MOST_CONFLICTS = 20
#: Between two attempts at a store that is away: from the first to the last, doubling.
_SHORTEST_AWAY_S, _LONGEST_AWAY_S = 0.1, 2.0

logger = logging.getLogger(__name__)


_T = TypeVar("_T")


class SweepController:
    """Drives one sweep until it ends, or until it is asked to wind down. Can be killed anywhere and started again.

    Args:
        store: Where the sweep is.
        sweep_id: Which sweep.
        dispatcher: What runs its jobs.
        clock: The time.
        observer: Called after each step in which something happened, with the state and the new events.
        lease: The sweep's lease, where it was taken before (by a standby).
        tracing: Told how long the parts of each step take.

    Raises:
        NotFoundError: the store has no such sweep.
        LeaseHeldError: another controller is at work on it.
    """

    def __init__(
        self,
        store: Store,
        sweep_id: str,
        dispatcher: Dispatcher,
        clock: Clock,
        observer: Observer | None = None,
        *,
        lease: Lease | None = None,
        tracing: Tracing = NO_TRACING,
    ) -> None:
        self._store = store
        self._sweep_id = sweep_id
        self._dispatcher = tracing.dispatcher(dispatcher)
        self._clock = clock
        self._observer = observer
        self._tracing = tracing
        self._actor = f"controller@{socket.gethostname()}"
        #: Last event that `decide` has seen or written itself; what others wrote in between is still to be thought
        #: about.
        self._considered = 0
        #: What happened since the observer was told last; what happened before this controller is no news.
        self._events: list[Event] = []
        self.state = fold(EMPTY, store.read(sweep_id))
        if self.state.metadata is None:
            raise NotFoundError(f"store holds no sweep {sweep_id!r}")
        self._lease = lease or leases.acquire(store, sweep_id, clock.now())
        self._renew_at = clock.monotonic() + leases.RENEW_AFTER_S
        self._config = self.state.sweep.config
        self._policy = policy_of(self._config, tracing)
        self._validator = StateValidator()
        #: The state that was last looked through, if nothing was wrong in it.
        self._sound: SweepState | None = None
        self._backups = AutomaticBackups(store.url, clock)
        #: Jobs that this controller gave to the dispatcher; those whose dispatch is not yet in the log.
        self._handed_over: set[str] = set()
        self._unlogged: list[Decision] = []
        #: Jobs that it has asked the dispatcher to stop early.
        self._stopping: set[str] = set()
        self._standing_at = self._strays_at = clock.monotonic()
        self._conflicts = 0
        self._stop_requests = 0

    # ------------------------------------------------------------------------------------------------ lifetime

    def run(self) -> SweepState:
        """Work until the sweep has ended or, after `wind_down`, nothing runs any more; returns the last state."""
        try:
            self._patiently(self._begin)
            has_left = False
            while not has_left:
                while not self._is_done():
                    self._patiently(self._turn)
                has_left = self._patiently(self._leave)
        except BaseException as error:
            # A farewell in the log if it can be had; what matters is the error itself.
            with suppress(SweepError):
                self._append([*self._unlogged, _stopped(f"{type(error).__name__}: {error}")])
                self._store.release_lease(self._lease)
            self._dispatcher.close()
            raise
        self._dispatcher.close()
        return self.state

    def _begin(self) -> None:
        self._catch_up()
        self._append([self._started(), *revive(self.state, self._clock.now())])

    def _turn(self) -> None:
        self.step()
        if not self._is_done():
            deadline = next_deadline(self.state)
            left_s = _IDLE_S if deadline is None else max(0.0, deadline - self._clock.now())
            self._store.wait_for_change(self._sweep_id, self._considered, min(_IDLE_S, left_s or _IDLE_S))

    def _patiently(self, action: Callable[[], _T]) -> _T:
        """Do it when the store is there. Meanwhile jobs go on, and nothing starts, for that would have to be written.

        Whatever is thought again after an outage is thought from the log, so an append that had arrived after all does
        no harm.
        """
        wait_s = _SHORTEST_AWAY_S
        while True:
            try:
                result = action()
            except StoreAwayError as error:
                if self._stop_requests > 1:
                    # The user has had enough. Cancelling needs no store; the agent spools how the jobs end.
                    self._cancel()
                    raise KeyboardInterrupt from error
                if wait_s == _SHORTEST_AWAY_S:
                    logger.warning("the store is away; running jobs go on, new ones wait for it: %s", error)
                threading.Event().wait(wait_s)
                wait_s = min(2 * wait_s, _LONGEST_AWAY_S)
            else:
                if wait_s > _SHORTEST_AWAY_S:
                    logger.warning("the store is back")
                return result

    def resume(self, changes: Mapping[str, Any]) -> None:
        """Take up a paused or ended sweep again, or change limits of one; call it before `run`.

        One that is being stopped stays so: what is left is to bring it to its end.
        """
        if self.state.sweep.status is not SweepStatus.STOPPING:
            self._append(resume_sweep(self.state.sweep, changes))

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
        is_leaving = bool(self._stop_requests) or self.state.sweep.status is SweepStatus.PAUSED
        return is_leaving and is_considered and not open_jobs(self.state)

    def _is_starting_nothing(self) -> bool:
        return bool(self._stop_requests) or self.state.sweep.status is not SweepStatus.RUNNING

    def _started(self) -> Decision:
        body = ev.ControllerStarted(
            host=socket.gethostname(), pid=os.getpid(), fence=self._lease.fence, version=version("metta-sweep")
        )
        return Decision(body=body)

    def _leave(self) -> bool:
        """Give the sweep up; False when something has happened meanwhile that is still ours to deal with.

        The lease goes first. Who wants the sweep to go on either finds it free, or has written that before it was given
        back, and then the farewell is refused.
        """
        status = self.state.sweep.status
        reason = f"sweep {status}" if status is not SweepStatus.RUNNING else ev.WOUND_DOWN
        self._store.release_lease(self._lease)
        try:
            self._append([*self._unlogged, _stopped(reason)], expected_seq=self.state.seq)
        except FencedError:
            return True  # another controller is at work by now
        except StaleWriteError:
            try:
                self._lease = leases.acquire(self._store, self._sweep_id, self._clock.now())
            except LeaseHeldError:
                return True
            self._catch_up()
            return False
        self._notify()
        return True

    # ---------------------------------------------------------------------------------------------------- step

    def step(self) -> None:
        """One turn of the loop: catch up, look for losses, decide, write, act."""
        with self._tracing.span("step"):
            self._step(self._clock.now())

    def _step(self, now: float) -> None:
        self._renew_lease()
        self._catch_up()
        try:
            self._look_around(now)
            self._considered = self.state.seq
            capacity, starting = self._dispatcher.capacity(), not self._stop_requests
            with self._tracing.span("decide") as span:
                decisions = decide(self.state, self._policy, now=now, capacity=capacity, starting=starting)
                span.set(decisions=len(decisions))
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
        # A dispatcher that does not answer takes its time to say so.
        self._renew_lease()
        if not self._is_starting_nothing() and may_dispatch(self.state.sweep, now):
            self._dispatch(now)
        self._renew_lease()
        self._cancel()
        self._renew_lease()
        self._cancel_strays()
        self._backups.tend(self._config)

    def _renew_lease(self) -> None:
        if self._clock.monotonic() >= self._renew_at:
            now, holder = self._clock.now(), self._lease.holder
            self._lease = self._store.acquire_lease(self._sweep_id, holder, now, leases.LEASE_TTL_S)
            self._renew_at = self._clock.monotonic() + leases.RENEW_AFTER_S

    def _catch_up(self) -> None:
        with self._tracing.span("read") as span:
            events = list(self._store.read(self._sweep_id, after=self.state.seq))
            span.set(events=len(events))
            self.state = fold(self.state, events)
        self._events += events
        if self.state.sweep.config is not self._config:
            self._config = self.state.sweep.config
            self._policy = policy_of(self._config, self._tracing)

    def _append(self, decisions: Sequence[Decision], *, expected_seq: int | None = None) -> None:
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
        with self._tracing.span("append", events=len(events)):
            stored = self._store.append(events, fence=self._lease.fence, expected_seq=expected_seq)
        if stored[0].seq == self.state.seq + 1:
            self.state = fold(self.state, stored)
            self._events += stored
            self._considered = self.state.seq
        else:
            self._catch_up()

    def _notify(self) -> None:
        events, self._events = self._events, []
        log_events(events)
        self._tracing.happened(events)
        if events and self._observer is not None:
            self._observer(self.state, events)

    def _look_around(self, now: float) -> None:
        """Now and then: which jobs are lost, and is all that the log says of the others sound."""
        if self._clock.monotonic() >= self._standing_at:
            self._standing_at = self._clock.monotonic() + _STANDING_EVERY_S
            self._record_losses()
            state = self.state
            issues = self._validator.check_unfinished(state, now=now, sound=self._sound)
            self._sound = None if issues else state
            self._append([decision for issue in issues for decision in issue.repairs])

    def _record_losses(self) -> None:
        still_open = set(open_jobs(self.state))
        granted = {job.job_id for job in jobs_to_dispatch(self.state)} - self._handed_over
        # What was granted and never taken is offered again and again; when nothing is to start any more, it is over.
        asked = still_open if self._is_starting_nothing() else still_open - granted
        if not asked:
            return
        standing = self._dispatcher.standing(sorted(asked))
        lost = {job_id for job_id, what in standing.items() if what is Standing.LOST}
        self._handed_over -= lost
        name = self._dispatcher.name
        gone = ev.JobLost(reason=f"{name} no longer knows it", failure=FailureKind.NODE_LOST)
        never_taken = ev.JobLost(reason=f"{name} never took it", failure=FailureKind.DISPATCHER_ERROR)
        self._append(
            [
                Decision(body=never_taken if job_id in granted else gone, run_id=run.run_id, job_id=job_id)
                for run in self.state.waiting_for(*WITH_JOB)
                if (job := run.open_job) is not None and (job_id := job.job_id) in lost
            ]
        )

    def _dispatch(self, now: float) -> None:
        jobs = [job for job in jobs_to_dispatch(self.state) if job.job_id not in self._handed_over]
        if not jobs:
            return
        try:
            placements = self._dispatcher.dispatch(jobs)
        except DispatchError as error:
            # The grants stay in the log, so a later step, or the next controller, offers the jobs again.
            retry_at = now + dispatch_delay_s(self.state.sweep.dispatch_failures + 1)
            body = ev.DispatchFailed(dispatcher=self._dispatcher.name, reason=str(error), retry_at=retry_at)
            self._append([Decision(body=body)])
            return
        self._handed_over = placements.keys() | (self._handed_over & set(open_jobs(self.state)))
        self._unlogged += [_dispatched(job, placements[job.job_id]) for job in jobs if job.job_id in placements]

    def _cancel_strays(self) -> None:
        """End jobs that run without the log knowing of it: given up for lost, and alive after all."""
        if self._clock.monotonic() < self._strays_at:
            return
        self._strays_at = self._clock.monotonic() + _STRAYS_EVERY_S
        with suppress(DispatchError):  # who cannot be asked now is asked again
            if strays := set(self._dispatcher.held()) - set(open_jobs(self.state)):
                self._dispatcher.cancel(sorted(strays), Outcome.CANCELLED, "the sweep gave this job up")

    def _cancel(self) -> None:
        if self.state.sweep.status is SweepStatus.STOPPING:
            outcome, reason = Outcome.CANCELLED, self.state.sweep.reason or "stopped"
        elif self._stop_requests > 1:
            outcome, reason = Outcome.INTERRUPTED, "the controller was interrupted twice"
        else:
            self._stop_early()
            return
        if jobs := open_jobs(self.state):
            self._dispatcher.cancel(jobs, outcome, reason)

    def _stop_early(self) -> None:
        """Stop the jobs of runs that are given up; asked for once more after a restart, since nothing tells of it."""
        reasons = jobs_to_stop(self.state)
        self._stopping &= reasons.keys()
        for job_id in sorted(reasons.keys() - self._stopping):
            self._dispatcher.cancel([job_id], Outcome.STOPPED, reasons[job_id])
            self._stopping.add(job_id)


def _stopped(reason: str) -> Decision:
    return Decision(body=ev.ControllerStopped(reason=reason))


def _dispatched(job: JobDefinition, placement: Placement) -> Decision:
    body = ev.JobDispatched(dispatcher=placement.dispatcher, reasons=placement.reasons)
    return Decision(body=body, run_id=job.run_id, job_id=job.job_id)
