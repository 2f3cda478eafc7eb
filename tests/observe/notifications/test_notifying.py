"""Notifiers at work: beside a controller, and over a store."""

from __future__ import annotations

import threading
import time

import pytest

from metta.sweep.errors import ConfigError
from metta.sweep.model import events as ev
from metta.sweep.model.notify import Notify
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.observe.notifications import notifying as notifying_module
from metta.sweep.observe.notifications.notifying import StoreNotifier, notifying
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import SWEEP
from observe.notifications.endpoints import Webhook
from observe.notifications.scenes import END, Scene
from waiting import wait_until


def state_of(scene: Scene) -> SweepState:
    return fold(EMPTY, scene.store.read(SWEEP))


def test_what_happens_beside_it_is_told_and_the_rest_at_its_end(hook: Webhook) -> None:
    scene = Scene()
    seen: list[int] = []
    state = state_of(scene)
    with notifying(scene.store, state.sweep, scene.clock, lambda state, _: seen.append(state.seq), {}) as observe:
        scene.fail()
        observe(state_of(scene), [])
        wait_until(lambda: hook.titles, what="the first message")
        scene.fail(2)
        observe(state_of(scene), [])
    assert hook.titles == ["demo: 1 run failed", "demo: 2 runs failed"]
    assert len(seen) == 2


def test_a_channel_that_does_not_answer_holds_up_nobody(hook: Webhook) -> None:
    scene = Scene()
    asked, answer = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        asked.set()
        answer.wait(30)

    hook.on_message = hang
    state = state_of(scene)
    with notifying(scene.store, state.sweep, scene.clock, None, {}) as observe:
        scene.fail()
        observe(state_of(scene), [])
        assert asked.wait(30)
        since = time.monotonic()
        for _ in range(1000):
            observe(state, [])
        scene.complete(0.5)
        assert time.monotonic() - since < 1.0
        answer.set()
    assert hook.titles == ["demo: 1 run failed"]


def test_the_end_waits_for_a_channel_that_does_not_answer_no_longer_than_it_says(
    hook: Webhook, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifying_module, "_FINISH_S", 0.5)
    scene = Scene()
    asked, answer = threading.Event(), threading.Event()

    def hang(_: object) -> None:
        asked.set()
        answer.wait(30)

    hook.on_message = hang
    with notifying(scene.store, state_of(scene).sweep, scene.clock, None, {}) as observe:
        scene.fail()
        observe(state_of(scene), [])
        assert asked.wait(30)
        since = time.monotonic()
    assert time.monotonic() - since < 3.0
    assert "metta sweep notify" in caplog.text
    answer.set()


def test_a_machine_that_was_asleep_is_no_stall(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notifying_module, "_PAUSE_S", 0.0)
    monkeypatch.setattr(notifying_module, "_LOOK_EVERY_S", 2.0)
    scene = Scene()
    state = state_of(scene)
    with notifying(scene.store, state.sweep, scene.clock, None, {}) as observe:
        scene.clock.advance(8 * 3600)
        observe(state, [])
        deadline = time.monotonic() + 0.3
        wait_until(lambda: hook.titles or time.monotonic() > deadline)
        scene.complete(0.5)  # the controller has woken up, too
    assert hook.titles == []


def test_a_channel_that_cannot_be_opened_is_an_error_before_anything_begins(hook: Webhook) -> None:
    scene = Scene()
    changes = {"notify": {"channels": ["$NOWHERE"]}}
    before = state_of(scene)
    with (
        pytest.raises(ConfigError, match="NOWHERE"),
        notifying(scene.store, before.sweep, scene.clock, None, changes),
    ):
        pytest.fail("it began")
    assert state_of(scene) == before


def test_channels_that_are_taken_away_hear_no_more(hook: Webhook) -> None:
    scene = Scene()
    with notifying(scene.store, state_of(scene).sweep, scene.clock, None, {}) as observe:
        scene.say(ev.SweepResumed(changes={"notify": {"channels": ["$NOWHERE"]}}))
        scene.fail()
        observe(state_of(scene), [])
    assert hook.titles == []


def test_a_sweep_that_names_nobody_at_first_is_followed_all_the_same(hook: Webhook) -> None:
    scene = Scene(notify=None)
    with notifying(scene.store, state_of(scene).sweep, scene.clock, None, {}) as observe:
        scene.fail(5)
        scene.say(ev.SweepResumed(changes={"notify": {"channels": ["$HOOK"]}}))
        observe(state_of(scene), [])
        wait_until(scene.notified, what="the channel's beginning")
        scene.say(END)
    assert hook.titles == ["demo: COMPLETED"]


def test_without_a_controller_a_store_wide_notifier_says_so_once(hook: Webhook) -> None:
    scene = Scene()
    scene.renew(ttl_s=12.0)  # and then it is killed, on another machine
    watch = StoreNotifier(scene.store, scene.clock)
    for _ in range(5):
        scene.clock.advance(8 * 60)
        watch.look()
    assert hook.titles == ["demo: stalled"]
    assert f"next: metta sweep run --resume {SWEEP}" in hook.bodies[0]
    # Jobs that report without a controller do not make it news.
    scene.store.append(run_events(0, at=scene.clock.now())[:5])
    scene.clock.advance(3600)
    watch.look()
    assert len(hook.titles) == 1


def test_a_store_wide_notifier_tells_what_was_left_of_a_sweep_that_ended(hook: Webhook) -> None:
    scene = Scene()
    scene.fail()
    scene.say(END)
    watch = StoreNotifier(scene.store, scene.clock)
    assert [delivery.problem for delivery in watch.look()] == [None]
    assert watch.look() == []
    assert hook.titles == ["demo: COMPLETED, 1 run failed"]


def test_of_one_sweep_that_cannot_be_told_of_the_others_do_not_suffer(
    hook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    scene.store.append([sweep_created("0ther", name="other", notify=Notify(channels=("$MISSING",)))])
    watch = StoreNotifier(scene.store, scene.clock)
    scene.fail()
    watch.look()
    watch.look()
    assert hook.titles == ["demo: 1 run failed"]
    assert list(watch.problems) == ["0ther"]
    assert len([record for record in caplog.records if "MISSING is not set" in record.getMessage()]) == 1
