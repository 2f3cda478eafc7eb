"""The notifier: what happens reaches the channels, at least once and hardly ever twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from metta.sweep.errors import StoreAwayError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.notify import Notify
from metta.sweep.observe.notifications.notifier import Notifier
from metta.sweep.protocols import Heartbeat, Store
from metta.sweep.stores import open_store
from metta.sweep.stores.memory import MemoryStore
from metta.sweep.testing import run_events
from metta.sweep.testing.sweeps import START, SWEEP
from observe.notifications.endpoints import Webhook, webhook
from observe.notifications.scenes import END, Scene


def test_a_thousand_failures_in_half_an_hour_are_four_messages(hook: Webhook) -> None:
    scene = Scene()
    for _ in range(100):
        scene.fail(10)
        scene.pass_minutes(0.3, look_every_s=3.0)
    scene.pass_minutes(10)
    counts = [int(title.split()[1]) for title in hook.titles]
    assert (len(counts), counts[0], sum(counts)) == (4, 10, 1000)
    assert f"{counts[2]} runs failed for good: {counts[2]} USER_ERROR" in hook.bodies[2]


def test_the_end_does_not_wait_and_takes_along_what_was_pending(hook: Webhook) -> None:
    scene = Scene()
    scene.fail()
    scene.notifier.look()
    scene.fail(2)
    scene.notifier.look()
    assert hook.titles == ["demo: 1 run failed"]
    scene.say(END)
    scene.notifier.look()
    assert hook.titles[1:] == ["demo: COMPLETED, 2 runs failed"]
    scene.notifier.look()
    assert len(hook.titles) == 2


def test_what_was_told_is_in_the_log_and_a_restarted_notifier_begins_behind_it(hook: Webhook) -> None:
    scene = Scene()
    scene.complete(*[0.5] * 10)
    scene.notifier.look()
    before, told = scene.notified()
    assert (before.title, before.best_score) == ("", None)
    assert (told.channel, told.title, told.best_score) == ("$HOOK", "demo: new best 0.5", 0.5)
    scene.notifier = scene.another()
    scene.clock.advance(3600)
    scene.notifier.look()
    assert len(hook.titles) == 1
    scene.complete(0.6)
    scene.notifier.look()
    assert hook.titles[1:] == ["demo: new best 0.6"]


def test_what_happened_while_no_notifier_was_there_is_told_by_the_next_one(hook: Webhook) -> None:
    scene = Scene()
    scene.fail(3)
    scene.another().look()
    assert hook.titles == ["demo: 3 runs failed"]


def test_the_pace_holds_across_restarts(hook: Webhook) -> None:
    scene = Scene()
    for _ in range(20):
        scene.fail()
        scene.notifier = scene.another()
        scene.pass_minutes(1)
    assert len(hook.titles) == 2


def test_an_endpoint_that_is_down_gets_everything_in_one_message_when_it_is_back(
    hook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    scene = Scene()
    hook.down()
    scene.fail(5)
    scene.pass_minutes(30)
    assert scene.notified()[1:] == []
    # From two seconds on twice as long each time, and five minutes in the end.
    tries = [record for record in caplog.records if "did not take a message" in record.getMessage()]
    assert 8 <= len(tries) <= 14
    scene.fail(5)
    hook.up()
    scene.pass_minutes(6)
    assert hook.titles == ["demo: 10 runs failed"]


def test_only_the_channel_that_took_nothing_is_tried_again(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    with webhook() as other:
        monkeypatch.setenv("OTHER", other.url())
        scene = Scene(notify=Notify(channels=("$HOOK", "$OTHER")))
        other.status = 500
        scene.fail()
        scene.notifier.look()
        scene.notifier = scene.another()
        other.status = 200
        scene.clock.advance(5)
        scene.notifier.look()
        scene.notifier.look()
        assert (hook.titles, other.titles) == (["demo: 1 run failed"], ["demo: 1 run failed"])


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    url = f"sqlite:///{tmp_path}/s.db" if request.param == "sqlite" else request.getfixturevalue("postgresql_url")
    with closing(open_store(url, create=True)) as store:
        yield store


def test_two_notifiers_do_not_send_the_same(any_store: Store, hook: Webhook) -> None:
    scene = Scene(any_store)
    others = [scene.another() for _ in range(3)]
    for _ in range(5):
        scene.fail()
        for notifier in (scene.notifier, *others):
            notifier.look()
        scene.clock.advance(601)
    assert hook.titles == ["demo: 1 run failed"] * 5


def test_while_another_one_sends_nobody_does(any_store: Store, hook: Webhook) -> None:
    scene = Scene(any_store)
    scene.fail()
    lease = scene.store.acquire_lease(f"{SWEEP}/notifier", "elsewhere/1:99:0.00", START, 120.0)
    scene.notifier.look()
    assert hook.titles == []
    # It died there: nobody waits for it for ever.
    scene.clock.advance(121)
    scene.notifier.look()
    assert hook.titles == ["demo: 1 run failed"]
    assert scene.store.fetch_lease(lease.sweep_id) is None


class FailingStore(MemoryStore):
    """Takes no notes of notifications while it is `away`."""

    away = False

    def append(self, events: Any, **options: Any) -> list[Event]:
        if self.away and any(isinstance(event.body, ev.Notified) for event in events):
            raise StoreAwayError("it is away")
        return super().append(events, **options)


def test_a_message_that_was_taken_while_the_store_was_away_is_not_sent_again(hook: Webhook) -> None:
    store = FailingStore()
    scene = Scene(store)
    scene.fail()
    store.away = True
    for _ in range(3):
        with pytest.raises(StoreAwayError):
            scene.notifier.look()
        scene.clock.advance(70)
    store.away = False
    scene.notifier.look()
    scene.notifier.look()
    assert hook.titles == ["demo: 1 run failed"]
    assert [told.title for told in scene.notified()] == ["", "demo: 1 run failed"]


def test_a_budget_is_told_once_with_the_time_of_jobs_that_run(hook: Webhook) -> None:
    scene = Scene(budget_hours=10.0, max_parallel=1)
    begin = run_events(0, at=START)[:4]
    scene.store.append(begin)
    scene.store.beat(Heartbeat(sweep_id=SWEEP, host="node", pid=1, at=START + 1e6, jobs=1))
    scene.clock.advance(7.9 * 3600)
    scene.notifier.look()
    assert hook.titles == []
    scene.clock.advance(0.2 * 3600)
    scene.notifier.look()
    assert hook.titles == ["demo: 81 % of budget_hours spent"]
    scene.clock.advance(3600)
    scene.notifier.look()
    scene.another().look()
    assert len(hook.titles) == 1


def test_a_budget_is_told_once_however_often_the_sweep_stalls(hook: Webhook) -> None:
    scene = Scene(max_hours=1.0)
    scene.clock.advance(0.9 * 3600)
    scene.notifier.look()
    for _ in range(20):
        scene.complete(0.5)
        scene.clock.advance(3 * 3600)  # a run takes one
        scene.notifier.look()
    assert sum("of max_hours spent" in title for title in hook.titles) == 1
    assert sum("stalled" in title for title in hook.titles) == 21


def test_silence_under_a_controller_is_a_stall_unless_jobs_are_alive(hook: Webhook) -> None:
    scene = Scene()
    scene.store.append(run_events(0, at=START)[:4])
    scene.store.beat(Heartbeat(sweep_id=SWEEP, host="node", pid=1, at=START + 3600, jobs=1))
    scene.clock.advance(45 * 60)
    scene.notifier.look()
    assert hook.titles == []
    scene.clock.advance(20 * 60)
    scene.notifier.look()
    assert hook.titles == ["demo: stalled"]
    assert "nothing has happened for" in hook.bodies[0]
    scene.clock.advance(3600)
    scene.notifier.look()
    assert len(hook.titles) == 1


def test_a_sweep_without_channels_is_told_of_to_those_of_the_variable(
    hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("METTA_SWEEP_NOTIFY", hook.url())
    scene = Scene(notify=None)
    scene.fail()
    scene.notifier.look()
    assert hook.titles == ["demo: 1 run failed"]
    assert scene.notified()[-1].channel == "$METTA_SWEEP_NOTIFY"


def test_channels_that_are_new_in_the_middle_are_told_from_there_on(hook: Webhook) -> None:
    scene = Scene(notify=None)
    assert not scene.notifier.has_channels
    scene.fail(7)
    scene.say(ev.SweepResumed(changes={"notify": {"channels": ["$HOOK"]}}))
    scene.notifier.open(scene.store.fetch_sweeps(SWEEP)[0])
    scene.fail(2)
    scene.notifier.look()
    assert hook.titles == ["demo: 2 runs failed"]


def test_a_long_time_without_news_is_not_read_again(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("metta.sweep.observe.notifications.notifier._MOST_UNTOLD", 20)
    scene = Scene()
    scene.complete(*[0.5] * 4)
    scene.notifier.look()
    scene.notifier.look()
    [_, silent] = scene.notified()
    assert (silent.title, silent.through) == ("", 30)
    assert hook.titles == []


def test_channels_that_could_not_all_be_opened_are_opened_by_the_next_attempt(
    hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FailingStore()
    scene = Scene(store)
    store.away = True
    scene.notifier = Notifier(store, SWEEP, scene.clock, Notify(channels=("$HOOK", "$OTHER")))
    monkeypatch.setenv("OTHER", hook.url("other"))
    [sweep] = store.fetch_sweeps(SWEEP)
    with pytest.raises(StoreAwayError):
        scene.notifier.open(sweep)
    store.away = False
    scene.notifier.open(sweep)
    scene.fail()
    scene.notifier.look()
    assert sorted(hook.paths) == ["/", "/other"]


class EventfulStore(MemoryStore):
    """Something happens whenever the lease to send is taken, and something else when the log is read thereafter."""

    scene: Scene | None = None
    then: list[Callable[[], object]]

    def __init__(self) -> None:
        super().__init__()
        self.then = []

    def acquire_lease(self, name: str, *arguments: Any, **options: Any) -> Any:
        if self.scene is not None and name.endswith("/notifier"):
            scene, self.scene = self.scene, None
            scene.fail()
            self.then = [lambda: scene.say(END)]
        return super().acquire_lease(name, *arguments, **options)

    def read(self, *arguments: Any, **options: Any) -> Any:
        while self.then:
            self.then.pop()()
        return super().read(*arguments, **options)


def test_what_happens_while_a_message_is_written_is_left_to_the_next_one(hook: Webhook) -> None:
    store = EventfulStore()
    scene = Scene(store)
    scene.fail()
    store.scene = scene
    scene.notifier.look()
    scene.notifier.look()
    assert hook.titles == ["demo: 2 runs failed", "demo: COMPLETED"]


def test_a_controller_that_has_just_come_back_is_seen_before_a_stall_is_told(hook: Webhook) -> None:
    scene = Scene()
    scene.renew(ttl_s=12.0)
    scene.clock.advance(30 * 60)
    scene.notifier.look()
    scene.renew()
    scene.complete(0.5)
    scene.clock.advance(13)
    scene.notifier.look()
    assert hook.titles == []
    assert scene.notifier.untold() == []
