"""A sweep as it was is what the fold of its log up to there says, wherever one comes from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.observe.replay import BEGINNING, Moment, Point, Timeline, moment_at
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP


def numbered(events: list[Event]) -> list[Event]:
    return [replace(event, seq=seq) for seq, event in enumerate(events, start=1)]


def history(seed: int, length: int) -> list[Event]:
    return numbered(random_history(seed, length=length))


@given(st.integers(0, 200), st.lists(st.integers(0, 1_300), min_size=1, max_size=20))
@settings(deadline=None, max_examples=15)
def test_a_timeline_shows_what_a_fold_up_to_there_gives_in_whatever_order_it_is_looked_at(
    seed: int, visits: list[int]
) -> None:
    events = history(seed, length=1_200)
    timeline = Timeline(iter(events))
    for seq in visits:
        moment = timeline.at(seq)
        assert moment.state == fold(EMPTY, events[:seq])
        assert moment.event == (events[min(seq, len(events)) - 1] if seq else None)


@given(st.integers(0, 200), st.integers(1, 60))
@settings(deadline=None, max_examples=30)
def test_a_moment_by_its_number_and_by_its_time_are_the_same(seed: int, seq: int) -> None:
    events = history(seed, length=60)
    by_number = moment_at(events, Point(seq=seq))
    assert (by_number.seq, by_number.state) == (seq, fold(EMPTY, events[:seq]))
    # The samples have an event a second.
    assert moment_at(events, Point(at=events[seq - 1].at + 0.5)) == by_number
    assert Timeline(events).last_before(Point(at=events[seq - 1].at + 0.5)) == seq


def test_what_was_delivered_late_was_not_known_before() -> None:
    at_once, late = numbered([sweep_created(), *run_events(0)])[:4], run_events(0)[3]
    events = [*at_once, replace(late, seq=5, at=START)]
    later = replace(events[3], at=START + 60)
    assert moment_at([*events[:3], later, events[4]], Point(at=START + 30)).seq == 3


def test_stepping_folds_only_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """In either direction: what is long past is no farther away than the next moment that is kept."""
    events = history(3, length=3_000)
    timeline = Timeline(events)
    folded: list[int] = []
    after = Moment.after

    def counting(moment: Moment, passed: list[Event]) -> Moment:
        folded.append(len(passed))
        return after(moment, passed)

    monkeypatch.setattr(Moment, "after", counting)
    timeline.at(2_900)
    assert sum(folded) == 2_900
    folded.clear()
    for seq in range(2_901, 2_911):
        timeline.at(seq)
    assert folded == [1] * 10
    folded.clear()
    timeline.at(2_909)
    timeline.at(700)
    assert sum(folded) <= 409 + 200


def test_a_log_is_read_no_farther_than_it_is_looked_at() -> None:
    read: list[int] = []

    def reading() -> Iterator[Event]:
        for event in history(5, length=100):
            read.append(event.seq)
            yield event

    timeline = Timeline(reading())
    timeline.at(30)
    assert read[-1] == 30
    read.clear()
    moment_at(reading(), Point(seq=30))
    assert read[-1] == 31


def test_a_controller_was_at_work_from_its_start_to_its_farewell() -> None:
    started = ev.ControllerStarted(host="node", pid=1, fence=1, version="0")
    bodies = [started, ev.SweepPaused(reason="lunch"), ev.ControllerStopped(reason="sweep PAUSED"), ev.SweepResumed()]
    events = [new_event(body, sweep_id=SWEEP, at=START, actor="test") for body in bodies]
    log = numbered([sweep_created(), *events])
    moments = [BEGINNING.after(log[:seq]) for seq in range(6)]
    assert [moment.controlled for moment in moments] == [False, False, True, True, False, False]
