"""A controller to look over the shoulder of: what it would do next, and what it does, step by step."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

from metta.sweep.controller import lease as leases
from metta.sweep.controller.controller import SweepController
from metta.sweep.controller.decide import Decision
from metta.sweep.dispatchers.simulated import JobModel, SimulatedClock, SimulatedDispatcher, SimulatedStore
from metta.sweep.errors import ConfigError, SweepError, did_you_mean
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobDefinition, JobStatus
from metta.sweep.model.state import SweepState, fold
from metta.sweep.observe.wording import event_text
from metta.sweep.protocols import Clock, Dispatcher, Lease, Observer, Store

_HELP = """\
Enter       one step: read the log, decide, write, act, then wait a moment for what happens
b STATUS    stop whenever a run becomes STATUS; `b` lists the breakpoints, `b -STATUS` removes one
c           go on to the next breakpoint, or to the end
q           leave; running jobs go on, and so does the sweep when it is resumed
h           this help
"""
#: Stands for a lease that is yet to be taken: no real one has this number.
_NO_FENCE = 0


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """A job that would be started."""

    #: Virtual time.
    at: float
    job: JobDefinition
    #: Why, as the optimizer and the scheduler say it.
    reasons: tuple[str, ...] = ()


def rehearse(
    events: Iterable[Event],
    steps: int,
    *,
    resume: Mapping[str, Any] | None = None,
    workers: int | None = None,
    model: JobModel | None = None,
) -> list[Start]:
    """The next `steps` jobs that a sweep would start, by running it in virtual time on a copy in memory.

    What these jobs lead to is made up, so where later decisions depend on results, they only show the kind of thing
    that would happen.

    Args:
        events: The sweep's log.
        steps: How many starts; fewer where the sweep ends before.
        resume: Limits to change, perhaps none, where a paused or ended sweep is to go on.
        workers: How many jobs fit at one time; None for no limit.
        model: What the jobs do; made-up curves without one.
    """
    if steps < 1:
        raise ConfigError(f"steps: expected at least 1, got {steps}")
    log = list(events)
    sweep_id, now = log[0].sweep_id, max(event.at for event in log)
    clock = SimulatedClock(now)
    store = SimulatedStore(clock)
    store.append(log)
    started: list[tuple[float, JobDefinition]] = []
    dispatcher = SimulatedDispatcher(
        store,
        sweep_id,
        store.state(sweep_id).sweep.config,
        clock,
        model,
        workers=workers,
        on_dispatch=lambda job: started.append((clock.now(), job)),
    )
    dispatcher.adopt()
    controller = DebugController(store, sweep_id, dispatcher, clock)
    if resume is not None:
        controller.resume(resume)
    controller.go_on_until(lambda: len(started) >= steps)
    return [
        Start(at=at, job=job, reasons=tuple(_reasons_of_start(store.read(sweep_id, run_id=job.run_id), job)))
        for at, job in started[:steps]
    ]


def _reasons_of_start(events: Iterable[Event], job: JobDefinition) -> list[str]:
    """Why this job was started; of a run's first one also why the run was created."""
    is_first = job.attempt == 1
    return ev.reasons_of(
        event for event in events if event.job_id == job.job_id or (is_first and isinstance(event.body, ev.RunCreated))
    )


class DebugController(SweepController):
    """A SweepController that can be rehearsed and gone through by hand. It takes the sweep's lease when it first acts.

    Args:
        store: Where the sweep is.
        sweep_id: Which sweep.
        dispatcher: What runs its jobs.
        clock: The time.
        observer: As of SweepController.
    """

    def __init__(
        self,
        store: Store,
        sweep_id: str,
        dispatcher: Dispatcher,
        clock: Clock,
        observer: Observer | None = None,
    ) -> None:
        self._is_looking = True
        holder = leases.this_holder()
        nothing = Lease(sweep_id=sweep_id, holder=holder, fence=_NO_FENCE, expires_at=0.0)
        super().__init__(store, sweep_id, dispatcher, clock, observer, lease=nothing)
        #: What has happened since it was told, and the state before that.
        self._untold: list[Event] = []
        self._told = self.state
        self._breakpoints: set[JobStatus] = set()

    def dry_run(self, steps: int = 10) -> list[JobDefinition]:
        """The jobs of the next `steps` starts, in order, by a rehearsal on a copy: nothing is written or executed.

        Results in it are made up. It needs no lease, so the sweep may be under way meanwhile.
        """
        events = self._store.read(self._sweep_id)
        return [start.job for start in rehearse(events, steps, workers=self._dispatcher.capacity())]

    def go_on_until(self, is_enough: Callable[[], bool]) -> None:
        """Take step after step until that holds or the sweep is done; it is left as it is then."""
        self._begin()
        while not self._is_done() and not is_enough():
            self._turn()

    # ---------------------------------------------------------------------------------------------- step by step

    def step_through(
        self, read: Callable[[], str | None] | None = None, write: Callable[[str], object] | None = None
    ) -> SweepState:
        """Drive the sweep by hand, step by step; `h` tells how.

        Args:
            read: Gives the next command, None at the end of all; standard input without one.
            write: Takes what is to be shown; standard output without one.
        """
        read, write = read or _read_line, write or _write_out
        try:
            self._patiently(self._begin)
            write(f"{self._summary()}\nEnter for a step, h for help\n")
            has_left, is_staying = False, True
            while is_staying and not has_left:
                if self._is_done():
                    has_left = self._patiently(self._leave)
                else:
                    is_staying = self._obey(self._next_command(read, write), write)
        except BaseException as error:
            self._say_farewell(f"{type(error).__name__}: {error}")
            raise
        if has_left:
            write(self._news())
        else:
            self._say_farewell("left by whoever stepped through it")
        write(f"{self._summary()}\n")
        self._dispatcher.close()
        return self.state

    def _next_command(self, read: Callable[[], str | None], write: Callable[[str], object]) -> str:
        """What is typed next; nobody else takes the sweep over while somebody thinks about it."""
        write("> ")
        with self._lease_kept():
            line = read()
        return "q" if line is None else line.strip()

    def _obey(self, command: str, write: Callable[[str], object]) -> bool:
        """Do what a command says; False when it says to leave."""
        verb, _, argument = command.partition(" ")
        if verb in {"", "c"} and not argument:
            self._go_on(write, many=verb == "c")
        elif verb == "b":
            write(self._set_breakpoint(argument.strip().upper()))
        elif verb == "q":
            return False
        elif verb == "h":
            write(_HELP)
        else:
            write(f"there is no command {command!r}; Enter for a step, h for help\n")
        return True

    def _go_on(self, write: Callable[[str], object], *, many: bool) -> None:
        """A step, or many until a breakpoint; says what happened in each."""
        while True:
            self._patiently(self._turn)
            hits = self._hits()
            write(self._news())
            for hit in hits:
                write(f"breakpoint: {hit}\n")
            if self._is_done() or not many or hits:
                write(f"{self._summary()}\n")
                return

    def _set_breakpoint(self, name: str) -> str:
        removed = name.startswith("-")
        name = name.removeprefix("-")
        if name and name not in JobStatus.__members__:
            return f"b: there is no status {name!r}; {did_you_mean(name, JobStatus.__members__)}\n"
        if removed:
            self._breakpoints.discard(JobStatus(name))
        elif name:
            self._breakpoints.add(JobStatus(name))
        return f"breakpoints: {', '.join(sorted(self._breakpoints)) or 'none'}\n"

    def _hits(self) -> list[str]:
        """Runs that have come to a status with a breakpoint, also those that have left it again in the same step."""
        hits: list[str] = []
        state = self._told
        for event in self._untold if self._breakpoints else ():
            before = state.runs.get(event.run_id) if event.run_id is not None else None
            state = fold(state, [event])
            after = state.runs.get(event.run_id) if event.run_id is not None else None
            is_new = after is not None and (before is None or before.status is not after.status)
            if after is not None and is_new and after.status in self._breakpoints:
                hits.append(f"run {after.run_id} is {after.status}")
        return hits

    # ------------------------------------------------------------------------------------------------- what it says

    def _notify(self) -> None:
        self._untold += self._events
        super()._notify()

    def _news(self) -> str:
        """What has happened since the last time, a line each, decisions with their reasons."""
        self._notify()
        events, self._untold, self._told = self._untold, [], self.state
        lines = "".join(f"  {event_text(event)}\n" for event in events)
        return lines or "nothing happened, and nothing was to be decided\n"

    def _summary(self) -> str:
        sweep = self.state.sweep
        counts = ", ".join(f"{sweep.counts[status]} {status}" for status in JobStatus if sweep.counts.get(status))
        best = "" if sweep.best_score is None else f"; best {sweep.best_score:.6g} ({sweep.best_run_id})"
        reason = f" ({sweep.reason})" if sweep.reason else ""
        return f"sweep {sweep.sweep_id} {sweep.status}{reason}, event {sweep.seq}: {counts or 'no runs yet'}{best}"

    # ---------------------------------------------------------------------------------------------------- the lease

    def _take_lease(self) -> None:
        if self._is_looking:
            self._lease = leases.acquire(self._store, self._sweep_id, self._clock.now())
            self._renew_at = self._clock.monotonic() + leases.RENEW_AFTER_S
            self._is_looking = False

    def _begin(self) -> None:
        self._take_lease()
        super()._begin()

    def _renew_lease(self) -> None:
        self._take_lease()
        super()._renew_lease()

    def _append(self, decisions: Sequence[Decision], *, expected_seq: int | None = None) -> None:
        self._take_lease()
        super()._append(decisions, expected_seq=expected_seq)

    @contextmanager
    def _lease_kept(self) -> Iterator[None]:
        """The lease does not expire meanwhile. Where it cannot be renewed, the next step finds out what that means."""
        is_over = threading.Event()

        def renew() -> None:
            while not is_over.wait(leases.RENEW_AFTER_S):
                with suppress(SweepError):
                    holder, now = self._lease.holder, self._clock.now()
                    self._lease = self._store.acquire_lease(self._sweep_id, holder, now, leases.LEASE_TTL_S)

        renewing = threading.Thread(target=renew, name="lease", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            is_over.set()
            renewing.join()

    def _say_farewell(self, reason: str) -> None:
        """Give the sweep up with jobs under way; what matters is not that it gets into the log."""
        with suppress(SweepError):
            self._append([*self._unlogged, Decision(body=ev.ControllerStopped(reason=reason))])
            self._store.release_lease(self._lease)


def _read_line() -> str | None:
    line = sys.stdin.readline()
    return line if line else None


def _write_out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
