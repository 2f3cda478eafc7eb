"""A package of somebody else's adds an optimizer: installed for real, tested by its own test, used in a real sweep."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from metta.sweep.model.events import RunCreated
from metta.sweep.stores import open_reader

PLUGIN = Path(__file__).parent.parent / "examples" / "optimizer_plugin"
TRAIN = """
from metta.sweep import LogUniform, sweep


@sweep(
    search_space={"lr": LogUniform(1e-4, 1e-1)},
    metric="loss",
    direction="minimize",
    strategy="hill_climbing",
    max_trials=5,
    max_parallel=1,
    seed=3,
)
def train(config):
    return {"loss": (config["lr"] - 0.01) ** 2}
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip has installed the example into, without a network."""
    site = tmp_path_factory.mktemp("site")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--no-compile", "--disable-pip-version-check"]
    python("-m", "pip", "install", "--quiet", *offline, "--target", str(site), str(PLUGIN), cwd=site)
    return site


def python(*arguments: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_name_is_a_strategy_of_a_real_sweep(site: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(TRAIN)
    sweep = ["-m", "metta.sweep.cli", "sweep"]
    result = json.loads(python(*sweep, "run", "train.py", "--json", cwd=tmp_path, PYTHONPATH=str(site)))
    assert (result["status"], result["counts"]) == ("COMPLETED", {"COMPLETED": 5})
    with closing(open_reader(str(tmp_path / "sweeps.db"))) as store:
        created = [event.body for event in store.read(result["sweep_id"]) if isinstance(event.body, RunCreated)]
    assert [body.reasons[0] for body in created] == [f"a step from the best so far, number {k}" for k in range(5)]


def test_its_own_test_holds_it_to_the_promises_of_optimizers(site: Path, tmp_path: Path) -> None:
    quietly = ["-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    output = python("-m", "pytest", *quietly, str(PLUGIN), cwd=tmp_path, PYTHONPATH=str(site))
    assert "1 passed" in output


def test_it_is_as_short_as_promised() -> None:
    assert len((PLUGIN / "hill_climbing.py").read_text().splitlines()) <= 35
