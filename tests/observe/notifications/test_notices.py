"""What there is to tell: however much happens, one message that says it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.notify import NOTHING_TOLD, NoticeKind, Notify, Told
from metta.sweep.model.run import FailureKind, Outcome
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.observe.notifications.notices import News, Notice, Surroundings, is_progress, message, notices, stall
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

ALL = Notify()


class World:
    """A sweep, and what a channel has heard of it."""

    def __init__(self, **fields: Any) -> None:
        self.state = EMPTY
        self.told = NOTHING_TOLD
        self.news = News.since(self.told)
        self.runs = 0
        self.add([sweep_created(**fields)])

    def add(self, events: Iterable[Event]) -> None:
        for event in events:
            numbered = replace(event, seq=self.state.seq + 1)
            self.state = fold(self.state, [numbered])
            self.news = self.news.after(numbered, self.state.sweep.config.direction, self.state.runs)

    def say(self, body: Body, *, actor: str = "controller@node", run: int | None = None, at: float = START) -> None:
        run_id = None if run is None else ids.run_id(SWEEP, run)
        self.add([new_event(body, sweep_id=SWEEP, at=at, actor=actor, run_id=run_id)])

    def complete(self, *scores: float) -> None:
        for score in scores:
            self.add(run_events(self.runs, score=score))
            self.runs += 1

    def fail(self, kind: FailureKind, reason: str = "ValueError: no", count: int = 1) -> None:
        for _ in range(count):
            *begin, _, _ = run_events(self.runs, score=None)
            exited = ev.JobExited(outcome=Outcome.FAILED, failure=kind, error=reason, seconds=1.0)
            self.add([*begin, replace(begin[-1], id=ids.new_event_id(START), body=exited)])
            self.say(ev.RunFailed(reason=reason), run=self.runs)
            self.runs += 1

    def notices(self, around: Surroundings | None = None, notify: Notify = ALL) -> list[Notice]:
        return notices(self.news, self.state.sweep, self.told, around or Surroundings(now=START), notify)

    def text(self, **options: Any) -> str:
        said = message(self.state.sweep, self.notices(**options))
        return f"{said.title}\n{said.body}"

    def tell(self) -> None:
        """The channel takes what there is."""
        tells_best = {notice.kind for notice in self.notices()} & {NoticeKind.NEW_BEST, NoticeKind.SWEEP_ENDED}
        self.told = self.told.after(
            through=self.news.through,
            at=START,
            best_score=self.state.sweep.best_score if tells_best else self.news.known_score,
            once=tuple(notice.once for notice in self.notices() if notice.once),
        )
        self.news = self.news.told(self.told)


def kinds(found: Sequence[Notice]) -> list[NoticeKind]:
    return [notice.kind for notice in found]


def test_a_thousand_failures_are_a_few_lines() -> None:
    world = World()
    world.fail(FailureKind.USER_ERROR, "ValueError: lr is too large", count=900)
    world.fail(FailureKind.OUT_OF_MEMORY, "over its limit of 2 GiB", count=100)
    last = ids.run_id(SWEEP, 999)
    assert world.text().splitlines() == [
        "demo: 1000 runs failed",
        "1000 runs failed for good: 900 USER_ERROR, 100 OUT_OF_MEMORY",
        f"the last one, run {last}: over its limit of 2 GiB",
        f"look into it: metta sweep why {last}",
        "",
        f"sweep demo ({SWEEP}); metta sweep status {SWEEP}",
    ]
    world.tell()
    assert world.notices() == []


def test_a_run_that_reported_nothing_and_one_alone_are_said_as_such() -> None:
    world = World()
    world.add(run_events(0, score=None))
    assert "1 run failed for good: 1 NO RESULT" in world.text()


def test_a_traceback_is_cut_to_its_end() -> None:
    world = World()
    world.fail(FailureKind.USER_ERROR, "x" * 5000 + "\nKeyError: 'lr'")
    assert len(world.text()) < 700
    assert "KeyError: 'lr'" in world.text()


def test_a_new_best_counts_once_the_first_runs_are_over() -> None:
    world = World()
    world.complete(*(0.1 * index for index in range(9)))
    assert world.notices() == []
    world.complete(0.972)
    assert "new best reward=0.972 (after 10 improvements)" in world.text()
    world.tell()
    world.complete(0.5, 0.971)
    assert world.notices() == []
    world.complete(0.98)
    assert "new best reward=0.98; it was 0.972" in world.text()


def test_of_short_sweeps_a_quarter_is_waited_for() -> None:
    world = World(max_trials=8, direction="minimize")
    world.complete(3.0)
    assert world.notices() == []
    world.complete(2.0)
    assert kinds(world.notices()) == [NoticeKind.NEW_BEST]


def test_what_is_told_meanwhile_does_not_swallow_a_best_that_is_not() -> None:
    world = World()
    world.complete(*[0.5] * 5, 0.9)
    world.fail(FailureKind.KILLED)
    assert kinds(world.notices()) == [NoticeKind.RUN_FAILED]
    world.tell()
    world.complete(*[0.1] * 4)
    assert "new best reward=0.9 (after 2 improvements)" in world.text()


def test_after_a_rollback_the_best_is_what_it_was_without_the_run() -> None:
    world = World()
    world.complete(*[0.5] * 9, 0.9)
    world.tell()
    world.say(ev.RunRolledBack(reason="no", best_run_id=ids.run_id(SWEEP, 0), best_score=0.5), run=9)
    assert world.notices() == []
    world.complete(0.4)
    assert world.notices() == []
    world.complete(0.6)
    assert "new best reward=0.6; it was 0.5" in world.text()


def test_the_end_says_what_came_of_the_sweep_and_has_everything_that_was_pending() -> None:
    world = World(max_trials=13)
    world.complete(*[0.5] * 11, 0.7)
    world.fail(FailureKind.TIMED_OUT)
    world.say(ev.SweepEnded(status=SweepStatus.COMPLETED, reason="max_trials: all 13 runs are done"))
    found = world.notices()
    assert kinds(found) == [NoticeKind.SWEEP_ENDED, NoticeKind.RUN_FAILED]
    assert found[0].urgent
    best = world.state.best
    text = world.text(around=Surroundings(now=START, best=best))
    assert text.startswith("demo: COMPLETED, best reward 0.7, 1 run failed\n")
    assert best is not None
    assert f"best reward=0.7: run {best.run_id}\nlr={best.config['lr']:.6g}\n" in text
    assert "13 of 13 runs ended (12 COMPLETED, 1 FAILED)" in text
    world.tell()
    assert world.notices() == []


def test_who_asks_for_bests_only_is_told_of_the_last_one_at_the_end() -> None:
    world = World()
    world.complete(0.5, 0.7)
    only = Notify(on=(NoticeKind.NEW_BEST,))
    assert world.notices(notify=only) == []
    world.say(ev.SweepEnded(status=SweepStatus.STOPPED, reason="the user asked"))
    assert kinds(world.notices(notify=only)) == [NoticeKind.NEW_BEST]


def test_a_pause_by_the_controller_is_told_and_one_by_the_user_is_not() -> None:
    world = World()
    world.say(ev.SweepPaused(reason="the user wants it"), actor="user")
    assert world.notices() == []
    world.say(ev.SweepResumed(), actor="user")
    world.say(ev.SweepPaused(reason="3 jobs in a row failed with KeyError: 'lr'"))
    [notice] = world.notices()
    assert (notice.kind, notice.urgent) == (NoticeKind.SWEEP_PAUSED, True)
    assert f"metta sweep resume {SWEEP}" in world.text()
    world.say(ev.SweepResumed(), actor="user")
    assert "it was resumed since" in world.text()


@pytest.mark.parametrize(
    ("fields", "hours", "compute", "said"),
    [
        ({"budget_hours": 8.0}, 1.0, 6.39, None),
        ({"budget_hours": 8.0}, 1.0, 6.4, "80 % of budget_hours are spent: 6.4 of 8 hours"),
        ({"budget_hours": 8.0}, 1.0, 8.5, "106 % of budget_hours are spent: 8.5 of 8 hours"),
        ({"max_hours": 2.0}, 1.59, 99.0, None),
        ({"max_hours": 2.0}, 1.61, 0.0, "80 % of max_hours are spent: 1.61 of 2 hours"),
    ],
)
def test_a_budget_is_told_of_at_80_percent(
    fields: dict[str, float], hours: float, compute: float, said: str | None
) -> None:
    world = World(**fields)
    around = Surroundings(now=START + hours * 3600, compute_s=compute * 3600)
    if said is None:
        assert world.notices(around) == []
        return
    assert said in world.text(around=around)
    [notice] = world.notices(around)
    assert notice.once is not None
    world.told = replace(world.told, once=(notice.once,))
    assert world.notices(around) == []
    # A limit that was changed is another one.
    [name] = fields
    world.say(ev.SweepResumed(changes={name: fields[name] - 0.01}), actor="user")
    assert kinds(world.notices(around)) == [NoticeKind.BUDGET]


# -------------------------------------------------------------------------------------------------------------- stalls

LAST = new_event(ev.SweepResumed(), sweep_id=SWEEP, at=START, actor="user")
HALF_HOUR = 1800.0


@pytest.mark.parametrize(
    ("around", "why"),
    [
        ({}, "nothing has happened for 31 min, though a controller is at work on it"),
        ({"now": START + 29 * 60}, None),
        # Jobs that report nothing are no stall while their agent lives.
        ({"has_jobs": True}, None),
        # A retry that is due later is no stall, and one that was due is.
        ({"waits_until": START + 3600}, None),
        ({"waits_until": START + 60}, "nothing has happened"),
        ({"uncontrolled_since": START, "has_jobs": True}, "no controller has been at work on it for 31 min"),
        ({"uncontrolled_since": START + 600}, None),
        (
            {
                "uncontrolled_since": START,
                "last_word": new_event(
                    ev.ControllerStopped(reason="OSError: no"), sweep_id=SWEEP, at=START, actor="controller"
                ),
            },
            "no controller",
        ),
        # Whoever pressed Ctrl-C knows.
        (
            {
                "uncontrolled_since": START,
                "last_word": new_event(
                    ev.ControllerStopped(reason=ev.WOUND_DOWN), sweep_id=SWEEP, at=START, actor="controller"
                ),
            },
            None,
        ),
    ],
)
def test_a_sweep_that_should_go_on_and_does_not_is_stalled(around: dict[str, Any], why: str | None) -> None:
    world = World()
    seen = Surroundings(**{"now": START + 31 * 60, "progress": LAST, **around})
    found = stall(world.state.sweep, seen, HALF_HOUR)
    assert (found is None) if why is None else (found is not None and found.startswith(why))
    assert kinds(world.notices(seen)) == ([] if why is None else [NoticeKind.STALLED])


def test_a_stall_is_told_once_until_the_sweep_got_on() -> None:
    world = World()
    seen = Surroundings(now=START + 31 * 60, progress=replace(LAST, seq=5))
    [notice] = world.notices(seen)
    assert (notice.urgent, notice.once) == (True, "stalled after event 5")
    world.told = replace(world.told, once=("stalled after event 5",))
    assert world.notices(replace(seen, now=START + 9999)) == []
    assert kinds(world.notices(replace(seen, progress=replace(LAST, seq=9)))) == [NoticeKind.STALLED]


def test_only_a_sweep_that_runs_can_stall() -> None:
    world = World()
    world.say(ev.SweepPaused(reason="the user wants it"), actor="user")
    assert stall(world.state.sweep, Surroundings(now=START + 9e9, progress=LAST), HALF_HOUR) is None


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (ev.ControllerStarted(host="node", pid=1, fence=1, version="0"), False),
        (ev.ControllerStopped(reason="OSError: no"), False),
        (ev.DispatchFailed(dispatcher="local", reason="no", retry_at=START), False),
        (ev.Noted(topic="note"), False),
        (ev.Notified(channel="$HOOK", through=1), False),
        (ev.MetricsReported(metrics={"reward": 1.0}), True),
        (ev.RunFailed(reason="no"), True),
    ],
)
def test_controllers_that_come_and_go_are_no_progress(body: Body, expected: bool) -> None:
    assert is_progress(replace(LAST, body=body)) is expected


# ------------------------------------------------------------------------------------------------------ at random


@given(st.integers(0, 300), st.data())
@settings(deadline=None, max_examples=60)
def test_however_often_it_is_told_nothing_is_told_twice_and_nothing_is_left_out(seed: int, data: st.DataObject) -> None:
    """Failures and ends that are told add up to those of the log, wherever messages were taken in between."""
    state, told = EMPTY, Told(through=0)
    news = News.since(told)
    failed = ended = 0

    def take(state: SweepState) -> None:
        nonlocal news, told, failed, ended
        failed += sum(news.failures.values())
        ended += news.ended is not None
        told = told.after(through=news.through, at=START, best_score=state.sweep.best_score, once=())
        news = news.told(told)

    events = [replace(event, seq=seq) for seq, event in enumerate(random_history(seed), start=1)]
    stops = data.draw(st.sets(st.integers(1, len(events))))
    for event in events:
        state = fold(state, [event])
        news = news.after(event, state.sweep.config.direction, state.runs)
        if event.seq in stops or isinstance(event.body, ev.SweepEnded):
            take(state)
    take(state)
    assert failed == sum(isinstance(event.body, ev.RunFailed) for event in events)
    assert ended == sum(isinstance(event.body, ev.SweepEnded) for event in events)
    assert told.through == len(events)
    assert notices(news, state.sweep, told, Surroundings(now=START), ALL) == []
