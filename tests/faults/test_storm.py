"""The storm of benchmarks/storm.py, in short."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

STORM = Path(__file__).parents[2] / "benchmarks" / "storm.py"


@pytest.mark.slow
@pytest.mark.timeout(600)  # how long it takes is up to the storm
@pytest.mark.parametrize("database", ["postgresql", "sqlite"])
def test_a_sweep_comes_through_a_storm_with_every_run_ended_once(database: str, tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    options = [
        "--quick",
        "--seconds=0.5",
        "--kill-every=2",
        "--crash-every=5",
        f"--json={figures}",
        *(["--sqlite"] if database == "sqlite" else []),
    ]
    done = subprocess.run([sys.executable, STORM, *options], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = {figure["name"]: figure["value"] for figure in json.loads(figures.read_text())["figures"]}
    assert found["runs ended"] == found["runs completed"] == 60
    assert found["runs lost"] == found["observations twice"] == found["attempts executed twice"] == 0
    assert sum(count for name, count in found.items() if name.startswith("kill -9")) >= 3
