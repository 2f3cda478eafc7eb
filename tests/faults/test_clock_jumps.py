"""Somebody sets the clock, an hour ahead or back, in the middle of a sweep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from agent.bench import SWEEP, Bench
from metta.sweep.clock import SystemClock
from metta.sweep.controller.controller import SweepController
from metta.sweep.controller.lease import LEASE_TTL_S
from metta.sweep.dispatchers.local import LocalDispatcher
from metta.sweep.model.events import Event, RunCompleted
from metta.sweep.model.run import JobStatus, RetryPolicy
from metta.sweep.model.state import EMPTY, SweepState, fold
from processes import processes_in
from waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

HOUR_S = 3600.0
#: Each run fails once, and takes a moment.
TARGET = """
    import pathlib, time
    from metta.sweep import current_run

    def train(config):
        time.sleep(0.1)
        if current_run().job_id.endswith(".1"):
            raise RuntimeError("the first attempt fails")
        return {"score": config["x"]}
"""


class JumpingClock(SystemClock):
    """The machine's clock, which somebody sets; durations do not notice."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.mark.parametrize(
    "jumps", [[HOUR_S], [-HOUR_S], [HOUR_S, -HOUR_S]], ids=["ahead", "back", "ahead and right again"]
)
def test_a_sweep_does_not_notice_that_the_clock_was_set(bench: Bench, jumps: list[float]) -> None:
    trials, clock, waiting = 24, JumpingClock(), list(jumps)
    leases: list[float] = []
    config = bench.create(
        bench.function(TARGET),
        max_trials=trials,
        same_error_limit=0,
        max_parallel=4,
        retry=RetryPolicy(max_retries=1, retry_delay_seconds=0.3),
    )

    def jump_now_and_then(state: SweepState, _events: Sequence[Event]) -> None:
        lease = bench.store.fetch_lease(SWEEP)
        if lease is not None and lease.holder is not None:
            leases.append(lease.expires_at - clock.now())
        is_waited = any(state.runs[run_id].retry_at is not None for run_id in state.unfinished)
        if waiting and is_waited and state.sweep.ended_count >= 4 * (len(jumps) - len(waiting) + 1):
            clock.ahead_s += waiting.pop(0)

    dispatcher = LocalDispatcher(bench.store, SWEEP, config, clock)
    bench.dispatchers.append(dispatcher)
    began = clock.monotonic()
    state = SweepController(bench.store, SWEEP, dispatcher, clock, jump_now_and_then).run()
    assert clock.monotonic() - began < 60
    assert waiting == []
    assert state == fold(EMPTY, bench.store.read(SWEEP))
    assert state.sweep.counts == {JobStatus.COMPLETED: trials}
    completions = Counter(event.run_id for event in bench.store.read(SWEEP) if isinstance(event.body, RunCompleted))
    assert set(completions.values()) == {1}
    for run in state.runs.values():
        assert len(run.jobs) == 2
        assert 0 < run.cost < 30
    assert 0 < state.sweep.cost < 30 * trials
    assert all(abs(left_s) <= HOUR_S * 2 + LEASE_TTL_S for left_s in leases)
    wait_until(lambda: not processes_in(bench.folder), what="the end of all processes")
