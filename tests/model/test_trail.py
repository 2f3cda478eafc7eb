"""The trail of changes, by which readers of states keep up."""

from __future__ import annotations

from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.model.events import Event
from metta.sweep.model.run import RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.trail import Trail
from metta.sweep.testing.sweeps import random_history


def trail(run_ids: str, earlier: Trail | None = None) -> Trail:
    first, *others = run_ids
    return reduce(lambda entry, run_id: Trail(run_id, entry), others, Trail(first, earlier))


def numbered(events: list[Event], start: int) -> list[Event]:
    return [replace(event, seq=seq) for seq, event in enumerate(events, start=start)]


def lesson(run: RunInfo) -> object:
    """What somebody who learns from a run may go by."""
    return (run.status.ended, run.status if run.status.ended else None, run.score, run.partial_score, run.config)


def test_a_reader_sees_each_changed_run_once_in_the_order_of_its_last_change() -> None:
    seen = trail("abc")
    assert trail("dad", seen).since(seen) == ["a", "d"]
    assert seen.since(None) == ["a", "b", "c"]
    assert seen.since(seen) == []


def test_a_trail_that_was_not_part_of_this_one_is_told_apart() -> None:
    assert trail("abcd").since(trail("abc")) is None  # equal, and yet another history
    assert trail("ab").since(trail("abc")) is None
    assert trail("abd").since(trail("abc")) is None


def test_the_same_entry_after_the_same_entry_is_no_news_while_somebody_holds_it() -> None:
    seen = trail("abc")
    thought = Trail.after(seen, "a", ("COMPLETED", 1.0))
    written = Trail.after(seen, "a", ("COMPLETED", 1.0))
    assert written is thought
    assert Trail.after(written, "d", None).since(thought) == ["d"]
    assert Trail.after(seen, "a", ("COMPLETED", 2.0)).since(thought) is None
    assert Trail.after(seen, "b", ("COMPLETED", 1.0)).since(thought) is None


def test_trails_are_equal_when_their_entries_are_however_long_they_are() -> None:
    long = "ab" * 50_000
    assert trail(long) == trail(long)
    assert trail(long) != trail("b" + long[1:])
    assert trail("ab") != trail("abc")
    assert trail("ab") != "ab"
    assert repr(trail("ab")) == "Trail(length=2, run_id='b')"
    with pytest.raises(TypeError, match="unhashable"):
        hash(trail("a"))


@given(seed=st.integers(0, 10_000), batch=st.integers(1, 7))
def test_who_follows_the_trail_knows_what_who_looks_at_all_runs_knows(seed: int, batch: int) -> None:
    known: dict[str, object] = {}
    seen: Trail | None = None
    state: SweepState = EMPTY
    history = random_history(seed)
    for start in range(0, len(history), batch):
        state = fold(state, numbered(history[start : start + batch], state.seq + 1))
        if state.trail is None:
            continue
        changed = state.trail.since(seen)
        assert changed is not None
        known.update({run_id: lesson(state.runs[run_id]) for run_id in changed})
        seen = state.trail
        assert known == {run_id: lesson(run) for run_id, run in state.runs.items()}
