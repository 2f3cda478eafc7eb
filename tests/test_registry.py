"""Parts by name: the built-in ones, those of an installed package, and what is said when there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metta.sweep import registry
from metta.sweep.errors import ConfigError
from metta.sweep.optimizers.grid import GridOptimizer
from metta.sweep.optimizers.random import RandomOptimizer
from metta.sweep.optimizers.sobol import SobolOptimizer
from metta.sweep.schedulers.fifo import FifoScheduler
from metta.sweep.testing import sweep_config
from metta.sweep.testing.optimizers import history_of, started

PLUGIN = """
class Halving:
    def __init__(self, factor=2):
        self.factor = factor

    def check(self, config):
        pass

    def suggest(self, history, n):
        return []


class Unchecked:
    def schedule(self, state, capacity):
        return []


class Cluster:
    name = "cluster"

    def __init__(self, store, sweep_id, config, clock, partition="all"):
        self.context = (store, sweep_id, config, clock)
        self.partition = partition
"""
ENTRY_POINTS = """
[metta.sweep.optimizers]
halving = demo_plugin:Halving
misspelt = demo_plugin:Halvign
missing = demo_plugin_that_is_not_there:Halving

[metta.sweep.schedulers]
unchecked = demo_plugin:Unchecked

[metta.sweep.dispatchers]
cluster = demo_plugin:Cluster
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An installed package with optimizers of its own."""
    (tmp_path / "demo_plugin.py").write_text(PLUGIN)
    info = tmp_path / "demo_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: demo-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(tmp_path)
    registry._entries.cache_clear()
    yield
    registry._entries.cache_clear()


def test_built_in_parts_are_found_by_name() -> None:
    assert isinstance(registry.optimizer("random", {}), RandomOptimizer)
    assert isinstance(registry.optimizer("grid", {"levels": 3}), GridOptimizer)
    assert isinstance(registry.optimizer("sobol", {}), SobolOptimizer)
    assert isinstance(registry.scheduler("fifo", {}), FifoScheduler)


def test_names_are_listed_in_order() -> None:
    names = registry.names("optimizers")
    assert {"random", "grid", "sobol"} <= set(names)
    assert names == sorted(names)
    assert "fifo" in registry.names("schedulers")
    assert "local" in registry.names("dispatchers")


def test_parts_are_made_anew_each_time() -> None:
    assert registry.optimizer("sobol", {}) is not registry.optimizer("sobol", {})


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"strategy: there is no optimizer 'radom'; did you mean 'random'\? known: .*grid"
    ):
        registry.optimizer("radom", {})
    with pytest.raises(ConfigError, match=r"there is no scheduler 'asap'; .*known: .*fifo"):
        registry.scheduler("asap", {})


@pytest.mark.parametrize(
    ("name", "options", "hint"),
    [
        ("grid", {"leveles": 3}, "there is no 'leveles'; did you mean 'levels'"),
        ("random", {"levels": 3}, "there is no 'levels'; it has no options"),
        ("sobol", {"seed": 1}, "there is no 'seed'; it has no options"),
    ],
)
def test_options_that_a_part_does_not_have_are_refused(name: str, options: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError, match=f"strategy: {name} does not take these options .*: {hint}"):
        registry.optimizer(name, options)


def test_options_that_a_part_refuses_are_reported_in_its_own_words() -> None:
    with pytest.raises(ConfigError, match="levels to be an integer from 1 to 100000, got 0"):
        registry.optimizer("grid", {"levels": 0})


@pytest.mark.usefixtures("plugin")
def test_an_installed_package_adds_a_part_without_a_change_here() -> None:
    assert "halving" in registry.names("optimizers")
    halving: Any = registry.optimizer("halving", {"factor": 4})
    assert halving.factor == 4
    assert halving.suggest(history_of(started(sweep_config())), 1) == []


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize(
    ("name", "cause"),
    [("misspelt", "Halvign"), ("missing", "No module named 'demo_plugin_that_is_not_there'")],
)
def test_a_part_that_cannot_be_loaded_is_named_with_the_cause(name: str, cause: str) -> None:
    with pytest.raises(ConfigError, match=rf"strategy: {name} cannot be loaded from 'demo_plugin.*': .*{cause}"):
        registry.optimizer(name, {})


@pytest.mark.usefixtures("plugin")
def test_a_scheduler_made_before_there_were_checks_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(ConfigError) as caught:
        registry.scheduler("unchecked", {})
    assert str(caught.value).startswith(
        "strategy: unchecked is no scheduler, since demo_plugin:Unchecked has no method 'check'; it may be made for"
    )


@pytest.mark.usefixtures("plugin")
def test_a_dispatcher_is_called_with_its_sweep_and_its_options() -> None:
    context: dict[str, Any] = {"store": object(), "sweep_id": "sw33p", "config": object(), "clock": object()}
    cluster: Any = registry.dispatcher("dispatcher", "cluster", {"partition": "gpu"}, **context)
    assert cluster.context == tuple(context.values())
    assert cluster.partition == "gpu"


@pytest.mark.usefixtures("plugin")
def test_a_dispatcher_is_checked_without_being_made() -> None:
    registry.check_dispatcher("dispatcher", "cluster", {"partition": "gpu"})
    with pytest.raises(ConfigError, match=r"dispatcher.fallback\[1\]: there is no dispatcher 'clutser'; did you mean"):
        registry.check_dispatcher("dispatcher.fallback[1]", "clutser", {})
    with pytest.raises(ConfigError, match=r"dispatcher: cluster does not take these options .*'queue'"):
        registry.check_dispatcher("dispatcher", "cluster", {"queue": "gpu"})


def test_built_in_dispatchers_are_found_by_name() -> None:
    registry.check_dispatcher("dispatcher", "local", {})
    with pytest.raises(ConfigError, match=r"dispatcher: local does not take these options .*'gpus'"):
        registry.check_dispatcher("dispatcher", "local", {"gpus": 4})
