"""A circuit breaker: who fails again and again is left alone for a while, longer each time.

The libraries on offer (pybreaker, circuitbreaker, aiobreaker, purgatory) read the machine's clock themselves and stay
open for the same time each time.
"""

from __future__ import annotations

from enum import StrEnum

from metta.sweep.protocols import Clock


class CircuitState(StrEnum):
    """Whether calls go through."""

    CLOSED = "closed"
    OPEN = "open"
    #: The next call is a probe.
    HALF_OPEN = "half-open"


class CircuitBreaker:
    """Closed until `threshold` failures in a row; then open for a time that doubles with each probe that fails.

    Args:
        clock: The time.
        threshold: Failures in a row that open it.
        open_s: How long it stays open the first time.
        longest_open_s: However often probes fail, it stays open no longer than this.
    """

    def __init__(self, clock: Clock, *, threshold: int = 3, open_s: float = 5.0, longest_open_s: float = 300.0) -> None:
        self._clock = clock
        self._threshold = threshold
        self._first_open_s = open_s
        self._longest_open_s = longest_open_s
        self._failures = 0
        self._opens_until = 0.0

    @property
    def state(self) -> CircuitState:
        """Where it stands now."""
        if self._failures < self._threshold:
            return CircuitState.CLOSED
        return CircuitState.OPEN if self.remaining_s > 0 else CircuitState.HALF_OPEN

    @property
    def remaining_s(self) -> float:
        """How long it stays open yet; 0 when it is not."""
        if self._failures < self._threshold:
            return 0.0
        return max(0.0, self._opens_until - self._clock.monotonic())

    def permits(self) -> bool:
        """Whether a call may be made now; its outcome is to be told. Half-open, one call is: the probe."""
        state = self.state
        if state is CircuitState.HALF_OPEN:
            # Should nothing come of the probe, not even a failure, another one is due after the same time.
            self._open()
        return state is not CircuitState.OPEN

    def succeed(self) -> None:
        """A call went well."""
        self._failures = 0

    def fail(self) -> None:
        """A call failed."""
        self._failures += 1
        if self._failures >= self._threshold:
            self._open()

    def _open(self) -> None:
        # The exponent is bounded because floats are.
        doublings = min(self._failures - self._threshold, 64)
        self._opens_until = self._clock.monotonic() + min(self._longest_open_s, self._first_open_s * 2.0**doublings)
