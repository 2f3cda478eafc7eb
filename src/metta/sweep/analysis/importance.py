"""How much each parameter matters to the score, and which matter together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

import msgspec
import numpy as np

from metta.sweep.analysis.comparable import Comparable
from metta.sweep.analysis.fanova import Floats, Tree, Variances
from metta.sweep.errors import MissingExtraError
from metta.sweep.model.parameters import Parameter
from metta.sweep.model.space import Config, SearchSpace

#: As many as Optuna and the authors' own code grow.
_TREES = 64
#: Rows that the forest learns from; more are drawn from. Its shares hardly change from there on, its time does.
_MOST_RUNS = 2_000
#: Interactions are looked for among so many parameters, those that matter most on their own.
_MOST_PARAMETERS = 8
#: Runs in a leaf: one alone tells more of its luck than of its parameters, and leaves take time with their square.
_LEAST_LEAF = 2
#: A forest of fewer runs tells of the runs, not of the parameters.
_FEWEST_RUNS = 10
#: Between these shares of the trees lies the interval that is given.
_LOW, _HIGH = 0.1, 0.9
#: What scores are divided by at least.
_SMALLEST = 1e-300
#: Scores worse than the worst quartile by more than so many interquartile ranges are drawn in: Tukey's outer fence.
_FENCE = 3.0


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What part of the score's variance over the search space one parameter, or two together, account for."""

    parameters: tuple[str, ...]
    #: From 0 to 1, the mean over the trees; of two parameters without what each accounts for alone.
    share: float
    #: Eight of ten trees, each grown from other runs, lie between.
    low: float
    high: float


class Importance(msgspec.Struct, frozen=True, kw_only=True):
    """Where differences between scores come from. What the shares leave of 1 are interactions of more parameters."""

    #: Most important first.
    parameters: tuple[Share, ...]
    interactions: tuple[Share, ...]
    #: What part of the variance of runs that a tree has not seen the forest predicts (R²): near 0, or below, it has
    #: learned nothing, and the shares mean nothing.
    explained: float
    #: How many runs it was learned from, and how far these were trained: see `Comparable`.
    runs: int
    level: float | None


def importance(space: SearchSpace, compared: Comparable, *, maximize: bool) -> Importance | None:
    """Do fANOVA on the unit cube of the search space, on which each parameter is uniform in the measure it is drawn by.

    A logarithmic parameter counts by its logarithm, and so on. Choices stand on their axis in the order in which they
    were given, each as wide as any other. What does not exist in a run, because its condition does not hold, stands at
    a random place: so nothing can be read from it, and a parameter counts as far as it matters where it exists. Single
    scores far beyond the others on the worse side, such as those of trainings that diverged, are drawn in, or their
    variance would be all there is.

    Returns:
        None where there is nothing to learn: fewer than ten runs, or all of the same score or configuration.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    names = space.dimensions
    scores = np.array(compared.values, dtype=np.float64)
    scores = _scaled(_fenced(_scaled(scores), maximize=maximize))
    if len(scores) < _FEWEST_RUNS or not names or np.ptp(scores) == 0:
        return None
    generator = np.random.default_rng(0)
    configs = [run.config for run in compared.runs]
    if len(configs) > _MOST_RUNS:
        chosen = np.sort(generator.choice(len(configs), _MOST_RUNS, replace=False))
        configs, scores = [configs[row] for row in chosen], scores[chosen]
        if np.ptp(scores) == 0:
            return None
    points = unit_points(space, configs, generator)
    trees, explained = _forest(points, _scaled(scores - scores.mean()))
    variances = [each for tree in trees if (each := Variances(tree, len(names))).total > 0]
    if not variances:
        return None
    alone = [_share((name,), [each.alone(axis) / each.total for each in variances]) for axis, name in enumerate(names)]
    order = sorted(range(len(names)), key=lambda axis: -alone[axis].share)
    pairs = combinations(sorted(order[:_MOST_PARAMETERS]), 2)
    together = [
        _share((names[first], names[second]), [each.together(first, second) / each.total for each in variances])
        for first, second in pairs
    ]
    return Importance(
        parameters=tuple(alone[axis] for axis in order),
        interactions=tuple(sorted(together, key=lambda share: -share.share)),
        explained=explained,
        runs=len(scores),
        level=compared.level,
    )


def unit_points(space: SearchSpace, configs: Sequence[Config], generator: np.random.Generator) -> Floats:
    """The configurations as points (n, d) of the unit cube; what does not exist, or does not fit, at random."""
    points = generator.random((len(configs), len(space.dimensions)))
    for axis, name in enumerate(space.dimensions):
        column = _column(space.parameters[name], [config.get(name) for config in configs])
        points[:, axis] = np.where(np.isnan(column), points[:, axis], column)
    return points


def _column(parameter: Parameter, values: Sequence[object]) -> Floats:
    encode, contains = parameter.encode, parameter.contains
    return np.array([encode(value) if contains(value) else math.nan for value in values], dtype=np.float64)


def _scaled(scores: Floats) -> Floats:
    """To at most 1: no difference to shares, but sums of squares of any floats would leave the range of floats."""
    return scores / max(float(np.abs(scores).max(initial=0.0)), _SMALLEST)


def _fenced(scores: Floats, *, maximize: bool) -> Floats:
    if not len(scores):
        return scores
    low, high = np.quantile(scores, [0.25, 0.75])
    spread = _FENCE * (high - low)
    if spread == 0:  # half of the scores are one: there is no telling what is far
        return scores
    return np.clip(scores, low - spread, None) if maximize else np.clip(scores, None, high + spread)


def _forest(points: Floats, scores: Floats) -> tuple[list[Tree], float]:
    """The trees, and the R² of what each run is predicted by those that were grown without it."""
    try:
        from sklearn.ensemble import RandomForestRegressor
    except ImportError as error:
        raise MissingExtraError(
            'importance: needs scikit-learn; install it with: pip install "metta-sweep[analysis]"'
        ) from error
    forest = RandomForestRegressor(_TREES, min_samples_leaf=_LEAST_LEAF, oob_score=True, random_state=0)
    forest.fit(points, scores)
    trees = [
        Tree(
            left=each.tree_.children_left,
            right=each.tree_.children_right,
            axis=each.tree_.feature,
            threshold=each.tree_.threshold,
            value=each.tree_.value[:, 0, 0],
        )
        for each in forest.estimators_
    ]
    return trees, float(forest.oob_score_)


def _share(parameters: tuple[str, ...], of_trees: Sequence[float]) -> Share:
    low, high = np.quantile(of_trees, [_LOW, _HIGH])
    return Share(parameters=parameters, share=float(np.mean(of_trees)), low=float(low), high=float(high))
