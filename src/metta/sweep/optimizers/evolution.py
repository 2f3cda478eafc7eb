"""Age-regularised evolution: children of good parents, and the old die."""

from __future__ import annotations

import numpy as np

from metta.sweep.errors import ConfigError
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers.axes import Axes
from metta.sweep.optimizers.columns import Columns, ColumnsCache
from metta.sweep.optimizers.encoding import Floats
from metta.sweep.optimizers.options import check_count
from metta.sweep.optimizers.sampling import suggest_distinct
from metta.sweep.protocols import History, Suggestion

#: Share of the step that is left where nothing is to be explored.
_LEAST_STEP = 0.1
#: A child that was born before is born again as another, so often.
_REDRAWS = 20


class EvolutionOptimizer:
    """Aging evolution (Real et al. 2019, algorithm 1).

    The population are the runs that ended last, well or badly: age, not failure to compete, is what ends a
    configuration's influence, so that one lucky score among noisy ones does not rule for ever. Some of the population,
    drawn at random, compete; the best of them is the parent of the next configuration, which differs from it in one
    parameter at least. Until the population is complete, configurations are drawn at random.

    Ordered parameters mutate by a normal step, reflected at the bounds, of one value at least; categorical ones to any
    other value. A parameter that the parent does not have, but the child, is drawn at random.

    Args:
        population: Runs that are remembered.
        sample: How many of them compete.
        step: Standard deviation of a mutation, as a share of a parameter's range; with the sweep's `exploration` it
            grows and shrinks, up to twice and down to a tenth of that.
    """

    def __init__(self, population: int = 10, sample: int = 4, step: float = 0.15) -> None:
        for name, number in (("population", population), ("sample", sample)):
            check_count("evolution", name, number)
        if sample > population:
            raise ConfigError(
                f"strategy: evolution draws the sample from the population, so that it is at most {population}, "
                f"got {sample}"
            )
        if isinstance(step, bool) or not isinstance(step, int | float) or not 0 < step <= 1:
            raise ConfigError(f"strategy: evolution needs step to be a number above 0 and at most 1, got {step!r}")
        self._population, self._sample, self._step = population, sample, float(step)
        self._columns = ColumnsCache()

    def check(self, config: SweepConfig) -> None:
        """Every space can be searched."""

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        columns = self._columns.of(history)
        axes = Axes(history.config.search_space)
        if len(columns.scores) < self._population:
            return suggest_distinct(history, n, lambda _, generator: generator.random(len(axes)), "random founder")
        step = max(2 * history.exploration, _LEAST_STEP) * self._step

        def draw(_: int, generator: np.random.Generator) -> Floats:
            parent = self._parent(columns, generator)
            return _mutated(axes, columns.units[parent], columns.active[parent], step, generator)

        return suggest_distinct(history, n, draw, "mutation of a good configuration, child", redraws=_REDRAWS)

    def _parent(self, columns: Columns, generator: np.random.Generator) -> int:
        """Row of the winner of a tournament; who failed loses to all who have a score."""
        youngest = np.arange(len(columns.scores) - self._population, len(columns.scores))
        drawn = np.sort(generator.choice(youngest, size=self._sample, replace=False))
        return int(drawn[np.argsort(columns.scores[drawn], kind="stable")[0]])


def _mutated(axes: Axes, parent: Floats, active: np.ndarray, step: float, generator: np.random.Generator) -> Floats:
    """A child that differs in one axis and, each with a chance of one in the number of axes, in others."""
    able = np.flatnonzero(active & (axes.counts != 1))
    child = np.where(active, parent, generator.random(len(axes)))
    if not len(able):
        return child
    chosen = generator.random(len(able)) < 1.0 / len(able)
    chosen[generator.integers(len(able))] = True
    for axis in able[chosen].tolist():
        child[axis] = _moved(axes, axis, float(parent[axis]), step, generator)
    return child


def _moved(axes: Axes, axis: int, place: float, step: float, generator: np.random.Generator) -> float:
    count = int(axes.counts[axis])
    if axis in axes.categorical:
        number = int(axes.numbers(axis, np.array([place]))[0])
        return float(axes.places(axis, np.array([(number + generator.integers(1, count)) % count]))[0])
    moved = _reflected(place + step * generator.standard_normal())
    if not count:
        return moved
    before, after = axes.numbers(axis, np.array([place, moved]))
    if before == after:
        after = before + (1 if moved >= place else -1)
        after = after if 0 <= after < count else 2 * before - after
    return float(axes.places(axis, np.array([after]))[0])


def _reflected(place: float) -> float:
    """A coordinate beyond 0 or 1 folded back between them."""
    place = abs(place) % 2.0
    return 2.0 - place if place > 1.0 else place
