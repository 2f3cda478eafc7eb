"""Copies of the store while a controller works."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path

import pytest

from metta.sweep.controller.backups import AutomaticBackups, folder_of_backups
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.stores import open_reader, open_store
from metta.sweep.stores.backup import backups
from metta.sweep.testing import ManualClock, run_events, sweep_config, sweep_created
from metta.sweep.testing.sweeps import SWEEP
from waiting import wait_until

HOUR = 3600.0


@pytest.fixture
def config(tmp_path: Path) -> SweepConfig:
    return sweep_config(backup_hours=2.0, backups=2, directory=str(tmp_path / "sweeps" / SWEEP))


def copies(tmp_path: Path, config: SweepConfig) -> list[Path]:
    return backups(tmp_path / "sweeps.db", folder_of_backups(config))


def test_a_copy_is_made_at_first_and_again_when_it_is_old_and_the_oldest_go(
    tmp_path: Path, config: SweepConfig
) -> None:
    clock = ManualClock()
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        store.append([sweep_created()])
        keeper = AutomaticBackups(store.url, clock)
        seen: list[Path] = []

        def is_copied() -> bool:
            keeper.tend(config)  # the copy before may have its name, and not be done in all
            return bool(set(copies(tmp_path, config)) - set(seen))

        for number in range(4):
            store.append(run_events(number))
            wait_until(is_copied, what="a copy")
            [new] = set(copies(tmp_path, config)) - set(seen)
            os.utime(new, (clock.now(), clock.now()))
            seen.append(new)
            clock.advance(HOUR)
            keeper.tend(config)  # not yet
            clock.advance(HOUR)
        wait_until(lambda: copies(tmp_path, config) == sorted(seen[-2:]), what="the end of the oldest copies")
        with closing(open_reader(str(seen[-1]))) as copy:
            assert list(copy.read(SWEEP)) == list(store.read(SWEEP))


def test_nothing_is_copied_unless_asked_for_nor_of_a_store_that_is_no_file(tmp_path: Path, config: SweepConfig) -> None:
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        AutomaticBackups(store.url, ManualClock()).tend(sweep_config(directory=config.directory))
        AutomaticBackups("postgresql://host/database", ManualClock()).tend(config)
    assert not folder_of_backups(config).exists()
