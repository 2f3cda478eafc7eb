"""The clock that stands still."""

from __future__ import annotations

import pytest

from metta.sweep.protocols import Clock
from metta.sweep.testing import ManualClock


def test_it_stands_still_until_it_is_told_to_move() -> None:
    clock = ManualClock(100.0)
    assert (clock.now(), clock.now()) == (100.0, 100.0)
    assert clock.advance(2.5) == 102.5
    assert clock.now() == 102.5


def test_time_never_goes_back() -> None:
    clock = ManualClock()
    before = clock.now()
    with pytest.raises(ValueError, match="time goes forward"):
        clock.advance(-0.1)
    assert clock.now() == before


def test_it_is_a_clock() -> None:
    clock: Clock = ManualClock()
    assert clock.now() > 0
