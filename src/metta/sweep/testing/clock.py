"""Time that passes only when told to."""

from __future__ import annotations


class ManualClock:
    """A `protocols.Clock` that stands still.

    Args:
        start: The first moment, in seconds since the epoch, UTC.
    """

    def __init__(self, start: float = 1_700_000_000.0) -> None:
        self._now = start
        self._monotonic = 0.0

    def now(self) -> float:
        """See `Clock.now`."""
        return self._now

    def monotonic(self) -> float:
        """See `Clock.monotonic`."""
        return self._monotonic

    def set(self, now: float) -> None:
        """Jump, as when somebody sets the machine's clock; durations do not notice."""
        self._now = now

    def advance(self, seconds: float) -> float:
        """Let time pass, never backwards; returns the new moment."""
        if seconds < 0:
            raise ValueError(f"time goes forward, got {seconds} s")
        self._now += seconds
        self._monotonic += seconds
        return self._now
