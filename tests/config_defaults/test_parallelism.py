"""How many jobs fit, on machines and in containers of every kind."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep import SmartDefaults
from metta.sweep.agent.control_groups import cpu_quotas, memory_around
from metta.sweep.config_defaults.parallelism import count_gpus, detect
from metta.sweep.model.run import Resources

GIB = 1 << 30
NO_LIMIT_V1 = "9223372036854771712"


@pytest.fixture(autouse=True)
def _eight_processors_and_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def machine(root: Path, *, memory_gb: float = 64, cgroup: str = "") -> Path:
    """The `proc` of a machine with so much free memory, and of a process in these control groups."""
    write(root / "proc/meminfo", f"MemTotal: 1 kB\nMemAvailable:   {int(memory_gb * GIB / 1024)} kB\n")
    write(root / "proc/self/cgroup", cgroup)
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(root: Path, folder: str, **files: object) -> None:
    """A control group's files, named with `_` for the first dot."""
    for name, text in files.items():
        write(root / "sys/fs/cgroup" / folder / name.replace("_", ".", 1), f"{text}\n")


def test_without_control_groups_processors_decide(tmp_path: Path) -> None:
    found = detect(Resources(), machine(tmp_path))
    assert found.jobs == 8
    assert str(found) == (
        "8 at one time, by processors (8 may be used by this process, 1 a job); "
        "beside: memory (57.6 GiB left by the machine, 1 taken as a job's need)"
    )


def test_what_a_job_needs_is_counted(tmp_path: Path) -> None:
    root = machine(tmp_path)
    assert detect(Resources(cpus=3), root).jobs == 2
    assert detect(Resources(memory_gb=16), root).jobs == 3
    assert detect(Resources(memory_gb=16), root).decided_by.name == "memory"


def test_there_is_always_room_to_try_one(tmp_path: Path) -> None:
    found = detect(Resources(cpus=100, memory_gb=1000), machine(tmp_path))
    assert found.jobs == 1
    assert "none would fit, but one is tried" in str(found)


class TestVersion2:
    def test_a_quota_of_processors_is_respected(self, tmp_path: Path) -> None:
        root = machine(tmp_path, cgroup="0::/job\n")
        group(root, "job", cpu_max="250000 100000")
        assert list(cpu_quotas(root)) == [(2.5, "the control group")]
        assert detect(Resources(), root).jobs == 2

    def test_the_narrowest_of_the_groups_around_counts(self, tmp_path: Path) -> None:
        root = machine(tmp_path, cgroup="0::/slice/job\n")
        group(root, "slice", cpu_max="300000 100000", memory_max=8 * GIB, memory_current=0)
        group(root, "slice/job", cpu_max="max 100000", memory_max="max", memory_current=0)
        assert detect(Resources(), root).jobs == 3
        assert list(memory_around(root))[1:] == [(8 * GIB, 8 * GIB, "the control group")]
        assert detect(Resources(memory_gb=3), root).jobs == 2

    def test_memory_in_use_counts_and_cached_files_do_not(self, tmp_path: Path) -> None:
        root = machine(tmp_path, cgroup="0::/\n")
        statistics = f"anon {2 * GIB}\ninactive_file {GIB}\nactive_file 7"
        group(root, "", memory_max=6 * GIB, memory_current=3 * GIB, memory_stat=statistics)
        assert list(memory_around(root))[1:] == [(4 * GIB, 6 * GIB, "the control group")]

    def test_a_container_sees_its_group_as_the_root(self, tmp_path: Path) -> None:
        root = machine(tmp_path, cgroup="0::/../../docker/0123abcd\n")
        group(root, "", cpu_max="100000 100000")
        assert detect(Resources(), root).jobs == 1

    def test_it_is_found_beside_version_1(self, tmp_path: Path) -> None:
        root = machine(tmp_path, cgroup="5:memory:/\n0::/job\n")
        group(root, "unified/job", cpu_max="400000 100000")
        group(root, "memory", memory_limit_in_bytes=3 * GIB, memory_usage_in_bytes=0)
        assert list(cpu_quotas(root)) == [(4.0, "the control group")]
        assert detect(Resources(), root).jobs == 2


class TestVersion1:
    def test_quotas_and_limits_are_respected(self, tmp_path: Path) -> None:
        root = machine(tmp_path, cgroup="4:memory:/job\n3:cpu,cpuacct:/job\n1:name=systemd:/\n")
        group(root, "cpu,cpuacct/job", cpu_cfs_quota_us=600000, cpu_cfs_period_us=100000)
        limit = {"memory_limit_in_bytes": 5 * GIB, "memory_usage_in_bytes": 2 * GIB}
        group(root, "memory/job", **limit, memory_stat=f"cache 5\ntotal_inactive_file {GIB}")
        assert list(cpu_quotas(root)) == [(6.0, "the control group")]
        assert list(memory_around(root))[1:] == [(4 * GIB, 5 * GIB, "the control group")]
        assert detect(Resources(), root).jobs == 3

    def test_no_limit_is_none(self, tmp_path: Path) -> None:
        root = machine(tmp_path, cgroup="4:memory:/\n3:cpu:/\n")
        group(root, "cpu", cpu_cfs_quota_us=-1, cpu_cfs_period_us=100000)
        group(root, "memory", memory_limit_in_bytes=NO_LIMIT_V1, memory_usage_in_bytes=GIB)
        assert list(cpu_quotas(root)) == []
        assert len(list(memory_around(root))) == 1
        assert detect(Resources(), root).jobs == 8


@given(text=st.text(max_size=30), limits=st.tuples(st.text(max_size=20), st.text(max_size=20)))
def test_files_that_say_something_else_do_no_harm(
    tmp_path_factory: pytest.TempPathFactory, text: str, limits: tuple[str, str]
) -> None:
    root = machine(tmp_path_factory.mktemp("root"), cgroup=f"0::/\n4:memory:/\n{text}")
    for name, content in zip(("cpu.max", "memory.max"), limits, strict=True):
        (root / "sys/fs/cgroup").mkdir(parents=True, exist_ok=True)
        (root / "sys/fs/cgroup" / name).write_bytes(content.encode(errors="surrogatepass"))
    assert detect(Resources(), root).jobs >= 1


def test_a_machine_without_proc_and_sys_has_its_processors(tmp_path: Path) -> None:
    assert detect(Resources(), tmp_path).jobs == 8


class TestGpus:
    def test_jobs_that_need_them_have_them_to_themselves(self, tmp_path: Path) -> None:
        root = machine(tmp_path)
        assert detect(Resources(gpus=1), root, gpus=4).jobs == 4
        assert detect(Resources(gpus=2), root, gpus=5).jobs == 2
        assert detect(Resources(gpus=1), root, gpus=0).jobs == 1
        assert detect(Resources(), root, gpus=2).jobs == 8

    def test_where_nothing_is_known_of_the_jobs_each_is_thought_to_use_one(self, tmp_path: Path) -> None:
        root = machine(tmp_path)
        found = detect(None, root, gpus=2)
        assert (found.jobs, found.decided_by.name) == (2, "GPUs")
        assert detect(None, root, gpus=0).jobs == 8

    @pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("0", 1), ("2,3", 2), ("GPU-ab,MIG-cd", 2)])
    def test_the_variable_decides_what_is_visible(
        self, monkeypatch: pytest.MonkeyPatch, visible: str, count: int
    ) -> None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count_gpus() == count

    @pytest.mark.parametrize(("devices", "count"), [(3, 3), (None, 0)])
    def test_the_driver_is_asked_where_the_variable_is_not_set(
        self, monkeypatch: pytest.MonkeyPatch, devices: int | None, count: int
    ) -> None:
        library: Any = ModuleType("pynvml")
        library.NVMLError = type("NVMLError", (Exception,), {})

        def start() -> None:
            if devices is None:
                raise library.NVMLError("driver not loaded")

        library.nvmlInit, library.nvmlShutdown = start, lambda: None
        library.nvmlDeviceGetCount = lambda: devices
        monkeypatch.setitem(sys.modules, "pynvml", library)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        assert count_gpus() == count

    def test_without_the_library_its_program_is_asked(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setitem(sys.modules, "pynvml", None)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
        program = tmp_path / "nvidia-smi"
        program.write_text("#!/bin/sh\necho 'GPU 0: one (UUID: x)'\necho 'GPU 1: two (UUID: y)'\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        assert count_gpus() == 2


def test_this_machine_is_plausible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = SmartDefaults().explain_parallelism()
    assert 1 <= found.jobs <= len(os.sched_getaffinity(0))
    assert found.jobs == SmartDefaults().detect_optimal_parallelism()
    assert {limit.name for limit in found.limits} >= {"processors", "memory"}
    memory = next(limit for limit in found.limits if limit.name == "memory")
    assert 0 <= memory.jobs < 1_000_000
