"""Waiting for conditions instead of sleeping."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_never = threading.Event()


def wait_until(condition: Callable[[], object], *, timeout_s: float = 60.0, what: str = "the condition") -> None:
    """Return as soon as the condition holds; fail the test when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {timeout_s} s"
        _never.wait(0.002)  # gives the processor to those who make it true
