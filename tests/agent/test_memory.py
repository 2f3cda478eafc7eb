"""Memory limits: jobs over them are ended, whoever of their processes it is; jobs under them are not disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.bench import Bench, python
from metta.sweep.agent.memory import MemorySampler
from metta.sweep.model.run import FailureKind, Outcome, Resources
from waiting import wait_until

MIB = 1 << 20
LIMITED = Resources(memory_gb=0.25)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


#: Takes memory until it is stopped, or has four times as much as it may.
GREEDY = """
import time
def take():
    held = []
    for _ in range(64):
        held.append(b"x" * (16 << 20))
        time.sleep(0.005)
    time.sleep(60)
"""


@pytest.mark.parametrize("isolation", ["process", "reuse"])
def test_a_function_over_the_limit_is_killed(bench: Bench, isolation: str) -> None:
    target = bench.function(GREEDY + "def train(config):\n    take()")
    exited = bench.exit(target, resources=LIMITED, isolation=isolation)
    assert (exited.outcome, exited.failure) == (Outcome.KILLED, FailureKind.OUT_OF_MEMORY)
    assert exited.signature is None
    assert exited.error is not None
    assert exited.error.startswith("used 0.")
    assert exited.error.endswith(" GiB, memory_gb = 0.25")
    assert exited.memory_peak_bytes is not None
    assert 256 * MIB < exited.memory_peak_bytes < 1024 * MIB
    assert exited.seconds < 30


def test_a_command_over_the_limit_is_killed(bench: Bench) -> None:
    exited = bench.exit(python(GREEDY + "take()"), resources=LIMITED)
    assert exited.failure is FailureKind.OUT_OF_MEMORY


@pytest.mark.parametrize("start", ["", "start_new_session=True"])
def test_a_grandchild_over_the_limit_is_killed_with_its_job(bench: Bench, start: str) -> None:
    (bench.folder / "greedy.py").write_text(GREEDY + "take()")
    script = f"""
        import subprocess, sys
        subprocess.run([sys.executable, "greedy.py"], {start})
    """
    exited = bench.exit(python(script), resources=LIMITED)
    assert exited.failure is FailureKind.OUT_OF_MEMORY
    wait_until(lambda: not bench.executing("greedy.py"), what="the end of the grandchild")


def test_what_is_used_is_the_sum_over_all_processes(bench: Bench) -> None:
    script = """
        import os, time
        for _ in range(3):
            if os.fork() == 0:
                break
        held = b"x" * (96 << 20)
        time.sleep(60)
    """
    exited = bench.exit(python(script), resources=LIMITED)
    assert exited.failure is FailureKind.OUT_OF_MEMORY


def test_a_job_that_stays_below_its_limit_is_not_disturbed_by_what_it_shares(bench: Bench) -> None:
    # Four processes with the same 128 MiB: twice the limit by their resident sets, half of it in truth.
    target = bench.function(
        """
        import os, time
        held = b"x" * (128 << 20)
        def train(config):
            children = []
            for _ in range(3):
                child = os.fork()
                if child == 0:
                    sum(held[::4096])
                    time.sleep(1)
                    os._exit(0)
                children.append(child)
            sum(held[::4096])
            return {"score": sum(os.waitpid(child, 0)[1] for child in children)}
        """
    )
    exited = bench.exit(target, resources=LIMITED)
    assert exited.outcome is Outcome.SUCCEEDED, exited


def test_a_worker_that_is_used_again_is_held_to_the_limit_of_each_job(bench: Bench) -> None:
    target = bench.function(
        GREEDY
        + """
def train(config):
    if config["x"] == 2:
        take()
    return {"score": 1}
"""
    )
    bench.create(target, resources=LIMITED, isolation="reuse")
    dispatcher = bench.dispatcher()
    failures = []
    for x in (1, 2, 3):
        job = bench.grant(x - 1, {"x": x})
        dispatcher.dispatch([job])
        failures.append(bench.exit_of(job).failure)
    assert failures == [None, FailureKind.OUT_OF_MEMORY, None]


def test_jobs_without_a_limit_may_use_what_they_like(bench: Bench) -> None:
    script = """
        held = b"x" * (512 << 20)
        print('{"score": 1}')
    """
    exited = bench.exit(python(script))
    assert exited.outcome is Outcome.SUCCEEDED
    assert exited.memory_peak_bytes is not None
    assert exited.memory_peak_bytes > 512 * MIB


def test_a_job_is_what_the_kernel_kills_first(bench: Bench) -> None:
    target = bench.function(
        """
        from pathlib import Path
        def train(config):
            return {"score": int(Path("/proc/self/oom_score_adj").read_text())}
        """
    )
    [run] = bench.run(target)
    assert run.score == 500
    assert int(Path(f"/proc/{bench.agent_pid()}/oom_score_adj").read_text()) < 500


@pytest.fixture
def small_group() -> Iterator[Path]:
    """A memory control group in which the kernel kills at 64 MiB."""
    settings = {Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes", Path("/sys/fs/cgroup"): "memory.max"}
    root = next((root for root in settings if (root / "cgroup.procs").exists()), None)
    if root is None:
        pytest.fail("there are no control groups here; mount /sys/fs/cgroup")
    group = root / f"metta-sweep-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.fail(f"control groups cannot be changed here: {error}; run as root")
    try:
        (group / settings[root]).write_text(str(64 * MIB))
        yield group
        wait_until(lambda: not (group / "cgroup.procs").read_text())
    except OSError as error:
        pytest.fail(f"memory cannot be limited here: {error}; run as root")
    finally:
        group.rmdir()


def test_a_job_that_the_kernel_killed_for_want_of_memory_is_out_of_memory(bench: Bench, small_group: Path) -> None:
    target = bench.function(
        f"""
        import os
        from pathlib import Path
        def train(config):
            Path({str(small_group / "cgroup.procs")!r}).write_text(str(os.getpid()))
            held = b"x" * (256 << 20)
        """
    )
    exited = bench.exit(target)
    assert (exited.outcome, exited.failure) == (Outcome.KILLED, FailureKind.OUT_OF_MEMORY)
    assert exited.error == "the kernel was out of memory: SIGKILL (signal 9)"
    assert exited.signal == 9


class TestSampler:
    @pytest.fixture
    def child(self) -> Iterator[subprocess.Popen[str]]:
        """A session of its own that shares 64 MiB with a child of its."""
        script = f"""
import mmap, os
shared = mmap.mmap(-1, {64 * MIB})
shared.write(b"x" * {64 * MIB})
if os.fork():
    os.wait()
else:
    sum(shared[::4096])
    print("ready", flush=True)
    os.read(0, 1)
"""
        command = [sys.executable, "-c", script]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, start_new_session=True, **pipes) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
            process.kill()

    def test_shared_memory_counts_once_where_it_matters(self, child: subprocess.Popen[str]) -> None:
        sampler = MemorySampler()
        generous = sampler.sample({child.pid: 1 << 40})[child.pid]
        assert len(generous.pids) == 2
        assert generous.used > 128 * MIB
        exact = sampler.sample({child.pid: 100 * MIB})[child.pid]
        assert 64 * MIB < exact.used < 100 * MIB

    def test_processes_of_others_are_no_job_s(self, child: subprocess.Popen[str]) -> None:
        sampler = MemorySampler()
        for _ in range(2):
            assert sampler.sample({os.getppid(): 1}) == {}
            assert child.pid in sampler.sample({child.pid: 1 << 40})[child.pid].pids

    def test_a_job_that_is_gone_uses_nothing(self, child: subprocess.Popen[str]) -> None:
        sampler = MemorySampler()
        child.kill()
        child.wait()
        assert sampler.sample({child.pid: 1}) == {}
