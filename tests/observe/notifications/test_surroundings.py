"""What matters for a sweep and is no event of its log."""

from __future__ import annotations

import math

import pytest

from metta.sweep.model import events as ev
from metta.sweep.model.events import new_event
from metta.sweep.model.run import FailureKind
from metta.sweep.observe.notifications.notices import Surroundings
from metta.sweep.observe.notifications.surroundings import look_around
from metta.sweep.protocols import Heartbeat
from metta.sweep.testing import run_events
from metta.sweep.testing.sweeps import START, SWEEP
from observe.notifications.scenes import END, Scene


def look(scene: Scene) -> Surroundings:
    return look_around(scene.store, scene.store.fetch_sweeps(SWEEP)[0], scene.clock.now())


def test_the_last_progress_is_found_however_much_else_came_after_it() -> None:
    scene = Scene(notify=None)
    scene.complete(0.5)
    refused = ev.DispatchFailed(dispatcher="local", reason="no", retry_at=START + 70)
    for _ in range(700):
        scene.say(refused)
    around = look(scene)
    assert around.progress is not None
    assert (around.progress.seq, around.progress.type) == (8, "run_completed")
    assert around.waits_until == START + 70


def test_a_controller_that_lives_and_one_whose_lease_ran_out_are_told_apart() -> None:
    scene = Scene(notify=None)
    assert look(scene).uncontrolled_since is None
    scene.renew(ttl_s=12.0)
    scene.clock.advance(60)
    assert look(scene).uncontrolled_since == START + 12


def test_of_a_controller_that_left_the_last_word_is_known() -> None:
    scene = Scene(notify=None)
    lease = scene.store.fetch_lease(SWEEP)
    assert lease is not None
    scene.store.release_lease(lease)
    scene.say(ev.ControllerStopped(reason=ev.WOUND_DOWN))
    scene.store.append(run_events(0)[:5])
    around = look(scene)
    assert around.uncontrolled_since == START
    assert around.last_word is not None
    assert around.last_word.body == ev.ControllerStopped(reason=ev.WOUND_DOWN)


def test_a_sweep_that_nobody_ever_worked_on_has_been_so_since_it_was_created() -> None:
    scene = Scene(notify=None)
    lease = scene.store.fetch_lease(SWEEP)
    assert lease is not None
    scene.store.release_lease(lease)
    assert (look(scene).uncontrolled_since, look(scene).last_word) == (START, None)


@pytest.mark.parametrize(("jobs", "silence_s", "expected"), [(1, 10, True), (0, 10, False), (1, 90, False)])
def test_an_agent_that_beats_and_has_jobs_is_alive(jobs: int, silence_s: float, expected: bool) -> None:
    scene = Scene(notify=None)
    scene.store.beat(Heartbeat(sweep_id=SWEEP, host="node", pid=1, at=START, jobs=jobs))
    scene.clock.advance(silence_s)
    assert look(scene).has_jobs is expected


def test_compute_counts_jobs_that_run_where_there_is_a_budget() -> None:
    scene = Scene(notify=None, budget_hours=5.0)
    scene.complete(0.5)
    scene.store.append(run_events(1)[:4])
    cost = scene.store.fetch_sweeps(SWEEP)[0].cost
    scene.clock.advance(7200)
    assert look(scene).compute_s == cost + 7200


def test_a_run_that_waits_for_its_retry_is_known_to_wait() -> None:
    scene = Scene(notify=None)
    assert look(scene).waits_until == -math.inf
    begin = run_events(0)[:4]
    run_id, job_id = begin[-1].run_id, begin[-1].job_id
    body = ev.JobLost(reason="gone", failure=FailureKind.NODE_LOST)
    lost = new_event(body, sweep_id=SWEEP, at=START, actor="a", run_id=run_id, job_id=job_id)
    scene.store.append([*begin, lost])
    scene.say(ev.RunRetryScheduled(retry_at=START + 600, retry_count=1, reason="again"), 0)
    assert look(scene).waits_until == START + 600


def test_of_a_sweep_that_ended_nothing_is_looked_up() -> None:
    scene = Scene(notify=None)
    scene.say(END)
    assert look(scene) == Surroundings(now=START)
