"""Sweeps as an exporter sees them, made up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from metta.sweep.model.events import Event
from metta.sweep.model.sweep import CommandTarget
from metta.sweep.observe.prometheus.families import Sight, families
from metta.sweep.observe.prometheus.totals import Totals
from metta.sweep.protocols import GpuLoad, Heartbeat
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP


def numbered(events: Sequence[Event]) -> list[Event]:
    """As a store gives them."""
    return [replace(event, seq=seq) for seq, event in enumerate(events, 1)]


def sight(sweep_id: str = SWEEP, **fields: Any) -> Sight:
    """Of a sweep with everything that can be exported: two runs, evaluation, limits, an agent with a GPU."""
    config = {"evaluate": CommandTarget(argv=["score"]), "max_trials": 9, "budget_hours": 4.0}
    created = sweep_created(sweep_id, name=f"all-{sweep_id}", **config)
    events = [created, *run_events(0, sweep_id=sweep_id, score=0.5), *run_events(1, sweep_id=sweep_id, score=None)]
    gpu = GpuLoad(index=0, utilization=0.75, memory=3 << 30, memory_whole=8 << 30)
    beat = Heartbeat(sweep_id=sweep_id, host="node", pid=1, at=START + 3600, jobs=2, gpus=(gpu,))
    given = {"now": START + 3605, "controlled": True, "heartbeats": [beat], **fields}
    return Sight(totals=Totals().after(numbered(events)), **given)


class _Given(Collector):
    def __init__(self, metrics: Sequence[Metric]) -> None:
        self._metrics = metrics

    def describe(self) -> Sequence[Metric]:
        return self._metrics

    def collect(self) -> Sequence[Metric]:
        return self._metrics


def exposed(*sights: Sight) -> str:
    """The sights in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Given(list(families(sights, store_up=True, seconds=0.1))))
    return generate_latest(registry).decode()
