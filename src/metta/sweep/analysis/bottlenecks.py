"""What holds the runs of a sweep up."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from metta.sweep.model.run import RunInfo
from metta.sweep.model.run_metrics import BottleneckKind, run_metrics


class SweepBottleneck(msgspec.Struct, frozen=True, kw_only=True):
    """Something that holds runs of a sweep up."""

    kind: BottleneckKind
    #: How many of them, of those that were measured.
    runs: int
    measured: int
    #: The share of all their time that these runs took.
    share: float
    #: The longest of these runs, and how it tells.
    run_id: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.runs} of {self.measured} runs; in {self.run_id}: {self.evidence}"


def sweep_bottlenecks(runs: Iterable[RunInfo], now: float | None = None) -> list[SweepBottleneck]:
    """What holds these runs up, by the time of those that it concerns, the most first.

    Takes time in proportion to the runs. Runs that nothing has measured, and those that have not begun, do not count.

    Args:
        runs: Those of one sweep.
        now: As of `run_metrics`.
    """
    concerned: dict[BottleneckKind, list[tuple[float, str, str]]] = {}
    measured, total = 0, 0.0
    for run in runs:
        if all(job.usage is None for job in run.jobs):
            continue
        metrics = run_metrics(run, now)
        measured, total = measured + 1, total + metrics.total_time
        for bottleneck in metrics.bottlenecks:
            found = (metrics.total_time, run.run_id, bottleneck.evidence)
            concerned.setdefault(bottleneck.kind, []).append(found)
    bottlenecks = []
    for kind, found_in in concerned.items():
        _, run_id, evidence = max(found_in)
        share = sum(seconds for seconds, _, _ in found_in) / total if total > 0 else 0.0
        bottlenecks.append(
            SweepBottleneck(
                kind=kind, runs=len(found_in), measured=measured, share=share, run_id=run_id, evidence=evidence
            )
        )
    return sorted(bottlenecks, key=lambda bottleneck: (-bottleneck.share, bottleneck.kind))
