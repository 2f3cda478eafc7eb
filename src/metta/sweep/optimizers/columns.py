"""A sweep's runs as arrays: what model-based optimizers learn from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.space import SearchSpace
from metta.sweep.model.trail import Trail
from metta.sweep.optimizers.comparison import comparable
from metta.sweep.optimizers.encoding import Booleans, Encoder, Floats, Integers
from metta.sweep.optimizers.forecast import forecast
from metta.sweep.protocols import History

#: Numbers of a run beside its values at levels: score, cost, whether it failed, index, whether it is whole.
_FIGURES = 5
_TEACH_NOTHING = frozenset({JobStatus.CANCELLED, JobStatus.ROLLED_BACK})
_ENDED = frozenset({JobStatus.COMPLETED, JobStatus.STOPPED, JobStatus.FAILED})


@dataclass(frozen=True)
class Columns:
    """Ended runs that teach something, n rows, and runs on their way, p rows, each in the order of their last change.

    Completed runs count with their score, those stopped early with what they had reached by then, failed ones with
    their partial score where the sweep wants partial results, else as mere failures. Runs that were cancelled or rolled
    back do not count, nor do runs whose configuration the space, amended since, does not hold. Arrays must not be
    written to.
    """

    #: (n, d) points of the unit cube; inactive axes at 0.5.
    units: Floats
    #: (n, d) whether the parameter of the axis exists.
    active: Booleans
    #: (n,) oriented so that LOWER IS BETTER; NaN where a run failed without a score. Of runs that were stopped early
    #: what they had reached by then: see `comparable`.
    scores: Floats
    #: (n, k) the same at the levels of the sweep's fidelity; NaN where a run did not come.
    rungs: Floats
    #: (n,) whether a run was trained to its end.
    whole: Booleans
    #: (n,) compute seconds.
    costs: Floats
    #: (n,) whether the run failed, with a partial score or without.
    failed: Booleans
    #: (n,) `RunInfo.index`.
    indices: Integers
    #: (p, d), (p, d) and (p,): the same of the runs that have not ended.
    pending_units: Floats
    pending_active: Booleans
    pending_indices: Integers
    #: (p, k) as `rungs`.
    pending_rungs: Floats
    #: The very same object in later columns whose first n rows are these: what was worked out from them still holds.
    lineage: object

    def comparable(self, count: int | None = None) -> Floats:
        """Scores of the first `count` runs, or of all, on one scale, however far each was trained."""
        rows = slice(count)
        return comparable(self.scores[rows], self.rungs[rows], self.whole[rows], self.units.shape[1] + 1)

    def forecast(self, count: int | None = None) -> tuple[Floats, Floats]:
        """What the first `count` runs, or all, would have in the end had they been trained to it: means and deviations.

        With all, what those on their way have had at levels counts as well. See `metta.sweep.optimizers.forecast`.
        """
        rows = slice(count)
        scores, rungs, whole = self.scores[rows], self.rungs[rows], self.whole[rows]
        certain = np.zeros(len(scores))
        if not rungs.shape[1] or whole.all():
            return scores, certain
        pending = self.pending_rungs[: len(self.pending_rungs) if count is None else 0]
        ends = np.append(np.where(whole, scores, np.nan), np.full(len(pending), np.nan))
        levels = np.column_stack([np.concatenate([rungs, pending]), ends])
        found = forecast(levels, np.concatenate([self.units[rows], self.pending_units[: len(pending)]]))
        if found is None:
            return scores, certain
        means, deviations = found.means[: len(scores)], found.deviations[: len(scores)]
        is_known = np.isfinite(means)
        if not is_known.any():
            return scores, certain
        # Runs that came to no level have a last value at most, and that is worth nothing beside the others'.
        worst = np.where(np.isfinite(scores), np.max(means[is_known]), np.nan)
        return np.where(is_known, means, worst), np.where(is_known, deviations, 0.0)


class ColumnsCache:
    """Keeps the columns of the history it saw last, and brings them up to date in time with what has changed since.

    Gives the very same arrays as a new cache would: rows stand in the order of the trail, however they came in.
    """

    def __init__(self) -> None:
        self._key: tuple[SearchSpace, str, bool, Fidelity | None] | None = None
        self._trail: Trail | None = None
        self._ended = _Table(0, 0)
        self._pending = _Table(0, 0)
        self._encoder: Encoder | None = None

    def of(self, history: History) -> Columns:
        """The columns of this history."""
        config = history.config
        key = (config.search_space, config.direction, config.partial_results, config.fidelity)
        levels = 0 if config.fidelity is None else len(config.fidelity.levels)
        changed = None
        # Trails of other sweeps share no entry with the one seen, so they are told apart as well.
        if key == self._key and self._trail is not None and history.trail is not None:
            changed = history.trail.since(self._trail)
        if changed is None:
            if self._encoder is None or self._key is None or self._key[0] != config.search_space:
                self._encoder = Encoder(config.search_space)
            dimensions = len(config.search_space.dimensions)
            self._ended, self._pending = _Table(dimensions, levels), _Table(dimensions, levels)
            changed = [] if history.trail is None else history.trail.since(None) or []
        self._key, self._trail = key, history.trail
        self._take([history.runs[run_id] for run_id in changed], config.direction == "maximize", config.partial_results)
        return self._columns()

    def _take(self, runs: list[RunInfo], maximize: bool, partial_results: bool) -> None:
        """Runs that have changed, in the order of their last change."""
        if not runs:
            return
        run_ids = [run.run_id for run in runs]
        self._ended.remove(run_ids)
        self._pending.remove(run_ids)
        counting = [run for run in runs if run.status not in _TEACH_NOTHING]
        assert self._encoder is not None
        units, active, fits = self._encoder.encode([run.config for run in counting])
        ended = np.array([run.status in _ENDED for run in counting], dtype=np.bool_)
        for table, rows in ((self._ended, fits & ended), (self._pending, fits & ~ended)):
            chosen = counting if rows.all() else [counting[row] for row in np.flatnonzero(rows)]
            if not chosen:
                continue
            figures = np.full((len(chosen), table.figures), np.nan)
            figures[:, 0] = _scores(chosen, maximize, partial_results)
            figures[:, 1] = [run.cost for run in chosen]
            figures[:, 2] = [run.status is JobStatus.FAILED for run in chosen]
            figures[:, 3] = [run.index for run in chosen]
            figures[:, 4] = [run.status is JobStatus.COMPLETED for run in chosen]
            if table.figures > _FIGURES:
                _put_rungs(figures[:, _FIGURES:], chosen, maximize)
            # All rows at once need no copies, which take their time when there are many.
            which = slice(None) if chosen is counting else rows
            table.append([run.run_id for run in chosen], units[which], active[which], figures)

    def _columns(self) -> Columns:
        units, active, figures = self._ended.arrays()
        pending_units, pending_active, pending_figures = self._pending.arrays()
        return Columns(
            units=units,
            active=active,
            scores=figures[:, 0],
            rungs=figures[:, _FIGURES:],
            whole=figures[:, 4] > 0,
            costs=figures[:, 1],
            failed=figures[:, 2] > 0,
            indices=figures[:, 3].astype(np.int64),
            pending_units=pending_units,
            pending_active=pending_active,
            pending_indices=pending_figures[:, 3].astype(np.int64),
            pending_rungs=pending_figures[:, _FIGURES:],
            lineage=self._ended.lineage,
        )


def _scores(runs: list[RunInfo], maximize: bool, partial_results: bool) -> Floats:
    """Lower is better; NaN for none."""
    partial = {JobStatus.STOPPED, JobStatus.FAILED} if partial_results else {JobStatus.STOPPED}
    scores = [run.partial_score if run.status in partial else run.score for run in runs]
    # None becomes NaN.
    oriented = np.array(scores, dtype=np.float64)
    return -oriented if maximize else oriented


def _put_rungs(columns: Floats, runs: list[RunInfo], maximize: bool) -> None:
    for row, run in enumerate(runs):
        values = [rung.value for rung in run.rungs[: columns.shape[1]]]
        columns[row, : len(values)] = values
    if maximize:
        np.negative(columns, out=columns)


class _Table:
    """Rows by run, in the order in which they came; what was given out before stays as it was."""

    def __init__(self, dimensions: int, levels: int) -> None:
        self.figures = _FIGURES + levels
        self._rows: dict[str, int] = {}
        self._units = np.empty((0, dimensions))
        self._active = np.empty((0, dimensions), dtype=np.bool_)
        self._figures = np.empty((0, self.figures))
        #: Another object once a row has gone.
        self.lineage = object()

    def arrays(self) -> tuple[Floats, Booleans, Floats]:
        count = len(self._rows)
        arrays = self._units[:count], self._active[:count], self._figures[:count]
        for array in arrays:
            array.flags.writeable = False
        return arrays

    def remove(self, run_ids: list[str]) -> None:
        gone = [row for run_id in run_ids if (row := self._rows.pop(run_id, None)) is not None]
        if not gone:
            return
        self.lineage = object()
        kept = list(self._rows.values())
        self._units, self._active, self._figures = self._units[kept], self._active[kept], self._figures[kept]
        self._rows = {run_id: row for row, run_id in enumerate(self._rows)}

    def append(self, run_ids: list[str], units: Floats, active: Booleans, figures: Floats) -> None:
        start, count = len(self._rows), len(self._rows) + len(run_ids)
        self._rows.update(zip(run_ids, range(start, count), strict=True))
        if not start:
            # As they are: after a restart there may be a hundred thousand, and copying them would take its time.
            self._units, self._active, self._figures = units, active, figures
            return
        if count > len(self._units):
            # Twice the room each time: a row is moved a constant number of times on the average.
            room = max(2 * count, 64)
            self._units, self._active, self._figures = (
                _grown(old, room, start) for old in (self._units, self._active, self._figures)
            )
        self._units[start:count], self._active[start:count], self._figures[start:count] = units, active, figures


def _grown(old: NDArray[Any], room: int, count: int) -> NDArray[Any]:
    new = np.empty((room, *old.shape[1:]), dtype=old.dtype)
    new[:count] = old[:count]
    return new
