"""Hyperparameters for the rest of a training that is under way: `strategy="pb2"`.

Parker-Holder et al. (2020), "Provably Efficient Online Hyperparameter Optimization with Population-Based Bandits". A
Gaussian process learns from all intervals between levels by how much the metric got better in each, given the
configuration and how far the training was; the new configuration is the one with the highest upper confidence bound.

Unlike the paper's kernel, which forgets at a fixed rate, ours has the level for one more axis: at what rate other
levels cease to matter is fitted to the data. The kernel also takes choices and conditional parameters, as that of
`bayesian` does, and the search is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import compress, pairwise

import numpy as np

from metta.sweep.model.acquisition import Acquisition
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobStatus, Parent, RunInfo
from metta.sweep.model.space import Config, SearchSpace, Uniform
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers import initial_design
from metta.sweep.optimizers.blas import one_thread
from metta.sweep.optimizers.encoding import Booleans, Encoder, Floats
from metta.sweep.optimizers.features import FeatureMap
from metta.sweep.optimizers.sampling import rng, suggest_distinct
from metta.sweep.optimizers.search import Search
from metta.sweep.optimizers.surrogate import Posterior, fit
from metta.sweep.optimizers.warping import Warping
from metta.sweep.protocols import History, Suggestion

#: Intervals that the model is made of, at most: those at the nearest levels, of these the latest.
_MOST_ROWS = 200
#: With fewer the model would know nothing.
_FEWEST_ROWS = 4
#: Intervals in which most was gained, around which candidates are sought, as they are around the parent.
_CENTRES = 4
#: Of the confidence bound's width after t intervals, beta = c1 + log(c2 t), as in the authors' code.
_C1, _C2 = 0.2, 0.4


class PB2Optimizer:
    """Suggests what is expected to improve a training most from where it is; before there is one, spreads evenly.

    Founders of a population, and all runs of a sweep that has none, are points of a scrambled Sobol sequence.
    """

    def check(self, config: SweepConfig) -> None:
        """Every space has a model."""

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`; nothing for a run that goes on from another's while too little is known."""
        config = history.config
        if history.parent is None or config.fidelity is None or not config.search_space.dimensions:
            dimensions = len(config.search_space.dimensions)
            return suggest_distinct(
                history, n, lambda index, _: initial_design.point(config.seed, index, dimensions), "spread evenly"
            )
        intervals = _nearest(_in_space(config.search_space, _intervals(history, config.fidelity)), history.parent.level)
        if len(intervals) < _FEWEST_ROWS:
            return []
        with one_thread():
            return [_suggestion(history, history.parent, config.fidelity, intervals)]


@dataclass(frozen=True)
class _Interval:
    """What a run made of the way from one level to the next."""

    config: Config
    #: Where it begins.
    level: float
    #: By how much the metric changed for each unit of the resource; less is better.
    change: float
    #: In which order they ended.
    order: tuple[float, int]


def _intervals(history: History, fidelity: Fidelity) -> Iterator[_Interval]:
    sign = -1.0 if history.config.direction == "maximize" else 1.0
    for run in history.runs.values():
        if run.status is JobStatus.ROLLED_BACK:
            continue
        steps = [(rung.level, rung.value, float(rung.seq)) for rung in run.rungs]
        if run.status is JobStatus.COMPLETED and run.score is not None:
            steps.append((fidelity.maximum, run.score, math.inf))
        # What its parent did counts for the parent.
        own = steps[max(0, run.inherited - 1) :]
        for (level, before, _), (end, after, seq) in pairwise(own):
            change = sign * (after / (end - level) - before / (end - level))
            if math.isfinite(change):
                yield _Interval(run.config, level, change, (seq, run.index))


def _in_space(space: SearchSpace, intervals: Iterator[_Interval]) -> Iterator[_Interval]:
    """Without those of configurations that the space, amended since, does not hold."""
    found = list(intervals)
    return compress(found, Encoder(space).encode([each.config for each in found])[2])


def _nearest(intervals: Iterator[_Interval], level: float) -> list[_Interval]:
    """Those at levels nearest to this one, of equal ones the latest, in the order in which they ended."""
    nearest = sorted(intervals, key=lambda each: (abs(each.level - level), -each.order[0], -each.order[1]))
    return sorted(nearest[:_MOST_ROWS], key=lambda each: each.order)


class _PinnedMap(FeatureMap):
    """A feature map in which some axes stand still.

    Args:
        space: The space.
        pinned: By axis, the point where it stands.
    """

    def __init__(self, space: SearchSpace, pinned: Mapping[int, float]) -> None:
        super().__init__(space)
        self._pinned = np.array(list(pinned), dtype=np.int64)
        self._still = np.array(list(pinned.values()))
        self.is_smooth[self._pinned] = False

    def settle(self, units: Floats) -> tuple[Floats, Booleans]:
        """See `FeatureMap.settle`; the pinned axes are moved to where they stand."""
        units = units.copy()
        units[:, self._pinned] = self._still
        return super().settle(units)


@dataclass
class _UpperBound:
    """What is maximised: the gain that is expected, and some of its uncertainty."""

    posterior: Posterior
    width: float

    def __call__(self, features: Floats) -> Floats:
        """Values (q,) at features (q, f)."""
        mean, deviation = self.posterior.predict(features)
        return self.width * deviation - mean

    def with_slopes(self, features: Floats) -> tuple[Floats, Floats]:
        """Values (q,), and their derivatives by the features (q, f)."""
        mean, deviation, of_mean, of_deviation = self.posterior.predict_with_slopes(features)
        return self.width * deviation - mean, self.width * of_deviation - of_mean


def _suggestion(history: History, parent: Parent, fidelity: Fidelity, intervals: list[_Interval]) -> Suggestion:
    space, index = history.config.search_space, history.count
    level = parent.level / fidelity.maximum
    feature_map = _map(space, {**_fixed_places(space, history.fixed), len(space.dimensions): level})
    encoder = Encoder(space)
    units, active, _ = _with_levels(encoder, [(each.config, each.level / fidelity.maximum) for each in intervals])
    changes = np.array([each.change for each in intervals])
    warping = Warping.of(changes)
    features = feature_map.features(units, active)
    posterior = Posterior(fit(feature_map, features, warping.targets), feature_map, features, warping.targets)
    pending = [(run.config, run.rungs[-1].level / fidelity.maximum) for run in _under_way(history, parent)]
    believed, exists, fit_in = _with_levels(encoder, pending)
    believed, exists = believed[fit_in], exists[fit_in]
    if len(believed):
        posterior.believe(feature_map.features(believed, exists))
    width = 2.0 * history.exploration * math.sqrt(max(_C1, _C1 + math.log(_C2 * len(changes))))
    bound = _UpperBound(posterior, width)
    gained = units[np.argsort(changes, kind="stable")[:_CENTRES]]
    at_parent, _, fits_in = _with_levels(encoder, [(history.runs[parent.run_id].config, level)])
    centres = feature_map.settle(np.concatenate([gained, at_parent[fits_in]]))[0]
    search = Search(feature_map, bound, centres, units[:0], believed)
    found = search.run(rng(history.config.seed, index))
    best = found.units[0] if len(found.values) else centres[-1]
    settled, is_there = feature_map.settle(best[None])
    mean, deviation = posterior.predict(feature_map.features(settled, is_there))
    sign = -1.0 if history.config.direction == "maximize" else 1.0
    gain, spread = sign * warping.score(float(mean[0])), abs(warping.difference(float(deviation[0])))
    reason = (
        f"expected to change {history.config.metric} by {gain:.3g} ± {spread:.2g} with each {fidelity.resource} from "
        f"{parent.level:g} on: a model of {len(changes)} intervals"
    )
    value = float(bound(feature_map.features(settled, is_there))[0])
    return Suggestion(
        config=space.decode(best[:-1].tolist()), reasons=(reason,), acquisition=Acquisition(acquisition_value=value)
    )


def _map(space: SearchSpace, pinned: Mapping[int, float]) -> _PinnedMap:
    """That of the space, and of the level as its last axis."""
    name = "level"
    while name in space.parameters:
        name += "'"
    return _PinnedMap(SearchSpace(parameters={**space.parameters, name: Uniform(low=0.0, high=1.0)}), pinned)


def _fixed_places(space: SearchSpace, fixed: Config) -> dict[int, float]:
    axes = {name: axis for axis, name in enumerate(space.dimensions)}
    return {axes[name]: space.parameters[name].encode(value) for name, value in fixed.items() if name in axes}


def _with_levels(encoder: Encoder, rows: list[tuple[Config, float]]) -> tuple[Floats, Booleans, Booleans]:
    """As `Encoder.encode`, with the levels as the last axis."""
    units, active, fits = encoder.encode([config for config, _ in rows])
    levels = np.array([level for _, level in rows], dtype=np.float64)[:, None]
    return np.hstack([units, levels]), np.hstack([active, np.ones(levels.shape, dtype=np.bool_)]), fits


def _under_way(history: History, parent: Parent) -> list[RunInfo]:
    """Runs that are on their way from a level to the next, or are about to be: what they gain is not known yet."""
    alive = [run for run in history.runs.values() if not run.status.ended and run.rungs]
    return sorted((run for run in alive if run.run_id != parent.replaces), key=lambda run: run.index)
