"""docs/cli.md, and the script that writes it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from metta.sweep.cli.main import sweep

ROOT = Path(__file__).parent.parent.parent


def commands() -> list[str]:
    group: Any = typer.main.get_command(sweep)
    return list(group.commands)


def sections(page: Path) -> list[str]:
    return re.findall(r"^## (.+)$", page.read_text(), re.MULTILINE)


def test_the_page_has_a_section_for_each_command_and_no_other() -> None:
    assert sections(ROOT / "docs/cli.md") == commands(), "write it anew: make docs"


def test_the_page_tells_nothing_of_where_it_was_written() -> None:
    page = (ROOT / "docs/cli.md").read_text()
    assert not re.search(r"/(home|root|work|Users)/|\x1b", page)


@pytest.mark.slow
def test_every_command_behaves_in_a_terminal_and_in_a_pipe(tmp_path: Path) -> None:
    page = tmp_path / "cli.md"
    script = [sys.executable, str(ROOT / "scripts/cli_page.py")]
    done = subprocess.run(
        [*script, "--finished", "30", "--running", "3", "--folder", str(tmp_path / "digits"), "--output", str(page)],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    problems = [line for line in done.stderr.splitlines() if not line.startswith("$ ")]
    assert (done.returncode, problems) == (0, [])
    assert sections(page) == commands()
