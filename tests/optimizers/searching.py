"""Whole searches, for tests of what optimizers find."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from metta.sweep.model.space import Config, SearchSpace
from metta.sweep.model.state import SweepState
from metta.sweep.protocols import Optimizer
from metta.sweep.testing.searches import history_of, started, with_runs
from metta.sweep.testing.sweeps import sweep_config


def search(
    optimizer: Optimizer, space: SearchSpace, score: Callable[[Config], float], sizes: Sequence[int], seed: int = 1
) -> SweepState:
    """A sweep that minimises `score`, after batches of these sizes."""
    state = started(sweep_config(search_space=space, direction="minimize", seed=seed))
    for size in sizes:
        state = with_runs(state, optimizer.suggest(history_of(state), size), score)
    return state


def best(
    new_optimizer: Callable[[], Optimizer],
    space: SearchSpace,
    score: Callable[[Config], float],
    sizes: Sequence[int],
    seeds: int = 3,
) -> float:
    """The median of the best scores of a few sweeps."""
    found = sorted(search(new_optimizer(), space, score, sizes, seed).sweep.best_score or 0.0 for seed in range(seeds))
    return found[seeds // 2]
