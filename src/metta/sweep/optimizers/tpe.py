"""Tree-structured Parzen estimator: configurations that look like the good ones and unlike the rest."""

from __future__ import annotations

import math

import numpy as np

from metta.sweep.model.acquisition import Acquisition, Alternative
from metta.sweep.model.space import Config
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers.axes import Axes
from metta.sweep.optimizers.columns import Columns, ColumnsCache
from metta.sweep.optimizers.encoding import Floats, Integers
from metta.sweep.optimizers.options import check_count
from metta.sweep.optimizers.parzen import Parzen
from metta.sweep.optimizers.sampling import rng, suggest_distinct, untried
from metta.sweep.protocols import History, Suggestion

#: Share of the observations that counts as good, and how many do at most (Optuna's; Hyperopt's is much like it).
_GOOD, _MOST_GOOD = 0.1, 25
#: Candidates that a suggestion names beside the one that it chose.
_ALTERNATIVES = 3


class TPEOptimizer:
    """Maximises l(x) / g(x), the densities of the good observations and of the others (Bergstra et al. 2011).

    Both are mixtures of one product kernel for each observation, so that what goes together stays together (the
    "multivariate" TPE of Falkner et al. 2018), over all branches of a conditional space at once: see `Parzen`. Good
    observations weigh by how far they are better than the best of the others (the weights "EI" of Watanabe 2023).
    Pending runs count among the others, as failed ones do, so that suggestions keep away from both. Of many others a
    part stands for all, so that the time a suggestion takes does not grow with the sweep.

    Args:
        startup: So many runs have to end before configurations are drawn otherwise than at random.
        candidates: Draws from l that are compared.
        most: Observations that g is made of, at most.
    """

    def __init__(self, startup: int = 10, candidates: int = 32, most: int = 300) -> None:
        for name, number in (("startup", startup), ("candidates", candidates), ("most", most)):
            check_count("tpe", name, number)
        self._startup, self._candidates, self._most = startup, candidates, most
        self._columns = ColumnsCache()
        self._axes: Axes | None = None

    def check(self, config: SweepConfig) -> None:
        """Every space can be searched."""

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        columns, space = self._columns.of(history), history.config.search_space
        if self._axes is None or self._axes.space is not space:
            self._axes = Axes(space)
        axes = self._axes
        if len(columns.scores) < self._startup or not len(axes):
            return suggest_distinct(history, n, lambda _, generator: generator.random(len(axes)), "random draw")
        # A hundredth of the weight to the whole space where all effort goes to the best, a hundredfold where none does.
        densities = _Densities(axes, columns, self._most, prior_weight=100.0 ** (2 * history.exploration - 1))
        chosen: set[bytes] = set()
        suggestions: list[Suggestion] = []
        for index in range(history.count, history.count + n):
            generator = rng(history.config.seed, index)
            suggestion = self._best(history, chosen, densities, index, generator)
            config = untried(history, chosen, suggestion.config, generator)
            if config is None:
                break
            if config is not suggestion.config:
                reason = f"random draw {index}: all that TPE came up with was tried before"
                suggestion = Suggestion(config=config, reasons=(reason,))
            suggestions.append(suggestion)
            densities.add(config)
        return suggestions

    def _best(
        self, history: History, chosen: set[bytes], densities: _Densities, index: int, generator: np.random.Generator
    ) -> Suggestion:
        points, ratios = densities.candidates(generator, self._candidates)
        space = history.config.search_space
        found: dict[bytes, tuple[Config, float]] = {}
        for row in np.argsort(-ratios, kind="stable").tolist():
            config = space.decode(points[row].tolist())
            key = space.key(config)
            if key not in history.tried and key not in chosen:
                found.setdefault(key, (config, float(ratios[row])))
            if len(found) > _ALTERNATIVES:
                break
        if not found:
            return Suggestion(config=space.decode(points[0].tolist()))
        (best, ratio), *others = found.values()
        return Suggestion(
            config=best,
            reasons=(f"TPE: of {len(points)} draws the likeliest to be among the best, suggestion {index}",),
            acquisition=Acquisition(
                acquisition_value=ratio,
                alternatives=tuple(Alternative(config=config, acquisition_value=value) for config, value in others),
            ),
        )


class _Densities:
    """l of the good observations and g of the others, those pending included."""

    def __init__(self, axes: Axes, columns: Columns, most: int, prior_weight: float) -> None:
        self._axes, self._prior_weight = axes, prior_weight
        scores = columns.comparable()
        good, others = _split(scores, most)
        weights = _improvements(scores[good], scores[others])
        self._good = Parzen(axes, columns.units[good], columns.active[good], weights=weights, prior_weight=prior_weight)
        self._points = np.vstack([columns.units[others], columns.pending_units])
        self._active = np.vstack([columns.active[others], columns.pending_active])

    def add(self, config: Config) -> None:
        """A configuration that is about to be tried."""
        self._points = np.vstack([self._points, self._axes.space.encode(config)])
        self._active = np.vstack([self._active, [name in config for name in self._axes.names]])

    def candidates(self, generator: np.random.Generator, count: int) -> tuple[Floats, Floats]:
        """Draws from l (m, d), and the logarithm of l / g at each of them (m,)."""
        weights = np.ones(len(self._points))
        others = Parzen(self._axes, self._points, self._active, weights=weights, prior_weight=self._prior_weight)
        points = self._good.sample(generator, count)
        active = self._axes.active(points)
        return points, self._good.log_density(points, active) - others.log_density(points, active)


def _split(scores: Floats, most: int) -> tuple[Integers, Integers]:
    """Rows of the good observations, best first, and of the others; failed runs, whose score is NaN, are the worst.

    Beyond `most`, others at regular intervals from best to worst stand for all of them.
    """
    count = min(math.ceil(_GOOD * len(scores)), _MOST_GOOD)
    ranked = np.argsort(scores, kind="stable")
    good, others = ranked[:count], ranked[count:]
    if len(others) > most:
        others = others[np.linspace(0, len(others) - 1, most).astype(np.int64)]
    return good, others


def _improvements(good: Floats, others: Floats) -> Floats:
    """Weights of the good observations, one on the average: by how far each beats the best of the others.

    Both are sorted, best first. All weigh the same where none is better than the others.
    """
    scored = good[~np.isnan(good)]
    if not len(scored):
        return np.ones(len(good))
    reference = others[0] if len(others) and not np.isnan(others[0]) else scored[-1]
    # Divided first, since the difference of two finite scores need not be finite.
    scale = max(np.abs(scored).max(), abs(reference), np.finfo(np.float64).tiny)
    gains = np.nan_to_num(reference / scale - good / scale, nan=0.0)
    total = gains.sum()
    return gains * (len(good) / total) if total > 0 else np.ones(len(good))
