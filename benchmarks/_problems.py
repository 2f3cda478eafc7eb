"""What the optimizers are compared on, and the two scores of each problem between which regret is measured."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import msgspec
import numpy as np

import _functions
import _lcbench
import _training
from metta.sweep.model.space import Config, SearchSpace
from metta.sweep.model.sweep import Direction

#: Suites of problems, with the names of those that are always the same.
SUITES: dict[str, tuple[str, ...]] = {
    "lcbench": (),
    "synthetic": ("branin", "hartmann6", "ackley10"),
    "training": ("svm-digits", "boosting-diabetes", "mlp-cancer"),
}
#: Random configurations that a problem's median is taken from: as many as take seconds, up to a minute in training.
_SAMPLE = {"lcbench": 50_000, "synthetic": 20_000, "training": 300}
_SAMPLE_SEED = 20_240_229
#: The search around the best of the sample: so many points, so many children of each, so many generations.
_PARENTS, _CHILDREN, _GENERATIONS = 50, 20, 25


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A space to search and what its configurations score."""

    name: str
    suite: str
    space: SearchSpace
    direction: Direction
    #: The score of each configuration; NaN where it has none.
    evaluate: Callable[[Sequence[Config]], np.ndarray]
    #: The best score there is, where that is known.
    optimum: float | None = None
    _known: dict[bytes, float | None] = field(default_factory=dict)

    def score(self, config: Config) -> float | None:
        """The score of a configuration, computed once; None where the training fails."""
        key = self.space.key(config)
        if key not in self._known:
            value = float(self.evaluate([config])[0])
            self._known[key] = value if math.isfinite(value) else None
        return self._known[key]

    @property
    def sign(self) -> float:
        """What a score is multiplied with so that less is better."""
        return -1.0 if self.direction == "maximize" else 1.0

    def fingerprint(self) -> str:
        """Changes with the space and with what is scored: tells whether kept results still hold."""
        centre = self.space.decode([0.5] * len(self.space.dimensions))
        described = msgspec.json.encode((self.name, self.space, self.direction, self.score(centre)))
        return hashlib.sha256(described).hexdigest()[:16]


class Reference(msgspec.Struct, frozen=True):
    """Scores that stand for regrets of 0 and 1; both such that less is better."""

    best: float
    median: float

    def regret(self, scores: np.ndarray) -> np.ndarray:
        """Normalised regret of scores of which less is better."""
        return (scores - self.best) / (self.median - self.best)


def names(suites_or_names: Sequence[str], instances: Sequence[str]) -> list[str]:
    """The problems asked for; ends the script where there is none of a name."""
    wanted: list[str] = []
    single = [name for suite in SUITES.values() for name in suite]
    for each in suites_or_names:
        if each == "lcbench":
            wanted += [f"lcbench-{instance}" for instance in _checked(instances)]
        elif each in SUITES:
            wanted += SUITES[each]
        elif each in single:
            wanted.append(each)
        elif each.startswith("lcbench-"):
            wanted += [f"lcbench-{instance}" for instance in _checked([each.removeprefix("lcbench-")])]
        else:
            raise SystemExit(f"there is no problem {each!r}; there are {', '.join([*SUITES, *single])}")
    return list(dict.fromkeys(wanted))


def _checked(instances: Sequence[str]) -> Sequence[str]:
    there = _lcbench.surrogate().instances
    if unknown := [instance for instance in instances if instance not in there]:
        raise SystemExit(f"LCBench has no instance {', '.join(unknown)}; there are {', '.join(there)}")
    return instances


@cache
def problem(name: str) -> Problem:
    """The problem of this name; one object in each process, so that what was trained is remembered."""
    if name.startswith("lcbench-"):
        surrogate = _lcbench.surrogate()
        return Problem(
            name=name,
            suite="lcbench",
            space=surrogate.space,
            direction="maximize",
            evaluate=partial(surrogate.accuracies, name.removeprefix("lcbench-")),
        )
    return {
        "branin": partial(_synthetic, _functions.BRANIN_SPACE, _functions.branin, _functions.BRANIN_MINIMUM),
        "hartmann6": partial(_synthetic, _functions.HARTMANN_SPACE, _functions.hartmann, _functions.HARTMANN_MINIMUM),
        "ackley10": partial(_synthetic, _functions.ACKLEY_SPACE, _functions.ackley, _functions.ACKLEY_MINIMUM),
        "svm-digits": partial(_trained, _training.SVM_SPACE, _training.svm_digits, "maximize"),
        "boosting-diabetes": partial(_trained, _training.BOOSTING_SPACE, _training.boosting_diabetes, "minimize"),
        "mlp-cancer": partial(_trained, _training.MLP_SPACE, _training.mlp_cancer, "minimize"),
    }[name](name)


def _synthetic(space: SearchSpace, function: Callable[[Config], float], minimum: float, name: str) -> Problem:
    evaluate = partial(_one_by_one, function)
    return Problem(name=name, suite="synthetic", space=space, direction="minimize", evaluate=evaluate, optimum=minimum)


def _trained(
    space: SearchSpace, training: Callable[[Config], float | None], direction: Direction, name: str
) -> Problem:
    evaluate = partial(_one_by_one, training)
    return Problem(name=name, suite="training", space=space, direction=direction, evaluate=evaluate)


def _one_by_one(function: Callable[[Config], float | None], configs: Sequence[Config]) -> np.ndarray:
    return np.array([function(config) for config in configs], float)  # None becomes NaN


def reference(of: Problem) -> Reference:
    """Regret 1 is the median of a large random sample, and regret 0 the best known.

    That is the known optimum; else the best of the sample and, where a score costs next to nothing, of an evolutionary
    search that starts from the best of the sample. The sample and the search are the same every time. Callers lower the
    best further when an optimizer has found better.
    """
    generator = np.random.default_rng(_SAMPLE_SEED)
    points = generator.random((_SAMPLE[of.suite], len(of.space.dimensions)))
    scores = _scores(of, points)
    # A failed training is worse than any that ended, and counts in the median.
    scores[np.isnan(scores)] = np.inf
    best = float(scores.min())
    if of.optimum is not None:
        best = of.sign * of.optimum
    elif of.suite == "lcbench":
        best = _searched(of, points, scores, generator)
    return Reference(best, float(np.median(scores)))


def _scores(of: Problem, points: np.ndarray) -> np.ndarray:
    """Scores of points of the unit cube; less is better."""
    return of.sign * of.evaluate([of.space.decode(point) for point in points.tolist()])


def _searched(of: Problem, points: np.ndarray, scores: np.ndarray, generator: np.random.Generator) -> float:
    """The best that is found around the best points: about half of the coordinates are moved, by less and less.

    LCBench's optima lie in corners that uniform points miss by far: on the development instances the search lowers the
    best by up to a quarter of the distance to the median.
    """
    parents = np.argsort(scores)[:_PARENTS]
    points, scores = points[parents], scores[parents]
    for generation in range(_GENERATIONS):
        children = np.repeat(points, _CHILDREN, axis=0)
        moved = generator.random(children.shape) < 0.5
        children += moved * 0.15 * 0.8**generation * generator.standard_normal(children.shape)
        children = children.clip(0.0, 1.0)
        points = np.vstack([points, children])
        scores = np.concatenate([scores, _scores(of, children)])
        survivors = np.argsort(scores)[:_PARENTS]
        points, scores = points[survivors], scores[survivors]
    return float(scores[0])
