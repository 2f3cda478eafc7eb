"""How many jobs fit is found when a sweep is created, and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metta.sweep import Sweep, Uniform, sweep
from metta.sweep.config_defaults import parallelism
from metta.sweep.config_defaults.parallelism import Limit, Parallelism
from metta.sweep.launch import Launched, launch
from metta.sweep.stores import open_store


@pytest.fixture
def fitting(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make this a machine on which so many jobs fit."""

    def fit(jobs: int) -> None:
        limit = Limit(name="processors", jobs=jobs, why="so many")
        monkeypatch.setattr(parallelism, "detect", lambda resources: Parallelism(jobs=jobs, limits=(limit,)))

    return fit


def train_for(**settings: Any) -> Sweep:
    return sweep(search_space={"x": Uniform(0, 1)}, metric="y", name="demo", seed=1, **settings)(lambda config: None)


def test_a_sweep_under_way_keeps_what_it_began_with(tmp_path: Path, fitting: Callable[[int], None]) -> None:
    store = open_store(str(tmp_path / "sweeps.db"), create=True)

    def start(train: Sweep) -> Launched:
        return launch(store, train.definition({}))

    fitting(6)
    train = train_for()
    assert start(train).sweep.config.max_parallel == 6
    fitting(2)
    again = start(train)
    assert (again.resumed, again.changes, again.sweep.config.max_parallel) == (True, {}, 6)
    # What the user says does change it.
    train.settings = train_for(max_parallel=3).settings
    assert start(train).changes == {"max_parallel": 3}
    store.close()
