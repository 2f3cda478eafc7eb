"""What `metta sweep show` says of a run's checkpoints, and of what it took."""

from __future__ import annotations

import io

from msgspec.structs import replace
from rich.console import Console

from metta.sweep.cli.shapes import run_detail_shape
from metta.sweep.display.status import run_view
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import Outcome, Parent
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.model.usage import Curves, JobUsage, Pace
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

RUN = ids.run_id(SWEEP, 0)


def history() -> list[Event]:
    """A run that saved two checkpoints, the first of them before it had measured anything."""
    created, *rest = [sweep_created(), *run_events(0)]
    before, after = rest[:4], rest[4:]
    started = before[-1]

    def saved(step: int, size_bytes: int, at: float) -> Event:
        body = ev.CheckpointSaved(step=step, path=f"checkpoints/step-{step}", sha256="ab", size_bytes=size_bytes)
        return replace(started, id=f"saved {step}", body=body, at=at)

    events = [created, *before, saved(1, 900, START), *after[:1], saved(2, 5_400_000, START + 1800), *after[1:]]
    return [replace(event, seq=seq) for seq, event in enumerate(events, start=1)]


def test_people_see_step_size_metric_and_age() -> None:
    events = history()
    state = fold(EMPTY, events)
    screen = Console(file=io.StringIO(), width=200, color_system=None)
    with screen.capture() as capture:
        screen.print(run_view(state.runs[RUN], state.sweep, events, now=START + 1860))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert [line for line in lines if line.startswith("checkpoint")] == [
        "checkpoint step 1, 900 B, saved 31m00s ago: checkpoints/step-1",
        "checkpoint step 2, 5.1 MiB, reward=1, saved 1m00s ago: checkpoints/step-2",
    ]


def test_whoever_looks_at_a_run_that_was_stopped_sees_why() -> None:
    created, granted, dispatched, started, reported, *_ = run_events(0)
    stopped = [
        replace(started, id="exit", body=ev.JobExited(outcome=Outcome.STOPPED, seconds=2.0)),
        replace(created, id="stop", body=ev.RunStopped(reason="number 5 of 5", partial_score=1.0)),
    ]
    events = [sweep_created(), created, granted, dispatched, started, reported, *stopped]
    state = fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(events, start=1)])
    screen = Console(file=io.StringIO(), width=200, color_system=None)
    with screen.capture() as capture:
        screen.print(run_view(state.runs[RUN], state.sweep, events))
    lines = [" ".join(line.split()) for line in capture.get().splitlines()]
    assert "status STOPPED" in lines
    assert "stopped number 5 of 5" in lines
    assert run_detail_shape(state.runs[RUN], events)["stop_reason"] == "number 5 of 5"


def test_whoever_looks_at_a_run_that_goes_on_from_another_sees_from_where() -> None:
    parent = Parent(run_id="7kq9z", level=20.0, step=19, replaces="b2m4x")
    created = run_events(0)[0]
    created = replace(created, body=replace(created.body, parent=parent))
    fidelity = Fidelity(maximum=80)
    for sweep, line in (
        (sweep_created(fidelity=fidelity), "parent 7kq9z, from epoch 20, step 19; in the place of b2m4x"),
        (sweep_created(), "parent 7kq9z, from step 19; in the place of b2m4x"),
    ):
        events = [sweep, created]
        state = fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(events, start=1)])
        screen = Console(file=io.StringIO(), width=200, color_system=None)
        with screen.capture() as capture:
            screen.print(run_view(state.runs[RUN], state.sweep, events))
        assert line in [" ".join(line.split()) for line in capture.get().splitlines()]
    assert run_detail_shape(state.runs[RUN], events)["parent"] == {
        "run_id": "7kq9z",
        "level": 20.0,
        "step": 19,
        "replaces": "b2m4x",
    }


def test_scripts_see_all_of_it() -> None:
    events = history()
    job_id = events[2].job_id
    assert run_detail_shape(fold(EMPTY, events).runs[RUN], events)["checkpoints"] == [
        {
            "step": 1,
            "path": "checkpoints/step-1",
            "sha256": "ab",
            "size_bytes": 900,
            "at": "2023-11-14T22:13:20.000+00:00",
            "job_id": job_id,
            "score": None,
        },
        {
            "step": 2,
            "path": "checkpoints/step-2",
            "sha256": "ab",
            "size_bytes": 5_400_000,
            "at": "2023-11-14T22:43:20.000+00:00",
            "job_id": job_id,
            "score": 1.0,
        },
    ]


def test_what_a_run_took_and_what_held_it_up_is_shown_and_in_the_json() -> None:
    usage = JobUsage(
        seconds=3600.0,
        looks=3600,
        cpu_seconds=3600.0,
        memory_peak_bytes=3 << 29,
        read_bytes=1 << 30,
        written_bytes=0,
        gpu_utilization=(0.1, 0.9, 0.2),
        pace=Pace(count=2, first_s=20, last_s=3580, first_step=1, first_step_s=20, last_step=179, last_step_s=3580),
        curves=Curves(every_s=60.0, cpus=(1.0, 0.5)),
    )
    events = [
        replace(event, body=replace(event.body, usage=usage)) if isinstance(event.body, ev.JobExited) else event
        for event in history()
    ]
    state = fold(EMPTY, events)
    screen = io.StringIO()
    Console(file=screen, width=80).print(run_view(state.runs[RUN], state.sweep, events))
    lines = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert all(len(line) <= 80 for line in lines)
    shown = " ".join(" ".join(lines).split())
    assert "time 1h00m in all, training 1h00m" in shown
    assert "used 1.00 processors, 1.5 GiB of memory at its peak, 1 GiB from and to disks" in shown
    assert "gpu ▁█▂ busy 40% of the time" in shown
    assert "pace 0.05 steps a second" in shown
    assert "gpu starved by data loading: its GPU was busy 40% of the time, 1.0 of 1 processors busy" in shown
    shape = run_detail_shape(state.runs[RUN], events)
    assert shape["run_metrics"]["memory_peak_gb"] == 1.5
    assert shape["run_metrics"]["bottlenecks"][0]["kind"] == "gpu starved by data loading"
    assert shape["curves"] == {f"{RUN}.train.1": {"every_s": 60.0, "cpus": (1.0, 0.5)}}
