"""Logging for machines: one line a record, `key=value` or JSON, with what happens in the sweep among it.

Whatever happens goes to the logger `metta.sweep.events` as it gets into the event log, in controllers and in agents.
The levels are those of `level_of`: INFO leaves out what goes on inside of jobs, WARNING is what one may look into.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from metta.sweep.errors import ConfigError, did_you_mean
from metta.sweep.model.events import Event
from metta.sweep.observe.wording import event_text, fields_of, level_of, reasons_of, value_text

#: What the lines are to be like, and how much is to be in them. The agents of a sweep inherit both.
LOG_VARIABLE, LEVEL_VARIABLE = "METTA_SWEEP_LOG", "METTA_SWEEP_LOG_LEVEL"
_LEVELS = ("debug", "info", "warning", "error")

_events = logging.getLogger("metta.sweep.events")
# Where nobody has set up logging, Python would print the warnings, into the midst of the progress that is shown.
_events.addHandler(logging.NullHandler())


class LogFormat(StrEnum):
    """What a line looks like."""

    #: `at=2026-01-31T12:00:00.000Z level=info event=job_started run_id=7kq3f ...`
    TEXT = "text"
    JSON = "json"


def log_events(events: Iterable[Event]) -> None:
    """Log what happened, a line each."""
    for event in events:
        level = level_of(event)
        if _events.isEnabledFor(level):
            _events.log(level, "%s", event_text(event), extra={"event": event})


def wanted_format() -> LogFormat | None:
    """What METTA_SWEEP_LOG says; None where it says nothing.

    Raises:
        ConfigError: there is no such format.
    """
    name = os.environ.get(LOG_VARIABLE, "")
    if name and name not in set(LogFormat):
        raise ConfigError(f"{LOG_VARIABLE}: there is no format {name!r}; {did_you_mean(name, map(str, LogFormat))}")
    return LogFormat(name) if name else None


def check_logging() -> None:
    """Refuse what the variables say where it cannot be.

    Raises:
        ConfigError: there is no such format, or no such level.
    """
    wanted_format()
    _wanted_level()


def _wanted_level() -> str:
    level = os.environ.get(LEVEL_VARIABLE, "").lower() or "info"
    if level not in _LEVELS:
        raise ConfigError(f"{LEVEL_VARIABLE}: there is no level {level!r}; {did_you_mean(level, _LEVELS)}")
    return level


def configure_logging(form: LogFormat) -> None:
    """Log to standard error from now on, in that format, from the level on that METTA_SWEEP_LOG_LEVEL says (info).

    Raises:
        ConfigError: there is no such level.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter(form))
    logging.basicConfig(level=_wanted_level().upper(), handlers=[handler], force=True)


class _LineFormatter(logging.Formatter):
    def __init__(self, form: LogFormat) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        fields = {"at": at, "level": record.levelname.lower(), **self._said(record)}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        if self._form is LogFormat.JSON:
            return json.dumps(fields, default=str)
        return " ".join(f"{name}={_quoted(value)}" for name, value in fields.items())

    @staticmethod
    def _said(record: logging.LogRecord) -> dict[str, Any]:
        event = getattr(record, "event", None)
        if not isinstance(event, Event):
            return {"logger": record.name, "message": record.getMessage()}
        ids = {"sweep_id": event.sweep_id, "run_id": event.run_id, "job_id": event.job_id, "seq": event.seq or None}
        known = {name: value for name, value in ids.items() if value is not None}
        because = {"because": "; ".join(reasons)} if (reasons := reasons_of(event)) else {}
        said = {name: value for name, value in fields_of(event).items() if name not in known}
        return {"event": event.type, **known, **said, **because}


def _quoted(value: Any) -> str:
    text = value_text(value) if not isinstance(value, str) else value
    is_plain = text and not any(character in ' ="\\' or not character.isprintable() for character in text)
    return text if is_plain else json.dumps(text, ensure_ascii=False)
