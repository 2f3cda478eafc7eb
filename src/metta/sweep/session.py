"""What training code calls: to report metrics, to hear that it is to stop, to save its progress and to go on from it.

Outside a sweep all of it is harmless.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from metta.sweep.errors import CheckpointError, MetricError
from metta.sweep.model.fidelity import SECONDS
from metta.sweep.model.metrics import checked
from metta.sweep.model.run import Checkpoint, JobType, Outcome
from metta.sweep.model.space import nest

if TYPE_CHECKING:
    from metta.sweep.model.events import CheckpointSaved
    from metta.sweep.model.run import Damaged


class RunContext(msgspec.Struct, frozen=True, kw_only=True):
    """Which run this process works for."""

    sweep_id: str
    run_id: str
    job_id: str
    type: JobType
    #: The run's own folder; its train and eval jobs share it.
    directory: str
    #: What this attempt may go on from, oldest first.
    checkpoints: tuple[Checkpoint, ...] = ()
    #: The metric that tells how far the training is, or `seconds`; None where the sweep compares whole trainings.
    resource: str | None = None
    #: It is to train until the resource reaches this; None for a whole training.
    until: float | None = None
    #: The resource of a whole training.
    maximum: float | None = None


class TrialStopped(BaseException):
    """Ends a trial that has trained as far as it was to, or that the search has given up for better ones.

    Let it pass: blocks of `finally:` and context managers do their work on the way. Not an Exception, so that no
    handler in the training code catches it.
    """


class Ending(msgspec.Struct, frozen=True):
    """That a trial is to end, and what its job's outcome is then."""

    outcome: Outcome
    reason: str


class Progress:
    """How far one attempt is by what it reports.

    Args:
        resource: The metric that tells it; None for none.
        until: How far it is to come; None for a whole training.
        maximum: How far a whole training comes; None where that is not known.
    """

    def __init__(self, resource: str | None, until: float | None, maximum: float | None = None) -> None:
        self.resource = resource
        self.until = until
        self.maximum = maximum
        self._value: float | None = None

    @property
    def reached(self) -> bool:
        """Whether it has reported to be as far as it was to come; at its end there is nothing left to pause."""
        is_there = self._value is not None and self.until is not None and self._value >= self.until
        return is_there and not self.is_whole

    @property
    def is_whole(self) -> bool:
        """Whether it has reported to be trained to its end."""
        return self._value is not None and self.maximum is not None and self._value >= self.maximum

    def advance(self, metrics: Mapping[str, float], *, may_repeat: bool = False) -> None:
        """Take a report's word for it.

        Raises:
            MetricError: it would be a step back, or the same step again where that is not allowed.
        """
        if self.resource is None or self.resource == SECONDS or self.resource not in metrics:
            return
        value, before = metrics[self.resource], self._value
        if before is not None and (value < before or (value == before and not may_repeat)):
            raise MetricError(
                f"metric {self.resource!r} is {value:.15g} after {before:.15g}, and it tells how far the training is; "
                "report each step once, in ascending order"
            )
        self._value = value


class LoadedCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What `load_checkpoint` found."""

    step: int
    #: The object that was saved; of a file or folder its path. That belongs to the sweep: copy it before you change it.
    value: Any
    #: Where it is kept.
    path: Path


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
    """The link between the user's code in this process and the agent beside it.

    Args:
        context: Which job this is.
        send: Called with metrics.
        tell: Called with what becomes of checkpoints.
        ask: Says whether the agent wants the trial to end.
    """

    def __init__(
        self,
        context: RunContext,
        send: Callable[[dict[str, float]], None],
        tell: Callable[[CheckpointSaved | Damaged], None] = lambda _: None,
        ask: Callable[[], Ending | None] = lambda: None,
    ) -> None:
        self.context = context
        self._send = send
        self._tell = tell
        self._ask = ask
        self._progress = Progress(context.resource, context.until, context.maximum)
        self._began = time.monotonic()
        self._checkpoints = {checkpoint.step: checkpoint for checkpoint in context.checkpoints}
        #: The first report that was no report: the run fails by it even if the code swallows the exception.
        self.error: MetricError | None = None
        #: That the trial is to end, once the code was told: from then on it ends by that, however it returns.
        self.ending: Ending | None = None

    def report(self, metrics: Any, *, raise_on_stop: bool = True) -> None:
        """Check and send; raises MetricError or TrialStopped."""
        self._report(metrics)
        if self.should_stop() and raise_on_stop:
            assert self.ending is not None
            raise TrialStopped(self.ending.reason)

    def report_result(self, metrics: Any) -> None:
        """Check and send what the function returned: its summary, which may name the last step again.

        Nothing can be stopped any more, but it may have come just as far as it was to.
        """
        self._report(metrics, may_repeat=True)
        self.ending = self._pause() if self._progress.reached else self.ending

    def _report(self, metrics: Any, *, may_repeat: bool = False) -> None:
        try:
            values = checked(metrics)
            self._progress.advance(values, may_repeat=may_repeat)
        except MetricError as error:
            self.error = self.error or error
            raise
        if self._progress.is_whole and self.ending is not None and self.ending.outcome is Outcome.PAUSED:
            self.ending = None  # the code went on to its end all the same
        if values:
            self._send(values)

    def should_stop(self) -> bool:
        """Whether the trial is to end; the code knows it then."""
        if self._has_come_far_enough():
            self.ending = self._pause()
        elif self.ending is None:
            self.ending = self._ask()
        return self.ending is not None

    def _has_come_far_enough(self) -> bool:
        until = self.context.until
        if until is not None and self.context.resource == SECONDS:
            return time.monotonic() - self._began >= until
        return self._progress.reached

    def _pause(self) -> Ending:
        return Ending(Outcome.PAUSED, f"{self.context.resource} has reached {self.context.until:.15g}")

    def save(self, path_or_obj: Any, step: int) -> Path:
        """Save a checkpoint, and only then tell the agent."""
        from metta.sweep import checkpoints

        directory = Path(self.context.directory)
        saved = checkpoints.save(directory, path_or_obj, step)
        self._checkpoints[saved.step] = Checkpoint(
            **msgspec.structs.asdict(saved), at=time.time(), job_id=self.context.job_id
        )
        self._tell(saved)
        return directory / saved.path

    def load(self, step: int | None) -> LoadedCheckpoint | None:
        """The newest checkpoint that can be used, or the one of that step."""
        from metta.sweep import checkpoints

        directory = Path(self.context.directory)
        if step is None:
            candidates = list(self._checkpoints.values())
        elif step in self._checkpoints:
            candidates = [self._checkpoints[step]]
        else:
            raise CheckpointError(f"run {self.context.run_id} has no checkpoint of step {step}; {self._steps()}")
        found, damaged = checkpoints.newest_sound(directory, candidates)
        for each in damaged:
            del self._checkpoints[each.step]
            self._tell(each)
        if step is not None and found is None:
            raise CheckpointError(f"the checkpoint of step {step} is {damaged[0].reason}; {self._steps()}")
        for each in damaged:
            sys.stderr.write(checkpoints.warning_of(each, found))
        if found is None:
            return None
        value = checkpoints.load(directory, found)
        return LoadedCheckpoint(step=found.step, value=value, path=directory / found.path)

    def _steps(self) -> str:
        directory = Path(self.context.directory)
        # The retention rules may have let go what this job has saved.
        there = [step for step, each in sorted(self._checkpoints.items()) if (directory / each.path).exists()]
        return f"it has: {', '.join(map(str, there)) or 'none'}"


_current: Session | None = None


def enter(session: Session | None) -> None:
    """Make this the session that the user's code talks to; None for none."""
    global _current  # noqa: PLW0603 (one process runs one job at a time; training code has no handle to pass around)
    _current = session


def report_metrics(metrics: Mapping[str, Any], *, raise_on_stop: bool = True) -> None:
    """Tell the sweep what was measured so far, such as `{"accuracy": 0.93, "epoch": 3}`.

    Call it as often as you like; the last value of each metric is what counts. Outside a sweep it does nothing.

    Args:
        metrics: Names and numbers. Where the sweep has a `fidelity`, its resource is to grow from report to report.
        raise_on_stop: Whether the trial ends here when it is to end; without it, ask `should_stop()`.

    Raises:
        TrialStopped: the trial has trained as far as it was to, or the search has given it up. Let it pass.
        MetricError: in a sweep, when a value is not a finite number, or the resource has not grown. The run fails
            with that reason.
    """
    if _current is not None:
        _current.report(metrics, raise_on_stop=raise_on_stop)


def should_stop() -> bool:
    """Whether this trial is to end: it has trained as far as it was to, or the search has given it up.

    Save a checkpoint then and return; the run may be continued from there. Outside a sweep it is False.
    """
    return _current is not None and _current.should_stop()


def save_checkpoint(path_or_obj: Any, step: int) -> Path | None:
    """Save progress, so that the run goes on from here when the job is tried again.

    When this returns, the checkpoint is on the disk and counts, even if the process is killed at once.

    Args:
        path_or_obj: A file or folder, by its path, which is copied; or any object that can be pickled.
        step: How far the training is: an integer from 0 on, such as the number of the epoch that has just ended. The
            same step again takes the place of the earlier.

    Returns:
        Where the sweep keeps it. Outside a sweep nothing is saved and this is None.

    Raises:
        CheckpointError: there is no such file, no pickling such an object, or the step is no step.
        OSError: it cannot be written: the disk is full, say.
    """
    return None if _current is None else _current.save(path_or_obj, step)


def load_checkpoint(step: int | None = None) -> LoadedCheckpoint | None:
    """The last checkpoint of this run, of an earlier attempt or this one; in an eval job that of the training.

        checkpoint = load_checkpoint()
        if checkpoint is not None:
            model.load_state_dict(checkpoint.value["model"])
        for epoch in range(checkpoint.step + 1 if checkpoint else 0, epochs):

    One that is damaged or missing is reported and passed over for the one before it.

    Args:
        step: Load the checkpoint of exactly this step instead.

    Returns:
        None when there is none to go on from, as in a first attempt and outside a sweep.

    Raises:
        CheckpointError: the checkpoint of that step is not there or damaged, or the object cannot be made again.
    """
    return None if _current is None else _current.load(step)


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
