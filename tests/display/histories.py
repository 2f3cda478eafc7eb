"""Sweeps to be shown."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from metta.sweep.model.events import Event
from metta.sweep.testing import run_events, sweep_created

SWEEP = "sw33p"
_WORDY = {"lr": 0.0123456789, "trainer.optimizer.name": "something with a very long name " * 4}


def numbered(events: Sequence[Event], start: int = 1) -> list[Event]:
    return [replace(event, seq=seq) for seq, event in enumerate(events, start=start)]


def history(ended: int, running: int, **fields: Any) -> list[Event]:
    """A sweep whose ended runs score 0, 1, 2, ..., the last of them none, and some that are still training."""
    events = [sweep_created(SWEEP, **fields)]
    for index in range(ended):
        score = None if index == ended - 1 and ended > 1 else float(index)
        events += run_events(index, sweep_id=SWEEP, score=score, config=_WORDY)
    for index in range(ended, ended + running):
        events += run_events(index, sweep_id=SWEEP, config=_WORDY, at=time.time())[:5]
    return numbered(events)
