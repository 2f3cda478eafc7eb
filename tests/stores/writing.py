"""Processes that write to a store, and what they write."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.testing.sweeps import START, SWEEP

APPENDER = Path(__file__).with_name("appender.py")


def reports(index: int, number: int) -> list[Event]:
    run_id = ids.run_id(SWEEP, index)
    bodies = (ev.MetricsReported(metrics={"reward": float(step)}) for step in range(number))
    return [
        new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id=run_id, job_id=f"{run_id}.train.1")
        for body in bodies
    ]


@contextmanager
def appender(url: str, *task: object) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that writes to the store as soon as it is told to `go`; killed at the end."""
    command = [sys.executable, str(APPENDER), url, *map(str, task)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def go(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def acknowledged(output: str) -> dict[int, str]:
    """Sequence numbers and ids that an appender said it had written; a line without an end it did not get to say."""
    complete = output[: output.rfind("\n") + 1]
    return {int(seq): id_ for word in complete.split() for seq, id_ in [word.split(":")]}
