"""`metta sweep replay`: what it shows of any moment is what `metta sweep status` said then."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cli.command_line import CommandLine
from metta.sweep.cli import inspect
from metta.sweep.cli.replay import parse_point, replay
from metta.sweep.display.replay import Stepper
from metta.sweep.errors import ConfigError
from metta.sweep.observe.replay import Point, Timeline
from metta.sweep.stores import open_store
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP
from waiting import wait_until

#: What depends on when it is asked, and on whether the lease of a controller runs: not on the log.
NOT_OF_THE_LOG = {"eta", "controlled"}

#: Some runs fail at first, some for good; the others are stopped early, or not.
TARGET = """
    import time
    from metta.sweep import Uniform, current_run, report_metrics, sweep

    @sweep(
        search_space={"x": Uniform(0, 1)},
        metric="score",
        max_trials=60,
        max_parallel=3,
        seed=11,
        strategy={"scheduler": "asha"},
        fidelity={"resource": "epoch", "maximum": 9},
        retry={"max_retries": 1, "retry_delay_seconds": 0.1},
        same_error_limit=0,
    )
    def train(config):
        attempt = int(current_run().job_id.rpartition(".")[2])
        for epoch in range(1, 10):
            time.sleep(0.05)
            if config["x"] < 0.3 or (config["x"] < 0.5 and attempt == 1):
                raise ValueError(f"x is {config['x']}")
            report_metrics({"score": config["x"] * epoch, "epoch": epoch})
"""


def said(command: Any, *arguments: Any, **options: Any) -> Any:
    """What a command prints, run in this process."""
    with redirect_stdout(StringIO()) as out:
        command(*arguments, **options)
    return json.loads(out.getvalue())


def of_the_log(shape: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in shape.items() if name not in NOT_OF_THE_LOG}


@pytest.mark.slow
def test_any_moment_of_a_sweep_is_shown_as_status_showed_it_then(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    running = metta.start("run", "train.py")
    wait_until(lambda: (metta.folder / "sweeps.db").exists() and metta.store.fetch_sweeps(), what="the sweep")
    url, sweep_id = str(metta.folder / "sweeps.db"), metta.latest().sweep_id
    recorded: dict[int, dict[str, Any]] = {}

    def record() -> None:
        shape = said(inspect.status, sweep_id, store=url, as_json=True)
        # It reads the sweep and its best run one after the other: of two moments where something happened in between.
        if metta.latest().seq == shape["seq"]:
            recorded[shape["seq"]] = shape

    def is_so_far(ended: int) -> bool:
        record()
        return metta.latest().ended_count >= ended

    wait_until(lambda: is_so_far(8), what="eight runs that ended")
    assert metta("rollback", sweep_id, "--jobs", "3").code == 0
    wait_until(lambda: is_so_far(14), what="fourteen runs that ended")
    running.process.kill()
    running.process.wait()
    record()
    resumed = metta.start("run", "--resume", sweep_id)
    wait_until(lambda: record() or resumed.process.poll() is not None, what="the end of the sweep")
    assert metta("rollback", sweep_id, "--undo").code == 0
    record()

    statuses = {status for shape in recorded.values() for status in shape["counts"]}
    assert statuses >= {"COMPLETED", "STOPPED", "FAILED", "RETRYING", "IN_TRAINING", "ROLLED_BACK"}
    assert len(recorded) >= 50
    moments = random.Random(6).sample(sorted(recorded), 50)
    for seq in {*moments, max(recorded)}:
        shown = said(replay, sweep_id, to=str(seq), store=url, as_json=True)
        assert of_the_log(shown) == of_the_log(recorded[seq])
        assert shown.keys() == recorded[seq].keys()
    # The command as it is typed, and the film: each of its pictures is a moment.
    assert metta("replay", "--to", str(moments[0]), "--json").json == said(
        replay, sweep_id, to=str(moments[0]), store=url, as_json=True
    )
    film = [json.loads(line) for line in metta("replay", "--json").out.splitlines()]
    assert [picture["seq"] for picture in film] == list(range(1, metta.latest().seq + 1))
    assert all(of_the_log(film[seq - 1]) == of_the_log(shape) for seq, shape in recorded.items())


# ------------------------------------------------------------------------------------------------ what people type


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """A sweep of an hour, of which two runs have ended."""
    command_line = CommandLine(tmp_path_factory.mktemp("replay"))
    store = open_store(str(command_line.folder / "sweeps.db"), create=True)
    store.append([sweep_created(name="first"), *run_events(0), *run_events(1, score=3.0)])
    store.close()
    yield command_line
    command_line.close()


def test_a_moment_is_the_status_of_then(sample: CommandLine) -> None:
    text = sample("replay", "--to", "6").out
    for fact in ("after event 6, at ", "30m00s after it was created", "1 IN_TRAINING", "no controller was at work"):
        assert fact in text
    # What could be done about it then can't be done any more.
    assert "metta sweep" not in text
    assert "reward=3" in sample("replay", "first", "--to", "+1h").out


def test_without_a_terminal_a_film_is_a_line_an_event_and_the_end(sample: CommandLine) -> None:
    lines = sample("replay").out.splitlines()
    assert [line.split()[0] for line in lines[:15]] == [str(seq) for seq in range(1, 16)]
    assert lines[15].startswith("after event 15, ")
    # An hour at this speed takes no time.
    assert sample("replay", "--speed", "1000000x", "--to", "5").out.splitlines()[:5] == lines[:5]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--to", "16"], "events 1 to 15, got 16"),
        (["--to", "0"], "events 1 to 15, got 0"),
        (["--to", "yesterday"], "2026-01-31T12:00"),
        (["--to", "+"], "got '+'"),
        (["--to", "1999-01-01"], "was created at"),
        (["--speed", "fast"], "10x"),
        (["--speed", "0x"], "10x"),
        (["--step", "--json"], "--step"),
        (["nothing"], "no sweep"),
    ],
)
def test_what_cannot_be_shown_is_refused_in_one_line(sample: CommandLine, options: list[str], named: str) -> None:
    assert named in sample("replay", *options).error


def test_points_are_numbers_times_and_offsets(sample: CommandLine) -> None:
    sweep = sample.latest()
    assert parse_point("7", sweep) == Point(seq=7)
    assert parse_point("+1h30m", sweep) == Point(at=START + 5_400)
    assert parse_point("+1d2.5s", sweep) == Point(at=START + 86_402.5)
    assert parse_point("2023-11-14T22:30:00Z", sweep) == Point(at=START + 1_000)
    assert parse_point("2023-11-14T23:30:00+01:00", sweep) == Point(at=START + 1_000)
    with pytest.raises(ConfigError, match="in a while"):
        parse_point("in a while", sweep)


def test_one_goes_through_a_sweep_by_hand_in_both_directions(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "sweeps.db"), create=True)
    store.append(random_history(5))
    [sweep] = store.fetch_sweeps()
    typed = iter(["\n", "3\n", "b\n", "b 2\n", "g 40\n", "t\n", "x\n", "b none\n", "g 999\n", "s\n", "999\n", "\n"])
    screen = Console(file=StringIO(), width=200)
    Stepper(Timeline(store.read(SWEEP)), screen, lambda text: parse_point(text, sweep)).run(lambda: next(typed, ""))
    store.close()
    text = screen.file.getvalue()  # type: ignore[attr-defined]
    prompts = [int(part.split()[-1]) for part in text.split("> ")[:-1]]
    assert prompts[:6] == [1, 2, 5, 4, 2, 40]
    assert prompts[6] > 40
    assert prompts[6:10] == [prompts[6]] * 4
    assert prompts[-2:] == [60, 60]
    for fact in ("there is no command 'x'", "got 'none'", "events 1 to 60, got 999", "that was the last event so far"):
        assert fact in text
