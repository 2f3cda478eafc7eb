"""A sweep rehearsed without a trace, and gone through step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from metta.sweep.controller import lease as leases
from metta.sweep.controller.controller import SweepController
from metta.sweep.controller.debug import DebugController, rehearse
from metta.sweep.dispatchers.simulated import SimulatedClock, SimulatedDispatcher, SimulatedStore
from metta.sweep.errors import ConfigError, LeaseHeldError
from metta.sweep.model import events as ev
from metta.sweep.model.events import new_event
from metta.sweep.model.run import JobStatus
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.protocols import Store
from metta.sweep.stores import open_store
from metta.sweep.testing import ManualClock, sweep_config
from metta.sweep.testing.fake_dispatcher import FakeCompute, FakeDispatcher
from metta.sweep.testing.stores import contents
from metta.sweep.testing.sweeps import START, SWEEP, run_events


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A real store, with a sweep that nobody has worked on yet."""
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        config = sweep_config(max_trials=6, max_parallel=2)
        store.append([new_event(ev.SweepCreated(config=config), sweep_id=SWEEP, at=START, actor="user")])
        yield store


def debugger(store: Store, compute: FakeCompute | None = None) -> DebugController:
    return DebugController(store, SWEEP, FakeDispatcher(compute=compute), ManualClock())


def append(store: Store, *bodies: ev.Body) -> None:
    store.append([new_event(body, sweep_id=SWEEP, at=START, actor="user") for body in bodies])


# ------------------------------------------------------------------------------------------------------------ dry runs


def test_a_dry_run_tells_the_next_jobs_and_leaves_store_and_compute_untouched(store: Store) -> None:
    before, compute = contents(store), FakeCompute()
    jobs = debugger(store, compute).dry_run(4)
    assert contents(store) == before
    assert store.fetch_lease(SWEEP) is None
    assert compute.offered == set()
    # What a real controller begins with.
    SweepController(store, SWEEP, FakeDispatcher(compute=compute), ManualClock()).step()
    assert [job.job_id for job in jobs[:2]] == list(compute.running)
    assert [job.config for job in jobs[:2]] == [job.config for job in compute.running.values()]
    assert len(jobs) == 4


def test_the_same_dry_run_tells_the_same(store: Store) -> None:
    assert debugger(store).dry_run() == debugger(store).dry_run()


def test_a_dry_run_ends_where_the_sweep_would(store: Store) -> None:
    append(store)
    store.append(run_events(0, at=START))
    jobs = debugger(store).dry_run(100)
    assert len(jobs) == len({job.run_id for job in jobs}) == 5


def test_a_dry_run_needs_no_lease_and_lets_running_jobs_run(store: Store) -> None:
    compute = FakeCompute()
    controller = SweepController(store, SWEEP, FakeDispatcher(compute=compute), ManualClock())
    for _ in range(2):  # the second one writes down what the first has dispatched
        controller.step()
    lease = store.fetch_lease(SWEEP)
    starts = rehearse(store.read(SWEEP), 2)
    # The slots are taken: those that run have to end first, and are not started again.
    assert {start.job.job_id for start in starts}.isdisjoint(compute.running)
    assert all(start.at > START + 200 for start in starts)
    assert store.fetch_lease(SWEEP) == lease


def test_a_dry_run_starts_no_more_at_one_time_than_the_compute_takes(store: Store) -> None:
    [first, second] = rehearse(store.read(SWEEP), 2, workers=1)
    assert second.at - first.at > 200
    assert len(debugger(store, FakeCompute(capacity=1)).dry_run(3)) == 3


def test_of_a_paused_sweep_nothing_starts_unless_it_is_to_go_on(store: Store) -> None:
    append(store, ev.SweepPaused(reason="the user asked"))
    assert debugger(store).dry_run() == []
    assert len(rehearse(store.read(SWEEP), 3, resume={})) == 3
    assert len(rehearse(store.read(SWEEP), 100, resume={"max_trials": 2})) == 2


def test_a_rehearsed_start_says_why(store: Store) -> None:
    [start] = rehearse(store.read(SWEEP), 1)
    assert start.at == START
    assert start.reasons == ("random draw 0", "0 of 2 train slots are taken")


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_are_no_dry_run(store: Store, steps: int) -> None:
    with pytest.raises(ConfigError, match=f"steps: expected at least 1, got {steps}"):
        debugger(store).dry_run(steps)


# -------------------------------------------------------------------------------------------------------- step by step


class Session:
    """A simulated sweep that somebody steps through, by a script."""

    def __init__(self, *script: str | Callable[[], object], **fields: Any) -> None:
        self.config = sweep_config(**{"max_trials": 4, "max_parallel": 2, **fields})
        self.clock = SimulatedClock()
        self.store = SimulatedStore(self.clock)
        self.store.append([new_event(ev.SweepCreated(config=self.config), sweep_id=SWEEP, at=0.0, actor="user")])
        self.dispatcher = SimulatedDispatcher(self.store, SWEEP, self.config, self.clock)
        self._script = list(script)
        self.said: list[str] = []

    def read(self) -> str | None:
        self.said.append("\0")
        while self._script and callable(act := self._script[0]):
            self._script.pop(0)
            act()
        return str(self._script.pop(0)) + "\n" if self._script else None

    def run(self) -> SweepState:
        return DebugController(self.store, SWEEP, self.dispatcher, self.clock).step_through(self.read, self.said.append)

    @property
    def answers(self) -> list[str]:
        """What was said after each command; first the greeting."""
        return "".join(self.said).replace("> \0", "\0").split("\0")


def test_enter_takes_one_step_and_says_what_was_decided_and_why() -> None:
    session = Session("", "", "q")
    state = session.run()
    greeting, first, second, farewell = session.answers
    assert greeting.endswith("no runs yet\nEnter for a step, h for help\n")
    assert first.count("  run_created ") == first.count("  job_granted ") == 2
    assert "  because: random draw 0; 0 of 2 train slots are taken\n" in first
    assert first.endswith(f"sweep {SWEEP} RUNNING, event 6: 2 PENDING\n")
    assert second.count("  job_started ") == second.count("  job_dispatched ") == 2
    assert "controller_stopped" not in second
    assert farewell == f"sweep {SWEEP} RUNNING, event {state.seq}: 2 IN_TRAINING\n"


def test_who_leaves_gives_the_sweep_up_to_whoever_comes_next() -> None:
    session = Session("", "q")
    state = session.run()
    assert state.sweep.status is SweepStatus.RUNNING
    assert session.store.fetch_lease(SWEEP) is None
    last = list(session.store.read(SWEEP))[-1].body
    assert last == ev.ControllerStopped(reason="left by whoever stepped through it")
    ended = SweepController(session.store, SWEEP, session.dispatcher, session.clock).run()
    assert ended.sweep.counts == {JobStatus.COMPLETED: 4}
    assert all(len(run.jobs) == 1 for run in ended.runs.values())


def test_the_end_of_all_input_is_a_wish_to_leave() -> None:
    assert Session().run().sweep.status is SweepStatus.RUNNING


def test_a_breakpoint_stops_whenever_a_run_comes_to_a_status() -> None:
    counts: list[int] = []
    session = Session()

    def count() -> None:
        counts.append(session.store.state(SWEEP).sweep.counts.get(JobStatus.COMPLETED, 0))

    session._script = ["b completed", "c", count, "c", count, "b -COMPLETED", "c"]
    state = session.run()
    assert state.sweep.status is SweepStatus.COMPLETED
    answers = session.answers
    assert answers[1] == "breakpoints: COMPLETED\n"
    assert counts == [1, 2]
    for answer in answers[2:4]:
        assert answer.count("breakpoint: run ") == 1
        assert " is COMPLETED\nsweep " in answer
    assert answers[4] == "breakpoints: none\n"
    assert "breakpoint:" not in answers[5]
    assert answers[5].endswith(f"(max_trials: all 4 runs are done), event {state.seq}: {_ending(state)}\n")


def _ending(state: SweepState) -> str:
    return f"4 COMPLETED; best {state.sweep.best_score:.6g} ({state.sweep.best_run_id})"


def test_a_breakpoint_is_hit_also_by_a_run_that_has_left_the_status_in_the_same_step() -> None:
    session = Session("b IN_TRAINING", "c", "b TRAINING_DONE_NO_EVAL", "b -IN_TRAINING", "c", "q")
    session.run()
    assert session.answers[2].count(" is IN_TRAINING\n") == 2
    # Trained, and judged at once.
    assert session.answers[5].count(" is TRAINING_DONE_NO_EVAL\n") == 1
    assert "1 COMPLETED" in session.answers[5].splitlines()[-1]


def test_going_on_without_breakpoints_goes_to_the_end_and_leaves_the_log_of_any_controller() -> None:
    session, other = Session("c"), Session()
    state = session.run()
    SweepController(other.store, SWEEP, other.dispatcher, other.clock).run()
    assert list(session.store.read(SWEEP)) == list(other.store.read(SWEEP))
    assert state.sweep.counts == {JobStatus.COMPLETED: 4}


def test_what_is_no_command_is_answered_by_what_is() -> None:
    session = Session("b BOGUS", "b COMPLETD", "b", "step", "c 5", "h", "q")
    before = list(session.store.read(SWEEP))
    session.run()
    _, bogus, close, none, step, more, help_text, _ = session.answers
    assert bogus.startswith("b: there is no status 'BOGUS'; known: CANCELLED, COMPLETED, ")
    assert close.startswith("b: there is no status 'COMPLETD'; did you mean 'COMPLETED'? ")
    assert none == "breakpoints: none\n"
    assert step == "there is no command 'step'; Enter for a step, h for help\n"
    assert more == "there is no command 'c 5'; Enter for a step, h for help\n"
    assert {line.split()[0] for line in help_text.splitlines()} == {"Enter", "b", "c", "q", "h"}
    # It came and went, and did nothing.
    assert [event.type for event in list(session.store.read(SWEEP))[len(before) :]] == [
        "controller_started",
        "controller_stopped",
    ]


def test_a_sweep_that_pauses_ends_the_session() -> None:
    session = Session()
    pause = new_event(ev.SweepPaused(reason="the user asked"), sweep_id=SWEEP, at=0.0, actor="user")
    session._script = ["", lambda: session.store.append([pause]), "c"]
    state = session.run()
    assert state.sweep.status is SweepStatus.PAUSED
    assert state.sweep.counts == {JobStatus.COMPLETED: 2}
    assert session.answers[-1].splitlines()[-1].startswith(f"sweep {SWEEP} PAUSED (the user asked), event ")


def test_an_error_is_in_the_log_and_the_lease_is_free() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    session = Session("", interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.run()
    assert list(session.store.read(SWEEP))[-1].body == ev.ControllerStopped(reason="KeyboardInterrupt: ")
    assert session.store.fetch_lease(SWEEP) is None


def test_the_lease_is_taken_when_it_first_acts_and_kept_while_somebody_thinks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(leases, "RENEW_AFTER_S", 0.001)
    renewed: list[float] = []
    session = Session()

    def think() -> None:
        lease = session.store.fetch_lease(SWEEP)
        assert lease is not None
        session.clock.advance_to(session.clock.now() + 5.0)
        deadline = lease.expires_at
        while (now := session.store.fetch_lease(SWEEP)) is not None and now.expires_at <= deadline:
            pass
        assert now is not None
        renewed.append(now.expires_at - deadline)
        assert now.fence == lease.fence

    session._script = [think, "", "q"]
    controller = DebugController(session.store, SWEEP, session.dispatcher, session.clock)
    assert session.store.fetch_lease(SWEEP) is None
    controller.step_through(session.read, session.said.append)
    assert renewed == [5.0]


def test_it_does_not_act_beside_another_controller(store: Store) -> None:
    store.acquire_lease(SWEEP, "elsewhere:1:1.0", now=START, ttl_s=30.0)
    before = contents(store)
    for act in (lambda: debugger(store).step(), lambda: debugger(store).step_through(lambda: "", print)):
        with pytest.raises(LeaseHeldError):
            act()
    assert contents(store) == before
