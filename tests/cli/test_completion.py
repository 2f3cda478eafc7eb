"""TAB in a shell: what is offered, in silence and in time."""

from __future__ import annotations

import os
import resource
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from cli.command_line import CommandLine
from metta.sweep.model import ids
from metta.sweep.stores import STORE_VARIABLE, open_store
from metta.sweep.testing import run_events, sweep_created

FIRST, SECOND = "46g3f", "8xk2m"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "sweeps.db"
    write(path, FIRST, "digits", 20)
    write(path, SECOND, "letters", 3)
    return path


def write(path: Path, sweep_id: str, name: str, runs: int) -> None:
    with closing(open_store(str(path), create=True)) as opened:
        opened.append([sweep_created(sweep_id, name=name)])
        for begin in range(0, runs, 500):
            indices = range(begin, min(begin + 500, runs))
            opened.append([run_events(index, sweep_id=sweep_id)[0] for index in indices])


def complete(line: str, folder: Path, **environment: str) -> list[str]:
    """What bash is offered for the last word of a line; nothing may be said on standard error."""
    words = shlex.split(line)
    position = len(words) if line.endswith(" ") else len(words) - 1
    shell = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(position), "_METTA_COMPLETE": "complete_bash"}
    done = subprocess.run(
        [metta()],
        cwd=folder,
        env={**{name: value for name, value in os.environ.items() if name != STORE_VARIABLE}, **shell, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def metta() -> str:
    return str(Path(sys.executable).with_name("metta"))


def runs_of(sweep_id: str, count: int, prefix: str = "") -> list[str]:
    run_ids = (ids.run_id(sweep_id, index) for index in range(count))
    return [run_id for run_id in run_ids if run_id.startswith(prefix)]


def test_ids_and_names_of_sweeps(store: Path) -> None:
    assert complete("metta sweep status ", store.parent) == [FIRST, SECOND]
    assert complete("metta sweep analyze 4", store.parent) == [FIRST]
    assert complete("metta sweep pause let", store.parent) == ["letters"]
    assert complete(f"metta sweep compare {FIRST} 8", store.parent) == [SECOND]
    assert complete("metta sweep run --resume 8", store.parent) == [SECOND]


def test_ids_of_runs(store: Path) -> None:
    run_id = ids.run_id(FIRST, 7)
    assert sorted(complete(f"metta sweep why {run_id[:2]}", store.parent)) == sorted(
        [*runs_of(FIRST, 20, run_id[:2]), *runs_of(SECOND, 3, run_id[:2])]
    )
    assert sorted(complete("metta sweep show letters/", store.parent)) == sorted(
        f"letters/{each}" for each in runs_of(SECOND, 3)
    )
    assert complete("metta sweep logs nonsense/", store.parent) == []


def test_runs_of_the_sweep_that_is_on_the_line(store: Path) -> None:
    assert set(complete(f"metta sweep events {FIRST} --run ", store.parent)) == set(runs_of(FIRST, 20))
    assert set(complete("metta sweep events --run ", store.parent)) == set(runs_of(SECOND, 3))


def test_options(tmp_path: Path) -> None:
    assert complete("metta sweep export --format ", tmp_path) == ["yaml", "json", "csv", "parquet", "optuna"]
    assert complete("metta sweep events --type job_g", tmp_path) == ["job_granted"]
    assert complete("metta sweep run --strategy b", tmp_path) == ["bayesian", "bohb"]


def test_the_store_of_the_line_and_that_of_the_environment(store: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    write(other, "0ther", "other", 2)
    assert complete(f"metta sweep status --store {other} ", store.parent) == ["0ther"]
    assert complete("metta sweep status ", store.parent, **{STORE_VARIABLE: f"sqlite:///{other}"}) == ["0ther"]


@pytest.mark.parametrize("url", ["missing.db", "notes.txt", ".", "mysql://host/x", "postgresql://me@127.0.0.1:1/x"])
def test_a_store_that_cannot_be_read_offers_nothing(tmp_path: Path, url: str) -> None:
    (tmp_path / "notes.txt").write_text("no database at all " * 99)
    before = set(tmp_path.iterdir())
    for line in ("metta sweep status ", "metta sweep show ", "metta sweep resume ", "metta sweep events --run "):
        assert complete(line, tmp_path, **{STORE_VARIABLE: url}) == []
    assert set(tmp_path.iterdir()) == before


def test_a_server_that_does_not_answer_keeps_nobody_waiting(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"postgresql://me:secret@127.0.0.1:{server.getsockname()[1]}/sweeps"
        begin = time.monotonic()
        assert complete("metta sweep status ", tmp_path, **{STORE_VARIABLE: url}) == []
        assert time.monotonic() - begin < 5


def test_many_runs_take_no_longer(tmp_path: Path) -> None:
    write(tmp_path / "sweeps.db", FIRST, "digits", 10_000)
    run_id = ids.run_id(FIRST, 9_999)
    before = processor_time()
    assert run_id in complete(f"metta sweep why {run_id[:4]}", tmp_path)
    assert processor_time() - before < 0.5


def processor_time() -> float:
    """Seconds that the processes that this one has waited for have used, which other load does not change."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.slow
def test_it_is_installed_as_the_documentation_says(store: Path, tmp_path: Path) -> None:
    """By bash itself, with a home of its own: what `--install-completion` leaves behind completes a line."""
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PATH": f"{Path(metta()).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop(STORE_VARIABLE, None)

    def bash(*arguments: str) -> str:
        command: Sequence[str] = ["bash", *arguments]
        done = subprocess.run(command, cwd=store.parent, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    bash("-c", "exec -a bash bash -c 'metta --install-completion bash'")
    script = (
        'source ~/.bashrc; COMP_WORDS=(metta sweep status 4); COMP_CWORD=3; _metta_completion metta; echo "$COMPREPLY"'
    )
    assert bash("-c", script).split() == [FIRST]


def test_every_command_that_takes_a_sweep_or_run_completes_it(metta: CommandLine, store: Path) -> None:
    for command in ("status", "best", "analyze", "export", "events", "replay", "pause", "stop", "rollback", "debug"):
        assert FIRST in complete(f"metta sweep {command} ", store.parent), command
    for command in ("show", "why", "logs", "resume"):
        assert set(runs_of(FIRST, 20)) <= set(complete(f"metta sweep {command} ", store.parent)), command
