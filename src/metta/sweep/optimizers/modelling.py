"""From a sweep's runs to what the acquisition needs: rows, hyperparameters, and what pending runs are taken for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from metta.sweep.optimizers.acquisition import LogImprovement
from metta.sweep.optimizers.columns import Columns
from metta.sweep.optimizers.encoding import Booleans, Floats, Integers
from metta.sweep.optimizers.features import FeatureMap
from metta.sweep.optimizers.kernel import Hyperparameters
from metta.sweep.optimizers.subset import chosen_rows
from metta.sweep.optimizers.surrogate import Posterior, fit
from metta.sweep.optimizers.warping import Warping

_Kind: TypeAlias = Literal["score", "success", "cost"]

#: Rows that the model is made of, and rows that hyperparameters are fitted to, at most.
MOST_ROWS, MOST_FITTED = 400, 200
#: Hyperparameters are fitted anew when there are this many times as many rows.
_GROWTH = 1.08
#: Best runs around which candidates are sought.
_CENTRES = 5
#: Deviations are multiplied by this where all is to be explored, and divided by it where nothing is.
_WIDEST = 4.0
_SHORTEST_COST_S = 1e-3


def fitted_at(count: int) -> int:
    """The number of rows, the first ones, that hyperparameters for `count` rows are fitted to.

    A function of the count alone: a new process fits once, to the very rows that an old one fitted to before.
    """
    size = 1
    while (following := max(size + 1, math.ceil(size * _GROWTH))) <= count:
        size = following
    return size


@dataclass
class Model:
    """What is known and believed of the space at one moment."""

    feature_map: FeatureMap
    acquisition: LogImprovement
    warping: Warping
    #: (c, d) points of the runs that the model thinks best.
    centres: Floats
    #: (m, d) and (p, d) points of runs that have ended, and of those on their way.
    measured: Floats
    pending: Floats
    #: Score of the best run (lower is better), as measured, and its `RunInfo.index`.
    best_score: float
    best_index: int
    #: Runs with a score.
    count: int

    def believe(self, units: Floats, active: Booleans) -> None:
        """Take the points (q, d) for measured, each with the score that the model expects.

        The deviation falls to that of the noise, so that the next suggestion goes elsewhere ("Kriging believer",
        Ginsbourger et al. 2010).
        """
        if len(units):
            self.acquisition.posterior.believe(self.feature_map.features(units, active))
            self.pending = np.concatenate([self.pending, units])


class Modeller:
    """Makes models; remembers the hyperparameters last fitted, which never changes what it makes."""

    def __init__(self, *, cost_aware: bool) -> None:
        self._cost_aware = cost_aware
        self._fitted: dict[_Kind, tuple[object, FeatureMap, int, Hyperparameters]] = {}

    def model(self, feature_map: FeatureMap, columns: Columns, exploration: float) -> Model:
        """The model of these runs, two of which have scores at least."""
        scores, deviations = columns.forecast()
        is_scored = np.isfinite(scores)
        ranking = scores if is_scored.all() else np.where(is_scored, scores, np.inf)
        rows = chosen_rows(columns.units, ranking, MOST_ROWS)
        rows = rows[is_scored[rows]]
        warping = Warping.of(scores[rows])
        features = feature_map.features(columns.units[rows], columns.active[rows])
        hyperparameters = self._hyperparameters("score", feature_map, columns, columns.forecast, is_scored)
        uncertainty = warping.variances(scores[rows], deviations[rows])
        posterior = Posterior(hyperparameters, feature_map, features, warping.targets, uncertainty)
        means = posterior.predict(features)[0]
        order = np.argsort(means, kind="stable")
        best = int(np.argmin(np.where(deviations > 0, np.inf, ranking)))
        acquisition = LogImprovement(
            posterior,
            best=float(means[order[0]]),
            widening=_WIDEST ** (2.0 * exploration - 1.0),
            success=None if is_scored.all() else self._success(feature_map, columns, ranking, is_scored),
        )
        if self._cost_aware:
            acquisition.cost, acquisition.cost_size = self._cost(feature_map, columns, rows)
        model = Model(
            feature_map,
            acquisition,
            warping,
            centres=columns.units[rows[order[:_CENTRES]]],
            measured=columns.units[rows],
            pending=columns.pending_units[:0],
            best_score=float(scores[best]),
            best_index=int(columns.indices[best]),
            count=int(is_scored.sum()),
        )
        model.believe(columns.pending_units, columns.pending_active)
        return model

    def _success(self, feature_map: FeatureMap, columns: Columns, ranking: Floats, is_scored: Booleans) -> Posterior:
        """A regression of whether runs end well."""
        labels = np.where(is_scored, 1.0, -1.0)
        everywhere = np.ones(len(labels), dtype=np.bool_)
        values = partial(_first, labels)
        hyperparameters = self._hyperparameters("success", feature_map, columns, values, everywhere)
        rows = chosen_rows(columns.units, ranking, MOST_ROWS)
        features = feature_map.features(columns.units[rows], columns.active[rows])
        return Posterior(hyperparameters, feature_map, features, labels[rows])

    def _cost(self, feature_map: FeatureMap, columns: Columns, rows: Integers) -> tuple[Posterior, float]:
        """A regression of the logarithms of the costs, standardised, and their size."""
        logarithms = np.log(np.maximum(columns.costs, _SHORTEST_COST_S))
        usable = np.isfinite(columns.scores)
        values = partial(_first, logarithms)
        hyperparameters = self._hyperparameters("cost", feature_map, columns, values, usable)
        targets, size = _standardised(logarithms[rows])
        features = feature_map.features(columns.units[rows], columns.active[rows])
        return Posterior(hyperparameters, feature_map, features, targets), size

    def _hyperparameters(
        self,
        kind: _Kind,
        feature_map: FeatureMap,
        columns: Columns,
        values_of: Callable[[int], tuple[Floats, Floats]],
        usable: Booleans,
    ) -> Hyperparameters:
        """Fitted to as many of the first usable values as the schedule has it, or some of them.

        `values_of` gives the values of the first so many runs, as they would be if there were no others, and their
        deviations.
        """
        count = fitted_at(len(usable))
        if np.count_nonzero(usable[:count]) < 2:
            count = len(usable)
        known = self._fitted.get(kind)
        if known is not None and known[0] is columns.lineage and known[1] is feature_map and known[2] == count:
            return known[3]
        scores, (values, deviations) = columns.forecast(count)[0], values_of(count)
        ranking = np.where(np.isfinite(scores), scores, np.inf)
        rows = chosen_rows(columns.units[:count], ranking, MOST_FITTED)
        rows = rows[usable[rows]]
        features = feature_map.features(columns.units[rows], columns.active[rows])
        fitted = fit(feature_map, features, *_PREPARED[kind](values[rows], deviations[rows]))
        self._fitted[kind] = (columns.lineage, feature_map, count, fitted)
        return fitted


def _first(values: Floats, count: int) -> tuple[Floats, Floats]:
    return values[:count], np.zeros(count)


def _standardised(values: Floats) -> tuple[Floats, float]:
    size = float(values.std()) or 1.0
    return (values - values.mean()) / size, size


def _warped(scores: Floats, deviations: Floats) -> tuple[Floats, Floats | float]:
    warping = Warping.of(scores)
    return warping.targets, warping.variances(scores, deviations)


#: What each model is made to predict, from values and their deviations: targets, and variances of these.
_PREPARED: dict[_Kind, Callable[[Floats, Floats], tuple[Floats, Floats | float]]] = {
    "score": _warped,
    "success": lambda labels, _: (labels, 0.0),
    "cost": lambda logarithms, _: (_standardised(logarithms)[0], 0.0),
}
