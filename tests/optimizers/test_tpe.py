"""TPE: it goes where the good observations are, and keeps away from the others, from failures and from pending runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metta.sweep.errors import ConfigError
from metta.sweep.model.space import Choice, Config, LogUniform, Range, SearchSpace, Uniform
from metta.sweep.optimizers.random import RandomOptimizer
from metta.sweep.optimizers.tpe import TPEOptimizer
from metta.sweep.protocols import History
from metta.sweep.testing import OptimizerContract, sweep_config
from metta.sweep.testing.searches import SPACES, bowl, configs, history_of, lived, random_configs, started
from optimizers.searching import best, search

PLANE = SearchSpace.of({"x": Uniform(0.0, 1.0), "y": Uniform(0.0, 1.0)})
BRANCHES = SearchSpace.of(
    {
        "lr": LogUniform(1e-5, 1e-1),
        "kind": Choice(["a", "b", "c", "d"]),
        "depth": Range(1, 12, when={"kind": "b"}),
        "rate": Uniform(0.0, 1.0, when={"kind": ["b", "c"]}),
    }
)


class TestTPE(OptimizerContract):
    def new_optimizer(self) -> TPEOptimizer:
        return TPEOptimizer()


def branches(config: Config) -> float:
    """Best at kind b, depth 9, rate 0.8."""
    places = dict(zip(BRANCHES.dimensions, BRANCHES.encode(config), strict=True))
    score = (places["lr"] - 0.6) ** 2 + {"a": 0.5, "b": 0.0, "c": 0.4, "d": 0.8}[config["kind"]]
    if "depth" in config:
        score += (config["depth"] - 9) ** 2 / 100
    return score + (places["rate"] - 0.8) ** 2


def plane_searched(fates: str = "c" * 30, seed: int = 0) -> Any:
    config = sweep_config(search_space=PLANE, direction="minimize")
    return lived(started(config), random_configs(PLANE, len(fates), seed), fates, bowl(config))


@pytest.mark.parametrize(
    ("space", "score", "times"),
    [
        (PLANE, bowl(sweep_config(search_space=PLANE, direction="minimize")), 8),
        (BRANCHES, branches, 2),
    ],
    ids=["plane", "branches"],
)
@pytest.mark.parametrize("sizes", [[1] * 60, [12] * 5], ids=["one by one", "by twelves"])
def test_it_finds_far_better_configurations_than_random_search(
    space: SearchSpace, score: Any, times: float, sizes: list[int]
) -> None:
    ours, random = (best(new, space, score, sizes, seeds=5) for new in (TPEOptimizer, RandomOptimizer))
    assert ours < random / times


def test_it_finds_the_branch_that_is_best() -> None:
    state = search(TPEOptimizer(), BRANCHES, branches, [1] * 60)
    late = configs(TPEOptimizer().suggest(history_of(state), 20))
    assert sum(config["kind"] == "b" for config in late) > 10


def test_it_begins_at_random() -> None:
    history = history_of(plane_searched("c" * 9 + "p" * 20))
    assert TPEOptimizer().suggest(history, 3) == RandomOptimizer().suggest(history, 3)
    assert TPEOptimizer(startup=9).suggest(history, 3) != RandomOptimizer().suggest(history, 3)


def test_it_keeps_away_from_where_runs_are_on_their_way() -> None:
    state = plane_searched()
    crowd = [{"x": 0.3 + dx, "y": 0.3 + dy} for dx in (-0.05, 0.0, 0.05) for dy in (-0.05, 0.0, 0.05)] * 3
    crowded = lived(state, crowd, "p" * len(crowd), lambda _: 0.0)

    def distance(history: History) -> float:
        found = configs(TPEOptimizer(candidates=200).suggest(history, 1))
        return float(np.hypot(found[0]["x"] - 0.3, found[0]["y"] - 0.3))

    assert distance(history_of(crowded)) > distance(history_of(state))


def test_what_is_suggested_together_is_spread_out() -> None:
    found = configs(TPEOptimizer(candidates=100).suggest(history_of(plane_searched()), 16))
    places = np.array([[config["x"], config["y"]] for config in found])
    assert places.std(axis=0).min() > 0.05


def test_it_keeps_away_from_where_runs_fail() -> None:
    tried = random_configs(PLANE, 60)
    # The left half, where the best is, fails.
    fates = "".join("f" if config["x"] < 0.5 else "c" for config in tried)
    config = sweep_config(search_space=PLANE, direction="minimize")
    state = lived(started(config), tried, fates, bowl(config))
    found = configs(TPEOptimizer().suggest(history_of(state), 20))
    assert sum(config["x"] < 0.45 for config in found) < 5


def test_the_log_is_told_the_ratio_and_what_else_was_considered() -> None:
    for suggestion in TPEOptimizer().suggest(history_of(plane_searched()), 4):
        acquisition = suggestion.acquisition
        assert acquisition is not None
        values = [acquisition.acquisition_value, *(each.acquisition_value for each in acquisition.alternatives)]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        every = [suggestion.config, *(each.config for each in acquisition.alternatives)]
        assert len({PLANE.key(config) for config in every}) == 4


def test_in_a_finite_space_it_takes_the_best_of_what_is_left() -> None:
    space = SPACES["finite"]
    config = sweep_config(search_space=space, direction="minimize")
    score = bowl(config)
    state = search(TPEOptimizer(), space, score, [1] * 20)
    every = [space.lattice.at(index) for index in range(space.cardinality or 0)]
    ranks = {space.key(each): rank for rank, each in enumerate(sorted(every, key=score))}
    tried = [ranks[space.key(run.config)] for run in state.runs.values()]
    # Of 36 the best six, after ten random ones and ten more.
    assert set(range(6)) <= set(tried)


def test_exploration_spreads_suggestions() -> None:
    state = plane_searched("c" * 60)
    spreads = []
    for exploration in (0.0, 0.5, 1.0):
        found = configs(TPEOptimizer(candidates=8).suggest(History.of(state, exploration), 40))
        spreads.append(float(np.std([config["x"] for config in found])))
    assert spreads == sorted(spreads)


def test_how_many_observations_make_up_g_matters_little() -> None:
    score = bowl(sweep_config(search_space=PLANE, direction="minimize"))
    found = [best(lambda most=most: TPEOptimizer(most=most), PLANE, score, [4] * 20) for most in (8, 10_000)]
    assert max(found) < 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"startup": 0}, "startup to be an integer from 1 to 100000, got 0"),
        ({"candidates": "24"}, "candidates to be an integer from 1 to 100000, got '24'"),
        ({"most": 1.5}, "most to be an integer from 1 to 100000, got 1.5"),
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TPEOptimizer(**options)


def test_the_best_may_be_far_better_than_all_others() -> None:
    scores = iter([1e-300, 1e300, *([2e300] * 28)])
    config = sweep_config(search_space=PLANE, direction="minimize")
    state = lived(started(config), random_configs(PLANE, 30), "c" * 30, lambda _: next(scores))
    assert len(TPEOptimizer().suggest(history_of(state), 2)) == 2
