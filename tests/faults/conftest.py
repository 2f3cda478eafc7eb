"""Shared by the fault suite."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from faults.world import MakeWorld, World
from postgresql import postgresql_server, postgresql_url  # noqa: F401 (fixtures)


@pytest.fixture
def make_world(tmp_path: Path) -> Iterator[MakeWorld]:
    """Makes sweeps, each in a folder of its own, of which nothing is left running afterwards."""
    worlds: list[World] = []
    numbers = count()

    def make(**options: object) -> World:
        folder = options.pop("folder", tmp_path / f"world{next(numbers)}")
        worlds.append(World(folder, **options))  # type: ignore[arg-type]
        return worlds[-1]

    yield make
    for world in worlds:
        world.close()
