"""What becomes of a run whose job has failed: tried again, and when, or not."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from metta.sweep.model.events import RunFailed, RunRetryScheduled
from metta.sweep.model.run import UNCOUNTED_FAILURES, FailureKind, JobInfo, JobStatus, RetryPolicy, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.model.waiting import WaitsFor

#: A run whose jobs were lost this often in a row, none of them having saved a checkpoint, takes its agent down with it
#: (by exhausting memory, say) and is given up.
MOST_LOSSES = 10
#: A dispatcher that would not take jobs is asked again after a second, then after twice that, up to a minute.
_DISPATCH_DELAY_S, _LONGEST_DISPATCH_DELAY_S = 1.0, 60.0
#: Refused so often in a row, over a few minutes, the sweep is paused.
MOST_REFUSALS = 10


def after_failure(sweep: SweepMetadata, run: RunInfo, now: float) -> RunRetryScheduled | RunFailed:
    """The decision about a run that is RETRYING without a time set."""
    job = run.jobs[-1]
    policy = sweep.retry_policy(job.type)
    kind = job.failure
    assert kind is not None

    def given_up(reason: str) -> RunFailed:
        return RunFailed(reason=reason, partial_score=run.metrics.get(sweep.config.metric))

    if kind not in policy.kinds:
        return given_up(run.failure_reasons[-1])
    if kind in UNCOUNTED_FAILURES:
        losses = sum(1 for _ in _losses_in_a_row(run))
        if losses >= MOST_LOSSES:
            return given_up(f"its jobs were lost {losses} times in a row without saving a checkpoint")
        # The first time the node is to blame, and the next one may have room at once; so it is for a run that got on.
        wait_s = 0.0 if losses <= 1 else delay_s(policy, losses - 2, job.job_id)
        return RunRetryScheduled(
            retry_at=now + wait_s,
            retry_count=run.retry_count,
            reason=f"{kind}, which does not count; again in {wait_s:.3g} s",
        )
    if run.retry_count >= policy.limit:
        return given_up(_exhausted(run, policy))
    memory_gb = None
    if kind is FailureKind.OUT_OF_MEMORY and (limit := run.memory_gb or sweep.config.resources.memory_gb) is not None:
        memory_gb = min(limit * policy.memory_growth, policy.max_memory_gb or limit * policy.memory_growth)
        if memory_gb <= limit:
            return given_up(run.failure_reasons[-1])
    wait_s = delay_s(policy, run.retry_count, job.job_id)
    more = f" with {memory_gb:.3g} GiB" if memory_gb is not None else ""
    return RunRetryScheduled(
        retry_at=now + wait_s,
        retry_count=run.retry_count + 1,
        reason=f"{kind}: retry {run.retry_count + 1} of {policy.limit}{more} in {wait_s:.3g} s",
        memory_gb=memory_gb,
    )


def _exhausted(run: RunInfo, policy: RetryPolicy) -> str:
    reason = run.failure_reasons[-1]
    return f"given up after {policy.limit} retries: {reason}" if policy.limit else reason


def _losses_in_a_row(run: RunInfo) -> Iterator[JobInfo]:
    """The latest attempts that were lost, back to the last one that got anywhere."""
    fruitful = {checkpoint.job_id for checkpoint in run.checkpoints}
    for job in reversed(run.jobs):
        if job.failure not in UNCOUNTED_FAILURES or job.job_id in fruitful:
            return
        yield job


def delay_s(policy: RetryPolicy, retries: int, job_id: str) -> float:
    """Exponential backoff with a cap; the jitter depends on the job alone, so that a decision can be recomputed."""
    # Beyond 2**64 no cap is larger, and the power would overflow.
    delay = min(policy.retry_delay_seconds * policy.backoff ** min(retries, 64), policy.max_delay_seconds)
    draw = zlib.crc32(job_id.encode()) / 2**32
    return delay * (1 + policy.jitter * (2 * draw - 1))


def is_due(run: RunInfo, now: float) -> bool:
    """Whether a run's wait is over; also when the clock was set back to before its failure: nobody waits for that."""
    if run.status is not JobStatus.RETRYING or run.retry_at is None:
        return False
    failed_at = run.jobs[-1].ended_at
    return now >= run.retry_at or (failed_at is not None and now < failed_at - _DISPATCH_DELAY_S)


def waits_too_long(run: RunInfo, policy: RetryPolicy, now: float) -> bool:
    """Whether a run has longer to wait than it ever had to: by a clock that was ahead then, and has been put right."""
    if run.status is not JobStatus.RETRYING or run.retry_at is None:
        return False
    job = run.jobs[-1]
    if job.failure in UNCOUNTED_FAILURES:
        wait_s = delay_s(policy, max(0, sum(1 for _ in _losses_in_a_row(run)) - 2), job.job_id)
    else:
        wait_s = delay_s(policy, run.retry_count - 1, job.job_id)
    return run.retry_at - now > wait_s + _DISPATCH_DELAY_S


def dispatch_delay_s(failures: int) -> float:
    """How long a dispatcher is left alone after so many refusals in a row."""
    return float(min(_DISPATCH_DELAY_S * 2 ** min(failures - 1, 16), _LONGEST_DISPATCH_DELAY_S))


def may_dispatch(sweep: SweepMetadata, now: float) -> bool:
    """Whether the dispatcher is to be asked, or left alone after it refused."""
    wait_s = 0.0 if sweep.dispatch_at is None else sweep.dispatch_at - now
    return not 0 < wait_s <= _LONGEST_DISPATCH_DELAY_S


def next_deadline(state: SweepState) -> float | None:
    """When something is due that no event will announce."""
    times = [state.runs[run_id].retry_at for run_id in state.waiting[WaitsFor.RETRY]]
    return min((at for at in [*times, state.sweep.dispatch_at] if at is not None), default=None)
