"""Sweeps side by side, at the same budget."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from metta.sweep.analysis.comparable import in_order_of_end
from metta.sweep.analysis.curve import Curve, curve_of
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.sweep import SweepConfig, SweepMetadata

Floats: TypeAlias = NDArray[np.float64]

#: Parts of the common budget at which the best scores are compared.
PARTS = (0.1, 0.25, 0.5, 1.0)
_RESAMPLES = 2_000
#: Of all runs, how many are drawn: see `Contest`.
_DRAWN = 0.25
FEWEST_RUNS = 8
_LOW, _HIGH = 0.025, 0.975
#: Numbers drawn at a time, so that memory stays flat.
_CHUNK = 1_000_000


class Contest(msgspec.Struct, frozen=True, kw_only=True):
    """Whether what one sweep tries is better than what another does, or whether that was luck.

    The bootstrap draws runs again and again. The best of all runs cannot be bootstrapped (most resamples hold the very
    same run), so it is the best of a quarter as many that is compared (Bickel, Götze, van Zwet 1997, "Resampling fewer
    than n observations"): how good the good ones of a sweep are. Runs count as draws from what a sweep tries; they are
    that for a search at random, while searches that learn are only roughly.
    """

    #: Runs with a result that each sweep brings, the first to end, and how many are drawn of them.
    runs: int
    drawn: int
    #: The score of this sweep less that of the first one, on average, and the interval that 95% of resamples lie in.
    difference: float
    low: float
    high: float
    #: How often this sweep's best was better, ties counting half.
    wins: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out that there is no difference."""
        return self.low > 0 or self.high < 0


class Side(msgspec.Struct, frozen=True, kw_only=True):
    """One of the sweeps that are compared."""

    sweep_id: str
    name: str
    curve: Curve
    #: The best scores at `PARTS` of the runs, and of the compute seconds, that the smallest of the sweeps has spent.
    at_runs: tuple[float | None, ...]
    at_cost: tuple[float | None, ...]
    #: Against the first; None for that itself, and where there is too little to compare, or nothing that compares.
    contest: Contest | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Sweeps side by side."""

    sides: tuple[Side, ...]
    #: The budgets at which they are compared, of the smallest of them.
    runs: tuple[int, ...]
    cost: tuple[float, ...]
    #: Why scores are not compared: their metrics differ.
    note: str | None


def compare(sweeps: Sequence[tuple[SweepMetadata, Sequence[RunInfo]]]) -> Comparison:
    """Compare sweeps with the first of them."""
    curves = [curve_of(sweep.config, runs) for sweep, runs in sweeps]
    runs = tuple(max(1, round(part * min(curve.runs for curve in curves))) for part in PARTS)
    cost = tuple(part * min(curve.cost for curve in curves) for part in PARTS)
    goals = {(sweep.config.metric, sweep.config.direction) for sweep, _ in sweeps}
    scores = [_scores(runs_of) for _, runs_of in sweeps]
    sides = [
        Side(
            sweep_id=sweep.sweep_id,
            name=sweep.config.name,
            curve=curve,
            at_runs=tuple(map(curve.after_runs, runs)),
            at_cost=tuple(map(curve.after_cost, cost)),
            contest=_contest(sweep.config, scores[0], own) if len(goals) == 1 and position else None,
        )
        for position, ((sweep, _), curve, own) in enumerate(zip(sweeps, curves, scores, strict=True))
    ]
    names = sorted(f"{direction} {metric}" for metric, direction in goals)
    note = None if len(goals) == 1 else f"their scores do not compare: {', '.join(names)}"
    return Comparison(sides=tuple(sides), runs=runs, cost=cost, note=note)


def _scores(runs: Iterable[RunInfo]) -> Floats:
    scored = [run for run in in_order_of_end(runs) if run.status is JobStatus.COMPLETED]
    return np.array([run.score for run in scored if run.score is not None], dtype=np.float64)


def _contest(config: SweepConfig, first: Floats, own: Floats) -> Contest | None:
    runs = min(len(first), len(own))
    if runs < FEWEST_RUNS:
        return None
    drawn = round(runs * _DRAWN)
    generator = np.random.default_rng(0)
    sign = 1.0 if config.direction == "maximize" else -1.0
    theirs, mine = (sign * _best_of(sign * scores[:runs], drawn, generator) for scores in (first, own))
    differences = mine - theirs
    low, high = np.quantile(differences, [_LOW, _HIGH])
    return Contest(
        runs=runs,
        drawn=drawn,
        difference=float(differences.mean()),
        low=float(low),
        high=float(high),
        wins=float(np.mean((sign * differences > 0) + 0.5 * (differences == 0))),
    )


def _best_of(scores: Floats, drawn: int, generator: np.random.Generator) -> Floats:
    """The highest of so many scores, drawn with replacement, for each resample."""
    rows = max(1, _CHUNK // drawn)
    parts = [
        scores[generator.integers(len(scores), size=(min(rows, _RESAMPLES - done), drawn))].max(axis=1)
        for done in range(0, _RESAMPLES, rows)
    ]
    return np.concatenate(parts)
