"""From searches to figures: regret curves, means over problems, ranks, and how sure one can be of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from msgspec.structs import replace

from _contestants import Trace
from _kept import Cell
from _problems import Problem, Reference, problem

#: Resamples of the bootstrap: the ends of a 95% interval are then known to about a tenth of its width.
_RESAMPLES = 2000


def best_so_far(problem: Problem, trace: Trace, evaluations: int, reference: Reference) -> np.ndarray:
    """Normalised regret after 1, 2, ... evaluations.

    Before the first success it is that of the median, as if nothing had been learned; where a finite space was
    exhausted, it stays what it was.
    """
    scores = [np.inf if score is None else problem.sign * score for score in trace.scores[:evaluations]]
    best = np.minimum.accumulate(scores)
    best[np.isinf(best)] = reference.median
    return reference.regret(np.pad(best, (0, evaluations - len(best)), mode="edge"))


class Comparison:
    """Regret curves of several contestants on the same problems with the same seeds.

    Args:
        curves: By problem, an array of seeds x contestants x evaluations. Problems may have different numbers of seeds.
    """

    def __init__(self, curves: Mapping[str, np.ndarray]) -> None:
        self.curves = dict(curves)
        self._resamples: np.ndarray | None = None

    @property
    def cells(self) -> int:
        """Searches of each contestant."""
        return sum(len(curves) for curves in self.curves.values())

    def mean(self) -> np.ndarray:
        """Contestants x evaluations: mean over problems of the mean over seeds."""
        return np.mean([curves.mean(axis=0) for curves in self.curves.values()], axis=0)

    def ranks(self, evaluation: int) -> np.ndarray:
        """Mean rank of each contestant after so many evaluations: 1 is best; equals share theirs."""
        from scipy.stats import rankdata

        regrets = [curves[:, :, evaluation - 1] for curves in self.curves.values()]
        return np.mean([rankdata(each, axis=1).mean(axis=0) for each in regrets], axis=0)

    def interval(self, evaluation: int, contestant: int, minus: int | None = None) -> tuple[float, float]:
        """95% bootstrap interval of the mean regret, or of its difference to another contestant's.

        Problems are drawn anew, and seeds within each, so that it says how far the mean would move on other problems
        of the kind too. All contestants meet the same draws: what is hard for all of them cancels in a difference.
        """
        drawn = self._bootstrap()[:, :, evaluation - 1]
        values = drawn[:, contestant] - (drawn[:, minus] if minus is not None else 0.0)
        low, high = np.quantile(values, [0.025, 0.975])
        return float(low), float(high)

    def _bootstrap(self) -> np.ndarray:
        """Resamples x contestants x evaluations."""
        if self._resamples is None:
            generator = np.random.default_rng(0)
            curves = list(self.curves.values())
            total = np.zeros((_RESAMPLES, *curves[0].shape[1:]))
            problems = generator.integers(len(curves), size=(_RESAMPLES, len(curves)))
            for resample, drawn in enumerate(problems):
                for problem in drawn:
                    seeds = len(curves[problem])
                    total[resample] += curves[problem][generator.integers(seeds, size=seeds)].mean(axis=0)
            self._resamples = total / len(curves)
        return self._resamples

    def evaluations_to(self, regret: float, contestant: int) -> int | None:
        """After how many evaluations the mean regret is at most this; None when it never is."""
        reached = np.flatnonzero(self.mean()[contestant] <= regret)
        return int(reached[0]) + 1 if len(reached) else None


def improved(references: Mapping[str, Reference], traces: Mapping[Cell, Trace]) -> dict[str, Reference]:
    """The references of the problems, with the best lowered to what was found in these searches."""
    better = dict(references)
    for cell, trace in traces.items():
        sign = problem(cell.problem).sign
        found = min((sign * score for score in trace.scores if score is not None), default=np.inf)
        better[cell.problem] = replace(better[cell.problem], best=min(better[cell.problem].best, found))
    return better
