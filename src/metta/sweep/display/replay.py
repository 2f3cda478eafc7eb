"""A sweep as it was, for people: at one moment, as a film, or event by event."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from metta.sweep.display.events import event_line, print_event, time_text
from metta.sweep.display.status import status_view
from metta.sweep.display.views import duration
from metta.sweep.errors import ConfigError, UsageError
from metta.sweep.model.events import Event
from metta.sweep.observe.replay import BEGINNING, Moment, Point, Timeline

#: Between two pictures of a film.
_FRAME_S = 0.1
_HELP = """\
Enter       the next event; a number N: the next N
b [N]       one event back, or N
t           on to the next event by which a run changes its status
g POINT     go to an event, or a time: 120, 2026-01-31T12:00, +10m
s           show the sweep as it was here
q           leave
h           this help
"""


def moment_view(moment: Moment, screen: Console) -> RenderableType:
    """The sweep as `metta sweep status` showed it then."""
    state = moment.state
    assert moment.event is not None
    since = duration(max(0.0, moment.at - state.sweep.created_at))
    head = Text(f"after event {moment.seq}, at {time_text(moment.at)} ({since} after it was created)", style="italic")
    unended = sorted((state.runs[run_id] for run_id in state.unfinished), key=lambda run: run.index)
    view = status_view(
        state.sweep, state.best, unended, (), screen, now=moment.at, controlled=moment.controlled, is_past=True
    )
    return Group(head, view)


def play(events: Iterable[Event], screen: Console, speed: float | None) -> None:
    """Show a sweep from its beginning, so many times as fast as it was.

    Where there is no terminal, it shows a line each event, without pauses unless there is a speed, and the sweep as it
    was in the end.

    Args:
        events: What happened.
        screen: Where to show it.
        speed: How many times as fast; None for no pauses at all.
    """
    moment = BEGINNING
    if not screen.is_terminal:
        for batch in _in_time(events, speed):
            for event in batch:
                print_event(event, screen)
            screen.file.flush()
            moment = moment.after(batch)
        screen.print(moment_view(moment, screen))
        return
    with Live(console=screen, auto_refresh=False) as live:
        for batch in _in_time(events, speed):
            moment = moment.after(batch)
            last = Text(event_line(batch[-1]), style="dim", overflow="ellipsis", no_wrap=True)
            live.update(Group(moment_view(moment, screen), Text(), last), refresh=True)


def _in_time(events: Iterable[Event], speed: float | None) -> Iterator[list[Event]]:
    """The events at their times, those together that come within a picture."""
    began = batch_began = time.monotonic()
    start: float | None = None
    batch: list[Event] = []
    for event in events:
        start = event.at if start is None else start
        due = began if speed is None else began + (event.at - start) / speed
        if batch and max(due, time.monotonic()) - batch_began >= _FRAME_S:
            yield batch
            batch = []
        time.sleep(max(0.0, due - time.monotonic()))
        if not batch:
            batch_began = time.monotonic()
        batch.append(event)
    if batch:
        yield batch


class Stepper:
    """Goes through a sweep by hand, in either direction.

    Args:
        timeline: Its log.
        screen: Where to show it.
        parse: Makes a point of what is typed; raises a UsageError for what is none.
        seq: Number of the event to begin with.
    """

    def __init__(self, timeline: Timeline, screen: Console, parse: Callable[[str], Point], seq: int = 1) -> None:
        self._timeline = timeline
        self._screen = screen
        self._parse = parse
        self._seq = seq

    def run(self, read: Callable[[], str] = sys.stdin.readline) -> None:
        """Obey what is typed until it is to leave, or nothing more comes."""
        self._show()
        self._screen.print("Enter for the next event, h for help")
        while True:
            self._screen.print(f"{self._seq}> ", end="")
            line = read()
            if not line or line.strip() == "q":
                return
            try:
                self._obey(*line.strip().partition(" ")[::2])
            except UsageError as error:
                self._screen.print(str(error), style="red")

    def _obey(self, verb: str, argument: str) -> None:
        if verb == "h":
            self._screen.print(_HELP, end="")
        elif verb == "s":
            self._show()
        elif verb == "g":
            self._go_to(self._timeline.last_before(self._parse(argument.strip())))
        elif verb == "b":
            self._go_to(self._seq - _count(argument.strip() or "1"))
        elif verb == "t":
            self._go_on(until=_changes_a_status)
        elif not verb or verb.isdecimal():
            self._go_on(_count(verb or "1"))
        else:
            raise ConfigError(f"there is no command {verb!r}; Enter for the next event, h for help")

    def _show(self) -> None:
        self._screen.print(moment_view(self._timeline.at(self._seq), self._screen))

    def _go_to(self, seq: int) -> None:
        self._seq = max(1, seq)
        self._show()

    def _go_on(
        self, count: int | None = None, until: Callable[[Moment, Moment], bool] = lambda _before, _after: False
    ) -> None:
        """Go on for so many events, or until something holds; says what happened."""
        before, passed = self._timeline.at(self._seq), 0
        while passed != count and (event := self._timeline.event(self._seq + 1)) is not None:
            self._seq += 1
            passed += 1
            print_event(event, self._screen)
            after = self._timeline.at(self._seq)
            if until(before, after):
                return
            before = after
        if not passed:
            self._screen.print("that was the last event so far")


def _count(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ConfigError(f"expected how many events, a number from 1 on, got {text!r}")
    return int(text)


def _changes_a_status(before: Moment, after: Moment) -> bool:
    assert after.event is not None
    run_id = after.event.run_id or ""
    was, now = before.state.runs.get(run_id), after.state.runs.get(run_id)
    return now is not None and (was is None or was.status is not now.status)
