"""What GPUs are doing, by NVIDIA's management library; nothing where there is none, or no nvidia-ml-py."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, NamedTuple

from metta.sweep.protocols import GpuLoad


class GpuProcess(NamedTuple):
    """What one process does on a GPU; None is not told."""

    #: From 0 to 1, of the GPU's time.
    utilization: float | None
    #: Bytes.
    memory: int | None


class Gpu(NamedTuple):
    """A GPU at one moment."""

    #: As `CUDA_VISIBLE_DEVICES` names it.
    number: str
    uuid: str
    #: By all processes: share of the time in which it was busy, and bytes.
    utilization: float
    memory: int
    memory_whole: int
    processes: dict[int, GpuProcess]

    def is_named(self, name: str) -> bool:
        """Whether it is the one of this number, or whose UUID begins so."""
        return name == self.number or (not name.isdecimal() and bool(name) and self.uuid.startswith(name))


class GpuUse(NamedTuple):
    """What a job does on its GPUs."""

    #: On average over them, from 0 to 1.
    utilization: float
    #: Bytes, all of them together.
    memory: int
    memory_whole: int


def use_of(gpus: Sequence[Gpu], assigned: Collection[str], pids: Collection[int]) -> GpuUse | None:
    """What a job does on GPUs: by its own processes where the library knows them, else all of those that it was given.

    Args:
        gpus: All there are.
        assigned: Names of those that it alone may use.
        pids: Its processes. In a container the library may know them by other numbers, and so not find them.
    """
    mine = [gpu for gpu in gpus if any(map(gpu.is_named, assigned)) or gpu.processes.keys() & set(pids)]
    if not mine:
        return None
    utilization, memory = 0.0, 0
    for gpu in mine:
        own = [process for pid, process in gpu.processes.items() if pid in pids]
        busy = [process.utilization for process in own if process.utilization is not None]
        taken = [process.memory for process in own if process.memory is not None]
        utilization += sum(busy) if busy else gpu.utilization
        memory += sum(taken) if taken else gpu.memory
    whole = sum(gpu.memory_whole for gpu in mine)
    return GpuUse(min(1.0, utilization / len(mine)), memory, whole)


def loads(gpus: Sequence[Gpu], named: Collection[str] | None) -> tuple[GpuLoad, ...]:
    """What they do, all processes of the machine included.

    Args:
        gpus: All there are.
        named: Names of those that count; None for all of them.
    """
    return tuple(
        GpuLoad(index=int(gpu.number), utilization=gpu.utilization, memory=gpu.memory, memory_whole=gpu.memory_whole)
        for gpu in gpus
        if named is None or any(map(gpu.is_named, named))
    )


class Nvml:
    """The management library, ready to be asked.

    Args:
        library: The module `pynvml`, initialized.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]
        self._uuids = [_text(library.nvmlDeviceGetUUID(handle)) for handle in self._handles]
        #: Microseconds since the epoch: up to where the utilization by processes is known.
        self._seen = [time.time_ns() // 1000] * len(self._handles)

    def read(self) -> list[Gpu]:
        """All GPUs; one that is lost just now is left out."""
        gpus = []
        for number, handle in enumerate(self._handles):
            with suppress(self._library.NVMLError):
                memory = self._memory(handle)
                gpus.append(
                    Gpu(
                        number=str(number),
                        uuid=self._uuids[number],
                        utilization=self._library.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
                        memory=int(memory.used),
                        memory_whole=int(memory.total),
                        processes=self._processes(number),
                    )
                )
        return gpus

    def _memory(self, handle: Any) -> Any:
        try:
            # The first version counts as used what the driver keeps for itself, also of a GPU that nobody uses.
            return self._library.nvmlDeviceGetMemoryInfo(handle, version=self._library.nvmlMemory_v2)
        except self._library.NVMLError_FunctionNotFound:
            return self._library.nvmlDeviceGetMemoryInfo(handle)  # a driver from before 2022

    def _processes(self, number: int) -> dict[int, GpuProcess]:
        handle, library = self._handles[number], self._library
        memory: dict[int, int | None] = {}
        with suppress(library.NVMLError):
            for process in library.nvmlDeviceGetComputeRunningProcesses(handle):
                memory[process.pid] = process.usedGpuMemory
        busy: dict[int, list[float]] = {}
        # It is an error that there is nothing new, and that a GPU cannot tell.
        with suppress(library.NVMLError):
            for sample in library.nvmlDeviceGetProcessUtilization(handle, self._seen[number]):
                if sample.timeStamp > self._seen[number]:
                    busy.setdefault(sample.pid, []).append(sample.smUtil / 100)
                    self._seen[number] = max(self._seen[number], sample.timeStamp)
        # Processes take turns on a GPU: where it tells of some, those of which it does not had no turn.
        idle = 0.0 if busy else None
        means = {pid: sum(samples) / len(samples) for pid, samples in busy.items()}
        return {pid: GpuProcess(means.get(pid, idle), memory.get(pid)) for pid in memory.keys() | busy.keys()}


def open_nvml() -> Nvml | None:
    """The management library; None where there is nothing to be asked."""
    try:
        library: Any = import_module("pynvml")
    except ImportError:
        return None
    try:
        library.nvmlInit()
        return Nvml(library)
    except library.NVMLError:
        return None  # no driver, no GPUs


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
