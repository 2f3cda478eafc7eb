"""A sweep's progress while its controller runs in this process: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from rich.live import Live

from metta.sweep.display.canvas import can_draw
from metta.sweep.display.lines import news_lines, summary
from metta.sweep.display.live import Display
from metta.sweep.display.views import console, strategy_text
from metta.sweep.errors import StoreError
from metta.sweep.launch import Launched, drive
from metta.sweep.model.events import Event
from metta.sweep.model.state import EMPTY, SweepState
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.watching import Signs
from metta.sweep.protocols import Observer, Store

#: How often agents beat, about.
_SIGNS_EVERY_S = 5.0


def run_with_progress(store: Store, launched: Launched, *, show: bool) -> SweepState:
    """Drive the sweep and show how it goes on standard error; returns its last state."""
    screen = console(stderr=True)
    display = Display()

    def announce(line: str) -> None:
        if show:
            screen.print(line, soft_wrap=True)

    announce(_greeting(launched))

    def on_takeover() -> None:
        announce(f"took over sweep {launched.sweep.sweep_id}: no other controller is at work on it")

    def on_stop_request(requests: int) -> None:
        announce(_farewell(launched.sweep, requests))

    before = EMPTY

    def print_news(state: SweepState, events: Sequence[Event]) -> None:
        nonlocal before
        for line in news_lines(before, state, events):
            announce(line)
        before = state

    def go(observer: Observer | None) -> SweepState:
        return drive(
            store,
            launched.sweep,
            resume=launched.resumed,
            changes=launched.changes,
            on_takeover=on_takeover if launched.standby else None,
            observer=observer,
            on_stop_request=on_stop_request,
        )

    if show and can_draw(screen):
        live = Live(get_renderable=display.render, console=screen, refresh_per_second=2, transient=True)
        with live, _looking_at_agents(store, launched.sweep.sweep_id, display):
            state = go(display.observe)
    else:
        state = go(print_news if show else None)
    announce(summary(state))
    return state


@contextmanager
def _looking_at_agents(store: Store, sweep_id: str, display: Display) -> Iterator[None]:
    """Apart from the controller, and from the drawing: a store may take its time to say that it is away."""
    over = threading.Event()

    def look() -> None:
        while not over.wait(_SIGNS_EVERY_S):
            with suppress(StoreError):
                display.signs = Signs(store.fetch_heartbeats(sweep_id))

    threading.Thread(target=look, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _greeting(launched: Launched) -> str:
    sweep = launched.sweep
    what = f"sweep {sweep.sweep_id} ({sweep.config.name})"
    changed = "".join(f", {name} is now {value}" for name, value in launched.changes.items())
    if launched.standby:
        return f"standing by for {what} until no other controller is at work on it"
    if launched.resumed:
        return f"resuming {what}: {sweep.ended_count} runs ended before{changed}"
    config = sweep.config
    endless = not (config.max_trials or config.budget_hours or config.max_hours)
    note = "; neither trials nor hours are limited: Ctrl-C stops it" if endless else ""
    found = " (found in the code)" if launched.metric_is_inferred else ""
    return f"started {what}: {strategy_text(config.strategy)}, {config.direction} {config.metric}{found}{note}"


def _farewell(sweep: SweepMetadata, requests: int) -> str:
    resume = f"go on later with: metta sweep run --resume {sweep.sweep_id}"
    if requests == 1:
        return f"stopping: nothing new starts, running jobs finish (again to cancel them); {resume}"
    return f"cancelling the running jobs; they will be tried again; {resume}"
