"""What a run took and what held it up, from its log."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.errors import InvalidTransition
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.run import JobType, Outcome, RunInfo
from metta.sweep.model.run_metrics import BottleneckKind, run_metrics
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.model.usage import Curves, JobUsage, Pace
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

GIB, MIB = 1 << 30, 1 << 20
RUN = ids.run_id(SWEEP, 0)
TRAIN, EVAL = ids.job_id(RUN, JobType.TRAIN, 1), ids.job_id(RUN, JobType.EVAL, 1)


def told(*bodies: tuple[float, ev.Body, str | None]) -> RunInfo:
    """The run that these make, each so many seconds after the sweep's beginning."""
    events = [sweep_created()]
    for at, body, job_id in bodies:
        events.append(ev.new_event(body, sweep_id=SWEEP, at=START + at, actor="test", run_id=RUN, job_id=job_id))
    numbered = [replace(event, seq=seq) for seq, event in enumerate(events, start=1)]
    return fold(EMPTY, numbered).runs[RUN]


BEGUN: list[tuple[float, ev.Body, str | None]] = [
    (0, ev.RunCreated(index=0, config={"lr": 0.01}), None),
    (5, ev.JobGranted(job_type=JobType.TRAIN, attempt=1), TRAIN),
    (8, ev.JobStarted(host="node", pid=1, log="log"), TRAIN),
]


def trained(usage: JobUsage | None, *, seconds: float = 100) -> RunInfo:
    exited = ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=seconds, usage=usage)
    return told(*BEGUN, (8 + seconds, exited, TRAIN), (8 + seconds, ev.RunCompleted(score=1), None))


def usage(**fields: Any) -> JobUsage:
    plain: dict[str, Any] = {"seconds": 100.0, "looks": 100, "cpu_seconds": 90.0, "cpus": 1}
    return JobUsage(**{**plain, **fields})


def kinds(run: RunInfo) -> list[BottleneckKind]:
    return [bottleneck.kind for bottleneck in run_metrics(run).bottlenecks if bottleneck.kind != BottleneckKind.QUEUE]


def test_the_times_of_a_run_are_told_apart() -> None:
    pace = Pace(count=5, first_s=30, last_s=70, first_step=1, first_step_s=30, last_step=5, last_step_s=70)
    run = told(
        *BEGUN,
        (108, ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=100, usage=usage(pace=pace)), TRAIN),
        (110, ev.JobGranted(job_type=JobType.EVAL, attempt=1), EVAL),
        (111, ev.JobStarted(host="node", pid=2, log="log"), EVAL),
        (131, ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=20), EVAL),
        (132, ev.RunCompleted(score=1), None),
    )
    metrics = run_metrics(run)
    assert metrics.queue_time == 8 + 3
    assert metrics.startup_time == 20
    assert metrics.training_time == 80
    assert metrics.eval_time == 20
    assert metrics.total_time == 132
    assert metrics.steps_per_second == pytest.approx(0.1)


def test_a_run_under_way_is_looked_at_now_and_without_a_time_as_far_as_is_known() -> None:
    run = told(*BEGUN, (40, ev.ResourcesMeasured(usage=usage(seconds=32.0)), TRAIN))
    assert run_metrics(run, START + 50).training_time == 42
    assert run_metrics(run).training_time == 32
    assert run_metrics(told(BEGUN[0]), START + 7).queue_time == 7


def test_waits_for_a_retry_are_no_queue() -> None:
    again = ids.job_id(RUN, JobType.TRAIN, 2)
    run = told(
        *BEGUN,
        (18, ev.JobLost(reason="gone"), TRAIN),
        (100, ev.JobGranted(job_type=JobType.TRAIN, attempt=2), again),
        (101, ev.JobStarted(host="node", pid=1, log="log"), again),
        (111, ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=10), again),
    )
    metrics = run_metrics(run)
    assert metrics.queue_time == 8 + 1
    assert metrics.training_time == 20


def test_figures_are_summed_up_over_the_jobs() -> None:
    first = usage(memory_peak_bytes=GIB, read_bytes=GIB, written_bytes=0, network_bytes=GIB, gpu_utilization=(0.5,))
    second = usage(seconds=20, cpu_seconds=6, memory_peak_bytes=2 * GIB, read_bytes=0, written_bytes=GIB)
    run = told(
        *BEGUN,
        (9, ev.MetricsReported(metrics={"samples": 640.0, "step": 10.0}), TRAIN),
        (9, ev.CheckpointSaved(step=1, path="a", sha256="ab", size_bytes=3 * MIB), TRAIN),
        (108, ev.JobExited(outcome=Outcome.SUCCEEDED, usage=first), TRAIN),
        (108, ev.JobGranted(job_type=JobType.EVAL, attempt=1), EVAL),
        (108, ev.JobStarted(host="node", pid=2, log="log"), EVAL),
        (128, ev.JobExited(outcome=Outcome.SUCCEEDED, usage=second), EVAL),
    )
    metrics = run_metrics(run)
    assert (metrics.memory_peak_gb, metrics.disk_io_gb, metrics.network_io_gb) == (2, 2, 1)
    assert metrics.cpu_utilization == pytest.approx(0.8)
    assert metrics.gpu_utilization == (0.5,)
    assert metrics.samples_processed == 640
    assert metrics.checkpoint_size_mb == 3


def test_what_nothing_measured_is_none() -> None:
    metrics = run_metrics(trained(None))
    assert (metrics.memory_peak_gb, metrics.disk_io_gb, metrics.steps_per_second) == (None, None, None)
    assert metrics.training_time == 100
    assert metrics.gpu_utilization == ()


def test_curves_stay_in_the_log() -> None:
    run = trained(usage(curves=Curves(every_s=1.0, cpus=(1.0,))))
    assert run.jobs[0].usage is not None
    assert run.jobs[0].usage.curves is None


def test_a_lost_job_keeps_what_was_measured_of_it() -> None:
    measured = ev.ResourcesMeasured(usage=usage(seconds=12.0))
    run = told(*BEGUN, (20, measured, TRAIN), (30, ev.JobLost(reason="gone"), TRAIN))
    assert run.jobs[0].usage == usage(seconds=12.0)


def test_an_exit_as_earlier_versions_wrote_it_is_one_without_measurements() -> None:
    body = msgspec.json.decode(b'{"type":"job_exited","outcome":"succeeded","seconds":2.5}', type=ev.Body)
    assert body == ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=2.5)


@pytest.mark.parametrize(
    ("fields", "expected", "evidence"),
    [
        ({}, [], ""),
        (
            {"gpu_utilization": (0.1, 0.2), "cpu_seconds": 380.0, "cpus": 4},
            [BottleneckKind.DATA_LOADING],
            "its GPU was busy 15% of the time, 3.8 of 4 processors busy",
        ),
        (
            {"gpu_utilization": (0.1, 0.2), "cpu_seconds": 10.0, "disk_wait": 0.5, "read_bytes": 0, "written_bytes": 0},
            [BottleneckKind.DATA_LOADING, BottleneckKind.DISK],
            "waiting for a disk in 50% of the looks",
        ),
        ({"gpu_utilization": (0.1, 0.2), "cpu_seconds": 10.0}, [BottleneckKind.GPU_IDLE], "0.1 of 1 processors busy"),
        ({"gpu_utilization": (0.9, 0.8)}, [], ""),
        ({"cpu_wait": 0.45}, [BottleneckKind.CPU], "without one in 45% of the time"),
        ({"cpu_wait": 0.8, "cpu_seconds": 10.0}, [BottleneckKind.CPU], "without one in 80% of the time"),
        ({"cpu_wait": 0.45, "cpu_seconds": 1.0}, [], ""),
        (
            {"memory_peak_bytes": 95 * GIB, "memory_limit_bytes": 100 * GIB},
            [BottleneckKind.MEMORY],
            "95 GiB at its peak, 100 GiB allowed",
        ),
        ({"memory_left_bytes": GIB, "memory_left": 0.01}, [BottleneckKind.MEMORY], "1 GiB (1.0%) left at worst"),
        ({"swap_peak_bytes": GIB}, [BottleneckKind.SWAP], "1 GiB of it lay in swap space"),
        (
            {"gpu_memory_peak_bytes": 79 * GIB, "gpu_memory_bytes": 80 * GIB},
            [BottleneckKind.GPU_MEMORY],
            "79 of 80 GiB",
        ),
    ],
)
def test_what_holds_a_run_up_is_named_with_its_evidence(
    fields: dict[str, Any], expected: list[BottleneckKind], evidence: str
) -> None:
    run = trained(usage(**fields))
    assert kinds(run) == expected
    assert evidence in "; ".join(run_metrics(run).get_bottlenecks())


def test_a_long_queue_and_a_long_start_are_named() -> None:
    pace = Pace(count=11, first_s=65, last_s=100)
    short = run_metrics(trained(usage(pace=pace)))
    # 8 seconds of queue before 38.5 of training.
    assert short.get_bottlenecks() == [
        "high queue time: waited 8.0 s for its turn, trained 38.5 s",
        "start-up dominates: 61.5 s of 100.0 s passed before the training got under way",
    ]
    assert run_metrics(trained(None, seconds=1000)).get_bottlenecks() == []


@given(seed=st.integers(0, 10_000), length=st.integers(1, 80))
@settings(max_examples=60, deadline=None)
def test_whatever_happens_times_fit_into_the_whole_and_are_plain_numbers(seed: int, length: int) -> None:
    events = random_history(seed, length)
    state = fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(events, start=1)])
    for run in state.runs.values():
        metrics = run_metrics(run, events[-1].at)
        parts = (metrics.queue_time, metrics.startup_time, metrics.training_time, metrics.eval_time)
        assert min(parts) >= 0
        assert sum(parts) <= events[-1].at - run.created_at + 1e-6
        assert msgspec.json.decode(msgspec.json.encode(metrics), type=type(metrics)) == metrics


def test_a_run_with_no_jobs_that_was_cancelled_waited_for_nothing() -> None:
    run = told(BEGUN[0], (9, ev.RunCancelled(reason="stopped"), None))
    assert run_metrics(run).queue_time == 0
    assert run_metrics(run).total_time == 9


def test_a_run_of_the_sample_sweeps_has_its_hour() -> None:
    events = [replace(event, seq=seq) for seq, event in enumerate([sweep_created(), *run_events(0)], start=1)]
    assert run_metrics(fold(EMPTY, events).runs[RUN]).training_time == 3600


@pytest.mark.parametrize(
    "fields",
    [
        {"seconds": float("nan")},
        {"gpu_utilization": (float("nan"), 0.5)},
        {"pace": Pace(count=1, first_s=float("inf"), last_s=2)},
        {"curves": Curves(every_s=1.0, cpus=(float("nan"), 1.0))},
    ],
)
def test_a_measurement_that_json_has_no_numbers_for_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidTransition, match="not a finite number"):
        told(*BEGUN, (20, ev.ResourcesMeasured(usage=usage(**fields)), TRAIN))
    with pytest.raises(InvalidTransition, match="not a finite number"):
        trained(usage(**fields))
