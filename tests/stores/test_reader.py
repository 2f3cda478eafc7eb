"""The reading half of the store by itself: what commands that only look use."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from metta.sweep.errors import ConfigError, StoreError
from metta.sweep.stores import open_reader, open_store
from metta.sweep.testing import random_history
from metta.sweep.testing.sweeps import SWEEP


def test_a_reader_sees_what_the_store_holds(tmp_path: Path) -> None:
    path = str(tmp_path / "sweeps.db")
    with closing(open_store(path, create=True)) as store, closing(open_reader(path)) as reader:
        store.append(random_history(seed=3))
        assert reader.url == store.url
        assert reader.fetch_sweeps() == store.fetch_sweeps()
        assert reader.fetch_runs(SWEEP) == store.fetch_runs(SWEEP)
        assert list(reader.read(SWEEP)) == list(store.read(SWEEP))


def test_a_reader_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no such file"):
        open_reader(str(tmp_path / "sweeps.db"))
    with pytest.raises(ConfigError, match="scheme 'http'"):
        open_reader("http://example")
    assert not list(tmp_path.iterdir())


def test_looking_does_not_wait_for_sqlalchemy(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with closing(open_store(str(path), create=True)) as store:
        store.append(random_history(seed=3))
    script = (
        "import sys, metta.sweep.cli.main as cli; cli.app(standalone_mode=False); print('sqlalchemy' in sys.modules)"
    )
    for command in ("status", "best", "list"):
        arguments = [sys.executable, "-c", script, "sweep", command, "--store", str(path), "--json"]
        done = subprocess.run(arguments, capture_output=True, text=True, check=True)
        assert done.stdout.endswith("False\n")
