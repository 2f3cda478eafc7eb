"""Output that nobody reads to its end, or that cannot be written."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from metta.sweep.stores import open_store
from metta.sweep.testing import run_events, sweep_created

METTA = Path(sys.executable).with_name("metta")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        store.append([sweep_created("46g3f", name="digits", max_trials=500)])
        for index in range(400):  # more than a pipe holds
            store.append(run_events(index, sweep_id="46g3f", score=index / 400))
    return tmp_path


def shell(script: str, folder: Path) -> tuple[int, str]:
    """Of a script in which `metta` is ours: the code of its first command, and what was said on standard error."""
    script = f"{script.replace('metta', str(METTA))}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "events",
        "events --json",
        "events -f",
        "status --runs",
        "status --runs --json",
        "best --top 400",
        "export --format json",
        "export --format csv",
        "replay --json",
    ],
)
def test_a_reader_that_has_seen_enough_ends_a_command_in_silence(folder: Path, command: str) -> None:
    assert shell(f"metta sweep {command} | head -n 1 >/dev/null", folder) in {(141, ""), (0, "")}


@pytest.mark.parametrize("command", ["list", "status", "best", "schema", "analyze", "export", "why --help", "doctor"])
def test_a_reader_that_is_gone_ends_a_command_in_silence(folder: Path, command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [METTA, "sweep", *command.split()], cwd=folder, stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_full_disk_is_told(folder: Path) -> None:
    for command in ("list", "status --json", "export --format json"):
        code, error = shell(f"metta sweep {command} >/dev/full", folder)
        assert code == 1
        assert error == "error: the output cannot be written: No space left on device; send it somewhere else\n"


def test_a_closed_output_is_no_failure(folder: Path) -> None:
    for command in ("list", "status --json", "export --format json"):
        assert shell(f"metta sweep {command} >&-", folder) == (0, "")


def test_an_encoding_that_lacks_a_character_is_told_without_a_traceback(tmp_path: Path) -> None:
    with closing(open_store(str(tmp_path / "sweeps.db"), create=True)) as store:
        store.append([sweep_created("46g3f", name="größe")])
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [METTA, "sweep", "list", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (
        1,
        "error: the output is in ascii, which has no '\\xf6'; set PYTHONUTF8=1 for UTF-8\n",
    )


def test_a_closed_standard_error_is_no_failure(folder: Path) -> None:
    (folder / "train.py").write_text(
        "from metta.sweep import Uniform, sweep\n\n\n"
        '@sweep(search_space={"x": Uniform(0, 1)}, metric="score", max_trials=2)\n'
        'def train(config):\n    return {"score": config["x"]}\n'
    )
    assert shell("metta sweep run train.py --json 2>&- >ended.json", folder)[0] == 0
    assert '"COMPLETED"' in (folder / "ended.json").read_text()
