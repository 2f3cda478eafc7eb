"""Every error that metta.sweep raises on purpose.

    SweepError
    ├── UsageError               the user can mend it by typing something else (exit code 2)
    │   ├── SearchSpaceError     a parameter or condition that cannot be
    │   ├── ConfigError          a sweep's settings: names the field, the value, what is allowed
    │   │   └── FieldError       one that knows the field by its path
    │   ├── TargetError          the function or command to sweep cannot be found, imported or pickled
    │   ├── NotFoundError        no sweep or run goes by that name, id or prefix
    │   ├── AmbiguousIdError     several do
    │   ├── NameTakenError       another sweep has that name
    │   ├── LeaseHeldError       another controller is at work on the sweep
    │   └── MissingExtraError    an optional dependency is not installed
    ├── MetricError              a report that is not a mapping of names to finite numbers
    ├── InvalidTransition        an event that the state of its run does not allow
    ├── StoreError               the store cannot be opened, read or written
    │   ├── StoreAwayError       it cannot just now: server down, disk full, locked; trying again later makes sense
    │   ├── DamagedStoreError    what it holds is not what was written
    │   ├── StaleWriteError      the sweep has events that the writer had not seen
    │   └── FencedError          this controller's lease was taken over; its writes are refused
    ├── CheckpointError          a checkpoint cannot be saved, or none that was asked for can be loaded
    └── DispatchError            the compute did not take or answer for a job

Errors cross process borders, so each one rebuilds from `args`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SweepError(Exception):
    """The root of all errors of this package."""


class UsageError(SweepError):
    """The caller asked for something that cannot be; the message says what can."""


class SearchSpaceError(UsageError):
    """A parameter, bound or condition of a search space is not valid."""


class ConfigError(UsageError):
    """A field of a sweep's configuration is not valid."""


class FieldError(ConfigError):
    """A ConfigError that knows the field, so that a file's line can be found for it."""

    def __init__(self, path: tuple[str, ...], problem: str) -> None:
        super().__init__(path, problem)
        self.path = path
        self.problem = problem

    def __str__(self) -> str:
        return f"{'.'.join(self.path)}: {self.problem}"


class TargetError(UsageError):
    """The function or command to sweep cannot be found, imported or pickled."""


class NotFoundError(UsageError):
    """No sweep or run has this name, id or prefix."""


class AmbiguousIdError(UsageError):
    """A prefix fits several sweeps or runs."""


class NameTakenError(UsageError):
    """Another sweep in the store has this name."""


class LeaseHeldError(UsageError):
    """Another controller holds the sweep's lease."""


class MissingExtraError(UsageError):
    """An optional dependency is needed and not installed."""


class MetricError(SweepError):
    """Metrics are not a mapping of names to finite numbers."""


class InvalidTransition(SweepError):  # noqa: N818 (the name is the design's)
    """An event does not fit the state it meets; the store refuses it."""


class StoreError(SweepError):
    """The store cannot be opened, read or written."""


class StoreAwayError(StoreError):
    """The store cannot be reached or written just now; nothing is wrong with what it holds, so trying again helps."""


class DamagedStoreError(StoreError):
    """What the store holds is not what was written to it: a row, a page or the whole file was changed or lost."""


class StaleWriteError(StoreError):
    """The sweep has new events since it was read; read it and decide again."""


class FencedError(StoreError):
    """This controller's lease was taken over by a later one, so its writes are refused."""


class CheckpointError(SweepError):
    """A checkpoint cannot be saved, or none that was asked for can be loaded."""


class DispatchError(SweepError):
    """A dispatcher did not take a job or did not answer for it."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End of an error message: the closest known word, then all of them."""
    names = sorted(known)
    by_lower = {name.lower(): name for name in reversed(names)}
    lower = word.lower()
    close = [name for name in names if word and name.lower().startswith(lower)]
    close = close or [by_lower[near] for near in difflib.get_close_matches(lower, by_lower, n=1)]
    guess = f"did you mean {close[0]!r}? " if close else ""
    return f"{guess}known: {', '.join(names)}"
