"""Time that jumps: a clock with an agenda, and a store whose readers wait by it."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from msgspec.structs import replace

from metta.sweep.controller.retries import next_deadline
from metta.sweep.errors import SweepError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.waiting import WITH_JOB
from metta.sweep.stores.memory import MemoryStore

#: Where simulated controllers and jobs run; and what no process of Linux has for an id, should one be signalled.
HOST, PID = "simulated", 2**22 + 1
#: Five seconds with a thousand jobs under way: what a step costs grows with them, and how often it is worth it falls.
_REACTION_S_A_JOB = 0.005
#: Waits in a row for nothing at all, half a virtual second each: the controller waits for what will never come.
_MOST_IDLE_WAITS = 10_000


class SimulatedClock:
    """A `protocols.Clock` with an agenda: time jumps from one thing that is due to the next.

    Args:
        start: The first moment, in seconds since the epoch.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._start = self._now = start
        #: What is due; of equal times by name, so that it does not matter in which order sets are gone through.
        self._agenda: list[tuple[float, str, int, Callable[[], None]]] = []
        self._entries = 0

    def now(self) -> float:
        """See `Clock.now`."""
        return self._now

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._now - self._start

    def call_at(self, at: float, name: str, action: Callable[[], None]) -> None:
        """Put something down to be done at that moment, at the next jump where it is past."""
        self._entries += 1
        heapq.heappush(self._agenda, (at, name, self._entries, action))

    @property
    def next_at(self) -> float | None:
        """When the next thing is due; None when nothing ever is."""
        return self._agenda[0][0] if self._agenda else None

    def advance_to(self, moment: float) -> None:
        """Let time pass until then, and do all that is due on the way, each at its time."""
        while self._agenda and self._agenda[0][0] <= moment:
            at, _, _, action = heapq.heappop(self._agenda)
            self._now = max(self._now, at)
            action()
        self._now = max(self._now, moment)


class SimulatedStore(MemoryStore):
    """A store in memory for whose readers waiting takes no time: the clock jumps instead.

    What chance or this machine would bring into the log, ids of events and names of hosts, it replaces by what a
    simulation has instead, so that equal seeds make equal logs.

    Args:
        clock: The time.
        reaction_s: A controller that waits notices what happens after so long, and with it all that happens meanwhile;
            where hundreds of jobs are under way after longer, or there would be a step for each of their reports.
    """

    url = "memory://simulated"

    def __init__(self, clock: SimulatedClock, reaction_s: float = 1.0) -> None:
        super().__init__()
        self._clock = clock
        self._reaction_s = reaction_s
        self._idle_waits = 0

    def _as_written(self, event: Event, number: int) -> Event:
        event_id = f"00000000-0000-7000-8000-{number:012x}"
        if not event.actor.startswith("controller"):
            return replace(event, id=event_id)
        body = event.body
        if isinstance(body, ev.ControllerStarted):
            body = replace(body, host=HOST, pid=PID)
        return replace(event, id=event_id, actor=f"controller@{HOST}", body=body)

    def wait_for_change(self, sweep_id: str, after: int, timeout_s: float) -> bool:
        """Jump to the next thing that is due, or to the next deadline of the sweep; `timeout_s` where there is neither.

        Raises:
            SweepError: there has been neither for hours: whoever waits would wait forever.
        """
        if self.state(sweep_id).seq > after:
            return True
        due = self._clock.next_at
        deadline = next_deadline(self.state(sweep_id))
        if deadline is not None and deadline > self._clock.now() and (due is None or deadline <= due):
            self._clock.advance_to(deadline)
        elif due is not None:
            reaction_s = max(self._reaction_s, _REACTION_S_A_JOB * self.state(sweep_id).count_waiting(*WITH_JOB))
            self._clock.advance_to(max(due, self._clock.now()) + reaction_s)
        else:
            self._wait_for_nothing(sweep_id, timeout_s)
            return False
        self._idle_waits = 0
        return self.state(sweep_id).seq > after

    def _wait_for_nothing(self, sweep_id: str, timeout_s: float) -> None:
        self._idle_waits += 1
        if self._idle_waits > _MOST_IDLE_WAITS:
            counts = self.state(sweep_id).sweep.counts
            runs = ", ".join(f"{count} {status}" for status, count in counts.items()) or "none"
            raise SweepError(
                f"sweep {sweep_id}: the simulation stands still: no job runs, nothing is due, and the sweep has not "
                f"ended (its runs: {runs}); its scheduler wishes for nothing, or nobody takes its jobs"
            )
        self._clock.advance_to(self._clock.now() + timeout_s)
