"""What the telemetry says of GPUs, beside what jobs are known to have done on one; needs an NVIDIA GPU and torch.

Jobs alone on the GPU keep it busy for a share of the time that they choose themselves. Of jobs that share it, how much
each had of it is told by how often it got to multiply matrices, for one that is never idle did so alone first.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from statistics import mean

from _gpu_job import HELD_GIB, work
from _measure import Report, parse_arguments, scratch_folder
from metta.sweep.agent.nvml import Nvml, open_nvml
from metta.sweep.agent.telemetry import EVERY_S
from metta.sweep.api import Sweep, sweep
from metta.sweep.model.run import RunInfo
from metta.sweep.model.run_metrics import run_metrics
from metta.sweep.model.space import Choice

#: Of a core, for each GPU.
_MOST = 1.0
#: How far a share of the time may be off.
_OFF = 0.1


def main() -> None:
    options = parse_arguments(argparse.ArgumentParser(description=__doc__))
    nvml = open_nvml()
    if nvml is None:
        print("gpus: there is no NVIDIA GPU here, or no nvidia-ml-py: nothing was measured", file=sys.stderr)
        return
    seconds = 15.0 if options.quick else 40.0
    report = Report(f"gpus: a look every {EVERY_S:g} s at jobs of {seconds:g} s")
    with scratch_folder(options.folder) as folder:
        _cost(report, nvml)
        alone = _alone(report, folder, seconds)
        _shared(report, folder, seconds, alone)
        report.finish(options.json, folder)


def _cost(report: Report, nvml: Nvml) -> None:
    looks = 50
    begin = time.process_time()
    for _ in range(looks):
        nvml.read()
    share = (time.process_time() - begin) / looks / EVERY_S
    report.add("of a core, for all GPUs", 100 * share, "%", at_most=_MOST * len(nvml.read()))


def _sweep(duties: list[float], seconds: float, *, gpus: int, parallel: int) -> Sweep:
    decorate = sweep(
        search_space={"duty": Choice(duties), "seconds": seconds},
        metric="products",
        strategy="grid",
        resources={"gpus": gpus},
        max_parallel=parallel,
    )
    return decorate(work)


def _alone(report: Report, folder: Path, seconds: float) -> float:
    """Jobs that have the GPU to themselves; returns how many products a second one makes that is never idle."""
    jobs = _sweep([0.25, 0.5, 0.75, 1.0], seconds, gpus=1, parallel=1)
    runs = jobs.run(store=str(folder / "alone.db"), progress=False).runs
    for run in runs:
        duty = run.config["duty"]
        _add(report, f"alone, busy {duty:.0%} of the time", run, duty)
    used = run_metrics(runs[0]).gpu_memory_peak_gb
    assert used is not None
    report.add("memory of the GPU beyond what it holds", used - HELD_GIB, "GiB", note="the context of CUDA and cuBLAS")
    return runs[-1].metrics["products_a_second"]


def _shared(report: Report, folder: Path, seconds: float, alone: float) -> None:
    jobs = _sweep([0.25, 1.0], seconds, gpus=0, parallel=2)
    for run in jobs.run(store=str(folder / "shared.db"), progress=False).runs:
        had = run.metrics["products_a_second"] / alone
        _add(report, f"shared, wants {run.config['duty']:.0%} of the time", run, had)


def _add(report: Report, name: str, run: RunInfo, known: float) -> None:
    seen = run_metrics(run).gpu_utilization
    # Before the training gets under way it imports torch; at its end it gives the memory back.
    trained = seen[len(seen) // 3 : -1]
    report.add(f"{name}: how far off", abs(mean(trained) - known), "", at_most=_OFF, note=f"it had {known:.2f}")


if __name__ == "__main__":
    main()
