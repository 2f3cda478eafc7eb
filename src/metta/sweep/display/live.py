"""What is shown of a sweep under way, kept up with what happens."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from rich.console import RenderableType
from rich.text import Text

from metta.sweep.analysis.tally import Tally, tally, updated
from metta.sweep.display.dashboard import Dashboard, View
from metta.sweep.model.events import Event
from metta.sweep.model.state import EMPTY, SweepState
from metta.sweep.observe.watching import Signs
from metta.sweep.schedulers.completion import Completion, predict
from metta.sweep.schedulers.workload import workload_of

#: The end is estimated that often at most, and more rarely where an estimate takes more than a part in so many of the
#: time; it lies within the interval shown with that probability.
_ESTIMATED_EVERY_S, _ESTIMATES_SHARE, _LEVEL = 2.0, 50.0, 0.8


class Display:
    """A live display, fed by the controller in this process or from the store. Ended runs add nothing to its cost."""

    def __init__(self) -> None:
        self.state: SweepState = EMPTY
        self.tally = Tally()
        #: Who is at work, as far as that is known, and why nothing new is.
        self.signs = Signs()
        self.away: str | None = None
        self._end: Completion | None = None
        #: How often the end was estimated.
        self.estimates = 0
        self._estimate_at = -math.inf

    def observe(self, state: SweepState, events: Sequence[Event]) -> None:
        """Take in what happened: the first time all that the state says, then the events alone."""
        is_first = self.state.metadata is None
        self.tally = tally(state) if is_first else updated(self.tally, self.state, state, events)
        self.state = state

    def render(self) -> RenderableType:
        """As it is now."""
        if self.state.metadata is None:
            return Text("starting ...", style="dim")
        now = time.time()
        return Dashboard(View(self.state, self.tally, self.signs, self.estimate(now), now, self.away))

    def estimate(self, now: float) -> Completion | None:
        """When the sweep will have ended."""
        began = time.monotonic()
        if began >= self._estimate_at:
            self._end = predict(workload_of(self.state, now), now, _LEVEL)
            self.estimates += 1
            took = time.monotonic() - began
            self._estimate_at = began + max(_ESTIMATED_EVERY_S, _ESTIMATES_SHARE * took)
        return self._end
