"""How far channels know of a sweep is part of its log."""

from __future__ import annotations

import math

import pytest
from msgspec.structs import replace

from metta.sweep.errors import InvalidTransition
from metta.sweep.model import events as ev
from metta.sweep.model.events import new_event
from metta.sweep.model.notify import Told
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP


def after(state: SweepState, *bodies: ev.Body, at: float = START) -> SweepState:
    for body in bodies:
        event = new_event(body, sweep_id=SWEEP, at=at, actor="notifier@node")
        state = fold(state, [replace(event, seq=state.seq + 1)])
    return state


CREATED = fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate([sweep_created(), *run_events(0)], start=1)])


def test_each_channel_has_a_place_of_its_own() -> None:
    state = after(
        CREATED,
        ev.Notified(channel="$SLACK_URL", through=1),
        ev.Notified(channel="$SLACK_URL", through=8, title="a best", best_score=1.0, once=("max_hours=2",)),
        ev.Notified(channel="mail.yml", through=3, title="a best"),
        at=START + 5,
    )
    assert state.sweep.notified == {
        "$SLACK_URL": Told(through=8, at=START + 5, best_score=1.0, once=("max_hours=2",)),
        "mail.yml": Told(through=3, at=START + 5),
    }
    assert state.runs == CREATED.runs


def test_a_place_never_goes_back_and_what_was_told_once_is_remembered() -> None:
    state = after(CREATED, ev.Notified(channel="$A", through=8, title="x", once=("budget_hours=8",)))
    state = after(state, ev.Notified(channel="$A", through=5, once=("max_hours=2",)), at=START + 9)
    assert state.sweep.notified["$A"] == Told(through=8, at=START, once=("budget_hours=8", "max_hours=2"))


def test_what_is_remembered_does_not_grow_for_ever() -> None:
    state = CREATED
    for number in range(100):
        state = after(state, ev.Notified(channel="$A", through=1, title="x", once=(f"stalled after {number}",)))
    assert len(state.sweep.notified["$A"].once) <= 16
    assert state.sweep.notified["$A"].once[-1] == "stalled after 99"


def test_it_is_told_after_the_end_as_well() -> None:
    ended = after(CREATED, ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done"))
    assert after(ended, ev.Notified(channel="$A", through=9, title="done")).sweep.notified["$A"].through == 9


@pytest.mark.parametrize(
    "body",
    [
        ev.Notified(channel="$A", through=9),
        ev.Notified(channel="$A", through=-1),
        ev.Notified(channel="$A", through=1, best_score=math.nan),
    ],
)
def test_what_has_not_happened_was_not_told(body: ev.Notified) -> None:
    with pytest.raises(InvalidTransition, match="notified does not fit"):
        after(CREATED, body)
