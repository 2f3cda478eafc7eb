"""A process that writes to a store: `appender.py URL TASK ...`. It begins when it gets a line on its standard input."""

from __future__ import annotations

import resource
import sys
from itertools import count

from metta.sweep.errors import StoreError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.protocols import Store
from metta.sweep.stores import open_store
from metta.sweep.testing import run_events
from metta.sweep.testing.sweeps import START, SWEEP


def append(store: Store, events: list[Event]) -> None:
    """Append, then say so: sequence number and id of each event, a line for all."""
    print(" ".join(f"{event.seq}:{event.id}" for event in store.append(events)), flush=True)


def runs(store: Store) -> None:
    """Whole runs, one batch each, for ever."""
    for index in count(len(store.fetch_runs(SWEEP))):
        append(store, run_events(index))


def reports(store: Store, index: str, times: str, actor: str = "test") -> None:
    """Reports of a run that is in training, one by one."""
    run_id = ids.run_id(SWEEP, int(index))
    body = ev.MetricsReported(metrics={"reward": 1.0})
    for _ in range(int(times)):
        event = new_event(body, sweep_id=SWEEP, at=START, actor=actor, run_id=run_id, job_id=f"{run_id}.train.1")
        append(store, [event])


def cramped(store: Store) -> None:
    """Runs until the disk takes no more, then, when there is room again, one more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        runs(store)
    except StoreError:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    append(store, run_events(len(store.fetch_runs(SWEEP))))


if __name__ == "__main__":
    url, task, *arguments = sys.argv[1:]
    print("ready", flush=True)
    sys.stdin.readline()
    globals()[task](open_store(url), *arguments)
