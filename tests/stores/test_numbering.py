"""Which events are new to a store, and their numbers."""

from __future__ import annotations

import pytest

from metta.sweep.errors import StaleWriteError
from metta.sweep.stores.numbering import numbered
from metta.sweep.testing import run_events

FIRST, SECOND, THIRD, *_ = run_events(0)


def test_what_is_new_is_numbered_from_the_last_one_on_and_each_event_counts_once() -> None:
    new = numbered([FIRST, SECOND, FIRST, THIRD, SECOND], {THIRD.id}, last=7, expected=None)
    assert [(event.id, event.seq) for event in new] == [(FIRST.id, 8), (SECOND.id, 9)]


def test_who_has_not_seen_the_last_event_is_refused_if_there_is_something_to_write() -> None:
    assert len(numbered([FIRST], set(), last=7, expected=7)) == 1
    assert numbered([FIRST], {FIRST.id}, last=7, expected=3) == []
    with pytest.raises(StaleWriteError, match="it has 7 events, the writer had seen 3"):
        numbered([FIRST], set(), last=7, expected=3)
