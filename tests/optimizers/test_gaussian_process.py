"""The optimizer keeps the promises of all optimizers, finds optima with few runs, and says what it thought."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from metta.sweep import registry
from metta.sweep.errors import ConfigError
from metta.sweep.model import events as ev
from metta.sweep.model.space import Choice, Config, LogUniform, Range, SearchSpace, Uniform
from metta.sweep.model.state import SweepState, fold
from metta.sweep.optimizers.gaussian_process import GaussianProcessOptimizer
from metta.sweep.protocols import History
from metta.sweep.testing import OptimizerContract
from metta.sweep.testing.optimizers import started
from metta.sweep.testing.sweeps import run_events, sweep_config

PLANE = SearchSpace.of({"x": Uniform(0, 1), "y": Uniform(0, 1)})
MIXED = SearchSpace.of(
    {
        "kind": Choice(["a", "b", "c"]),
        "lr": LogUniform(1e-5, 1.0),
        "layers": Range(1, 8),
        "momentum": Uniform(0, 1, when={"kind": "b"}),
    }
)


class TestGaussianProcess(OptimizerContract):
    def new_optimizer(self) -> GaussianProcessOptimizer:
        return GaussianProcessOptimizer()


def ended(state: SweepState, config: Config, score: float | None, hours: float = 1.0) -> SweepState:
    """The state when a run of this configuration has ended as well; without a score it has failed."""
    events = run_events(len(state.runs), score=score, config=config)
    events = [
        replace(event, body=replace(event.body, seconds=3600 * hours))
        if isinstance(event.body, ev.JobExited)
        else event
        for event in events
    ]
    return fold(state, [replace(event, seq=seq) for seq, event in enumerate(events, start=state.seq + 1)])


def searched(
    space: SearchSpace, metric: Callable[[Config], Any], runs: int, *, batch: int = 1, seed: int = 0, **options: Any
) -> SweepState:
    state = started(sweep_config(search_space=space, direction="minimize", seed=seed))
    optimizer = GaussianProcessOptimizer(**options)
    while len(state.runs) < runs:
        for suggestion in optimizer.suggest(History.of(state), batch):
            score = metric(suggestion.config)
            score, hours = score if isinstance(score, tuple) else (score, 1.0)
            state = ended(state, suggestion.config, score, hours)
    return state


def bowl(config: Config) -> float:
    return float((config["x"] - 0.7) ** 2 + (config["y"] - 0.2) ** 2)


def mixed(config: Config) -> float:
    rate = (math.log10(config["lr"]) + 2.5) ** 2 + 0.2 * abs(config["layers"] - 3)
    return float(rate + (3 * (config["momentum"] - 0.9) ** 2 if config["kind"] == "b" else 1.0))


def best(state: SweepState) -> float:
    assert state.sweep.best_score is not None
    return state.sweep.best_score


@pytest.mark.parametrize(("batch", "most"), [(1, 1e-3), (4, 5e-3), (16, 2e-2)])
def test_a_bowl_is_found_in_20_runs(batch: int, most: float) -> None:
    assert best(searched(PLANE, bowl, 20, batch=batch)) < most


def test_choices_steps_and_conditions_are_searched_together() -> None:
    state = searched(MIXED, mixed, 40)
    assert best(state) < 0.1
    assert state.runs[state.sweep.best_run_id].config["kind"] == "b"


def test_crashes_and_outliers_do_not_stand_in_the_way() -> None:
    def metric(config: Config) -> float | None:
        if config["x"] + config["y"] > 1.1:
            return None
        return 1e30 if config["x"] < 0.3 else bowl(config)

    state = searched(PLANE, metric, 20)
    assert best(state) < 5e-3
    # At random it would be half of the runs, and the search was led along the border.
    assert sum(run.score is None for run in state.runs.values()) <= 10


def test_noise_is_averaged_out() -> None:
    noise = iter(np.random.default_rng(0).standard_normal(100))
    state = searched(PLANE, lambda config: bowl(config) + 0.02 * float(next(noise)), 35)
    late = sorted(state.runs.values(), key=lambda run: run.index)[20:]
    assert np.median([bowl(run.config) for run in late]) < 0.05


def test_cost_awareness_spends_less_where_it_gains_as_much() -> None:
    # Two equally good values, one ten times as dear.
    space = SearchSpace.of({"x": Uniform(0, 1), "kind": Choice(["dear", "cheap"])})

    def metric(config: Config) -> tuple[float, float]:
        return (config["x"] - 0.6) ** 2, 10.0 if config["kind"] == "dear" else 1.0

    def dear(state: SweepState) -> int:
        return sum(run.config["kind"] == "dear" for run in state.runs.values())

    plain, aware = (searched(space, metric, 24, cost_aware=aware) for aware in (False, True))
    assert dear(aware) < dear(plain)
    assert best(aware) < 1e-3


def test_a_batch_is_as_many_different_suggestions() -> None:
    state = searched(PLANE, bowl, 8)
    suggestions = GaussianProcessOptimizer().suggest(History.of(state), 64)
    points = np.array([list(suggestion.config.values()) for suggestion in suggestions])
    distances = np.abs(points[:, None] - points[None]).max(axis=2) + np.eye(64)
    assert distances.min() > 1e-3
    assert np.median(distances) > 0.05


def test_runs_on_their_way_are_reckoned_with() -> None:
    state = searched(PLANE, bowl, 12)
    first = GaussianProcessOptimizer().suggest(History.of(state), 1)[0]
    pending = fold(
        state,
        [
            replace(event, seq=seq)
            for seq, event in enumerate(run_events(12, config=first.config)[:2], start=state.seq + 1)
        ],
    )
    second = GaussianProcessOptimizer().suggest(History.of(pending), 1)[0]
    assert math.dist(first.config.values(), second.config.values()) > 1e-3


def test_more_exploration_goes_where_less_is_known() -> None:
    state = searched(PLANE, bowl, 15)
    doubts = [
        np.mean(
            [
                suggestion.acquisition.predicted_deviation
                for suggestion in GaussianProcessOptimizer().suggest(History.of(state, exploration), 3)
                if suggestion.acquisition
            ]
        )
        for exploration in (0.0, 0.5, 1.0)
    ]
    assert doubts[0] < doubts[2]
    assert doubts[0] <= doubts[1] <= doubts[2]


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_a_suggestion_says_what_was_expected_of_it_in_units_of_the_metric(direction: str) -> None:
    sign = 1 if direction == "minimize" else -1
    state = started(sweep_config(search_space=PLANE, direction=direction, seed=1))
    errors = []
    for run in range(18):
        suggestion = GaussianProcessOptimizer().suggest(History.of(state), 1)[0]
        score = sign * (bowl(suggestion.config) + 5.0)
        state = ended(state, suggestion.config, score)
        thought = suggestion.acquisition
        if run >= 8:
            assert thought is not None
            errors.append(abs(thought.predicted_score - score))
    assert np.median(errors) < 5e-3
    suggestion = GaussianProcessOptimizer().suggest(History.of(state), 1)[0]
    thought = suggestion.acquisition
    assert thought is not None
    assert thought.expected_improvement is not None
    assert 0 <= thought.expected_improvement < 0.5
    assert thought.alternatives
    assert [each.acquisition_value for each in thought.alternatives] == sorted(
        (each.acquisition_value for each in thought.alternatives), reverse=True
    )
    for alternative in thought.alternatives:
        PLANE.check(alternative.config)
        assert alternative.config != suggestion.config
    assert suggestion.reasons[0].startswith(f"expected to beat {best(state):.6g} of run ")


def test_batches_and_single_suggestions_of_waiting_sweeps_agree_on_the_initial_design() -> None:
    state = started(sweep_config(search_space=PLANE))
    batch = GaussianProcessOptimizer().suggest(History.of(state), 16)
    assert len({tuple(suggestion.config.values()) for suggestion in batch}) == 16
    assert batch[:3] == GaussianProcessOptimizer().suggest(History.of(state), 3)


def test_it_is_found_by_its_name_and_refuses_other_options() -> None:
    assert isinstance(registry.optimizer("bayesian", {"cost_aware": True}), GaussianProcessOptimizer)
    with pytest.raises(ConfigError, match="bayesian needs cost_aware to be true or false, got 'yes'"):
        registry.optimizer("bayesian", {"cost_aware": "yes"})
