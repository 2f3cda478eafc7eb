"""What jobs used: measured on jobs whose behaviour is known."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.bench import SWEEP, Bench, python, shell
from metta.sweep.model import events as ev
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import Outcome, Resources
from metta.sweep.model.run_metrics import run_metrics
from metta.sweep.model.sweep import CommandTarget
from metta.sweep.model.usage import JobUsage
from metta.sweep.protocols import GpuLoad
from waiting import wait_until

GIB, MIB = 1 << 30, 1 << 20


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.fixture
def disk() -> Iterator[Path]:
    """A folder that is not in memory, where what is written would not get to a disk."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        yield Path(folder)


#: Holds so much memory, writes so many MiB, and burns one core until it has used so much processor time in all.
WORK = """
import os, time
def work(seconds, memory, written, folder):
    begin = time.process_time()
    held = bytearray(memory)
    for start in range(0, memory, 4096):
        held[start] = 1
    with open(os.path.join(folder, f"out-{os.getpid()}"), "wb") as file:
        for _ in range(written):
            file.write(bytes(1 << 20))
    while time.process_time() - begin < seconds:
        pass
"""


def used(bench: Bench, index: int = 0) -> JobUsage:
    usages = [event.body.usage for event in bench.store.read(SWEEP) if isinstance(event.body, ev.JobExited)]
    usage = usages[index]
    assert usage is not None
    return usage


@pytest.mark.parametrize("kind", ["command", "process", "reuse"])
def test_a_job_of_known_behaviour_is_measured_to_within_a_tenth(bench: Bench, disk: Path, kind: str) -> None:
    call = f"work(3.0, {GIB}, 200, {str(disk)!r})"
    if kind == "command":
        exited = bench.exit(python(WORK + call))
    else:
        exited = bench.exit(bench.function(WORK + f"def train(config):\n    {call}"), isolation=kind)
    assert exited.outcome is Outcome.SUCCEEDED
    usage = exited.usage
    assert usage is not None
    assert usage.cpu_seconds == pytest.approx(3.0, rel=0.1)
    assert usage.memory_peak_bytes == pytest.approx(GIB, rel=0.1)
    assert usage.written_bytes == pytest.approx(200 * MIB, rel=0.1)
    assert usage.seconds == pytest.approx(exited.seconds, abs=0.01)
    assert usage.looks >= 2
    assert usage.curves is not None
    assert len(usage.curves.memory_gb) == usage.looks
    assert max(usage.curves.memory_gb) == pytest.approx(1, rel=0.1)


def test_a_job_too_short_to_be_looked_at_is_counted_all_the_same(bench: Bench, disk: Path) -> None:
    exited = bench.exit(python(WORK + f"work(0.3, {256 * MIB}, 20, {str(disk)!r})"))
    assert exited.usage is not None
    assert exited.usage.cpu_seconds == pytest.approx(0.3, abs=0.1)
    assert exited.usage.written_bytes == pytest.approx(20 * MIB, rel=0.1)
    assert exited.usage.memory_peak_bytes == pytest.approx(256 * MIB, rel=0.2)


def test_a_worker_that_is_used_again_is_counted_anew_for_each_job(bench: Bench, disk: Path) -> None:
    script = f"""
def train(config):
    if config["x"] == 1:
        work(1.5, {512 * MIB}, 50, {str(disk)!r})
    else:
        work(0.5, {128 * MIB}, 10, {str(disk)!r})
"""
    target = bench.function(WORK + script)
    bench.create(target, isolation="reuse", max_parallel=1)
    dispatcher = bench.dispatcher()
    for index, x in enumerate([1, 2]):
        job = bench.grant(index, {"x": x})
        dispatcher.dispatch([job])
        assert bench.exit_of(job).outcome is Outcome.SUCCEEDED
    pids = [event.body.pid for event in bench.store.read(SWEEP) if isinstance(event.body, ev.JobStarted)]
    assert pids[0] == pids[1]
    first, second = used(bench, 0), used(bench, 1)
    assert first.cpu_seconds == pytest.approx(1.5, abs=0.15)
    assert second.cpu_seconds == pytest.approx(0.5, abs=0.1)
    assert second.written_bytes == pytest.approx(10 * MIB, rel=0.1)
    assert first.memory_peak_bytes is not None
    assert second.memory_peak_bytes is not None
    assert first.memory_peak_bytes > 512 * MIB
    assert 128 * MIB < second.memory_peak_bytes < 256 * MIB


def test_children_that_were_waited_for_count(bench: Bench, disk: Path) -> None:
    (bench.folder / "child.py").write_text(WORK + f"work(0.5, 0, 20, {str(disk)!r})")
    exited = bench.exit(shell(f"{sys.executable} child.py & {sys.executable} child.py & wait"))
    assert exited.usage is not None
    assert exited.usage.cpu_seconds == pytest.approx(1.0, abs=0.3)
    assert exited.usage.written_bytes == pytest.approx(40 * MIB, rel=0.1)


def test_children_that_nobody_waited_for_count_as_far_as_they_were_seen(bench: Bench, disk: Path) -> None:
    """The job's leader is gone from them when it ends; without looks nothing would be known of their work."""
    (bench.folder / "child.py").write_text(WORK + f"work(60, 0, 20, {str(disk)!r})")
    script = """
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "child.py"])
        time.sleep(4)
    """
    exited = bench.exit(python(script))
    assert exited.usage is not None
    assert exited.usage.cpu_seconds is not None
    assert exited.usage.cpu_seconds > 1.5
    assert exited.usage.written_bytes == pytest.approx(20 * MIB, rel=0.1)


def test_memory_that_forked_workers_share_counts_once(bench: Bench) -> None:
    script = f"""
        import os, time
        held = b"x" * {300 * MIB}
        for _ in range(4):
            if os.fork() == 0:
                time.sleep(60)
        time.sleep(2.5)
    """
    usage = bench.exit(python(script)).usage
    assert usage is not None
    assert usage.memory_peak_bytes is not None
    assert 300 * MIB < usage.memory_peak_bytes < 400 * MIB


@pytest.mark.slow
def test_what_a_job_had_used_survives_its_agent(bench: Bench, disk: Path) -> None:
    bench.create(python(WORK + f"work(60, {256 * MIB}, 5, {str(disk)!r})"))
    job = bench.grant()
    bench.dispatcher().dispatch([job])

    def measured() -> list[ev.ResourcesMeasured]:
        return [event.body for event in bench.store.read(SWEEP) if isinstance(event.body, ev.ResourcesMeasured)]

    wait_until(lambda: len(measured()) == 1, what="the first measurement", timeout_s=60)
    os.kill(bench.agent_pid(), signal.SIGKILL)
    lost = ev.JobLost(reason="its agent is gone")
    bench.store.append([ev.new_event(lost, sweep_id=SWEEP, at=2e9, actor="test", run_id=job.run_id, job_id=job.job_id)])
    usage = bench.the_run().jobs[-1].usage
    assert usage is not None
    assert usage.seconds >= 10
    assert usage.memory_peak_bytes == pytest.approx(256 * MIB, rel=0.2)
    assert usage.written_bytes == pytest.approx(5 * MIB, rel=0.1)


def test_the_pace_is_that_between_reports_and_what_comes_before_is_startup(bench: Bench) -> None:
    script = """
        import time
        time.sleep(1.5)
        for step in range(1, 6):
            time.sleep(0.4)
            print(f'{{"epoch": {step}, "score": 1, "samples": {step * 64}}}', flush=True)
    """
    (bench.folder / "steps.py").write_text(textwrap.dedent(script))
    target = CommandTarget(argv=[sys.executable, "steps.py"])  # braces in an argument would stand for parameters
    [run] = bench.run(target, fidelity=Fidelity(maximum=5))
    metrics = run_metrics(run)
    assert metrics.steps_per_second == pytest.approx(2.5, rel=0.2)
    assert metrics.samples_processed == 320
    assert metrics.startup_time == pytest.approx(1.5, abs=0.4)
    assert metrics.training_time == pytest.approx(2.0, abs=0.4)
    assert metrics.eval_time == 0


#: One GPU of two, 40% busy and with 20 GiB taken by whoever asks: in a container the library knows jobs by other ids.
FAKE_NVML = """
class NVMLError(Exception):
    pass
class NVMLError_FunctionNotFound(NVMLError):
    pass
nvmlMemory_v2 = 2
class Answer:
    def __init__(self, **fields):
        self.__dict__.update(fields)
def nvmlInit(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetUUID(handle): return f"GPU-{handle}"
def nvmlDeviceGetMemoryInfo(handle, version=1): return Answer(used=(20 + handle) << 30, total=80 << 30)
def nvmlDeviceGetUtilizationRates(handle): return Answer(gpu=40 + handle, memory=5)
def nvmlDeviceGetComputeRunningProcesses(handle): return []
def nvmlDeviceGetProcessUtilization(handle, since): raise NVMLError("nothing new")
"""


def test_the_gpus_that_a_job_was_given_are_looked_at(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real agent with a library that is made up: there is no GPU where these tests run."""
    library = bench.folder / "library"
    library.mkdir()
    (library / "pynvml.py").write_text(FAKE_NVML)
    monkeypatch.setenv("PYTHONPATH", str(library))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    usage = bench.exit(shell("sleep 2.5"), resources=Resources(gpus=1)).usage
    assert usage is not None
    assert set(usage.gpu_utilization) == {0.41}
    assert usage.gpu_memory_peak_bytes == 21 * GIB
    assert usage.gpu_memory_bytes == 80 * GIB


def test_what_gpus_do_is_told_by_the_agents_sign_of_life(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that it may use, of a library that is made up as before."""
    library = bench.folder / "library"
    library.mkdir()
    (library / "pynvml.py").write_text(FAKE_NVML)
    monkeypatch.setenv("PYTHONPATH", str(library))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    gate = bench.folder / "gate"
    bench.create(shell(f"while [ ! -e {gate} ]; do sleep 0.05; done"))
    job = bench.grant()
    bench.dispatcher().dispatch([job])
    load = GpuLoad(index=1, utilization=0.41, memory=21 * GIB, memory_whole=80 * GIB)
    wait_until(lambda: [beat.gpus for beat in bench.store.fetch_heartbeats(SWEEP)] == [(load,)], what="the GPU's load")
    gate.touch()
    bench.exit_of(job)
    wait_until(lambda: [beat.gpus for beat in bench.store.fetch_heartbeats(SWEEP)] == [()], what="a beat without jobs")
