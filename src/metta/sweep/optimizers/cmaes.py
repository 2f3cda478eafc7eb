"""CMA-ES: a normal distribution that moves and stretches towards where runs score well."""

from __future__ import annotations

import numpy as np
from cmaes import CatCMAwM

from metta.sweep.errors import ConfigError
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers.axes import Axes
from metta.sweep.optimizers.columns import Columns, ColumnsCache
from metta.sweep.optimizers.encoding import Floats
from metta.sweep.optimizers.options import check_count
from metta.sweep.optimizers.sampling import rng, suggest_distinct
from metta.sweep.protocols import History, Suggestion

#: Stepped parameters of more values have steps so small that they count as continuous.
_MOST_STEPS = 512
#: A draw beyond the bounds is drawn again so often before it is cut off there, and one that was made before.
_REDRAWS = 20
#: A generation that differs by less along every ordered axis, as a share of its range, has converged: no training
#: answers to less.
_CONVERGED = 1e-6
#: The package takes seeds below this.
_SEEDS = 2**32


class CMAESOptimizer:
    """Covariance matrix adaptation, of steps and categories as well.

    CatCMA with margin (Hamano et al. 2025), of the `cmaes` package: a normal distribution for the ordered parameters
    that never loses sight of the next step, and probabilities for categories; both follow the natural gradient. When it
    has converged it begins anew elsewhere, with a population twice as large (IPOP; Auger & Hansen 2005).

    The distribution is a function of the runs that have ended, in the order in which they did. As many as the
    population counts are a generation, whatever they were drawn from: with many runs on their way a slow one holds
    nothing up. Only ranks count, and failed runs rank last. From what does not exist in a configuration nothing is
    learned.

    Args:
        sigma: Standard deviation at the start along every ordered axis, as a share of its range.
        population: Runs of a generation; 4 + 3 ln(parameters) unless given.
    """

    def __init__(self, sigma: float = 0.25, population: int | None = None) -> None:
        if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 < sigma <= 1:
            raise ConfigError(f"strategy: cmaes needs sigma to be a number above 0 and at most 1, got {sigma!r}")
        if population is not None:
            check_count("cmaes", "population", population, least=4)
        self._sigma, self._population = float(sigma), population
        self._columns = ColumnsCache()
        self._search: _Search | None = None

    def check(self, config: SweepConfig) -> None:
        """Every space can be searched."""

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        columns = self._columns.of(history)
        if self._search is None or not self._search.is_of(history.config, columns):
            self._search = _Search(history.config, self._sigma, self._population)
        search = self._search
        search.learn(columns)
        reason = f"CMA-ES, generation {search.generation}, draw"
        return suggest_distinct(history, n, lambda _, generator: search.draw(generator), reason, redraws=_REDRAWS)


class _Search:
    """The search distribution after the complete generations of a history. It goes on, but not back."""

    def __init__(self, config: SweepConfig, sigma: float, population: int | None) -> None:
        self._config, self._sigma = config, sigma
        self._axes = Axes(config.search_space)
        self._layout = _Layout(self._axes)
        self._told: Columns | None = None
        #: Runs in the complete generations.
        self._count = 0
        self.generation = 0
        self._distribution = self._begin(np.full(len(self._layout.ordered), 0.5), population)

    def is_of(self, config: SweepConfig, columns: Columns) -> bool:
        """Whether all that was learned stands at the beginning of these columns."""
        if (config.search_space, config.seed) != (self._config.search_space, self._config.seed):
            return False
        told, count = self._told, self._count
        return told is None or (
            np.array_equal(columns.indices[:count], told.indices[:count])
            and np.array_equal(columns.scores[:count], told.scores[:count], equal_nan=True)
            and np.array_equal(columns.units[:count], told.units[:count])
        )

    def learn(self, columns: Columns) -> None:
        """Take the generations that are complete by now."""
        distribution = self._distribution
        while distribution is not None and len(columns.scores) >= self._count + distribution.population_size:
            rows = np.arange(self._count, self._count + distribution.population_size)
            self._tell(distribution, columns, rows[np.argsort(columns.scores[rows], kind="stable")])
            self._count += len(rows)
            self.generation += 1
            if self._has_converged(distribution, columns.units[rows]):
                elsewhere = rng(self._config.seed, int(columns.indices[rows[-1]])).random(len(self._layout.ordered))
                self._distribution = distribution = self._begin(elsewhere, 2 * distribution.population_size)
        self._told = columns

    def draw(self, generator: np.random.Generator) -> Floats:
        """A point of the unit cube."""
        distribution = self._distribution
        if distribution is None:
            return generator.random(len(self._axes))
        distribution.reseed_rng(int(generator.integers(_SEEDS)))
        solution = distribution.ask()
        for _ in range(_REDRAWS):
            if self._layout.is_inside(solution):
                break
            solution = distribution.ask()
        return self._layout.point(solution)

    def _begin(self, mean: Floats, population: int | None) -> CatCMAwM | None:
        """None where there is nothing to choose."""
        layout = self._layout
        if not layout.ordered and not layout.categorical:
            return None
        return CatCMAwM(
            x_space=[[0.0, 1.0]] * len(layout.continuous) or None,
            z_space=list(layout.steps) or None,
            c_space=layout.category_counts or None,
            population_size=population,
            mean=mean.copy(),
            sigma=1.0,
            cov=self._sigma**2 * np.eye(len(mean)),
        )

    def _has_converged(self, distribution: CatCMAwM, generation: Floats) -> bool:
        if not self._layout.ordered:
            return False
        spread = np.ptp(generation[:, self._layout.ordered], axis=0).max()
        return bool(spread < _CONVERGED) or distribution.should_stop()

    def _tell(self, distribution: CatCMAwM, columns: Columns, ranked: Floats) -> None:
        """Let the distribution learn from these rows, best first. NaN sorts last, so failed runs rank last.

        Ranks stand for the scores, so that no score can be too large or too much like another to reckon with.
        """
        told = []
        for rank, row in enumerate(ranked.tolist()):
            point, active = columns.units[row], columns.active[row]
            if not active.all():
                # Drawn from the distribution itself, what does not exist neither pulls it anywhere nor narrows it.
                drawn = self.draw(rng(self._config.seed, int(columns.indices[row])))
                point = np.where(active, point, drawn)
            told.append((self._layout.solution(point), float(rank)))
        distribution.tell(told)


class _Layout:
    """Which axes of the cube the distribution has, and in what order: continuous, stepped, categorical.

    Parameters of two values count as categorical, as the authors advise; those of one value are left out.
    """

    def __init__(self, axes: Axes) -> None:
        counts = axes.counts
        self._axes = axes
        self.categorical = [axis for axis in axes.categorical if counts[axis] > 1]
        self.categorical += [axis for axis in axes.stepped if counts[axis] == 2]
        self.stepped = [axis for axis in axes.stepped if 2 < counts[axis] <= _MOST_STEPS]
        self.continuous = [*axes.continuous, *(axis for axis in axes.stepped if counts[axis] > _MOST_STEPS)]
        self.steps = [axes.places(axis, np.arange(counts[axis])).tolist() for axis in self.stepped]
        self.category_counts = [int(counts[axis]) for axis in self.categorical]

    @property
    def ordered(self) -> list[int]:
        """Axes of the normal distribution."""
        return [*self.continuous, *self.stepped]

    def solution(self, point: Floats) -> CatCMAwM.Solution:
        """A point as the package has it."""
        ordered = point[self.ordered]
        chosen = np.zeros((len(self.categorical), max(self.category_counts, default=0)), dtype=np.bool_)
        for row, axis in enumerate(self.categorical):
            chosen[row, self._axes.numbers(axis, point[axis : axis + 1])[0]] = True
        count = len(self.continuous)
        return CatCMAwM.Solution(ordered[:count], ordered[count:], chosen, ordered)

    def is_inside(self, solution: CatCMAwM.Solution) -> bool:
        """Whether the normal distribution's draw lay within the bounds, so that nothing of it was cut off."""
        return solution.x is None or bool(((solution.x > 0.0) & (solution.x < 1.0)).all())

    def point(self, solution: CatCMAwM.Solution) -> Floats:
        """What the package drew as a point of the cube."""
        point = np.full(len(self._axes), 0.5)
        if solution.x is not None:
            point[self.continuous] = solution.x
        if solution.z is not None:
            point[self.stepped] = solution.z
        if solution.c is not None:
            for row, axis in enumerate(self.categorical):
                number = np.flatnonzero(solution.c[row])[:1]
                point[axis] = self._axes.places(axis, number)[0]
        return point
