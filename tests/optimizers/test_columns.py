"""Columns say what the runs say, and it makes no difference whether they grew or were read at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep.errors import SearchSpaceError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.space import Choice, LogUniform, SearchSpace, Uniform
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers.columns import Columns, ColumnsCache
from metta.sweep.protocols import History
from metta.sweep.testing.sweeps import SWEEP, random_history, run_events, sweep_config, sweep_created


def grown(state: SweepState, events: list[Event]) -> SweepState:
    return fold(state, [replace(event, seq=seq) for seq, event in enumerate(events, start=state.seq + 1)])


def assert_equal(one: Columns, other: Columns) -> None:
    for field in dataclasses.fields(Columns):
        if field.name == "lineage":
            continue
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        assert mine.shape == theirs.shape
        assert mine.dtype == theirs.dtype
        assert np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f")


def fresh(history: History) -> Columns:
    return ColumnsCache().of(history)


def states(seed: int, batch: int, **fields: object) -> Iterator[History]:
    history = random_history(seed, 80)
    state = EMPTY
    for start in range(0, len(history), batch):
        state = grown(state, history[start : start + batch])
        seen = History.of(state)
        yield History(
            config=replace(seen.config, **fields), runs=seen.runs, tried=seen.tried, trail=seen.trail, exploration=0.5
        )


def fits(config: SweepConfig, run: RunInfo) -> bool:
    try:
        config.search_space.check(run.config)
    except SearchSpaceError:
        return False
    return True


@given(seed=st.integers(0, 10_000), batch=st.integers(1, 7), partial=st.booleans())
@settings(max_examples=60, deadline=None)
def test_columns_that_grew_equal_columns_read_at_once(seed: int, batch: int, partial: bool) -> None:
    cache = ColumnsCache()
    given_out = []
    for history in states(seed, batch, partial_results=partial):
        columns = cache.of(history)
        assert_equal(columns, fresh(history))
        assert_equal(cache.of(history), columns)
        given_out.append((columns, dataclasses.replace(columns, units=columns.units.copy())))
    for columns, copy in given_out:
        assert_equal(columns, copy)


@given(seed=st.integers(0, 10_000), partial=st.booleans())
@settings(max_examples=60, deadline=None)
def test_columns_hold_every_run_that_teaches_something_and_no_other(seed: int, partial: bool) -> None:
    *_, history = states(seed, 20, partial_results=partial)
    columns = fresh(history)
    config = history.config
    sign = -1 if config.direction == "maximize" else 1
    runs = {run.index: run for run in history.runs.values()}
    counting = {index for index, run in runs.items() if fits(config, run)}
    teaching = {JobStatus.COMPLETED, JobStatus.STOPPED, JobStatus.FAILED}
    ended = {index for index in counting if runs[index].status in teaching}
    assert sorted(columns.indices.tolist()) == sorted(ended)
    assert sorted(columns.pending_indices.tolist()) == sorted(i for i in counting if not runs[i].status.ended)
    for row, index in enumerate(columns.indices.tolist()):
        run = runs[index]
        assert columns.units[row].tolist() == config.search_space.encode(run.config)
        assert columns.costs[row] == run.cost
        assert columns.failed[row] == (run.status is JobStatus.FAILED)
        counts_in_part = partial or run.status is JobStatus.STOPPED
        score = run.score if run.status is JobStatus.COMPLETED else run.partial_score if counts_in_part else None
        assert np.isnan(columns.scores[row]) if score is None else columns.scores[row] == sign * score


def test_one_cache_serves_sweeps_in_turn() -> None:
    cache = ColumnsCache()
    one, other = (list(states(seed, 9)) for seed in (1, 2))
    for pair in zip(one, other, strict=False):
        for history in (*pair, one[0]):
            assert_equal(cache.of(history), fresh(history))


def test_a_sweep_without_runs_has_empty_columns() -> None:
    space = SearchSpace.of({"x": Uniform(0, 1), "kind": Choice(["a", "b"])})
    columns = fresh(History.of(grown(EMPTY, [sweep_created(search_space=space)])))
    assert columns.units.shape == columns.pending_units.shape == (0, 2)
    assert columns.scores.shape == (0,)


def test_an_amended_space_leaves_out_what_it_does_not_hold() -> None:
    cache = ColumnsCache()
    events = [sweep_created()]
    for index, rate in enumerate([1e-4, 1e-2]):
        events += run_events(index, score=float(index), config={"lr": rate})
    state = grown(EMPTY, events)
    assert cache.of(History.of(state)).scores.tolist() == [-0.0, -1.0]
    history = History.of(state)
    config = sweep_config(search_space=SearchSpace.of({"lr": LogUniform(1e-3, 1e-1)}))
    amended = History(config=config, runs=history.runs, tried={}, trail=history.trail)
    assert cache.of(amended).indices.tolist() == [1]
    assert_equal(cache.of(amended), fresh(amended))


def test_a_cost_that_was_repaired_after_the_end_is_seen() -> None:
    cache = ColumnsCache()
    state = grown(EMPTY, [sweep_created(), *run_events(0), *run_events(1)])
    assert cache.of(History.of(state)).costs.tolist() == [3600.0, 3600.0]
    run_id = next(run.run_id for run in state.runs.values() if run.index == 0)
    body = ev.StateRepaired(problem="its cost was wrong", before={"cost": 3600.0}, after={"cost": 60.0})
    state = grown(state, [new_event(body, sweep_id=SWEEP, at=0.0, actor="test", run_id=run_id)])
    assert cache.of(History.of(state)).costs.tolist() == [3600.0, 60.0]


@given(seed=st.integers(0, 10_000), batch=st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_columns_of_one_lineage_begin_alike(seed: int, batch: int) -> None:
    cache = ColumnsCache()
    earlier = None
    for history in states(seed, batch):
        columns = cache.of(history)
        if earlier is not None and earlier.lineage is columns.lineage:
            count = len(earlier.scores)
            assert columns.indices[:count].tolist() == earlier.indices.tolist()
            assert np.array_equal(columns.scores[:count], earlier.scores, equal_nan=True)
        earlier = columns


def test_a_finished_run_is_added_to_its_lineage_and_a_rolled_back_one_starts_another() -> None:
    cache = ColumnsCache()
    state = grown(EMPTY, [sweep_created(), *run_events(0)])
    first = cache.of(History.of(state)).lineage
    state = grown(state, run_events(1))
    assert cache.of(History.of(state)).lineage is first
    run_id = next(run.run_id for run in state.runs.values() if run.index == 0)
    best = next(run for run in state.runs.values() if run.index == 1)
    body = ev.RunRolledBack(reason="a mistake", best_run_id=best.run_id, best_score=best.score)
    state = grown(state, [new_event(body, sweep_id=SWEEP, at=0.0, actor="test", run_id=run_id)])
    assert cache.of(History.of(state)).lineage is not first


def test_what_was_given_out_cannot_be_written_to() -> None:
    columns = fresh(History.of(grown(EMPTY, [sweep_created(), *run_events(0)])))
    assert not columns.units.flags.writeable


def halved(seed: int, count: int = 40) -> Columns:
    """Runs of which the worse half was stopped at the only level, and others on their way, one of them beyond it."""
    generator = np.random.default_rng(seed)
    units, first = generator.random((count, 2)), generator.random(count)
    whole = first <= np.median(first)
    after = first - 2.0 - units[:, 1]
    return Columns(
        units=units,
        active=np.ones((count, 2), dtype=np.bool_),
        scores=np.where(whole, after, first),
        rungs=first[:, None],
        whole=whole,
        costs=np.ones(count),
        failed=np.zeros(count, dtype=np.bool_),
        indices=np.arange(count),
        pending_units=np.full((2, 2), 0.5),
        pending_active=np.ones((2, 2), dtype=np.bool_),
        pending_indices=np.array([count, count + 1]),
        pending_rungs=np.array([[0.3], [np.nan]]),
        lineage=object(),
    )


def test_runs_stopped_early_count_with_what_they_would_have_had() -> None:
    columns = halved(seed=0)
    means, deviations = columns.forecast()
    assert means[columns.whole].tolist() == columns.scores[columns.whole].tolist()
    assert not deviations[columns.whole].any()
    stopped = ~columns.whole
    expected = columns.rungs[stopped, 0] - 2.0 - columns.units[stopped, 1]
    assert np.abs(means[stopped] - expected).max() < 0.3
    assert (deviations[stopped] > 0).all()


def test_what_was_known_of_the_first_runs_is_what_is_said_of_them_later() -> None:
    """Hyperparameters are fitted to the first so many: a new process has to fit to the very same numbers."""
    columns = halved(seed=1)
    first = dataclasses.replace(
        columns,
        **{name: getattr(columns, name)[:25] for name in ("units", "active", "scores", "rungs", "whole")},
        pending_units=np.empty((0, 2)),
        pending_rungs=np.empty((0, 1)),
    )
    for one, other in zip(columns.forecast(25), first.forecast(), strict=True):
        assert one.tolist() == other.tolist()


def test_whole_trainings_are_taken_as_they_are() -> None:
    columns = dataclasses.replace(halved(seed=2), whole=np.ones(40, dtype=np.bool_))
    means, deviations = columns.forecast()
    assert means.tolist() == columns.scores.tolist()
    assert not deviations.any()


def test_a_run_that_came_to_no_level_is_no_better_than_the_worst() -> None:
    columns = halved(seed=3)
    rungs, whole = columns.rungs.copy(), columns.whole.copy()
    scores = columns.scores.copy()
    rungs[:2], whole[:2], scores[:2] = np.nan, False, (-99.0, np.nan)
    means, _ = dataclasses.replace(columns, rungs=rungs, whole=whole, scores=scores).forecast()
    assert means[0] == means[2:].max()
    assert np.isnan(means[1])
