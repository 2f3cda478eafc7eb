"""Grid search: every combination once, in order, without ever writing them all down."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from metta.sweep.errors import ConfigError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Body, Event
from metta.sweep.model.space import (
    Choice,
    Config,
    Constant,
    LogNormal,
    LogUniform,
    Normal,
    Parameter,
    Range,
    SearchSpace,
    Uniform,
)
from metta.sweep.model.state import SweepState, fold
from metta.sweep.optimizers.grid import GridOptimizer
from metta.sweep.protocols import History
from metta.sweep.testing import OptimizerContract
from metta.sweep.testing.optimizers import configs, history_of, started, suggest, with_runs
from metta.sweep.testing.sweeps import START, SWEEP, sweep_config


class TestGrid(OptimizerContract):
    def new_optimizer(self) -> GridOptimizer:
        return GridOptimizer()


def grid(space: dict[str, Any], levels: int = 5, most: int = 1000) -> list[Config]:
    config = sweep_config(search_space=SearchSpace.of(space))
    return configs(suggest(GridOptimizer(levels=levels), config, [most]))


def values(parameter: Parameter, levels: int) -> list[Any]:
    return [config["x"] for config in grid({"x": parameter}, levels)]


def test_the_parameter_declared_last_varies_fastest() -> None:
    assert grid({"b": Choice(["x", "y"]), "a": Range(1, 3)}) == [
        {"b": "x", "a": 1},
        {"b": "x", "a": 2},
        {"b": "x", "a": 3},
        {"b": "y", "a": 1},
        {"b": "y", "a": 2},
        {"b": "y", "a": 3},
    ]


@pytest.mark.parametrize(
    ("parameter", "expected"),
    [
        (Uniform(0.0, 1.0), [0.0, 0.25, 0.5, 0.75, 1.0]),
        (LogUniform(1e-4, 1.0), [1e-4, 1e-3, 1e-2, 1e-1, 1.0]),
        (Range(10.0, 20.0), [10.0, 12.5, 15.0, 17.5, 20.0]),
        # The medians of five equally likely parts: the deciles 1, 3, 5, 7 and 9.
        (Normal(0.0, 1.0), [-1.2815516, -0.5244005, 0.0, 0.5244005, 1.2815516]),
        (LogNormal(0.0, 1.0), [0.2776062, 0.5919100, 1.0, 1.6894457, 3.6022245]),
    ],
    ids=lambda parameter: type(parameter).__name__ if hasattr(parameter, "when") else "",
)
def test_continuous_parameters_are_cut_into_levels_on_their_own_scale(
    parameter: Parameter, expected: list[float]
) -> None:
    assert values(parameter, levels=5) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("parameter", [Uniform(-1.0, 1.0), LogUniform(0.01, 100.0), Normal(3.0, 1.0), Range(0.0, 1.0)])
def test_a_single_level_is_the_middle(parameter: Parameter) -> None:
    assert values(parameter, levels=1) == [pytest.approx(parameter.decode(0.5))]


@pytest.mark.parametrize("levels", [1, 2, 7])
@pytest.mark.parametrize(
    "parameter", [Range(1, 9), Range(1, 9, log=True), Range(0.1, 0.9, step=0.1), Choice([*"abcdefghi"])]
)
def test_finite_parameters_have_all_their_values_whatever_the_levels(parameter: Parameter, levels: int) -> None:
    assert values(parameter, levels) == [parameter.value_at(index) for index in range(9)]


def test_parameters_without_their_condition_do_not_multiply_the_grid() -> None:
    space = {
        "model": Choice(["linear", "net"]),
        "rate": Uniform(0.0, 1.0, when={"model": "net"}),
        "layers": Range(1, 2, when={"model": "net"}),
        "seed": Constant(7),
    }
    assert grid(space, levels=2) == [
        {"model": "linear", "seed": 7},
        {"model": "net", "rate": 0.0, "layers": 1, "seed": 7},
        {"model": "net", "rate": 0.0, "layers": 2, "seed": 7},
        {"model": "net", "rate": 1.0, "layers": 1, "seed": 7},
        {"model": "net", "rate": 1.0, "layers": 2, "seed": 7},
    ]


def test_a_parameter_may_be_declared_before_the_one_it_depends_on() -> None:
    found = grid({"rate": Range(1, 2, when={"model": "net"}), "model": Choice(["linear", "net"])})
    assert sorted(found, key=str) == sorted(
        [{"model": "linear"}, {"rate": 1, "model": "net"}, {"rate": 2, "model": "net"}], key=str
    )


def test_the_reason_says_how_far_the_grid_is() -> None:
    suggestions = suggest(GridOptimizer(), sweep_config(search_space=SearchSpace.of({"x": Range(1, 3)})), [2, 2])
    assert [suggestion.reasons for suggestion in suggestions] == [(f"grid point {k} of 3",) for k in (1, 2, 3)]


def test_a_grid_beyond_all_measure_costs_nothing() -> None:
    space = SearchSpace.of(
        {
            **{f"n{axis}": Range(1, 10**6) for axis in range(10)},
            **{f"x{axis}": Uniform(0.0, 1.0) for axis in range(10)},
            "kind": Choice([*"abcde"]),
            **{f"y{axis}": Range(0, 99, when={"kind": ["a", "b"]}) for axis in range(10)},
        }
    )
    before = time.process_time()
    [first, second] = configs(suggest(GridOptimizer(levels=100), sweep_config(search_space=space), [1, 1]))
    assert time.process_time() - before < 0.5
    assert first["y9"] == 0
    assert second == {**first, "y9": 1}


def test_a_condition_on_a_parameter_of_many_values_costs_nothing() -> None:
    space = SearchSpace.of({"layers": Range(1, 10**9), "width": Range(1, 100, when={"layers": [5, 7]})})
    before = time.process_time()
    assert space.cardinality == 10**9 - 2 + 200
    found = configs(suggest(GridOptimizer(), sweep_config(search_space=space), [6]))
    assert time.process_time() - before < 0.5
    assert found == [
        *({"layers": layers} for layers in range(1, 5)),
        {"layers": 5, "width": 1},
        {"layers": 5, "width": 2},
    ]


def test_the_grid_ends_where_it_ends() -> None:
    config = sweep_config(search_space=SearchSpace.of({"x": Range(1, 3)}))
    assert len(suggest(GridOptimizer(), config, [2, 2, 2])) == 3
    assert GridOptimizer().suggest(history_of(started(config)), 0) == []


@pytest.mark.parametrize("levels", [0, -1, 2.5, "5", None, True])
def test_levels_are_a_count(levels: Any) -> None:
    with pytest.raises(ConfigError, match=f"levels to be an integer from 1 to 100000, got {levels!r}"):
        GridOptimizer(levels=levels)


def test_an_optimizer_asked_for_another_space_forgets_the_first() -> None:
    optimizer = GridOptimizer()

    def history(high: int) -> History:
        return history_of(started(sweep_config(search_space=SearchSpace.of({"x": Range(1, high)}))))

    assert len(optimizer.suggest(history(3), 9)) == 3
    assert len(optimizer.suggest(history(4), 9)) == 4
    assert len(optimizer.suggest(history(3), 9)) == 3


def after(state: SweepState, body: Body, run_id: str | None = None) -> SweepState:
    event = Event(id="", sweep_id=SWEEP, at=START, actor="user", body=body, run_id=run_id, seq=state.seq + 1)
    return fold(state, [event])


def amended(state: SweepState, space: dict[str, Any]) -> SweepState:
    return after(state, ev.SweepAmended(changes={"search_space": msgspec.to_builtins(SearchSpace.of(space))}))


def walked(optimizer: GridOptimizer, state: SweepState, sizes: Sequence[int]) -> SweepState:
    """The sweep after so many suggestions at a time; one optimizer must answer as a new one does."""
    for size in sizes:
        suggestions = optimizer.suggest(history_of(state), size)
        assert suggestions == GridOptimizer().suggest(history_of(state), size)
        state = with_runs(state, suggestions)
    return state


def tried(state: SweepState) -> list[Config]:
    return [run.config for run in sorted(state.runs.values(), key=lambda run: run.index)]


def new_sweep(space: dict[str, Any]) -> SweepState:
    return started(sweep_config(search_space=SearchSpace.of(space)))


@pytest.mark.parametrize("sizes", [[1] * 9, [9]], ids=["one by one", "all at once"])
@pytest.mark.parametrize(
    ("values_before", "values_after", "expected"),
    [
        ([1, 2, 3], [0, 1, 2, 3], [1, 2, 3, 0]),
        ([1, 2, 3], [3, 4], [1, 2, 3, 4]),
        ([1, 2, 3], [1, 2], [1, 2]),
        ([1, 2, 3], [5, 6, 7, 8], [1, 2, 7, 8, 5, 6]),
    ],
    ids=["grown", "moved", "exhausted", "another"],
)
def test_an_amended_grid_is_walked_to_its_end_without_trying_a_point_twice(
    values_before: list[int], values_after: list[int], expected: list[int], sizes: list[int]
) -> None:
    optimizer = GridOptimizer()
    state = walked(optimizer, new_sweep({"x": Choice(values_before)}), [1, 1])
    state = walked(optimizer, amended(state, {"x": Choice(values_after)}), sizes)
    assert [config["x"] for config in tried(state)] == expected


@pytest.mark.parametrize("sizes", [[1] * 20, [20]], ids=["one by one", "all at once"])
def test_so_is_one_with_levels(sizes: list[int]) -> None:
    optimizer = GridOptimizer()
    rate = Uniform(0.0, 1.0)
    state = walked(optimizer, new_sweep({"kind": Choice(["a", "b"]), "rate": rate}), [3, 1, 3])
    state = walked(optimizer, amended(state, {"kind": Choice(["a", "z", "b"]), "rate": rate}), sizes)
    found = tried(state)
    assert len(found) == 15
    assert all(found.count(config) == 1 for config in found)


@pytest.mark.parametrize("count", [4, 10], ids=["in the middle", "at the end"])
def test_points_of_runs_that_were_rolled_back_are_tried_again(count: int) -> None:
    optimizer = GridOptimizer()
    state = walked(optimizer, new_sweep({"x": Range(0, 9)}), [1] * count)
    run_ids = {run.index: run.run_id for run in state.runs.values()}
    for index in (1, 3):
        state = after(state, ev.RunRolledBack(reason="", best_run_id=run_ids[0], best_score=1.0), run_ids[index])
    state = walked(optimizer, state, [1] * 10)
    assert [config["x"] for config in tried(state)] == [*range(10), 1, 3]


def test_a_sweep_of_the_same_name_with_other_runs_is_another() -> None:
    optimizer = GridOptimizer()
    space = {"rate": Uniform(0.0, 1.0)}
    long, short = (walked(optimizer, new_sweep(space), [size]) for size in (4, 2))
    for state in (long, short, long):
        assert walked(optimizer, state, [9]).sweep.run_count == 5


@pytest.mark.parametrize("parameter", [Range(1, 10**6), Uniform(0.0, 1.0)], ids=["finite", "with levels"])
def test_a_suggestion_late_in_a_sweep_costs_no_more_than_an_early_one(parameter: Parameter) -> None:
    optimizer = GridOptimizer(levels=10**4)
    state = new_sweep({"x": parameter})
    state = with_runs(state, optimizer.suggest(history_of(state), 3000))
    optimizer.suggest(history_of(state), 1)
    before = time.process_time()
    for _ in range(100):
        state = with_runs(state, optimizer.suggest(history_of(state), 1))
    assert time.process_time() - before < 0.5
