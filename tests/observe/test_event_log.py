"""The log for code: views of what happened, and notes beside it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from metta.sweep.controller.controller import SweepController
from metta.sweep.dispatchers.simulated import SimulatedClock, SimulatedDispatcher, SimulatedStore
from metta.sweep.errors import InvalidTransition
from metta.sweep.model import ids
from metta.sweep.model.acquisition import Alternative
from metta.sweep.model.run import JobStatus
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.model.sweep import Strategy
from metta.sweep.observe.event_log import EventLog
from metta.sweep.protocols import Store
from metta.sweep.stores import open_store
from metta.sweep.testing import ManualClock, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

RUN = ids.run_id(SWEEP, 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        store.append([sweep_created(), *run_events(0), *run_events(1, score=None)])
        yield store


@pytest.fixture
def log(store: Store) -> EventLog:
    return EventLog(store, SWEEP, actor="user@notebook", clock=ManualClock(START + 7_200))


def test_a_replay_is_the_log_folded_to_the_same_state(store: Store, log: EventLog) -> None:
    events = list(log.replay_events(SWEEP))
    assert events == list(store.read(SWEEP))
    assert fold(EMPTY, events).sweep == store.fetch_sweeps(SWEEP)[0]
    assert {event.run_id for event in log.replay_events(run_id=RUN)} == {RUN}
    assert [event.type for event in log.replay_events(types=["run_c*"], after=3)] == ["run_completed", "run_created"]


def test_transitions_are_every_change_of_a_status(log: EventLog) -> None:
    assert [(each.before, each.after) for each in log.transitions(RUN)] == [
        (None, JobStatus.PENDING),
        (JobStatus.PENDING, JobStatus.IN_TRAINING),
        (JobStatus.IN_TRAINING, JobStatus.TRAINING_DONE_NO_EVAL),
        (JobStatus.TRAINING_DONE_NO_EVAL, JobStatus.COMPLETED),
    ]
    assert Counter(each.run_id for each in log.transitions()) == {RUN: 4, ids.run_id(SWEEP, 1): 4}


def test_notes_change_nothing_and_are_kept_with_who_wrote_them_and_when(store: Store, log: EventLog) -> None:
    before = store.fetch_runs(SWEEP)
    log.note("the lamp was on", {"lux": 120})
    log.log_state_transition(RUN, "warm-up", "fine-tuning", {"lr": 0.1})
    written = log.log_scheduling_decision("mine", "start none", {"because": "it is late"})
    assert store.fetch_runs(SWEEP) == before
    notes = [event for event in store.read(SWEEP) if event.type == "noted"]
    assert [note.run_id for note in notes] == [None, RUN, None]
    assert notes[-1] == written
    assert (written.actor, written.at) == ("user@notebook", START + 7_200)
    assert notes[1].body.text == "warm-up -> fine-tuning"  # type: ignore[union-attr]
    assert [each.because for each in log.scheduling_decisions() if each.type == "noted"] == [("mine: start none",)]
    # A run's status follows from its jobs, whatever is noted of it.
    assert len(list(log.transitions(RUN))) == 4


def test_notes_that_cannot_be_kept_are_refused(log: EventLog) -> None:
    with pytest.raises(InvalidTransition, match="no such run"):
        log.note("who?", run_id="n0b0dy")
    with pytest.raises(InvalidTransition, match="nan"):
        log.note("what?", {"loss": float("nan")})
    with pytest.raises(InvalidTransition, match="object"):
        log.note("what?", {"model": object()})


def test_steps_of_an_optimizer_outside_stand_beside_those_inside(log: EventLog) -> None:
    other = Alternative(config={"lr": 0.5}, acquisition_value=1.0)
    log.log_optimization_step({"lr": 0.2}, 0.03, 1.5, [other], text="by hand")
    first, second, noted = log.optimization_steps()
    assert [first.run_id, second.run_id] == [RUN, ids.run_id(SWEEP, 1)]
    assert (first.suggestion, first.reasons, first.acquisition_value) == ({"lr": 0.01}, ("sample",), None)
    assert (noted.suggestion, noted.reasons) == ({"lr": 0.2}, ("by hand",))
    assert (noted.expected_improvement, noted.acquisition_value) == (0.03, 1.5)
    assert noted.alternatives == (other,)


def test_a_model_says_what_it_expected_of_what_it_chose_and_of_what_it_did_not() -> None:
    clock = SimulatedClock(START)
    store = SimulatedStore(clock)
    created = sweep_created(strategy=Strategy(optimizer="bayesian"), max_trials=12)
    store.append([created])
    config = store.state(SWEEP).sweep.config
    SweepController(store, SWEEP, SimulatedDispatcher(store, SWEEP, config, clock), clock).run()
    steps = list(EventLog(store, SWEEP).optimization_steps())
    assert len(steps) == 12
    modelled = [step for step in steps if step.acquisition_value is not None]
    assert len(modelled) >= 6
    assert all(step.expected_improvement is not None for step in modelled)
    # One that was chosen for the best that is known has none beside it.
    assert sum(bool(step.alternatives) for step in modelled) >= 5
    started = [each for each in EventLog(store, SWEEP).scheduling_decisions() if each.decision == "started"]
    assert len(started) == 12
    assert all(each.because for each in started)
