"""`metta sweep events` and `metta sweep why`."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator

import pytest

from cli.command_line import CommandLine, Result
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.acquisition import Acquisition, Alternative
from metta.sweep.model.events import new_event
from metta.sweep.model.run import JobType
from metta.sweep.observe.event_log import EventLog
from metta.sweep.observe.streams import EVENT_TYPES
from metta.sweep.stores import open_store
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START
from waiting import wait_until

FIRST, SECOND = "46g3f", "46h00"


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """Two sweeps; the second has one run that ended and one, chosen by a model, under way."""
    command_line = CommandLine(tmp_path_factory.mktemp("events"))
    store = open_store(str(command_line.folder / "sweeps.db"), create=True)
    store.append([sweep_created(FIRST, name="first")])
    run_id = ids.run_id(SECOND, 1)
    created = ev.RunCreated(
        index=1,
        config={"lr": 0.02},
        reasons=("a model of 1 run",),
        acquisition=Acquisition(
            acquisition_value=0.5,
            expected_improvement=0.25,
            predicted_score=2.0,
            predicted_deviation=0.125,
            alternatives=(Alternative(config={"lr": 0.03}, acquisition_value=0.4),),
        ),
    )
    granted = ev.JobGranted(job_type=JobType.TRAIN, attempt=1, reasons=("1 of 2 slots is free",))
    job_id = ids.job_id(run_id, JobType.TRAIN, 1)
    store.append(
        [
            sweep_created(SECOND, name="second"),
            *run_events(0, sweep_id=SECOND),
            new_event(created, sweep_id=SECOND, at=START + 60, actor="test", run_id=run_id),
            new_event(granted, sweep_id=SECOND, at=START + 60, actor="test", run_id=run_id, job_id=job_id),
        ]
    )
    EventLog(store, SECOND).note("the lamp\nwas on", {"lux": 120}, run_id=run_id)
    store.close()
    yield command_line
    command_line.close()


def numbers(result: Result) -> list[int]:
    assert (result.code, result.err) == (0, "")
    return [int(line.split()[0]) for line in result.out.splitlines()]


def test_events_are_lines_in_order_of_the_latest_sweep_or_the_one_named(sample: CommandLine) -> None:
    assert numbers(sample("events")) == list(range(1, 12))
    assert numbers(sample("events", "first")) == [1]
    lines = sample("events").out.splitlines()
    assert f"job_granted {ids.run_id(SECOND, 1)}.train.1  because: 1 of 2 slots is free" in lines[9]
    # A line is a line, whatever is in it.
    assert lines[10].endswith("topic=note text=the lamp was on data={lux: 120}")


def test_events_are_filtered_by_run_type_number_and_from_the_end(sample: CommandLine) -> None:
    run_id = ids.run_id(SECOND, 1)
    assert numbers(sample("events", "--run", run_id[:4])) == [9, 10, 11]
    assert numbers(sample("events", "--type", "run_created", "--type", "job_ex*")) == [2, 7, 9]
    assert numbers(sample("events", "--after", "9")) == [10, 11]
    assert numbers(sample("events", "--tail", "3")) == [9, 10, 11]
    assert numbers(sample("events", "--tail", "1", "--type", "job_*")) == [10]
    assert numbers(sample("events", "--tail", "0")) == []
    assert numbers(sample("events", "--tail", "5", "--after", "10")) == [11]


def test_json_is_an_object_a_line(sample: CommandLine) -> None:
    events = [json.loads(line) for line in sample("events", "--json").out.splitlines()]
    assert events[1] == {
        "seq": 2,
        "at": "2023-11-14T22:13:20.000+00:00",
        "type": "run_created",
        "actor": "test",
        "sweep_id": SECOND,
        "run_id": ids.run_id(SECOND, 0),
        "job_id": None,
        "body": {"index": 0, "config": {"lr": 0.01}, "reasons": ["sample"]},
    }
    assert {event["type"] for event in events} <= set(EVENT_TYPES)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["events", "nothing"], "no sweep"),
        (["events", "--run", "zzzzz"], "no run"),
        (["events", "--type", "run_complete"], "did you mean 'run_completed'"),
        (["why", "zzzzz"], "no run"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(sample: CommandLine, arguments: list[str], named: str) -> None:
    assert named in sample(*arguments).error


def test_what_is_followed_is_the_end_of_the_past_and_then_what_comes(metta: CommandLine) -> None:
    running = metta.start_held()
    followers = [metta.start("events", "-f", "--json"), metta.start("events", "--follow", "--after", "0", "--json")]
    jobs = metta.start("events", "-f", "--after", "0", "--type", "job_exited")
    wait_until(lambda: all(follower.out for follower in followers), what="the past")
    metta.release()
    assert running.wait().code == 0
    recent, everything = ([json.loads(line)["seq"] for line in each.wait().out.splitlines()] for each in followers)
    assert everything == list(range(1, metta.latest().seq + 1))
    assert recent == everything[-len(recent) :]
    assert len(jobs.wait().out.splitlines()) == 4


def test_following_survives_that_the_store_is_locked_for_a_while(metta: CommandLine) -> None:
    """And a file that was away, as on a network, and is there again."""
    running = metta.start_held()
    follower = metta.start("events", "-f", "--after", "0", "--json")
    wait_until(lambda: follower.out.count("job_started") == 2, what="the past")
    os.rename(metta.folder / "sweeps.db", metta.folder / "away.db")
    shutil.move(metta.folder / "away.db", metta.folder / "sweeps.db")
    metta.release()
    assert running.wait().code == 0
    result = follower.wait()
    assert result.code == 0
    assert [json.loads(line)["seq"] for line in result.out.splitlines()] == list(range(1, metta.latest().seq + 1))


def test_why_tells_each_decision_with_its_reasons_and_what_a_model_thought(sample: CommandLine) -> None:
    run_id = ids.run_id(SECOND, 1)
    text = sample("why", f"second/{run_id[:3]}").out
    for fact in (
        f"run {run_id}, number 1 of sweep {SECOND} (second): PENDING",
        "suggested",
        "lr=0.02",
        "a model of 1 run",
        "acquisition 0.5; expected improvement 0.25; predicted reward 2 ± 0.12",
        "rather than lr=0.03 (acquisition 0.4)",
        "started",
        "1 of 2 slots is free",
        "noted note",
        "the lamp",
    ):
        assert fact in text
    shape = sample("why", run_id, "--json").json
    assert (shape["run_id"], shape["sweep_id"], shape["status"]) == (run_id, SECOND, "PENDING")
    suggested, started, noted = shape["decisions"]
    assert (suggested["decision"], suggested["because"]) == ("suggested", ["a model of 1 run"])
    assert suggested["acquisition"]["alternatives"] == [{"config": {"lr": 0.03}, "acquisition_value": 0.4}]
    assert (started["seq"], started["decision"], started["job_id"]) == (10, "started", f"{run_id}.train.1")
    assert (noted["because"], noted["details"]["data"]) == (["the lamp\nwas on"], {"lux": 120})
