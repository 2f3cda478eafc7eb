"""The sample sweeps that contracts are checked with: legal, repeatable, and eventful."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobStatus
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


def test_in_histories_everything_happens() -> None:
    seen = set()
    for seed in range(30):
        history = random_history(seed, length=80)
        folded(history)
        assert len(history) == 80
        seen |= {type(event.body) for event in history}
    assert seen == set(ev.Body.__args__)
