"""A run as it goes on: its log and its events, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import FailureKind, JobType, Outcome
from metta.sweep.observe.tailing import Glance, tail
from metta.sweep.protocols import Store
from metta.sweep.stores import open_reader, open_store
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

RUN = ids.run_id(SWEEP, 0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        yield store


def life(log: Path) -> list[Event]:
    """Of a run whose job prints to this log."""
    events = run_events(0)
    started = ev.JobStarted(host="node", pid=1, log=str(log))
    return [replace(event, body=started) if isinstance(event.body, ev.JobStarted) else event for event in events]


def said(glance: Glance) -> list[str]:
    return [each if isinstance(each, str) else each.type for each in glance.news]


def test_what_a_job_prints_comes_before_its_end(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "train-1.log"
    log.write_text("begun\n")
    events = life(log)
    store.append([sweep_created(), *events[:4]])
    with closing(open_reader(store.url)) as reader:
        [run] = reader.fetch_runs(SWEEP, run_ids=[RUN])
        glances = tail(reader, run)
        assert said(next(glances)) == ["run_created", "job_granted", "job_dispatched", "job_started", "begun"]
        with log.open("a") as stream:
            stream.write("more\nwithout an end")
        assert said(next(glances)) == ["more"]
        store.append([*run_events(1)[:4], *events[4:]])
        [last] = glances
        assert said(last) == ["metrics_reported", "without an end", "job_exited", "run_completed"]
        assert (last.run.score, last.sweep.best_run_id) == (1.0, RUN)


def test_each_attempt_has_its_own_log(store: Store, tmp_path: Path) -> None:
    logs = [tmp_path / "train-1.log", tmp_path / "train-2.log"]
    logs[0].write_text("first\n")
    store.append([sweep_created(), *life(logs[0])[:4]])

    def about(body: ev.Body, attempt: int, *, of_job: bool = True) -> Event:
        job_id = ids.job_id(RUN, JobType.TRAIN, attempt) if of_job else None
        return new_event(body, sweep_id=SWEEP, at=START + 9, actor="test", run_id=RUN, job_id=job_id)

    with closing(open_reader(store.url)) as reader:
        [run] = reader.fetch_runs(SWEEP, run_ids=[RUN])
        glances = tail(reader, run)
        assert said(next(glances))[-1] == "first"
        logs[1].write_text("second\n")
        store.append(
            [
                about(ev.JobExited(outcome=Outcome.KILLED, error="killed", failure=FailureKind.KILLED), 1),
                about(ev.RunRetryScheduled(retry_at=START, retry_count=1, reason="again"), 1, of_job=False),
                about(ev.RunRequeued(reason="its wait is over"), 1, of_job=False),
                about(ev.JobGranted(job_type=JobType.TRAIN, attempt=2), 2),
                about(ev.JobDispatched(dispatcher="local"), 2),
                about(ev.JobStarted(host="node", pid=2, log=str(logs[1])), 2),
            ]
        )
        news = said(next(glances))
        assert news[:2] == ["job_exited", "run_retry_scheduled"]
        assert news[-2:] == ["job_started", "second"]


def test_a_run_that_has_ended_is_shown_with_the_end_of_its_log(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "train-1.log"
    log.write_text("".join(f"line {number}\n" for number in range(1_000)))
    store.append([sweep_created(), *life(log)])
    with closing(open_reader(store.url)) as reader:
        [run] = reader.fetch_runs(SWEEP, run_ids=[RUN])
        [glance] = tail(reader, run)
        assert "run_completed" in said(glance)
        assert said(glance)[-1] == "line 999"
        assert len(said(glance)) < 250


def test_a_log_on_another_machine_is_said_to_be_there_once(store: Store, tmp_path: Path) -> None:
    store.append([sweep_created(), *life(tmp_path / "missing")[:4]])
    with closing(open_reader(store.url)) as reader:
        [run] = reader.fetch_runs(SWEEP, run_ids=[RUN])
        glances = tail(reader, run)
        assert "cannot be read from here: No such file" in said(next(glances))[-1]
        assert said(next(glances)) == []


def test_of_what_is_printed_too_fast_the_end_is_shown_and_the_rest_counted(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "train-1.log"
    log.write_text("begun\n")
    store.append([sweep_created(), *life(log)[:4]])
    with closing(open_reader(store.url)) as reader:
        [run] = reader.fetch_runs(SWEEP, run_ids=[RUN])
        glances = tail(reader, run)
        next(glances)
        with log.open("a") as stream:
            stream.write("half\n" + "line\n" * 1_000_000 + "last\n")
        left_out, *lines = said(next(glances))
        assert left_out.endswith("bytes are left out here; all of them: metta sweep logs)")
        counted = int(left_out.removeprefix("(").partition(" ")[0].replace(",", ""))
        assert counted + sum(len(line) + 1 for line in lines) == 5 * 1_000_002
        assert set(lines[:-1]) == {"line"}
        assert lines[-1] == "last"
        assert len(lines) < 100_000
