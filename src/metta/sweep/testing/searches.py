"""Sweeps for trying optimizers on: spaces of every kind, and searches that have come as far as a test wants them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.space import (
    Choice,
    Config,
    Constant,
    LogNormal,
    LogUniform,
    Normal,
    Range,
    SearchSpace,
    Uniform,
)
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import History, Optimizer, Suggestion
from metta.sweep.testing.sweeps import SWEEP, run_events, sweep_config, sweep_created

#: Spaces of every kind.
SPACES = {
    "continuous": SearchSpace.of(
        {
            "lr": LogUniform(1e-5, 1e-1),
            "dropout": Uniform(0.0, 0.5),
            "init": Normal(0.0, 0.02),
            "scale": LogNormal(0.0, 1.0),
            "batch": Range(16, 4096, log=True),
            "seed": Constant(1),
        }
    ),
    "conditional": SearchSpace.of(
        {
            "optimizer": Choice(["adam", "sgd"]),
            "adam": {"beta": Uniform(0.8, 0.999, when={"optimizer": "adam"})},
            "sgd": {"momentum": Uniform(0.0, 0.99, when={"optimizer": "sgd"})},
        }
    ),
    "finite": SearchSpace.of(
        {"layers": Range(1, 4), "width": Choice([64, 128, 256]), "rate": Range(0.1, 0.3, step=0.1)}
    ),
    "finite on a log scale": SearchSpace.of({"batch": Range(1, 40, log=True)}),
    "finite and conditional": SearchSpace.of(
        {
            "model": Choice(["linear", "tree", "net"]),
            "depth": Range(1, 5, when={"model": "tree"}),
            "layers": Range(1, 3, when={"model": "net"}),
            "width": Choice([32, 64], when={"layers": [2, 3]}),
        }
    ),
    "of one point": SearchSpace.of({"lr": Constant(0.1)}),
}
FINITE = sorted(name for name, space in SPACES.items() if space.cardinality is not None)

#: What became of a run, a letter each: completed, failed, failed after it had reported something, pending, cancelled
#: while it waited, rolled back after it was completed.
FATES = "cfrpxb"


def started(config: SweepConfig) -> SweepState:
    """A sweep without runs."""
    return after(EMPTY, [replace(sweep_created(), body=replace(sweep_created().body, config=config))])


def after(state: SweepState, events: Sequence[Event]) -> SweepState:
    """The sweep when these have happened as well."""
    return fold(state, [replace(event, seq=seq) for seq, event in enumerate(events, start=state.seq + 1)])


def history_of(state: SweepState) -> History:
    """What an optimizer gets to see of a sweep."""
    return History.of(state)


def with_runs(
    state: SweepState, suggestions: Sequence[Suggestion], score: Callable[[Config], float] = lambda _: 1.0
) -> SweepState:
    """The sweep when these have been tried as well."""
    return lived(state, configs(suggestions), "c" * len(suggestions), score)


def lived(
    state: SweepState,
    tried: Sequence[Config],
    fates: str,
    score: Callable[[Config], float],
    order: Sequence[int] | None = None,
) -> SweepState:
    """The sweep after further runs.

    Args:
        state: Before.
        tried: Their configurations; all are created before the first of them ends.
        fates: What becomes of each: a string of FATES. There are as many runs as in the shorter of the two.
        score: What a configuration scores.
        order: Positions in `tried` in which the runs end.
    """
    first = len(state.runs)
    lives = [
        _life(first + at, config, fate, score(config))
        for at, (config, fate) in enumerate(zip(tried, fates, strict=False))
    ]
    state = after(state, [event for beginning, _ in lives for event in beginning])
    for at in range(len(lives)) if order is None else order:
        state = after(state, lives[at][1])
    return state


#: Of the events of `run_events`, those before its job reports anything.
_BEGINNING = 4


def _life(index: int, config: Config, fate: str, score: float) -> tuple[list[Event], list[Event]]:
    """The beginning and the end of a run."""
    events = run_events(index, config=config, score=None if fate == "f" else score)
    beginning, end = events[:_BEGINNING], events[_BEGINNING:]
    if fate == "p":
        return beginning, []
    if fate == "x":
        return beginning[:1], [_about(index, ev.RunCancelled(reason="not wanted any more"))]
    if fate == "r":
        end[-1] = _about(index, ev.RunFailed(reason="crashed in the end", partial_score=score))
    if fate == "b":
        end.append(_about(index, ev.RunRolledBack(reason="the user asked")))
    return beginning, end


def _about(index: int, body: Body) -> Event:
    return new_event(body, sweep_id=SWEEP, at=0.0, actor="test", run_id=ids.run_id(SWEEP, index))


def amended(state: SweepState, changes: Mapping[str, Any]) -> SweepState:
    """The sweep after the user has changed it."""
    body = ev.SweepAmended(changes=msgspec.to_builtins(changes))
    return after(state, [new_event(body, sweep_id=SWEEP, at=0.0, actor="user")])


def random_configs(space: SearchSpace, count: int, seed: int = 0) -> list[Config]:
    """Independent draws; in a finite space all different, so that there may be fewer."""
    generator = np.random.default_rng(seed)
    draws = [space.decode(generator.random(len(space.dimensions)).tolist()) for _ in range(count)]
    return draws if space.cardinality is None else list({space.key(draw): draw for draw in draws}.values())


def bowl(config: SweepConfig) -> Callable[[Config], float]:
    """A score with its best value, 0, at three tenths of every axis of the unit cube, in the sweep's direction."""
    space, sign = config.search_space, -1.0 if config.direction == "maximize" else 1.0

    def score(tried: Config) -> float:
        return sign * sum((unit - 0.3) ** 2 for unit in space.encode(tried))

    return score


def searched(space: SearchSpace, fates: str = "ccfcrcpccxcbcp", *, seed: int = 0, **fields: Any) -> SweepState:
    """A search of this space in the middle: as many random configurations as `fates` has letters, at most.

    They come by fours, and the later of four end first.
    """
    state = started(sweep_config(search_space=space, **fields))
    tried = random_configs(space, len(fates), seed)
    score = bowl(state.sweep.config)
    for start in range(0, len(tried), 4):
        some = tried[start : start + 4]
        order = range(len(some))[::-1]
        state = lived(state, some, fates[start:], score, order)
    return state


def suggest(optimizer: Optimizer, config: SweepConfig, sizes: Sequence[int]) -> list[Suggestion]:
    """The suggestions of a sweep in which the optimizer is asked for so many at a time."""
    suggestions: list[Suggestion] = []
    state = started(config)
    score = bowl(config)
    for size in sizes:
        batch = optimizer.suggest(history_of(state), size)
        suggestions += batch
        state = with_runs(state, batch, score)
    return suggestions


def configs(suggestions: Sequence[Suggestion]) -> list[Config]:
    """What is to be tried."""
    return [suggestion.config for suggestion in suggestions]
