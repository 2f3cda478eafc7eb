"""What a run took, and what held it up, for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from rich.console import RenderableType
from rich.text import Text

from metta.sweep.display.views import duration, number
from metta.sweep.model.run_metrics import RunMetrics

_BARS = "▁▂▃▄▅▆▇█"
#: Columns of a sparkline.
_WIDTH = 30


def metrics_rows(metrics: RunMetrics) -> Iterator[tuple[str, RenderableType]]:
    """Names and values, those that are known."""
    times = {
        "queue": metrics.queue_time,
        "start-up": metrics.startup_time,
        "training": metrics.training_time,
        "eval": metrics.eval_time,
    }
    parts = [f"{name} {duration(seconds)}" for name, seconds in times.items() if seconds >= 0.05]
    yield "time", ", ".join([f"{duration(metrics.total_time)} in all", *parts])
    if used := list(_resources(metrics)):
        yield "used", ", ".join(used)
    if metrics.gpu_utilization:
        yield "gpu", _gpu(metrics)
    if metrics.steps_per_second is not None or metrics.samples_processed is not None:
        rate, samples = metrics.steps_per_second, metrics.samples_processed
        pace = [] if rate is None else [f"{rate:.3g} steps a second"]
        yield "pace", ", ".join([*pace, *([] if samples is None else [f"{samples} samples"])])
    for bottleneck in metrics.bottlenecks:
        yield "held up", Text(str(bottleneck), style="yellow")


def _resources(metrics: RunMetrics) -> Iterator[str]:
    if metrics.cpu_utilization is not None:
        yield f"{metrics.cpu_utilization:.2f} processors"
    if metrics.memory_peak_gb is not None:
        yield f"{number(round(metrics.memory_peak_gb, 3))} GiB of memory at its peak"
    if metrics.disk_io_gb is not None:
        yield f"{number(round(metrics.disk_io_gb, 3))} GiB from and to disks"
    if metrics.network_io_gb is not None:
        yield f"at most {number(round(metrics.network_io_gb, 3))} GiB over the network"
    if metrics.checkpoint_size_mb > 0:
        yield f"{number(round(metrics.checkpoint_size_mb, 3))} MiB of checkpoints"


def _gpu(metrics: RunMetrics) -> str:
    values = metrics.gpu_utilization
    memory = metrics.gpu_memory_peak_gb
    held = "" if memory is None else f", {memory:.3g} GiB of its memory at the peak"
    return f"{_sparkline(values)} busy {sum(values) / len(values):.0%} of the time{held}"


def _sparkline(values: Sequence[float]) -> str:
    width = min(_WIDTH, len(values))
    edges = [len(values) * column // width for column in range(width + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    return "".join(_BARS[min(len(_BARS) - 1, int(mean * len(_BARS)))] for mean in means)
