"""What the sampling optimizers share: randomness by suggestion number, and no configuration twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from metta.sweep.model.space import Config
from metta.sweep.optimizers.encoding import Floats
from metta.sweep.protocols import History, Suggestion

#: Redraws before a finite space is searched in order for what is left: 100 misses mean that nearly all of it was tried.
_REDRAWS = 100


def rng(seed: int, index: int) -> np.random.Generator:
    """The generator of a sweep's `index`-th suggestion: independent of all others and of when it is asked for."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))


def suggest_distinct(
    history: History,
    n: int,
    draw: Callable[[int, np.random.Generator], Sequence[float] | Floats],
    reason: str,
    *,
    redraws: int = 0,
) -> list[Suggestion]:
    """Up to `n` suggestions from `draw(index, generator)`, a point of the unit cube each, all different.

    In a finite space nothing is suggested that was tried before. What is not new is drawn again up to `redraws` times,
    then replaced by a random configuration that is; when none is left the list ends.
    """
    space = history.config.search_space
    chosen: set[bytes] = set()
    suggestions: list[Suggestion] = []
    for index in range(history.count, history.count + n):
        generator = rng(history.config.seed, index)
        for _ in range(redraws + 1):
            config = space.decode([float(unit) for unit in draw(index, generator)])
            key = space.key(config)
            if key not in chosen and key not in history.tried:
                break
        new = untried(history, chosen, config, generator)
        if new is None:
            break
        suggestions.append(Suggestion(config=new, reasons=(f"{reason} {index}",)))
    return suggestions


def untried(history: History, chosen: set[bytes], config: Config, generator: np.random.Generator) -> Config | None:
    """A configuration that is not among the `chosen`, and becomes so; in a finite space none that was tried, either.

    That is `config` itself where it is new, else a random one; None when there is none left. An infinite space does not
    run out, but much of it may be a few single points: where many draws find nothing else, one of them is given again.
    """
    space = history.config.search_space
    if space.cardinality is not None and len(history.tried) + len(chosen) >= space.cardinality:
        return None
    config = _first_untried(history, chosen, config, generator)
    chosen.add(space.key(config))
    return config


def _first_untried(history: History, tried: set[bytes], config: Config, generator: np.random.Generator) -> Config:
    space = history.config.search_space

    def is_new(candidate: Config) -> bool:
        key = space.key(candidate)
        return key not in history.tried and key not in tried

    for _ in range(_REDRAWS):
        if is_new(config):
            return config
        config = space.decode(generator.random(len(space.dimensions)).tolist())
    if space.cardinality is None:
        return config
    lattice = space.lattice
    start = int(generator.integers(lattice.size))
    return next(
        candidate for step in range(lattice.size) if is_new(candidate := lattice.at((start + step) % lattice.size))
    )
