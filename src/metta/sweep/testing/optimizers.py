"""Two ways to hold an optimizer to what every optimizer promises: one call, or a test for each promise."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from metta.sweep.errors import UsageError
from metta.sweep.protocols import Optimizer
from metta.sweep.testing.promises import PROMISES, NewOptimizer, Promise
from metta.sweep.testing.searches import FINITE, SPACES, configs, history_of, started, suggest, with_runs
from metta.sweep.testing.sweeps import sweep_config

__all__ = [
    "FINITE",
    "SPACES",
    "OptimizerContract",
    "check_optimizer",
    "configs",
    "history_of",
    "started",
    "suggest",
    "with_runs",
]

_CASES = [(promise, space) for promise in PROMISES for space in promise.spaces]


def check_optimizer(new_optimizer: NewOptimizer, *, refused: Collection[str] = ()) -> None:
    """Hold an optimizer to all promises of `protocols.Optimizer`, in spaces of every kind.

    Args:
        new_optimizer: Makes one that was never asked anything; often the class itself.
        refused: Names of those SPACES that its `check` refuses; it is then held to refusing them.

    Raises:
        ExceptionGroup: what went wrong, each with a note that says which promise was broken, in which space.
    """
    broken: list[Exception] = []
    for promise, space in _CASES:
        try:
            _hold(new_optimizer, promise, space, refused)
        except Exception as error:  # noqa: BLE001 (whatever a plugin raises is a broken promise)
            error.add_note(f"promise: {promise.words}; space: {space}")
            broken.append(error)
    if broken:
        raise ExceptionGroup(f"{len(broken)} of {len(_CASES)} checks of the optimizer failed", broken)


class OptimizerContract:
    """What `check_optimizer` checks, a test for each. Subclass it with a `new_optimizer` method."""

    #: As of `check_optimizer`.
    refused: Collection[str] = ()

    def new_optimizer(self) -> Optimizer:
        """An optimizer that was never asked anything."""
        raise NotImplementedError

    @pytest.mark.parametrize(
        ("promise", "space"), _CASES, ids=[f"{promise.words}-{space}" for promise, space in _CASES]
    )
    def test_it_keeps_its_promise(self, promise: Promise, space: str) -> None:
        """One promise, in one space."""
        _hold(self.new_optimizer, promise, space, self.refused)


def _hold(new_optimizer: NewOptimizer, promise: Promise, space: str, refused: Collection[str]) -> None:
    config = sweep_config(search_space=SPACES[space])
    try:
        new_optimizer().check(config)
    except UsageError:
        if space not in refused:
            raise
        return
    assert space not in refused, f"its check accepts the space {space!r}, which it is said to refuse"
    promise.keep(new_optimizer, SPACES[space])
