"""What the benchmarks share: options, a folder on a real disk, figures with their goals, the table, the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
import psutil
from rich.console import Console
from rich.table import Table

#: File systems in memory: a commit there costs nothing, so a durable store measured on one is not measured.
_IN_MEMORY = {"tmpfs", "ramfs"}


def parse_arguments(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The script's own options, and those that all have."""
    # Some containers switch compiled files off; processes that start would then be measured compiling.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    parser.add_argument("--quick", action="store_true", help="a short version: rougher figures in a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file too")
    parser.add_argument(
        "--folder", type=Path, default=Path("/var/tmp"), help="where to work: on a disk, as sweeps are (%(default)s)"
    )
    return parser.parse_args()


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder on a real disk, removed afterwards."""
    kind = _file_system(parent)
    if kind in _IN_MEMORY:
        raise SystemExit(f"{parent} is a {kind}: it lies in memory; name a folder on a disk with --folder")
    with tempfile.TemporaryDirectory(prefix="metta-sweep-benchmark-", dir=parent) as folder:
        yield Path(folder)


def _file_system(folder: Path) -> str:
    path = str(folder.resolve())
    mounts = [mount for mount in psutil.disk_partitions(all=True) if Path(path).is_relative_to(mount.mountpoint)]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else "unknown"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number: what was measured, what it should be, and what a peer does in the same minutes."""

    name: str
    value: float
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    #: The same thing done by another program.
    peer: str | None = None
    peer_value: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is met; None without one."""
        if self.at_least is not None:
            return self.value >= self.at_least
        return self.value <= self.at_most if self.at_most is not None else None

    @property
    def ratio(self) -> float | None:
        """This by the peer's: above 1 is more, which is good for rates and bad for times."""
        return self.value / self.peer_value if self.peer_value else None


@dataclass
class Report:
    """The figures of one script."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    started_at: float = field(default_factory=time.time)
    load_before: float = field(default_factory=lambda: os.getloadavg()[0])
    #: What the figures were computed from, for the file alone.
    details: Any = None

    def add(self, name: str, value: float, unit: str, **rest: Any) -> None:
        """Take down a figure; see `Figure` for the rest."""
        self.figures.append(Figure(name=name, value=value, unit=unit, **rest))

    def finish(self, file: Path | None, folder: Path) -> None:
        """Print the table, and write the file where one is wanted."""
        machine = self._machine(folder)
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        table = Table(title=self.title, title_justify="left", title_style="bold")
        table.add_column("figure")
        for heading in ("measured", "goal"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("met")
        table.add_column("peer, same run", justify="right")
        table.add_column("ratio", justify="right")
        table.add_column("note", style="dim")
        for figure in self.figures:
            table.add_row(*_cells(figure))
        console.print(table)
        console.print(
            "{cpus} cpus, Python {python}, {file_system}, fdatasync {fdatasync_ms:.2g} ms, load {load_before:.1f} "
            "before and {load_after:.1f} after, {seconds:.0f} s in all".format(**machine),
            style="dim",
        )
        missed = [figure.name for figure in self.figures if figure.met is False]
        if missed:
            console.print(f"{len(missed)} goals missed: {'; '.join(missed)}", style="bold red")
        if file is not None:
            rows = [{**asdict(figure), "met": figure.met, "ratio": figure.ratio} for figure in self.figures]
            document = {"title": self.title, "machine": machine, "figures": rows}
            if self.details is not None:
                document["details"] = msgspec.to_builtins(self.details)
            file.write_text(json.dumps(document, indent=2) + "\n")

    def _machine(self, folder: Path) -> dict[str, Any]:
        return {
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "file_system": _file_system(folder),
            "fdatasync_ms": fdatasync_ms(folder),
            "load_before": self.load_before,
            "load_after": os.getloadavg()[0],
            "seconds": time.time() - self.started_at,
        }


def _cells(figure: Figure) -> Sequence[str]:
    goal = ""
    if figure.at_least is not None:
        goal = f">= {_number(figure.at_least)}"
    elif figure.at_most is not None:
        goal = f"<= {_number(figure.at_most)}"
    met = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: ""}[figure.met]
    peer = f"{figure.peer} {_number(figure.peer_value)}" if figure.peer_value is not None else ""
    ratio = f"{_number(figure.ratio)}x" if figure.ratio is not None else ""
    return figure.name, f"{_number(figure.value)} {figure.unit}", goal, met, peer, ratio, figure.note


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def fdatasync_ms(folder: Path, times: int = 50) -> float:
    """What the disk asks for making 4 KiB durable: the floor under every commit of a durable store."""
    taken = []
    path = folder / "fdatasync"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    for _ in range(times):
        os.write(descriptor, bytes(4096))
        begin = time.perf_counter()
        os.fdatasync(descriptor)
        taken.append(time.perf_counter() - begin)
    os.close(descriptor)
    path.unlink()
    return median(taken) * 1e3


def measured_apart(script: str, *arguments: str) -> dict[str, float]:
    """What a script prints as JSON in a process of its own: nothing is warm there, and nothing else is in memory."""
    command = [sys.executable, script, *arguments]
    begin = time.perf_counter()
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return {**json.loads(output), "process_seconds": time.perf_counter() - begin}
