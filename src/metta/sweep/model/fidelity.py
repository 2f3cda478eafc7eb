"""How far runs are trained, and the levels of training at which they are compared."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

#: Wall time of a run's training, measured here rather than reported.
SECONDS = "seconds"
_LARGEST = 1e12

_Amount = Annotated[float, Meta(gt=0, le=_LARGEST)]


class Fidelity(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What training consumes, how much of it a whole training takes, and where on the way runs are looked at.

    The levels are those of successive halving (Li et al. 2020, "A System for Massively Parallel Hyperparameter
    Tuning", section 3.2): the grace period, and from there each `reduction_factor` times the one before.
    """

    #: The metric that tells how far a run is, such as `epoch` or `step`; `seconds` is the wall time of its training.
    resource: str = "epoch"
    #: Of a whole training.
    maximum: _Amount
    #: No run is judged before.
    grace_period: _Amount = 1.0
    #: The best of so many runs goes on: three, as in Hyperband (Li et al. 2018), or four, as in ASHA's experiments.
    reduction_factor: Annotated[float, Meta(ge=1.1, le=1000)] = 3.0

    @property
    def levels(self) -> tuple[float, ...]:
        """Ascending, below the maximum: where runs are compared on their way to it."""
        levels: list[float] = []
        level = self.grace_period
        while level < self.maximum * (1 - 1e-9):
            levels.append(level)
            level = self.grace_period * self.reduction_factor ** len(levels)
        return tuple(levels)
