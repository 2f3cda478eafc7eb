"""Shared by the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.command_line import CommandLine
from postgresql import postgresql_server, postgresql_url  # noqa: F401 (fixtures)


@pytest.fixture
def metta(tmp_path: Path) -> Iterator[CommandLine]:
    """`metta sweep` in an empty folder, with nothing left running afterwards."""
    command_line = CommandLine(tmp_path)
    yield command_line
    command_line.close()
