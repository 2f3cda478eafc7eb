"""Has a search reached a plateau? A sequential test of best-so-far, with a bound on stopping one that still improves.

Scores here are oriented so that lower is better, in the order in which they became known.

**What counts as an improvement.** With Q the first quartile of the first 10 scores and b the best so far, the *spread*
is Q - b: how far the search has come from a good early run. An evaluation is a *relevant improvement* when it beats the
best at the previous one (the anchor) by more than `tolerance` times the spread as it was before that evaluation. The
anchor makes many small steps add up. The quartile, because the scale must not hang on a few diverged runs, and of the
early scores, because those of a search that has converged are all alike.

**The test.** Null hypothesis: the search still improves, that is, whatever happened before, each evaluation is a
relevant improvement with a probability of at least 1/k (`patience` = k). A stretch without one that has lasted
h = k ln 2 evaluations, which under the hypothesis at most every other does, is called *long*. Whatever went before, the
j-th long stretch then lasts another m evaluations with probability at most (1 - 1/k)^m. So to stop once

    m >= ln(1 / a_j) / -ln(1 - 1/k),        a_j = a / (j (j + 1))

stops at this stretch with probability at most a_j and, as these add up to a, ever with probability at most a
(`false_stop_rate`). The bound is exact and holds at every moment at which the test is looked at, for scores of any
distribution that depend on the past in any way, since the geometric tail needs no more than the hypothesis. On a
plateau the test stops for certain, after h + m evaluations: with k = 10 and a = 0.1 these are 36 if it is the first
long stretch, 46 if the second, 53 if the third. To count long stretches, rather than all as the bound would allow
without h, costs 7 evaluations at the first and saves a search that came to its plateau in 40 quick steps 56.

**Noise.** A lucky score early on can be hard to beat although the search gets better on the whole. So a stop is refused
while the scores of the stretch themselves get better in the course of time, by a rank test for trends (Mann 1945) and
by more than what is relevant. That only ever prevents a stop, so the bound stands.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

#: Scores that tell the scale of the search: enough for a quartile, and no more than an initial design has.
_EARLY = 10
#: Beyond it (the 20 % quantile) a stretch is held to be still getting better. A veto may be rash: on a plateau it costs
#: no more than a few evaluations, while at 5 % twice as many searches were stopped that a slope in noise led on.
_TREND = NormalDist().inv_cdf(0.80)
#: From so many scores on the normal approximation to Kendall's statistic holds.
_SHORTEST_TREND = 8
#: Scores compared for a trend at most, the latest: the comparison takes time with their square.
_LONGEST_TREND = 400


class Plateau:
    """The test, fed one score after another; what it says depends on the scores and their order alone.

    Args:
        patience: k above: a search that improves more rarely than once in so many evaluations may be stopped.
        tolerance: Part of the spread that an improvement has to exceed.
        false_stop_rate: a above.
    """

    def __init__(self, patience: int, tolerance: float, false_stop_rate: float) -> None:
        self._decay = -math.log1p(-1 / patience)
        self._long = math.ceil(math.log(2) / self._decay)
        self._tolerance = tolerance
        self._rate = false_stop_rate
        self._early: list[float] = []
        self._quartile = math.nan
        self._anchor = math.inf
        #: Scores since the last relevant improvement.
        self._stretch: list[float] = []
        self._long_stretches = 0
        #: Scores seen, and the best of them.
        self.count = 0
        self.best = math.inf

    def add(self, score: float) -> None:
        """One more evaluation."""
        if self.count == 0 or score < self._anchor - self.least_improvement:
            self._anchor = score
            self._stretch = []
        else:
            self._stretch.append(score)
            self._long_stretches += len(self._stretch) == self._long
        self.count += 1
        self.best = min(self.best, score)
        if len(self._early) < _EARLY:
            self._early.append(score)
            self._quartile = sorted(self._early)[(len(self._early) - 1) // 4]

    @property
    def least_improvement(self) -> float:
        """What a score must beat the last relevant one by, to be relevant itself."""
        return self._tolerance * max(0.0, self._quartile - self.best) if self.count else 0.0

    @property
    def stagnation(self) -> int:
        """Evaluations since the last relevant improvement."""
        return len(self._stretch)

    @property
    def required(self) -> int:
        """Evaluations without a relevant improvement after which the search is held to have converged."""
        j = self._long_stretches + (self.stagnation < self._long)  # of the stretch at hand, once it is long
        return self._long + math.ceil((math.log(j * (j + 1)) - math.log(self._rate)) / self._decay)

    @property
    def is_reached(self) -> bool:
        """Whether the hypothesis that the search still improves is rejected."""
        return self.stagnation >= self.required and not is_improving(
            self._stretch[-_LONGEST_TREND:], self.least_improvement
        )


def is_improving(scores: Sequence[float], least: float) -> bool:
    """Whether scores fall in the course of time, by a one-sided Mann-Kendall test at 20 %, and by more than `least`.

    Normal approximation with the correction for ties (Kendall 1975); equal scores all over are no trend. By how much
    they fall is seen in the medians of the first and the second half.
    """
    n = len(scores)
    if n < _SHORTEST_TREND:
        return False
    values = np.asarray(scores)
    if np.median(values[: n // 2]) - np.median(values[n // 2 :]) <= least:
        return False
    # Pairs of which the later score is the lower one, minus pairs of which it is the higher one.
    falling = float(np.triu(np.sign(values[:, None] - values[None, :])).sum())
    _, ties = np.unique(values, return_counts=True)
    variance = (n * (n - 1) * (2 * n + 5) - float((ties * (ties - 1) * (2 * ties + 5)).sum())) / 18
    # One pair less, as the normal approximation to a whole number asks.
    return variance > 0 and falling - 1 > _TREND * math.sqrt(variance)
