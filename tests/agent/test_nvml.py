"""What NVIDIA's library says of jobs. The library is made up: only what is made of its answers is tested here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from metta.sweep.agent.nvml import Gpu, GpuProcess, GpuUse, Nvml, loads, use_of
from metta.sweep.protocols import GpuLoad

GIB = 1 << 30


def gpu(number: int, processes: dict[int, GpuProcess] | None = None, *, busy: float = 0.9, memory: int = 30) -> Gpu:
    return Gpu(str(number), f"GPU-{number}abc", busy, memory * GIB, 80 * GIB, processes or {})


class TestTheUseOfAJob:
    def test_its_own_processes_count_where_they_are_known(self) -> None:
        shared = gpu(0, {7: GpuProcess(0.25, 10 * GIB), 8: GpuProcess(0.6, 20 * GIB)})
        assert use_of([shared, gpu(1)], [], {7}) == GpuUse(0.25, 10 * GIB, 80 * GIB)

    def test_of_a_gpu_of_its_own_everything_is_its_own(self) -> None:
        assert use_of([gpu(0), gpu(1, busy=0.4)], ["1"], {7}) == GpuUse(0.4, 30 * GIB, 80 * GIB)

    @pytest.mark.parametrize("name", ["GPU-1abc", "GPU-1"])
    def test_a_gpu_may_be_named_by_its_uuid(self, name: str) -> None:
        assert use_of([gpu(0), gpu(1, busy=0.4)], [name], set()) == GpuUse(0.4, 30 * GIB, 80 * GIB)

    def test_several_gpus_are_averaged(self) -> None:
        assert use_of([gpu(0, busy=0.2), gpu(1, busy=0.6)], ["0", "1"], set()) == GpuUse(0.4, 60 * GIB, 160 * GIB)

    def test_what_is_not_told_of_a_process_is_taken_from_its_gpu(self) -> None:
        assert use_of([gpu(0, {7: GpuProcess(None, None)})], [], {7}) == GpuUse(0.9, 30 * GIB, 80 * GIB)

    def test_a_job_without_gpus_uses_none(self) -> None:
        assert use_of([gpu(0, {8: GpuProcess(0.6, GIB)})], [], {7}) is None


class TestTheLoadsOfAMachine:
    def test_all_gpus_count_unless_some_are_named(self) -> None:
        both = [gpu(0, busy=0.2), gpu(1, busy=0.6, memory=40)]
        first, second = (
            GpuLoad(index=0, utilization=0.2, memory=30 * GIB, memory_whole=80 * GIB),
            GpuLoad(index=1, utilization=0.6, memory=40 * GIB, memory_whole=80 * GIB),
        )
        assert loads(both, None) == (first, second)
        assert loads(both, ["1"]) == loads(both, ["GPU-1abc"]) == (second,)
        assert loads(both, []) == ()


class LibraryError(Exception):
    pass


class FunctionNotFoundError(LibraryError):
    pass


class Library:
    """Two GPUs, of which the second is lost; the first tells of its processes."""

    NVMLError = LibraryError
    NVMLError_FunctionNotFound = FunctionNotFoundError
    nvmlMemory_v2 = 2  # noqa: N815 (its name)

    def __init__(self) -> None:
        self.asked_since: list[int] = []

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> bytes:
        return f"GPU-{handle}".encode()

    def nvmlDeviceGetMemoryInfo(self, handle: int, version: int = 1) -> Any:
        if handle == 1:
            raise LibraryError("GPU is lost")
        return SimpleNamespace(used=(5 if version == 2 else 6) * GIB, total=80 * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=70, memory=20)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return [SimpleNamespace(pid=7, usedGpuMemory=4 * GIB), SimpleNamespace(pid=8, usedGpuMemory=None)]

    def nvmlDeviceGetProcessUtilization(self, handle: int, since: int) -> list[Any]:
        self.asked_since.append(since)
        if len(self.asked_since) > 1:
            raise LibraryError("nothing new")
        old = SimpleNamespace(pid=7, timeStamp=since - 1, smUtil=99)
        return [old, *(SimpleNamespace(pid=7, timeStamp=since + step, smUtil=20 * step) for step in (1, 2))]


def test_what_the_library_answers_is_understood() -> None:
    library = Library()
    nvml = Nvml(library)
    [found] = nvml.read()
    processes = {7: GpuProcess(pytest.approx(0.3), 4 * GIB), 8: GpuProcess(0.0, None)}
    assert found == Gpu("0", "GPU-0", 0.7, 5 * GIB, 80 * GIB, processes)
    [found] = nvml.read()
    assert found.processes[7].utilization is None
    assert library.asked_since[1] == library.asked_since[0] + 2


def test_an_old_driver_tells_of_memory_in_its_own_way() -> None:
    class OldLibrary(Library):
        def nvmlDeviceGetMemoryInfo(self, handle: int, version: int = 1) -> Any:
            if version == 2:
                raise FunctionNotFoundError
            return super().nvmlDeviceGetMemoryInfo(handle)

    [found] = Nvml(OldLibrary()).read()
    assert found.memory == 6 * GIB
