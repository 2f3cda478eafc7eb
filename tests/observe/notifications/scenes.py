"""A sweep of which people are told, in time that passes when told to."""

from __future__ import annotations

from typing import Any

from metta.sweep.controller.lease import this_holder
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, new_event
from metta.sweep.model.notify import Notify
from metta.sweep.model.run import FailureKind, Outcome
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.observe.notifications.notifier import Notifier
from metta.sweep.protocols import Store
from metta.sweep.stores.memory import MemoryStore
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.clock import ManualClock
from metta.sweep.testing.sweeps import START, SWEEP

HOOK = Notify(channels=("$HOOK",))
END = ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done")


class Scene:
    """A sweep whose controller holds its lease."""

    def __init__(self, store: Store | None = None, **fields: Any) -> None:
        self.store = store or MemoryStore()
        self.clock = ManualClock(START)
        self.runs = 0
        self.store.append([sweep_created(**{"notify": HOOK, **fields})])
        self.renew()
        self.notifier = self.another()

    def another(self) -> Notifier:
        """As after a restart, or in another process."""
        notifier = Notifier(self.store, SWEEP, self.clock)
        notifier.open(self.store.fetch_sweeps(SWEEP)[0])
        return notifier

    def renew(self, ttl_s: float = 1e6) -> None:
        self.store.acquire_lease(SWEEP, this_holder(), self.clock.now(), ttl_s)

    def say(self, body: Body, run: int | None = None) -> None:
        run_id = None if run is None else ids.run_id(SWEEP, run)
        event = new_event(body, sweep_id=SWEEP, at=self.clock.now(), actor="controller@node", run_id=run_id)
        self.store.append([event])

    def fail(self, count: int = 1) -> None:
        for _ in range(count):
            *begin, _, _ = run_events(self.runs, score=None, at=self.clock.now())
            exited = ev.JobExited(outcome=Outcome.FAILED, failure=FailureKind.USER_ERROR, error="ValueError: no")
            end = new_event(
                exited, sweep_id=SWEEP, at=self.clock.now(), actor="a", run_id=begin[-1].run_id, job_id=begin[-1].job_id
            )
            self.store.append([*begin, end])
            self.say(ev.RunFailed(reason="ValueError: no"), self.runs)
            self.runs += 1

    def complete(self, *scores: float) -> None:
        for score in scores:
            self.store.append(run_events(self.runs, score=score, at=self.clock.now()))
            self.runs += 1

    def notified(self) -> list[ev.Notified]:
        return [event.body for event in self.store.read(SWEEP) if isinstance(event.body, ev.Notified)]

    def pass_minutes(self, minutes: float, look_every_s: float = 10.0) -> None:
        for _ in range(int(minutes * 60 / look_every_s)):
            self.clock.advance(look_every_s)
            self.notifier.look()
