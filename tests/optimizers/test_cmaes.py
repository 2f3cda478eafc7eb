"""CMA-ES: its distribution follows from the runs alone, and goes where they score well."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from metta.sweep.errors import ConfigError
from metta.sweep.model.space import Choice, Config, LogUniform, Range, SearchSpace, Uniform
from metta.sweep.optimizers.cmaes import CMAESOptimizer
from metta.sweep.optimizers.random import RandomOptimizer
from metta.sweep.testing import OptimizerContract, sweep_config
from metta.sweep.testing.searches import bowl, configs, history_of, lived, random_configs, searched, started
from optimizers.searching import best, search

ELLIPSE = SearchSpace.of({f"x{axis}": Uniform(-1.0, 1.0) for axis in range(4)})
MIXED = SearchSpace.of(
    {
        "lr": LogUniform(1e-5, 1e-1),
        "layers": Range(1, 8),
        "units": Range(16, 1024, log=True),
        "kind": Choice(["a", "b", "c", "d"]),
        "nesterov": Choice([False, True]),
    }
)


class TestCMAES(OptimizerContract):
    def new_optimizer(self) -> CMAESOptimizer:
        return CMAESOptimizer()


def ellipse(config: Config) -> float:
    """Long and askew: its axes are those of no parameter."""
    x = np.array(list(config.values()))
    return float((x.sum() - 0.4) ** 2 * 25 + ((x - 0.1) ** 2).sum())


def mixed(config: Config) -> float:
    places = sum((unit - 0.7) ** 2 for unit in MIXED.encode(config)[:3])
    return places + (config["kind"] != "c") * 0.3 + (not config["nesterov"]) * 0.2


@pytest.mark.parametrize(("space", "score"), [(ELLIPSE, ellipse), (MIXED, mixed)], ids=["ellipse", "mixed"])
def test_it_finds_far_better_configurations_than_random_search(space: SearchSpace, score: Any) -> None:
    ours, random = (best(new, space, score, [8] * 25) for new in (CMAESOptimizer, RandomOptimizer))
    assert ours < random / 10


def test_it_is_the_same_whether_it_follows_a_sweep_or_meets_it_late() -> None:
    optimizer, score = CMAESOptimizer(), mixed
    state = search(optimizer, MIXED, score, [3] * 30)
    assert optimizer.suggest(history_of(state), 5) == CMAESOptimizer().suggest(history_of(state), 5)


def test_runs_on_their_way_hold_nothing_up() -> None:
    space = ELLIPSE
    config = sweep_config(search_space=space, direction="minimize")
    tried = random_configs(space, 10)
    waiting = lived(started(config), tried, "pp" + "c" * 8, bowl(config))
    [suggestion] = CMAESOptimizer().suggest(history_of(waiting), 1)
    assert suggestion.reasons == ("CMA-ES, generation 1, draw 10",)


def test_only_ranks_count() -> None:
    config = sweep_config(search_space=ELLIPSE, direction="minimize")
    tried, score = random_configs(ELLIPSE, 16), bowl(config)
    plain, curved = (
        lived(started(config), tried, "c" * 16, curve) for curve in (score, lambda each: 1e300 * score(each) ** 3)
    )
    assert CMAESOptimizer().suggest(history_of(plain), 3) == CMAESOptimizer().suggest(history_of(curved), 3)


def test_failed_runs_rank_last() -> None:
    config = sweep_config(search_space=ELLIPSE, direction="minimize")
    tried, score = random_configs(ELLIPSE, 8), bowl(config)
    worst = max(range(8), key=lambda at: score(tried[at]))
    fates = "".join("f" if at == worst else "c" for at in range(8))
    failed, bad = (lived(started(config), tried, each, score) for each in (fates, "c" * 8))
    assert configs(CMAESOptimizer().suggest(history_of(failed), 3)) == configs(
        CMAESOptimizer().suggest(history_of(bad), 3)
    )


def test_a_run_that_was_rolled_back_is_forgotten() -> None:
    config = sweep_config(search_space=ELLIPSE, direction="minimize")
    tried, score = random_configs(ELLIPSE, 9), bowl(config)
    optimizer = CMAESOptimizer()
    optimizer.suggest(history_of(lived(started(config), tried, "c" * 9, score)), 1)
    without = history_of(lived(started(config), tried, "b" + "c" * 8, score))
    assert optimizer.suggest(without, 3) == CMAESOptimizer().suggest(without, 3)
    draws = [
        configs(CMAESOptimizer().suggest(history_of(lived(started(config), tried, fates, score)), 1))
        for fates in ("c" * 9, "b" + "c" * 8)
    ]
    assert draws[0] != draws[1]


def test_what_does_not_exist_is_not_learned_from() -> None:
    space = SearchSpace.of(
        {"kind": Choice(["a", "b", "c"]), "x": Uniform(0.0, 1.0), "y": Uniform(0.0, 1.0, when={"kind": "a"})}
    )

    def score(config: Config) -> float:
        return (config["x"] - 0.9) ** 2 + 0.2 * (config["kind"] != "b")

    optimizer = CMAESOptimizer()
    state = search(optimizer, space, score, [6] * 30)
    found = configs(optimizer.suggest(history_of(state), 300))
    assert np.median([config["x"] for config in found]) == pytest.approx(0.9, abs=0.05)
    spreads = [np.std([config[name] for config in found if name in config]) for name in ("x", "y")]
    # Were it told of the 0.5 that stands for an axis that does not exist, y would be narrowed down to that.
    assert spreads[1] > 0.5 * spreads[0]


def test_it_begins_elsewhere_with_a_larger_population_when_it_has_converged() -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0), "y": Uniform(0.0, 1.0)})
    state = search(CMAESOptimizer(), space, bowl(sweep_config(search_space=space, direction="minimize")), [6] * 150)
    runs = sorted(state.runs.values(), key=lambda run: run.index)
    distances = np.abs([run.config["x"] - 0.3 for run in runs])
    converged = int(np.argmax(distances < 1e-7))
    assert 100 < converged < 600
    assert distances[converged:].max() > 0.2
    [suggestion] = CMAESOptimizer().suggest(history_of(state), 1)
    generation = int(suggestion.reasons[0].split()[2].rstrip(","))
    assert 75 < generation < 140  # 150 without the larger population


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigma": 0.0}, "sigma to be a number above 0 and at most 1, got 0.0"),
        ({"sigma": "large"}, "sigma to be a number above 0 and at most 1, got 'large'"),
        ({"population": 3}, "population to be an integer from 4 to 100000, got 3"),
        ({"population": 8.0}, "population to be an integer from 4 to 100000, got 8.0"),
    ],
)
def test_options_out_of_bounds_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CMAESOptimizer(**options)


def test_the_population_may_be_chosen() -> None:
    state = searched(ELLIPSE, "c" * 12)
    for population, generations in ((4, 3), (6, 2), (None, 1)):
        [suggestion] = CMAESOptimizer(population=population).suggest(history_of(state), 1)
        assert suggestion.reasons == (f"CMA-ES, generation {generations}, draw 12",)
