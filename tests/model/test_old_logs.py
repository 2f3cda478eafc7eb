"""Logs of older versions mean what they meant: what is written is never written anew."""

import lzma
from pathlib import Path

import msgspec
import pytest

from metta.sweep.model.events import Event
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.model.sweep import SweepMetadata
from model.logs import BEGIN, CREATE, GRANT, RUN, SUCCEED, Log
from model.strategies import START, SWEEP


class StoredLog(msgspec.Struct, forbid_unknown_fields=True):
    """A log and what the version that wrote it made of it."""

    events: list[Event]
    metadata: SweepMetadata
    runs: list[RunInfo]


#: Random histories, written by the version before retries.
BEFORE_RETRIES = Path(__file__).parent / "assets" / "logs-before-retries.json.xz"


def test_the_logs_of_the_version_before_retries_fold_to_what_they_folded_to_then():
    logs = msgspec.json.decode(lzma.decompress(BEFORE_RETRIES.read_bytes()), type=list[StoredLog])
    assert len(logs) == 6
    for log in logs:
        state = fold(EMPTY, log.events)
        assert state.metadata == log.metadata
        assert sorted(state.runs.values(), key=lambda run: run.index) == log.runs


def test_what_was_written_before_retries_is_written_in_the_same_way_still():
    """So that a version before retries can read a log in which nothing new has happened."""
    stored = lzma.decompress(BEFORE_RETRIES.read_bytes())
    written = [log["events"] for log in msgspec.json.decode(stored)]
    events = [log.events for log in msgspec.json.decode(stored, type=list[StoredLog])]
    assert msgspec.json.decode(msgspec.json.encode(events)) == written


def told_before_retries(body: str) -> Event:
    """An event as the earlier version wrote it."""
    envelope = f'"id":"e5","sweep_id":"{SWEEP}","at":{START},"actor":"agent","run_id":"{RUN}","job_id":"{RUN}.train.1"'
    return msgspec.json.decode(f'{{{envelope},"body":{body},"seq":5}}', type=Event)


@pytest.mark.parametrize(
    ("body", "status", "reasons"),
    [
        (
            '{"type":"job_exited","outcome":"failed","seconds":2.5,"exit_code":1,"error":"ValueError"}',
            JobStatus.FAILED,
            ("train failed: ValueError",),
        ),
        ('{"type":"job_exited","outcome":"killed","seconds":2.5,"signal":9}', JobStatus.FAILED, ("train killed",)),
        ('{"type":"job_exited","outcome":"timed_out","seconds":2.5}', JobStatus.FAILED, ("train timed_out",)),
        (
            '{"type":"job_exited","outcome":"interrupted","seconds":2.5}',
            JobStatus.CANCELLED,
            ("train interrupted",),
        ),
        ('{"type":"job_lost","reason":"its agent is gone"}', JobStatus.PENDING, ()),
    ],
)
def test_a_failure_without_a_kind_is_decided_already(body, status, reasons):
    log = Log(CREATE, GRANT, BEGIN)
    state = fold(log.state, [told_before_retries(body)])
    run = state.runs[RUN]
    assert (run.status, run.failure_reasons, run.retry_at) == (status, reasons, None)
    assert (run.ended_at is None) == (status is JobStatus.PENDING)
    assert (state.sweep.same_failures, state.sweep.passing_failures) == (0, ())


def test_a_reason_told_twice_before_retries_is_told_twice_still():
    log = Log(CREATE, GRANT, BEGIN, SUCCEED)
    for number, body in enumerate(
        [
            '{"type":"run_cancelled","reason":"the user asked"}',
            '{"type":"run_requeued","reason":"resumed"}',
            '{"type":"run_failed","reason":"the user asked"}',
        ],
        start=6,
    ):
        log.state = fold(log.state, [msgspec.structs.replace(told_before_retries(body), seq=number)])
    assert log.run().failure_reasons == ("the user asked", "the user asked")
