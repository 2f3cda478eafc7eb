"""A sweep watched from outside of its controller: a live display on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable

from rich.console import Console

from metta.sweep.display.canvas import Canvas, can_draw
from metta.sweep.display.lines import news_lines, progress_line, summary
from metta.sweep.display.live import Display
from metta.sweep.display.views import go_on_command
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.observe.watching import Sight
from metta.sweep.observe.wording import one_line

#: In plain lines, where the sweep stands is said that often at most.
_SUMMED_UP_EVERY_S = 30.0


def show_sights(sights: Iterable[Sight], screen: Console) -> None:
    """Show a sweep until it has ended; what a terminal shows last stays there."""
    if can_draw(screen):
        _draw(sights, screen)
    else:
        _print(sights, screen)


def _draw(sights: Iterable[Sight], screen: Console) -> None:
    display = Display()
    with Canvas(screen) as canvas:
        for sight in sights:
            take_in(display, sight)
            canvas.draw(display.render())


def take_in(display: Display, sight: Sight) -> None:
    """Let a display know what was seen."""
    display.observe(sight.state, sight.events)
    display.signs = sight.signs
    display.away = None if sight.away is None else str(sight.away)


def _print(sights: Iterable[Sight], screen: Console) -> None:
    """The past in one line, then each thing that happens; those that look at a file see it at once."""
    display = Display()
    said_seq, said_at = 0, -math.inf
    trouble = ""
    for sight in sights:
        lines = list(news_lines(display.state, sight.state, sight.events)) if said_seq else []
        take_in(display, sight)
        if (current := _trouble(sight)) != trouble:
            lines.append(one_line(current) or "all is well again")
            trouble = current
        sweep = sight.state.sweep
        if sweep.status.ended:
            lines.append(summary(sight.state))
        elif sweep.seq > said_seq and time.monotonic() - said_at >= _SUMMED_UP_EVERY_S:
            now = time.time()
            lines.append(progress_line(sight.state, display.estimate(now), now))
            said_seq, said_at = sweep.seq, time.monotonic()
        for line in lines:
            screen.file.write(f"{line}\n")
        screen.file.flush()


def _trouble(sight: Sight) -> str:
    """Why the sweep, or what is seen of it, does not go on; nothing where it does."""
    sweep = sight.state.sweep
    if sight.away is not None:
        return f"the store is away, waiting for it: {sight.away}"
    if sweep.status is SweepStatus.PAUSED:
        return f"PAUSED: {sweep.reason}; go on with: {go_on_command(sweep)}"
    if not sweep.status.ended and not sight.signs.is_controlled:
        return f"no controller is at work: {go_on_command(sweep)}"
    return ""
