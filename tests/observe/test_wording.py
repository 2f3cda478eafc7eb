"""Events in words."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.model import events as ev
from metta.sweep.model.events import Body, new_event
from metta.sweep.model.run import FailureKind, Outcome
from metta.sweep.observe.wording import event_text, level_of, value_text
from metta.sweep.testing import random_history, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP


def text(body: Body) -> str:
    return event_text(new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id="7kq3f", job_id="7kq3f.train.1"))


def test_a_line_says_what_about_which_job_and_why() -> None:
    assert text(ev.RunRetryScheduled(retry_at=START, retry_count=2, reason="it may\npass")) == (
        "run_retry_scheduled 7kq3f.train.1 retry_at=2023-11-14T22:13:20.000Z retry_count=2  because: it may pass"
    )
    assert text(ev.MetricsReported(metrics={"loss": 0.123456789, "epoch": 3.0})) == (
        "metrics_reported 7kq3f.train.1 metrics={loss: 0.123457, epoch: 3}"
    )
    assert event_text(sweep_created()) == f"sweep_created {SWEEP} name=demo optimizer=random scheduler=fifo"


@given(st.integers(0, 500))
def test_a_line_is_a_line(seed: int) -> None:
    for event in random_history(seed, length=20):
        assert event_text(event).splitlines() == [event_text(event)]
        assert event_text(event).startswith(event.type)


@given(st.recursive(st.text() | st.floats() | st.none(), lambda each: st.dictionaries(st.text(max_size=3), each)))
def test_a_value_is_on_one_line_and_steers_no_terminal(value: object) -> None:
    assert value_text(value).isprintable()


@pytest.mark.parametrize(
    ("body", "level"),
    [
        (ev.MetricsReported(metrics={}), logging.DEBUG),
        (ev.JobExited(outcome=Outcome.SUCCEEDED), logging.INFO),
        (ev.JobExited(outcome=Outcome.STOPPED), logging.INFO),
        (ev.JobExited(outcome=Outcome.FAILED, failure=FailureKind.USER_ERROR), logging.WARNING),
        (ev.RunFailed(reason="no reward"), logging.ERROR),
    ],
)
def test_levels_rise_with_what_is_lost(body: Body, level: int) -> None:
    assert level_of(new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id="7kq3f")) == level
