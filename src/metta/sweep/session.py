"""What training code calls: `report_metrics`, `run_directory`, `current_run`. Outside a sweep all of it is harmless."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from metta.sweep.errors import MetricError
from metta.sweep.model.metrics import checked
from metta.sweep.model.run import JobType
from metta.sweep.model.space import nest


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    """Which run this process works for."""

    sweep_id: str
    run_id: str
    job_id: str
    type: JobType
    #: The run's own folder; its train and eval jobs share it.
    directory: str


_MISSING = object()


class RunConfig(dict[str, Any]):
    """A configuration as the function to sweep receives it: nested where names have dots, and readable by dot path too.

    `config["trainer"]["lr"]` and `config["trainer.lr"]` are the same.
    """

    @classmethod
    def of(cls, flat: Mapping[str, Any]) -> RunConfig:
        """Nest a flat configuration."""
        return cls(nest(flat))

    def __missing__(self, name: Any) -> Any:
        value: Any = self
        for part in name.split(".") if isinstance(name, str) else [name]:
            if not isinstance(value, dict) or not dict.__contains__(value, part):
                raise KeyError(name)
            value = dict.__getitem__(value, part)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        """The value of that name or dot path, or else the default."""
        try:
            return self[name]
        except KeyError:
            return default

    def __contains__(self, name: Any) -> bool:
        return self.get(name, _MISSING) is not _MISSING


class Session:
    """The link between the user's code in this process and the agent beside it."""

    def __init__(self, context: RunContext, send: Callable[[dict[str, float]], None]) -> None:
        self.context = context
        self._send = send
        #: The first report that was no report: the run fails by it even if the code swallows the exception.
        self.error: MetricError | None = None

    def report(self, metrics: Any) -> None:
        """Check and send; raises MetricError."""
        try:
            values = checked(metrics)
        except MetricError as error:
            self.error = self.error or error
            raise
        if values:
            self._send(values)


_current: Session | None = None


def enter(session: Session | None) -> None:
    """Make this the session that the user's code talks to; None for none."""
    global _current  # noqa: PLW0603 (one process runs one job at a time; training code has no handle to pass around)
    _current = session


def report_metrics(metrics: Mapping[str, Any]) -> None:
    """Tell the sweep what was measured so far, such as `{"accuracy": 0.93, "epoch": 3}`.

    Call it as often as you like; the last value of each metric is what counts. Outside a sweep it does nothing.

    Raises:
        MetricError: in a sweep, when a value is not a finite number. The run fails with that reason.
    """
    if _current is not None:
        _current.report(metrics)


def current_run() -> RunContext | None:
    """The run this process works for, or None outside a sweep."""
    return _current.context if _current is not None else None


def run_directory() -> Path:
    """A folder of this run's own, kept with the sweep: what its train job leaves there its eval job finds.

    Outside a sweep it is the working folder.
    """
    if _current is None:
        return Path.cwd()
    directory = Path(_current.context.directory)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
