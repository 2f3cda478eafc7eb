"""Logging for machines."""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Iterator

import pytest

from metta.sweep.errors import ConfigError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.run import FailureKind, Outcome
from metta.sweep.observe.log_lines import (
    LEVEL_VARIABLE,
    LOG_VARIABLE,
    LogFormat,
    check_logging,
    configure_logging,
    log_events,
    wanted_format,
)
from metta.sweep.testing import run_events
from metta.sweep.testing.sweeps import START, SWEEP

RUN = ids.run_id(SWEEP, 0)
FAILED = ev.JobExited(outcome=Outcome.FAILED, error='KeyError: "a b"\n=1', failure=FailureKind.USER_ERROR, seconds=1.5)


@pytest.fixture(autouse=True)
def root() -> Iterator[None]:
    """What tests do to the root of all loggers is undone."""
    logger = logging.getLogger()
    before = logger.handlers[:], logger.level
    yield
    logger.handlers[:], _ = before
    logger.setLevel(before[1])


def of_a_job(body: Body) -> Event:
    return new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id=RUN, job_id=f"{RUN}.train.1")


def logged(form: LogFormat, *events: Event, capsys: pytest.CaptureFixture[str]) -> list[str]:
    configure_logging(form)
    log_events(events)
    return capsys.readouterr().err.splitlines()


def test_an_event_is_an_object_with_its_ids_what_it_says_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    retry = ev.RunRetryScheduled(retry_at=START, retry_count=1, reason="user_error: retry 1 of 2")
    lines = logged(LogFormat.JSON, of_a_job(FAILED), of_a_job(retry), capsys=capsys)
    failed, retried = map(json.loads, lines)
    del failed["at"], retried["at"]
    names = {"sweep_id": SWEEP, "run_id": RUN, "job_id": f"{RUN}.train.1", "level": "warning"}
    said = {"outcome": "failed", "seconds": 1.5, "error": FAILED.error, "failure": "user_error"}
    assert failed == {"event": "job_exited", **names, **said}
    assert retried == {
        "event": "run_retry_scheduled",
        **names,
        "retry_at": "2023-11-14T22:13:20.000Z",
        "retry_count": 1,
        "because": "user_error: retry 1 of 2",
    }


def test_a_line_of_text_can_be_taken_apart_whatever_is_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    [line] = logged(LogFormat.TEXT, of_a_job(FAILED), capsys=capsys)
    fields = dict(part.split("=", 1) for part in shlex.split(line))
    assert (fields["level"], fields["event"], fields["run_id"]) == ("warning", "job_exited", RUN)
    assert fields["error"] == 'KeyError: "a b"\\n=1'


def test_levels_tell_what_matters(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    events = [*run_events(0), of_a_job(FAILED), *run_events(1, score=None)[-1:]]

    def types(level: str) -> list[str]:
        monkeypatch.setenv(LEVEL_VARIABLE, level)
        return [json.loads(line)["event"] for line in logged(LogFormat.JSON, *events, capsys=capsys)]

    assert types("debug") == [event.type for event in events]
    assert types("info") == [
        "run_created",
        "job_granted",
        "job_started",
        "job_exited",
        "run_completed",
        "job_exited",
        "run_failed",
    ]
    assert types("WARNING") == ["job_exited", "run_failed"]
    assert types("error") == ["run_failed"]


def test_other_messages_are_lines_too_with_their_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogFormat.JSON)
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("metta.sweep.agent").exception("job %s cannot be started", "7kq")
    [line] = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["level"], said["logger"], said["message"]) == (
        "error",
        "metta.sweep.agent",
        "job 7kq cannot be started",
    )
    assert said["traceback"].endswith("ValueError: no")


def test_without_any_set_up_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers.clear()
    log_events([of_a_job(FAILED), *run_events(1, score=None)])
    assert capsys.readouterr().err == ""


def test_what_the_variables_cannot_say_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert wanted_format() is None
    monkeypatch.setenv(LOG_VARIABLE, "jsn")
    with pytest.raises(ConfigError, match=r"METTA_SWEEP_LOG.*did you mean 'json'"):
        check_logging()
    monkeypatch.setenv(LOG_VARIABLE, "json")
    monkeypatch.setenv(LEVEL_VARIABLE, "loud")
    with pytest.raises(ConfigError, match=r"METTA_SWEEP_LOG_LEVEL.*known: debug, error, info, warning"):
        check_logging()
