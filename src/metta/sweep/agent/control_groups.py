"""What the machine and the control groups around this process let it have; of versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

#: Version 1 writes "no limit" as the greatest number of whole pages.
_NO_LIMIT = 1 << 60


def cpu_quotas(root: Path) -> Iterator[tuple[float, str]]:
    """Processors' worth of time that each control group around this process allows, where it has a limit."""
    for folder in _groups("cpu", root):
        quota, period = None, None
        with suppress(OSError, ValueError):
            if (folder / "cpu.max").is_file():
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text()
                period = (folder / "cpu.cfs_period_us").read_text()
        if quota is not None and period is not None:
            with suppress(ValueError, ZeroDivisionError):  # "max" is no number, and no limit
                if (count := int(quota) / int(period)) > 0:
                    yield count, "the control group"


class Room(NamedTuple):
    """Memory that may still be taken."""

    left: int
    #: With all that is taken.
    whole: int
    #: Who sets the limit.
    place: str


def memory_around(root: Path) -> Iterator[Room]:
    """Bytes that may still be taken: of the machine, and of each control group around this process with a limit."""
    with suppress(OSError, ValueError, IndexError, KeyError):
        lines = (root / "proc/meminfo").read_text().splitlines()
        sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
        yield Room(sizes["MemAvailable"], sizes.get("MemTotal", sizes["MemAvailable"]), "the machine")
    for folder in _groups("memory", root):
        with suppress(OSError, ValueError):
            is_second = (folder / "memory.max").is_file()
            limit = int((folder / ("memory.max" if is_second else "memory.limit_in_bytes")).read_text())
            used = int((folder / ("memory.current" if is_second else "memory.usage_in_bytes")).read_text())
            # What the kernel caches of files counts as used, but is given back when it is needed.
            cache = _statistic(folder / "memory.stat", "inactive_file" if is_second else "total_inactive_file")
            if limit < _NO_LIMIT:
                yield Room(max(0, limit - max(0, used - cache)), limit, "the control group")


def _statistic(path: Path, name: str) -> int:
    with suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    return 0


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of the control groups that this process is in, of both versions, with all those around them."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    mounts = root / "sys/fs/cgroup"
    for line in lines:
        _, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if not names:  # version 2, mounted beside version 1 in its transition
            places = [mounts / "unified", mounts]
        elif controller in names.split(","):
            places = [mounts / names, mounts / controller]
        else:
            continue
        for place in places:
            if place.is_dir():
                yield from _with_those_around(place, path)
                break


def _with_those_around(place: Path, path: str) -> Iterator[Path]:
    """From the group to the root of the mount, whichever exist: a container sees its own group as the root."""
    parts = [part for part in path.split("/") if part not in {"", ".."}]
    for length in range(len(parts), -1, -1):
        folder = place.joinpath(*parts[:length])
        if folder.is_dir():
            yield folder
