"""Python programs as a person runs them: a process of their own in a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from metta.sweep.stores import STORE_VARIABLE


@dataclass(frozen=True)
class Result:
    """What a program left behind."""

    code: int
    out: str
    err: str


def run_python(*arguments: str, folder: Path, input: str = "", check: bool = True) -> Result:  # noqa: A002
    """Run `python ARGUMENTS`; with `check`, fail the test where the program fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={name: value for name, value in os.environ.items() if name != STORE_VARIABLE},
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return Result(done.returncode, done.stdout, done.stderr)
