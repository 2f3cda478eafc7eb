"""Bayesian optimization with a Gaussian process: `strategy="bayesian"`.

docs/optimizers.md tells what it is made of, why, and what was tried and rejected.
"""

from __future__ import annotations

import numpy as np

from metta.sweep.errors import ConfigError
from metta.sweep.model.acquisition import Acquisition, Alternative
from metta.sweep.model.space import Config, SearchSpace
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers import initial_design
from metta.sweep.optimizers.blas import one_thread
from metta.sweep.optimizers.columns import Columns, ColumnsCache
from metta.sweep.optimizers.encoding import Encoder, Floats
from metta.sweep.optimizers.expected_improvement import expected_improvement
from metta.sweep.optimizers.features import FeatureMap
from metta.sweep.optimizers.modelling import Model, Modeller
from metta.sweep.optimizers.sampling import rng, suggest_distinct, untried
from metta.sweep.optimizers.search import Points, Search, off_the_faces
from metta.sweep.protocols import History, Suggestion

#: Finite spaces up to this size are looked at whole.
_SMALL = 2000
#: Alternatives that go to the log.
_ALTERNATIVES = 3
#: Suggestions of one call that are searched for with full effort; the others share a fourth of it each.
_THOROUGH = 4
#: Beyond so many dimensions the effort falls.
_MANY = 15


class GaussianProcessOptimizer:
    """Suggests what is expected to improve most on the best run so far.

    Args:
        cost_aware: Whether to look for improvement per compute second rather than per run.
    """

    def __init__(self, cost_aware: bool = False) -> None:
        if not isinstance(cost_aware, bool):
            raise ConfigError(f"strategy: bayesian needs cost_aware to be true or false, got {cost_aware!r}")
        self._columns = ColumnsCache()
        self._modeller = Modeller(cost_aware=cost_aware)
        self._cost_aware = cost_aware
        self._feature_map: FeatureMap | None = None
        #: Of small finite spaces, all points and their keys.
        self._whole: tuple[Floats, list[bytes]] | None = None

    def check(self, config: SweepConfig) -> None:
        """Every space has a model."""

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        config = history.config
        columns = self._columns.of(history)
        dimensions = len(config.search_space.dimensions)
        is_known = int(np.isfinite(columns.scores).sum()) >= 2 and dimensions > 0
        begun = min(n, max(0, initial_design.size(config.search_space) - history.count)) if is_known else n
        suggestions = suggest_distinct(
            history, begun, lambda index, _: initial_design.point(config.seed, index, dimensions), "initial point"
        )
        if begun < n and len(suggestions) == begun:
            with one_thread():
                suggestions += self._modelled(history, columns, suggestions, n - begun)
        return suggestions

    def _modelled(self, history: History, columns: Columns, begun: list[Suggestion], n: int) -> list[Suggestion]:
        space = history.config.search_space
        feature_map = self._map(space)
        model = self._modeller.model(feature_map, columns, history.exploration)
        if begun:
            model.believe(*feature_map.settle(np.array([space.encode(suggestion.config) for suggestion in begun])))
        chosen = {space.key(suggestion.config) for suggestion in begun}
        suggestions: list[Suggestion] = []
        first = history.count + len(begun)
        for index in range(first, first + n):
            generator = rng(history.config.seed, index)
            effort = 1.0 if index < first + _THOROUGH else 0.25
            # In many dimensions every candidate costs more; better fewer of them than slots that wait.
            effort *= min(1.0, _MANY / feature_map.dimensions)
            found = self._found(history, chosen, model, generator, effort)
            best = found.units[0] if len(found.values) else generator.random(feature_map.dimensions)
            best = off_the_faces(feature_map, best, generator)
            config = untried(history, chosen, space.decode(best.tolist()), generator)
            if config is None:
                break
            units, active = feature_map.settle(np.array([space.encode(config)]))
            values = model.acquisition(feature_map.features(units, active))
            suggestions.append(self._suggestion(history, model, config, Points(units, active, values), found))
            model.believe(units, active)
        return suggestions

    def _map(self, space: SearchSpace) -> FeatureMap:
        if self._feature_map is None or self._feature_map.space != space:
            self._feature_map = FeatureMap(space)
            self._whole = None
        return self._feature_map

    def _found(
        self, history: History, chosen: set[bytes], model: Model, generator: np.random.Generator, effort: float
    ) -> Points:
        """Points worth suggesting, best first."""
        space = history.config.search_space
        search = Search(model.feature_map, model.acquisition, model.centres, model.measured, model.pending)
        if space.cardinality is None or space.cardinality > _SMALL:
            return search.run(generator, effort)
        if self._whole is None:
            configs = [space.lattice.at(index) for index in range(space.lattice.size)]
            self._whole = Encoder(space).encode(configs)[0], [space.key(config) for config in configs]
        units, keys = self._whole
        return search.among(units[[key not in history.tried and key not in chosen for key in keys]])

    def _suggestion(self, history: History, model: Model, config: Config, chosen: Points, found: Points) -> Suggestion:
        space = history.config.search_space
        decoded = [config] + [space.decode(units.tolist()) for units in found.units[: 2 * _ALTERNATIVES]]
        others = [row for row in range(len(decoded) - 1) if decoded[row + 1] != config][:_ALTERNATIVES]
        points = chosen + found.take(np.array(others, dtype=np.int64))
        features = model.feature_map.features(points.units, points.active)
        means, deviations = model.acquisition.posterior.predict(features)
        improvements = [
            model.warping.difference(expected_improvement(mean, deviation, model.acquisition.best))
            for mean, deviation in zip(means.tolist(), deviations.tolist(), strict=True)
        ]
        sign = -1.0 if history.config.direction == "maximize" else 1.0
        score, deviation = sign * model.warping.score(float(means[0])), model.warping.difference(float(deviations[0]))
        acquisition = Acquisition(
            acquisition_value=float(points.values[0]),
            expected_improvement=improvements[0],
            predicted_score=score,
            predicted_deviation=deviation,
            alternatives=tuple(
                Alternative(config=decoded[row + 1], acquisition_value=float(value), expected_improvement=improvement)
                for row, value, improvement in zip(others, points.values[1:], improvements[1:], strict=True)
            ),
        )
        reason = (
            f"expected to beat {sign * model.best_score:.6g} of run {model.best_index} by {improvements[0]:.3g}"
            f"{' at little cost' if self._cost_aware else ''}: a model of {model.count} runs predicts "
            f"{score:.6g} ± {deviation:.2g}"
        )
        return Suggestion(config=config, reasons=(reason,), acquisition=acquisition)
