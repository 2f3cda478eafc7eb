"""How far runs are trained, and the levels of training at which they are compared."""

from __future__ import annotations

import math
from decimal import Decimal
from functools import cached_property
from typing import Annotated

import msgspec
from msgspec import Meta

from metta.sweep.errors import ConfigError

#: Wall time of a run's training, measured here rather than reported.
SECONDS = "seconds"
_LARGEST = 1e12
#: At equal distances: each run keeps what it had reached at every one of them.
_MOST_LEVELS = 200

_Amount = Annotated[float, Meta(gt=0, le=_LARGEST)]


class Fidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True, dict=True):
    """What training consumes, how much of it a whole training takes, and where on the way runs are looked at.

    The levels are those of successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter
    Tuning", section 3.2): the grace period, and from there each `reduction_factor` times the one before. With an
    `interval` they stand at equal distances, as population based training wants them.

    Raises:
        ConfigError: the interval makes more levels than a run can keep.
    """

    #: The metric that tells how far a run is, such as `epoch` or `step`; `seconds` is the wall time of its training.
    resource: str = "epoch"
    #: Of a whole training.
    maximum: _Amount
    #: No run is judged before.
    grace_period: _Amount = 1.0
    #: The best of so many runs goes on: three, as in Hyperband (Li et al. 2018), or four, as in ASHA's experiments.
    reduction_factor: Annotated[float, Meta(ge=1.1, le=1000)] = 3.0
    #: From each level to the next, instead of the factor.
    interval: _Amount | None = None

    def __post_init__(self) -> None:
        if self.interval is None:
            return
        count = math.ceil((self.maximum - self.grace_period) / self.interval - 1e-9)
        if count > _MOST_LEVELS:
            least = (self.maximum - self.grace_period) / _MOST_LEVELS
            raise ConfigError(
                f"fidelity.interval: {self.interval:g} makes {count} levels below the maximum of {self.maximum:g}; "
                f"at most {_MOST_LEVELS} can be kept, so make it at least {least:.4g}"
            )

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """Ascending, below the maximum: where runs are compared on their way to it.

        In decimal arithmetic: a trial that reports 0.3 has come to 0.1 + 2 * 0.1.
        """
        first = _decimal(self.grace_period)
        if self.interval is not None:
            interval = _decimal(self.interval)
            count = max(0, math.ceil((self.maximum - self.grace_period) / self.interval - 1e-9))
            return tuple(float(first + number * interval) for number in range(count))
        factor = _decimal(self.reduction_factor)
        levels: list[float] = []
        level = self.grace_period
        while level < self.maximum * (1 - 1e-9):
            levels.append(level)
            level = float(first * factor ** len(levels))
        return tuple(levels)


def _decimal(number: float) -> Decimal:
    """As it is written."""
    return Decimal(repr(number))
