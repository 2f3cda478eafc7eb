"""Sweeps as metrics of Prometheus: what is exported, under which names. Needs the extra `prometheus`.

Labels have few values: a sweep, an agent's host, a GPU of it, a status, a kind. Runs and jobs are never labels, and
none is called `job` or `instance`, which are Prometheus' own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric

from metta.sweep.guards.limits import compute_seconds
from metta.sweep.model.run import JobStatus, JobType
from metta.sweep.model.sweep import SweepMetadata, SweepStatus
from metta.sweep.observe.prometheus.totals import ENDS, FAILURE_KINDS, Counted, Durations, Timed, Totals
from metta.sweep.protocols import Heartbeat

#: What an agent said of its GPUs holds for so many seconds: it says it again every five.
_GPUS_HOLD_S = 30.0


class Sight(msgspec.Struct, frozen=True, kw_only=True):
    """What is seen of a sweep at one moment."""

    totals: Totals
    #: Seconds since the epoch.
    now: float
    #: Whether a controller is at work on it.
    controlled: bool = False
    #: Of its agents.
    heartbeats: Sequence[Heartbeat] = ()

    @property
    def sweep(self) -> SweepMetadata:
        """Its metadata."""
        return self.totals.state.sweep

    @property
    def job_types(self) -> tuple[JobType, ...]:
        """Those that its jobs may have."""
        return (JobType.TRAIN,) if self.sweep.config.evaluate is None else tuple(JobType)


_Labels: TypeAlias = tuple[str, ...]
_Samples: TypeAlias = Iterable[tuple[_Labels, float]]


class _Family(NamedTuple):
    """Metrics of one name."""

    name: str
    help: str
    #: Names of the labels, but for `sweep`.
    labels: _Labels
    #: Of one sweep, by the values of the labels.
    samples: Callable[[Sight], _Samples]


def families(
    sights: Sequence[Sight], damaged: Sequence[SweepMetadata] = (), *, store_up: bool, seconds: float
) -> Iterator[Metric]:
    """All metrics.

    Args:
        sights: The sweeps that are shown, each once.
        damaged: Sweeps of which the log cannot be read as it was written.
        store_up: Whether the store could be read.
        seconds: Time that looking took.
    """
    yield GaugeMetricFamily("metta_sweep_store_up", "Whether the store of the sweeps could be read.", value=store_up)
    yield GaugeMetricFamily(
        "metta_sweep_scrape_duration_seconds", "Time that reading the store took for this scrape.", value=seconds
    )
    readable = GaugeMetricFamily(
        "metta_sweep_log_readable", "Whether the log of the sweep is as it was written.", labels=("sweep",)
    )
    for sweep, is_readable in [*((sight.sweep, True) for sight in sights), *((sweep, False) for sweep in damaged)]:
        readable.add_metric((sweep.sweep_id,), is_readable)
    yield readable
    for family in _GAUGES:
        yield _filled(GaugeMetricFamily(family.name, family.help, labels=("sweep", *family.labels)), family, sights)
    for family in _COUNTERS:
        yield _filled(CounterMetricFamily(family.name, family.help, labels=("sweep", *family.labels)), family, sights)
    yield from _histograms(sights)


def _filled(
    metric: GaugeMetricFamily | CounterMetricFamily, family: _Family, sights: Sequence[Sight]
) -> GaugeMetricFamily | CounterMetricFamily:
    for sight in sights:
        for labels, value in family.samples(sight):
            metric.add_metric((sight.sweep.sweep_id, *labels), value)
    return metric


def _histograms(sights: Sequence[Sight]) -> Iterator[Metric]:
    runs = HistogramMetricFamily(
        "metta_sweep_run_duration_seconds",
        "From the creation of a run to its end, waits and retries included.",
        labels=("sweep", "status"),
    )
    queue = HistogramMetricFamily(
        "metta_sweep_job_queue_seconds", "From the grant of a job to its start.", labels=("sweep", "job_type")
    )
    for sight in sights:
        for status in ENDS:
            _add(runs, (sight.sweep.sweep_id, status), sight.totals.taken(Timed.RUN_DURATION, status))
        for job in sight.job_types:
            _add(queue, (sight.sweep.sweep_id, job), sight.totals.taken(Timed.JOB_QUEUE, job))
    yield runs
    yield queue


def _add(metric: HistogramMetricFamily, labels: _Labels, taken: Durations) -> None:
    buckets, so_far = [], 0
    for bound, count in zip((*map(str, map(float, taken.bounds)), "+Inf"), taken.counts, strict=True):
        so_far += count
        buckets.append((bound, so_far))
    metric.add_metric(labels, buckets, taken.sum)


# ------------------------------------------------------------------------------------------- the sweep as it stands


def _info(sight: Sight) -> _Samples:
    config = sight.sweep.config
    strategy = config.strategy
    yield (config.name, strategy.optimizer, strategy.scheduler, config.metric, config.direction), 1


def _status(sight: Sight) -> _Samples:
    return [((status,), float(sight.sweep.status is status)) for status in SweepStatus]


def _runs(sight: Sight) -> _Samples:
    return [((status,), sight.sweep.counts.get(status, 0)) for status in JobStatus]


def _running_jobs(sight: Sight) -> _Samples:
    during = {JobType.TRAIN: JobStatus.IN_TRAINING, JobType.EVAL: JobStatus.IN_EVAL}
    return [((job,), sight.sweep.counts.get(during[job], 0)) for job in sight.job_types]


def _max_parallel(sight: Sight) -> _Samples:
    config = sight.sweep.config
    most = {JobType.TRAIN: config.max_parallel, JobType.EVAL: config.max_parallel_eval}
    return [((job,), most[job]) for job in sight.job_types]


def _plain(value: Callable[[Sight], float | None]) -> Callable[[Sight], _Samples]:
    """A family without labels of its own, and without a sample where there is no value."""

    def samples(sight: Sight) -> _Samples:
        found = value(sight)
        return [] if found is None else [((), found)]

    return samples


def _budget_used(sight: Sight) -> float | None:
    hours = sight.sweep.config.budget_hours
    return None if not hours else compute_seconds(sight.totals.state, sight.now) / 3600 / hours


def _of_agents(value: Callable[[Heartbeat], float]) -> Callable[[Sight], _Samples]:
    return lambda sight: [((beat.host,), value(beat)) for beat in sight.heartbeats]


def _of_gpus(value: Callable[..., float]) -> Callable[[Sight], _Samples]:
    def samples(sight: Sight) -> _Samples:
        for beat in sight.heartbeats:
            if sight.now - beat.at <= _GPUS_HOLD_S:
                yield from (((beat.host, str(gpu.index)), value(gpu)) for gpu in beat.gpus)

    return samples


_GAUGES = (
    _Family(
        "metta_sweep_info",
        "What the sweep searches, and how; always 1.",
        ("name", "optimizer", "scheduler", "metric", "direction"),
        _info,
    ),
    _Family("metta_sweep_status", "1 for the status that the sweep has, 0 for all others.", ("status",), _status),
    _Family("metta_sweep_runs", "Runs by the status that they have now.", ("status",), _runs),
    _Family(
        "metta_sweep_max_trials",
        "Runs that the sweep may have; absent where there is no limit.",
        (),
        _plain(lambda sight: sight.sweep.config.max_trials),
    ),
    _Family("metta_sweep_running_jobs", "Jobs that are executed now.", ("job_type",), _running_jobs),
    _Family("metta_sweep_max_parallel", "Jobs that may be executed at one time.", ("job_type",), _max_parallel),
    _Family(
        "metta_sweep_best_score",
        "Score of the best run; absent before the first has completed.",
        (),
        _plain(lambda sight: sight.sweep.best_score),
    ),
    _Family(
        "metta_sweep_budget_used_ratio",
        "Share of budget_hours that is spent, running jobs included; absent without a budget.",
        (),
        _plain(_budget_used),
    ),
    _Family(
        "metta_sweep_controller_up",
        "Whether a controller is at work on the sweep.",
        (),
        _plain(lambda sight: float(sight.controlled)),
    ),
    _Family(
        "metta_sweep_last_event_timestamp_seconds",
        "When something last happened in the sweep.",
        (),
        _plain(lambda sight: sight.totals.last_event_at),
    ),
    _Family(
        "metta_sweep_agent_last_seen_timestamp_seconds",
        "When the agent on this host last gave a sign of life.",
        ("host",),
        _of_agents(lambda beat: beat.at),
    ),
    _Family(
        "metta_sweep_agent_jobs",
        "Jobs that the agent on this host had when it was last seen.",
        ("host",),
        _of_agents(lambda beat: beat.jobs),
    ),
    _Family(
        "metta_sweep_gpu_utilization_ratio",
        "Share of the time in which the GPU was busy.",
        ("host", "gpu"),
        _of_gpus(lambda gpu: gpu.utilization),
    ),
    _Family(
        "metta_sweep_gpu_memory_used_bytes",
        "Memory in use on the GPU.",
        ("host", "gpu"),
        _of_gpus(lambda gpu: gpu.memory),
    ),
    _Family(
        "metta_sweep_gpu_memory_size_bytes",
        "Memory that the GPU has.",
        ("host", "gpu"),
        _of_gpus(lambda gpu: gpu.memory_whole),
    ),
)


# --------------------------------------------------------------------------------------------- what happened so far


def _total(counted: Counted) -> Callable[[Sight], _Samples]:
    return lambda sight: [((), sight.totals.count(counted))]


_COUNTERS = (
    _Family("metta_sweep_runs_created", "Configurations that were tried.", (), _total(Counted.RUNS_CREATED)),
    _Family(
        "metta_sweep_runs_ended",
        "Runs that came to an end, each time that they did; what is rolled back later has ended all the same.",
        ("status",),
        lambda sight: [((status,), sight.totals.count(Counted.RUNS_ENDED, status)) for status in ENDS],
    ),
    _Family(
        "metta_sweep_jobs_started",
        "Attempts that were started.",
        ("job_type",),
        lambda sight: [((job,), sight.totals.count(Counted.JOBS_STARTED, job)) for job in sight.job_types],
    ),
    _Family(
        "metta_sweep_job_failures",
        "Attempts that failed or were lost, by what that is put down to.",
        ("job_type", "kind"),
        lambda sight: [
            ((job, kind), sight.totals.count(Counted.JOB_FAILURES, job, kind))
            for job in sight.job_types
            for kind in FAILURE_KINDS
        ],
    ),
    _Family("metta_sweep_retries", "Failed jobs that were to be tried again.", (), _total(Counted.RETRIES)),
    _Family(
        "metta_sweep_dispatch_failures",
        "Times that the compute would not take jobs.",
        (),
        _total(Counted.DISPATCH_FAILURES),
    ),
    _Family(
        "metta_sweep_compute_seconds",
        "Wall time of all jobs, added when they end.",
        (),
        _total(Counted.COMPUTE_SECONDS),
    ),
)
