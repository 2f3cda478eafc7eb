"""Which observations the model is made of when there are more than it can hold."""

from __future__ import annotations

import numpy as np

from metta.sweep.optimizers.encoding import Floats, Integers

#: Rows among which the neighbours of the best are looked for: the latest ones.
_LATEST = 8192


def chosen_rows(units: Floats, scores: Floats, most: int) -> Integers:
    """At most `most` rows, ascending: all, or a third each of the best, of the best one's neighbours, and of the rest.

    What decides is near the best runs, as in the trust regions of TuRBO (Eriksson et al. 2019); rows spread evenly over
    the sweep's whole life keep the model from taking for promising what was ruled out long ago.

    Args:
        units: (n, d) points of the unit cube.
        scores: (n,) lower is better; infinite for runs without.
        most: At least 3.
    """
    count = len(scores)
    if count <= most:
        return np.arange(count)
    share = most // 3
    best = np.argpartition(scores, share)[:share]
    centre = units[best[np.argmin(scores[best])]]
    start = max(0, count - _LATEST)
    distances = np.square(units[start:] - centre).sum(axis=1)
    near = start + np.argpartition(distances, min(share, len(distances) - 1))[:share]
    spread = np.linspace(0, count - 1, most - 2 * share).astype(np.int64)
    return np.unique(np.concatenate([best, near, spread]))
