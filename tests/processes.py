"""Finding, and getting rid of, the processes of a test."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil


def processes_in(folder: Path) -> list[psutil.Process]:
    """All live processes but this one whose working folder this is: agents, fork servers, jobs, their children."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_inside = Path(process.cwd()) == folder and process.pid != os.getpid()
            if is_inside and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_all_in(folder: Path) -> None:
    """Kill them."""
    for process in processes_in(folder):
        with suppress(psutil.NoSuchProcess):
            process.kill()
