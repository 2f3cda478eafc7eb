"""Events in words: what each says, and why it came to that."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from metta.sweep.model import events as ev
from metta.sweep.model.events import Event

#: Of an event, what its line leaves out: what it says otherwise, and what is long.
_UNSAID = {"type", "acquisition", "index", "job_type", "attempt", "rungs", "sha256", "usage", "once"}
#: Said as reasons.
_REASONS = {"reasons", "reason"}


def fields_of(event: Event) -> dict[str, Any]:
    """What an event says, in JSON's terms; without its reasons, and without what would not fit on a line."""
    if isinstance(event.body, ev.SweepCreated):
        config = event.body.config
        return {"name": config.name, "optimizer": config.strategy.optimizer, "scheduler": config.strategy.scheduler}
    said: dict[str, Any] = msgspec.to_builtins(event.body)
    return {
        name: _iso(value) if name.endswith("_at") else value
        for name, value in said.items()
        if name not in _UNSAID and name not in _REASONS
    }


def _iso(at: Any) -> Any:
    """A time as people read it; what is none stays as it is."""
    is_time = isinstance(at, float | int)
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z") if is_time else at


def reasons_of(event: Event) -> tuple[str, ...]:
    """Why it came to that, as whoever decided it said."""
    reason = getattr(event.body, "reason", None)
    return (*getattr(event.body, "reasons", ()), *filter(None, [reason]))


def event_text(event: Event) -> str:
    """An event in one line: its type, what it is about, what it says, and why."""
    subject = event.job_id or event.run_id or event.sweep_id
    reasons = reasons_of(event)
    because = f"  because: {'; '.join(map(value_text, reasons))}" if reasons else ""
    return f"{event.type} {subject} {fields_text(fields_of(event))}".rstrip() + because


def fields_text(fields: Mapping[str, Any]) -> str:
    """Such as `epoch=3 loss=0.25`."""
    return " ".join(f"{one_line(name)}={value_text(value)}" for name, value in fields.items())


def value_text(value: Any) -> str:
    """A value of JSON as people read it: on one line, floats with six significant digits."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{one_line(str(name))}: {value_text(each)}" for name, each in value.items()) + "}"
    return f"{value:.6g}" if isinstance(value, float) else one_line(str(value))


def one_line(text: str) -> str:
    """Without what would end the line, or steer a terminal."""
    if text.isprintable():
        return text
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


#: What happens in the course of things, many times a run.
_DETAILS = (
    ev.MetricsReported,
    ev.ResourcesMeasured,
    ev.CheckpointSaved,
    ev.CheckpointCopied,
    ev.CheckpointDeleted,
    ev.JobDispatched,
)
#: What somebody may want to look into, though the sweep gets over it.
_TROUBLES = (ev.JobLost, ev.RunRetryScheduled, ev.DispatchFailed, ev.SweepPaused, ev.StateRepaired)


def level_of(event: Event) -> int:
    """How much an event matters to who watches a sweep, as a level of `logging`.

    ERROR is a run that failed for good, WARNING a trouble that may pass, INFO what
    was decided, started and ended, DEBUG what goes on inside of jobs.
    """
    body = event.body
    if isinstance(body, ev.RunFailed):
        return logging.ERROR
    if isinstance(body, _TROUBLES) or (isinstance(body, ev.JobExited) and body.failure is not None):
        return logging.WARNING
    return logging.DEBUG if isinstance(body, _DETAILS) else logging.INFO
