"""What every store does with events before it writes them: leave out what it has, and number the rest."""

from __future__ import annotations

from collections.abc import Container, Sequence

from msgspec.structs import replace

from metta.sweep.errors import StaleWriteError
from metta.sweep.model.events import Event


def numbered(events: Sequence[Event], known: Container[str], last: int, expected: int | None) -> list[Event]:
    """Those of the events of one sweep that are new, each once, with their sequence numbers.

    Args:
        events: To be appended.
        known: Ids of events that were written before.
        last: Number of the sweep's last event.
        expected: What the writer thinks that is; None where it does not matter, nor does it where nothing is new.

    Raises:
        StaleWriteError: it is another.
    """
    new: dict[str, Event] = {}
    for event in events:
        if event.id not in known and event.id not in new:
            new[event.id] = replace(event, seq=last + len(new) + 1)
    if new and expected not in {None, last}:
        raise StaleWriteError(
            f"sweep {events[0].sweep_id}: it has {last} events, the writer had seen {expected}; "
            "read the new ones and decide again"
        )
    return list(new.values())
