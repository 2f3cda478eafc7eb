"""First come, first served: what it wishes for, given what runs and what waits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobType
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import CommandTarget
from metta.sweep.protocols import CreateRuns, StartJob, Wish
from metta.sweep.schedulers.fifo import FifoScheduler
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

EVALUATED = {"evaluate": CommandTarget(argv=["evaluate"])}

#: How far a run is, as the number of events of its life: waiting, granted, dispatched, training, trained, completed.
WAITING, GRANTED, DISPATCHED, TRAINING, TRAINED, COMPLETED = 1, 2, 3, 5, 6, 7


def state_of(stages: Sequence[int], *more: Event, **config: object) -> SweepState:
    """A sweep whose runs are at these stages."""
    runs = [event for index, stage in enumerate(stages) for event in run_events(index)[:stage]]
    log = [sweep_created(**config), *runs, *more]
    return fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(log, start=1)])


def eval_granted(index: int) -> Event:
    run_id = ids.run_id(SWEEP, index)
    body = ev.JobGranted(job_type=JobType.EVAL, attempt=1)
    return new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id=run_id, job_id=f"{run_id}.eval.1")


def wishes(state: SweepState, capacity: int | None = None) -> list[tuple[str, int]]:
    """What is wished for: an index of a run for each job, a number for new runs."""
    index = {run_id: run.index for run_id, run in state.runs.items()}
    return [
        ("new", wish.count) if isinstance(wish, CreateRuns) else (wish.type.value, index[wish.run_id])
        for wish in FifoScheduler().schedule(state, capacity)
    ]


def test_a_new_sweep_fills_its_slots() -> None:
    assert wishes(state_of([], max_parallel=4)) == [("new", 4)]


def test_only_free_slots_are_filled() -> None:
    assert wishes(state_of([COMPLETED, TRAINING, GRANTED, DISPATCHED], max_parallel=4)) == [("new", 1)]
    assert wishes(state_of([TRAINING] * 4, max_parallel=4)) == []


@pytest.mark.parametrize(("capacity", "expected"), [(None, [("new", 3)]), (2, [("new", 1)]), (1, []), (0, [])])
def test_capacity_counts_what_is_open(capacity: int | None, expected: list[tuple[str, int]]) -> None:
    assert wishes(state_of([TRAINING], max_parallel=4), capacity) == expected


def test_no_more_runs_than_max_trials() -> None:
    assert wishes(state_of([COMPLETED, COMPLETED, TRAINING], max_parallel=4, max_trials=5)) == [("new", 2)]
    assert wishes(state_of([COMPLETED] * 5, max_parallel=4, max_trials=5)) == []


def test_runs_that_wait_come_before_new_ones_and_the_oldest_first() -> None:
    assert wishes(state_of([WAITING, TRAINING, WAITING], max_parallel=4)) == [("train", 0), ("train", 2), ("new", 1)]
    assert wishes(state_of([WAITING, TRAINING, WAITING], max_parallel=2)) == [("train", 0)]


def test_eval_jobs_have_slots_of_their_own() -> None:
    state = state_of([TRAINED, TRAINED, TRAINING], max_parallel=2, max_parallel_eval=1, **EVALUATED)
    assert wishes(state) == [("eval", 0), ("new", 1)]


def test_eval_jobs_come_before_training_where_capacity_is_shared() -> None:
    state = state_of([TRAINED, WAITING, TRAINED], max_parallel=2, max_parallel_eval=2, **EVALUATED)
    assert wishes(state, capacity=2) == [("eval", 0), ("eval", 2)]
    assert wishes(state, capacity=3) == [("eval", 0), ("eval", 2), ("train", 1)]


def test_an_open_eval_job_takes_an_eval_slot() -> None:
    state = state_of([TRAINED, TRAINED], eval_granted(0), max_parallel=2, max_parallel_eval=1, **EVALUATED)
    assert wishes(state) == [("new", 2)]


def test_fewer_slots_than_open_jobs_are_no_free_slots() -> None:
    change = ev.SweepResumed(changes={"max_parallel": 1, "max_trials": 2})
    lowered = new_event(change, sweep_id=SWEEP, at=START, actor="user")
    assert wishes(state_of([TRAINING, TRAINING, WAITING], lowered, max_parallel=3)) == []


def test_every_wish_says_why() -> None:
    state = state_of([TRAINED, WAITING, TRAINING], max_parallel=4, **EVALUATED)
    assert [wish.reasons for wish in FifoScheduler().schedule(state, None)] == [
        ("run 0 is next for eval; 1 free eval slots",),
        ("run 1 is next for train; 3 free train slots",),
        ("2 of 4 train slots are taken",),
    ]


@settings(max_examples=200, deadline=None)
@given(
    stages=st.lists(st.sampled_from([WAITING, GRANTED, DISPATCHED, TRAINING, TRAINED, COMPLETED]), max_size=12),
    max_parallel=st.integers(1, 6),
    max_parallel_eval=st.integers(1, 3),
    capacity=st.none() | st.integers(0, 10),
    max_trials=st.none() | st.integers(1, 15),
)
def test_limits_hold_and_no_slot_is_left_empty(
    stages: list[int], max_parallel: int, max_parallel_eval: int, capacity: int | None, max_trials: int | None
) -> None:
    state = state_of(
        stages,
        max_parallel=max_parallel,
        max_parallel_eval=max_parallel_eval,
        max_trials=max_trials,
        evaluate=CommandTarget(argv=["evaluate"]),
    )
    before = state
    wished = FifoScheduler().schedule(state, capacity)
    assert state == before
    assert FifoScheduler().schedule(state, capacity) == wished

    new = sum(wish.count for wish in wished if isinstance(wish, CreateRuns))
    started = [wish.run_id for wish in wished if isinstance(wish, StartJob)]
    assert len(set(started)) == len(started)
    assert all(state.runs[run_id].open_job is None for run_id in started)

    open_train = sum(stage in {GRANTED, DISPATCHED, TRAINING} for stage in stages)
    train, evaluate = new + _number(wished, JobType.TRAIN), _number(wished, JobType.EVAL)
    assert train <= max(0, max_parallel - open_train)
    assert evaluate <= max_parallel_eval
    room = None if capacity is None else max(0, capacity - open_train)
    assert room is None or train + evaluate <= room
    assert max_trials is None or new <= max(0, max_trials - len(stages))

    # What could start is wished for, unless a limit is reached.
    is_full = room is not None and train + evaluate == room
    assert evaluate == min(max_parallel_eval, stages.count(TRAINED)) or is_full
    waiting = stages.count(WAITING)
    trials_left = None if max_trials is None else max(0, max_trials - len(stages))
    startable = float("inf") if trials_left is None else waiting + trials_left
    assert train == min(max(0, max_parallel - open_train), startable) or is_full


def _number(wished: Sequence[Wish], job_type: JobType) -> int:
    return sum(1 for wish in wished if isinstance(wish, StartJob) and wish.type is job_type)
