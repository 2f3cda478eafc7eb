"""Who is told what of a sweep, and what they have been told."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec
from msgspec import Meta

#: What a channel is called where a sweep names none: the variable that holds channels for all sweeps.
DEFAULT_CHANNEL = "$METTA_SWEEP_NOTIFY"
#: Of what is told once only, so many of the latest are remembered.
_MOST_ONCE = 16


class NoticeKind(StrEnum):
    """What people are told of."""

    #: A run failed for good: no retry is left to it.
    RUN_FAILED = "run_failed"
    #: The sweep is over, with what came of it.
    SWEEP_ENDED = "sweep_ended"
    #: The controller paused the sweep, because the same error came again and again.
    SWEEP_PAUSED = "sweep_paused"
    #: A better result than the last one that was told.
    NEW_BEST = "new_best"
    #: Most of `budget_hours` or `max_hours` is spent.
    BUDGET = "budget"
    #: The sweep should go on and does not.
    STALLED = "stalled"


class Notify(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Where messages about a sweep go, and which."""

    #: `$NAME`, an environment variable that holds URLs of Apprise or the path of a configuration file of Apprise; or
    #: such a path, relative to the sweep's working folder. Never a URL: those hold passwords, and this is written down.
    channels: tuple[str, ...] | str = (DEFAULT_CHANNEL,)
    on: tuple[NoticeKind, ...] = tuple(NoticeKind)
    #: Between two messages to a channel; what happens meanwhile comes in one. Ten minutes: soon enough to step in, and
    #: six in an hour at most. The end of a sweep, a pause and a stall do not wait.
    every_minutes: Annotated[float, Meta(ge=0, le=1e6)] = 10.0
    #: Nothing has happened for so long: a stall. Half an hour is longer than what a job takes that reports now and
    #: then; jobs that report nothing do not count as a stall while their agent is alive.
    stalled_minutes: Annotated[float, Meta(gt=0, le=1e6)] = 30.0

    @property
    def names(self) -> tuple[str, ...]:
        """The channels as they are named, each once."""
        return tuple(dict.fromkeys((self.channels,) if isinstance(self.channels, str) else self.channels))


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """How far a channel knows of a sweep."""

    #: Number of the last event of which it has been told what there was to tell.
    through: int
    #: When it took the last message, in seconds since the epoch; None before the first.
    at: float | None = None
    #: The best score that it knows of.
    best_score: float | None = None
    #: What it is not told again, such as `budget_hours=8`.
    once: tuple[str, ...] = ()

    def after(self, *, through: int, at: float | None, best_score: float | None, once: tuple[str, ...]) -> Told:
        """When it has taken another message, or (without `at`) there was nothing to tell it."""
        # Of stalls only the last can be told again; many of them must not make room for a budget to be.
        known = {name.partition(" ")[0]: name for name in (*self.once, *once)}
        return Told(
            through=max(self.through, through),
            at=self.at if at is None else at,
            best_score=best_score,
            once=tuple(known.values())[-_MOST_ONCE:],
        )


NOTHING_TOLD = Told(through=0)
