"""The sample sweeps that contracts are checked with: legal, repeatable, and eventful."""

from __future__ import annotations

from collections import Counter

import immutables
import msgspec
import pytest
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobStatus
from metta.sweep.model.run_transitions import AFTER_THE_END
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.testing import random_history, run_events, sweep_created


def folded(events: list[Event]) -> SweepState:
    return fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(events, start=1)])


@pytest.mark.parametrize(
    ("stage", "status"),
    [
        (1, JobStatus.PENDING),
        (3, JobStatus.PENDING),
        (4, JobStatus.IN_TRAINING),
        (6, JobStatus.TRAINING_DONE_NO_EVAL),
        (7, JobStatus.COMPLETED),
    ],
)
def test_the_first_events_of_a_run_make_one_that_is_on_its_way(stage: int, status: JobStatus) -> None:
    [run] = folded([sweep_created(), *run_events(0)[:stage]]).runs.values()
    assert run.status is status


def test_a_run_without_a_score_fails() -> None:
    [run] = folded([sweep_created(), *run_events(0, score=None)]).runs.values()
    assert (run.status, run.reports) == (JobStatus.FAILED, 0)


def test_histories_depend_on_their_seed_alone() -> None:
    def told(seed: int) -> list[object]:
        return [(event.at, event.run_id, event.job_id, event.body) for event in random_history(seed)]

    assert told(1) == told(1)
    assert told(1) != told(2)


def test_a_longer_history_goes_on_where_a_shorter_one_ends() -> None:
    short, long = random_history(4, length=30), random_history(4, length=90)
    assert [event.body for event in long[:30]] == [event.body for event in short]


def test_in_histories_everything_happens() -> None:
    seen = set()
    for seed in range(30):
        history = random_history(seed, length=80)
        folded(history)
        assert len(history) == 80
        seen |= {type(event.body) for event in history}
    assert seen == set(ev.Body.__args__)


def test_runs_get_everywhere_and_stay_there() -> None:
    states = [folded(random_history(seed, length=80)) for seed in range(40)]
    runs = [run for state in states for run in state.runs.values()]
    assert {run.status for run in runs} == set(JobStatus)
    assert any(run.resume_from is not None for run in runs)
    assert any(run.partial_score is not None for run in runs)
    assert any(run.retry_count for run in runs)
    assert any(run.memory_gb for run in runs)
    assert any(state.sweep.same_failures > 1 for state in states)
    assert any(state.sweep.passing_failures for state in states)
    assert any(state.tried for state in states)


def test_things_happen_after_the_end_of_a_sweep_too() -> None:
    after_the_end = set()
    for seed in range(100):
        state = EMPTY
        for seq, event in enumerate(random_history(seed, length=80), start=1):
            if state.metadata is not None and state.sweep.status.ended:
                after_the_end.add(type(event.body))
            state = fold(state, [replace(event, seq=seq)])
    assert after_the_end == {*AFTER_THE_END, ev.SweepAmended, ev.SweepResumed}


@pytest.mark.parametrize("seed", range(20))
def test_histories_add_up_after_every_event(seed: int) -> None:
    state, awaits_amendment = EMPTY, False
    for seq, event in enumerate(random_history(seed, length=80), start=1):
        state = fold(state, [replace(event, seq=seq)])
        assert state.sweep.counts == Counter(run.status for run in state.runs.values())
        assert set(state.unfinished) == {run.run_id for run in state.runs.values() if not run.status.ended}
        assert state.sweep.cost == sum(run.cost for run in state.runs.values())
        # Rescored runs and the amendment that names the best of them are several events.
        awaits_amendment = isinstance(event.body, ev.RunRescored) or (
            awaits_amendment and not isinstance(event.body, ev.SweepAmended)
        )
        if not awaits_amendment:
            scores = [run.score for run in state.runs.values() if run.status is JobStatus.COMPLETED]
            assert state.sweep.best_score == _best(scores, state)


def _best(scores: list[float | None], state: SweepState) -> float | None:
    known = [score for score in scores if score is not None]
    assert len(known) == len(scores)
    return (max if state.sweep.config.direction == "maximize" else min)(known, default=None)


@pytest.mark.parametrize("seed", range(10))
def test_histories_fold_in_pieces_onto_the_runs_that_these_touch_alone(seed: int) -> None:
    """As a store does it, which never loads all runs of a sweep."""
    history = [replace(event, seq=seq) for seq, event in enumerate(random_history(seed, length=80), start=1)]
    state = EMPTY
    for start in range(0, len(history), seed + 1):
        batch = history[start : start + seed + 1]
        touched = {event.run_id for event in batch} & set(state.runs)
        runs = immutables.Map({run_id: state.runs[run_id] for run_id in touched})
        part = fold(SweepState(metadata=state.metadata, runs=runs), batch)
        state = fold(state, batch)
        assert part.metadata == state.metadata
        assert dict(part.runs) == {run_id: state.runs[run_id] for run_id in part.runs}
    assert state == fold(EMPTY, history)


def test_histories_come_back_from_json_as_they_were() -> None:
    for seed in range(20):
        history = random_history(seed)
        loaded = msgspec.json.decode(msgspec.json.encode(history), type=list[Event])
        assert loaded == history
        assert folded(loaded) == folded(history)
