"""Machines on which a sweep's jobs run: their agents, and what their GPUs do."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from metta.sweep.display.gauges import bar
from metta.sweep.display.views import duration
from metta.sweep.model.state import SweepState
from metta.sweep.model.waiting import WITH_JOB
from metta.sweep.observe.watching import Signs
from metta.sweep.protocols import GpuLoad, Heartbeat

#: An agent beats every five seconds; one that is silent for longer has ended, or is in trouble where it has jobs.
SILENT_AFTER_S = 30.0
_MOST_AGENTS = 4
_GIB = 1 << 30
_BUSY_BAR, _MEMORY_BAR = 8, 5
#: Of the bars of one GPU, with what stands beside them.
_GPU_WIDTH = 33


def machine_lines(signs: Signs, state: SweepState, now: float, width: int) -> list[Text]:
    """A line each agent that is at work or should be, and below it the GPUs of its machine."""
    if state.sweep.status.ended:
        return []
    jobs = (state.runs[run_id].open_job for what in WITH_JOB for run_id in state.waiting[what])
    hosts = {job.host for job in jobs if job is not None}
    there = [beat for beat in signs.heartbeats if now - beat.at < SILENT_AFTER_S or beat.host in hosts]
    lines = []
    for beat in there[:_MOST_AGENTS]:
        lines.append(_agent_line(beat, now))
        if now - beat.at < SILENT_AFTER_S:
            lines += _gpu_lines(beat.gpus, width)
    if len(there) > _MOST_AGENTS:
        lines.append(_named("", f"and {len(there) - _MOST_AGENTS} agents more"))
    return lines


def _named(name: str, *parts: Text | str) -> Text:
    return Text.assemble((f"{name:<10}", "dim"), *parts)


def _agent_line(beat: Heartbeat, now: float) -> Text:
    silent_s = max(0.0, now - beat.at)
    seen = Text(f", seen {duration(silent_s)} ago", style="yellow" if silent_s >= SILENT_AFTER_S else "")
    return _named("agent", f"{beat.host}, {beat.jobs} {'job' if beat.jobs == 1 else 'jobs'}", seen)


def _gpu_lines(gpus: Sequence[GpuLoad], width: int) -> list[Text]:
    """Two a line where there is room."""
    columns = 2 if width >= 2 * _GPU_WIDTH - 3 and len(gpus) > 2 else 1
    lines = []
    for first in range(0, len(gpus), columns):
        line = _named("" if first else "gpus")
        for gpu in gpus[first : first + columns]:
            line.append_text(_gpu(gpu))
        lines.append(line)
    return lines


def _gpu(gpu: GpuLoad) -> Text:
    memory = f"{gpu.memory / _GIB:.0f}/{gpu.memory_whole / _GIB:.0f}G"
    used = gpu.memory / max(1, gpu.memory_whole)
    whole = Text.assemble(f"{gpu.index} ", bar(gpu.utilization, _BUSY_BAR, "cyan"), f" {gpu.utilization:>4.0%} ")
    whole.append_text(bar(used, _MEMORY_BAR, "magenta")).append(f" {memory}")
    whole.pad_right(max(0, _GPU_WIDTH - whole.cell_len))
    return whole
