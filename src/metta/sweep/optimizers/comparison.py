"""Scores of runs that were trained to different ends, made comparable."""

from __future__ import annotations

import numpy as np

from metta.sweep.optimizers.encoding import Booleans, Floats


def comparable(scores: Floats, rungs: Floats, is_whole: Booleans, enough: int) -> Floats:
    """One scale for runs that were trained to their end and runs that were stopped at some level.

    What counts is the value at the highest level that enough runs have come to, the end itself if enough have come
    there: the level that is nearest to what is wanted and still says something. Runs that were stopped before are worse
    than all that came there, which is why they were stopped; among themselves those that came farther are better, and
    of those stopped at one level those that did better there.

    Args:
        scores: (n,) last values, lower is better; NaN for runs without.
        rungs: (n, k) values at the levels, ascending; NaN where a run did not come.
        is_whole: (n,) whether a run was trained to its end.
        enough: How many runs have to have come to a level.

    Returns:
        (n,) lower is better; NaN as in `scores`.
    """
    if not rungs.shape[1] or is_whole.all():
        return scores
    levels = np.concatenate([rungs, np.where(is_whole, scores, np.nan)[:, None]], axis=1)
    has_come = np.isfinite(levels)
    counts = has_come.sum(axis=0)
    level = max((number for number, count in enumerate(counts) if count >= enough), default=None)
    if level is None:
        return scores
    there = has_come[:, level]
    values = np.where(there, levels[:, level], np.nan)
    others = np.flatnonzero(~there & np.isfinite(scores))
    if not len(others):
        return values
    # The number of levels come to below this one, and the value at the last of them.
    depth = has_come[others, :level].sum(axis=1)
    last = np.where(depth > 0, levels[others, np.maximum(depth - 1, 0)], scores[others])
    order = np.lexsort((last, -depth))
    best, worst = float(np.nanmin(values)), float(np.nanmax(values))
    step = (worst - best) / counts[level] or max(abs(worst), 1.0) * 1e-3
    values[others[order]] = worst + step * np.arange(1, len(others) + 1)
    return values
