"""What becomes of failed runs: the arithmetic of waiting."""

from __future__ import annotations

import immutables
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.controller.retries import (
    after_failure,
    delay_s,
    dispatch_delay_s,
    is_due,
    may_dispatch,
    next_deadline,
)
from metta.sweep.model import events as ev
from metta.sweep.model.run import (
    Checkpoint,
    FailureKind,
    JobInfo,
    JobState,
    JobStatus,
    JobType,
    Outcome,
    Resources,
    RetryPolicy,
    RunInfo,
)
from metta.sweep.model.state import EMPTY
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.model.waiting import WaitsFor
from metta.sweep.testing import sweep_config
from metta.sweep.testing.sweeps import START, SWEEP

NOW = START + 1000.0


def a_sweep(policy: RetryPolicy, memory_gb: float | None = None) -> SweepMetadata:
    config = sweep_config(retry=policy, resources=Resources(memory_gb=memory_gb))
    return SweepMetadata(sweep_id=SWEEP, config=config, created_at=START, seq=1)


def a_failed_run(kind: FailureKind, *, attempts: int = 1, retry_count: int = 0) -> RunInfo:
    jobs = tuple(
        JobInfo(
            job_id=f"r.train.{attempt}",
            type=JobType.TRAIN,
            attempt=attempt,
            granted_at=START,
            state=JobState.EXITED,
            ended_at=NOW,
            outcome=Outcome.FAILED,
            failure=kind,
        )
        for attempt in range(1, attempts + 1)
    )
    return RunInfo(
        sweep_id=SWEEP,
        run_id="r",
        index=0,
        config={},
        created_at=START,
        status=JobStatus.RETRYING,
        metrics={"reward": 0.25},
        failure_reasons=("train failed: so",),
        jobs=jobs,
        retry_count=retry_count,
    )


policies = st.builds(
    RetryPolicy,
    retry_delay_seconds=st.floats(0, 1e6),
    backoff=st.floats(1, 100),
    max_delay_seconds=st.floats(0, 1e9),
    jitter=st.floats(0, 1),
)


@given(policy=policies, retries=st.integers(0, 10_000), job_id=st.text(max_size=9))
def test_a_wait_is_never_longer_than_its_cap_and_jitter_allow_nor_negative(
    policy: RetryPolicy, retries: int, job_id: str
) -> None:
    wait_s = delay_s(policy, retries, job_id)
    assert 0 <= wait_s <= policy.max_delay_seconds * (1 + policy.jitter)
    assert wait_s == delay_s(policy, retries, job_id)


def test_waits_of_runs_that_failed_together_differ() -> None:
    policy = RetryPolicy(retry_delay_seconds=100.0, jitter=0.1)
    waits = {delay_s(policy, 0, f"run{number}.train.1") for number in range(50)}
    assert len(waits) == 50
    assert all(90.0 <= wait_s <= 110.0 for wait_s in waits)
    assert delay_s(replace(policy, jitter=0.0), 2, "x") == 400.0


@pytest.mark.parametrize(
    "kind",
    [FailureKind.NODE_LOST, FailureKind.PREEMPTED, FailureKind.STORE_LOST, FailureKind.DISPATCHER_ERROR],
)
def test_failures_that_say_nothing_about_the_run_are_not_counted(kind: FailureKind) -> None:
    sweep = a_sweep(RetryPolicy(max_retries=0, retry_delay_seconds=60.0, jitter=0.0))
    first = after_failure(sweep, a_failed_run(kind), NOW)
    assert first == ev.RunRetryScheduled(
        retry_at=NOW, retry_count=0, reason=f"{kind}, which does not count; again in 0 s"
    )
    saved = Checkpoint(step=1, path="p", sha256="0", size_bytes=1, at=NOW, job_id="r.train.1")
    fruitful = replace(a_failed_run(kind), checkpoints=(saved,))
    assert after_failure(sweep, fruitful, NOW) == first
    third = after_failure(sweep, a_failed_run(kind, attempts=3), NOW)
    assert isinstance(third, ev.RunRetryScheduled)
    assert (third.retry_at, third.retry_count) == (NOW + 120.0, 0)


def test_what_the_code_reported_wrongly_is_not_tried_again_unless_the_user_insists() -> None:
    run = a_failed_run(FailureKind.BAD_METRICS)
    given_up = after_failure(a_sweep(RetryPolicy(max_retries=5)), run, NOW)
    assert given_up == ev.RunFailed(reason="train failed: so", partial_score=0.25)
    insisting = RetryPolicy(on=(FailureKind.BAD_METRICS,))
    assert isinstance(after_failure(a_sweep(insisting), run, NOW), ev.RunRetryScheduled)


def test_a_job_that_needs_more_memory_is_tried_again_only_with_more() -> None:
    run = a_failed_run(FailureKind.OUT_OF_MEMORY)
    assert isinstance(after_failure(a_sweep(RetryPolicy(), memory_gb=2.0), run, NOW), ev.RunFailed)
    policy = RetryPolicy(memory_growth=1.5, max_memory_gb=4.0)
    granted = []
    for _ in range(3):
        decision = after_failure(a_sweep(policy, memory_gb=2.0), run, NOW)
        if isinstance(decision, ev.RunRetryScheduled):
            granted.append(decision.memory_gb)
            run = replace(run, memory_gb=decision.memory_gb, retry_count=decision.retry_count)
    assert granted == [3.0, 4.0]  # and no more than max_memory_gb
    # Without a limit of its own it may have been its neighbours who used the memory.
    unlimited = a_failed_run(FailureKind.OUT_OF_MEMORY)
    assert isinstance(after_failure(a_sweep(RetryPolicy()), unlimited, NOW), ev.RunRetryScheduled)


def test_a_wait_is_over_at_its_time_and_when_the_clock_was_set_back_to_before_the_failure() -> None:
    run = replace(a_failed_run(FailureKind.KILLED), retry_at=NOW + 60.0)
    assert not is_due(run, NOW)
    assert not is_due(run, NOW + 59.0)
    assert is_due(run, NOW + 60.0)
    assert is_due(run, NOW - 3600.0)
    assert not is_due(replace(run, retry_at=None), NOW + 60.0)


def test_a_dispatcher_is_left_alone_for_longer_and_longer_but_never_for_more_than_a_minute() -> None:
    assert [dispatch_delay_s(failures) for failures in range(1, 9)] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert dispatch_delay_s(10_000) == 60
    sweep = replace(a_sweep(RetryPolicy()), dispatch_at=NOW + 30.0)
    assert not may_dispatch(sweep, NOW)
    assert may_dispatch(sweep, NOW + 30.0)
    assert may_dispatch(sweep, NOW - 3600.0)


def test_the_next_deadline_is_the_earliest_one() -> None:
    waiting = {
        f"r{number}": replace(a_failed_run(FailureKind.KILLED), run_id=f"r{number}", retry_at=NOW + number)
        for number in (3, 1, 2)
    }
    state = replace(
        EMPTY,
        metadata=replace(a_sweep(RetryPolicy()), dispatch_at=NOW + 1.5),
        runs=EMPTY.runs.update(waiting),
        waiting=EMPTY.waiting.set(WaitsFor.RETRY, immutables.Map(dict.fromkeys(waiting))),
    )
    assert next_deadline(state) == NOW + 1
    assert next_deadline(replace(EMPTY, metadata=a_sweep(RetryPolicy()))) is None
