"""What bad input gets: one line that names the field and the remedy, exit code 2, and nothing written."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from cli.command_line import TARGET, CommandLine
from metta.sweep.model import ids
from metta.sweep.model.events import ControllerStarted
from metta.sweep.model.run import JobStatus
from metta.sweep.stores import open_store
from metta.sweep.testing import run_events, sweep_created

SWEEP_FILE = """\
command: [python, train.py, "--lr={{lr}}"]
metric: score
max_trials: 2
search_space:
  lr: {lr}
"""
UNIFORM = SWEEP_FILE.format(lr="{uniform: [0, 1]}")

#: Each is a way to fail, and what is stored about it.
FAILURES = {
    "misses the metric": "metric 'score' was not reported; train reported: accuracy, loss",
    "reports nothing": "metric 'score' was not reported; train reported: no metrics at all",
    "returns NaN": "train failed: metric 'score' is nan; only finite numbers can be compared",
    "reports inf": "train failed: metric 'score' is inf; only finite numbers can be compared",
    "raises": "train failed: ValueError: boom (train.py:",
    "exits": "train failed: called sys.exit(3) before it returned",
    "crashes": "train killed: SIGSEGV (signal 11)",
    "returns no dict": "train failed: train() returned float 0.5; return a dict of metrics, or nothing",
}
HARMLESS = ["prints garbage", "forks", "behaves"]

MISBEHAVING = """
    import ctypes, subprocess, sys
    from metta.sweep import Choice, report_metrics, sweep

    @sweep(
        search_space={{"how": Choice({ways})}}, metric="score", strategy="grid", max_parallel=2, max_retries=0,
        same_error_limit=0,
    )
    def train(config):
        match config["how"]:
            case "misses the metric":
                return {{"loss": 1, "accuracy": 2}}
            case "reports nothing":
                return None
            case "returns NaN":
                return {{"score": float("nan")}}
            case "reports inf":
                try:
                    report_metrics({{"score": float("inf")}})
                except Exception:
                    pass  # which does not help
                return {{"score": 1}}
            case "raises":
                raise ValueError("boom")
            case "exits":
                sys.exit(3)
            case "crashes":
                ctypes.string_at(0)
            case "returns no dict":
                return 0.5
            case "prints garbage":
                sys.stdout.buffer.write(bytes(range(256)) * 1000)
            case "forks":
                subprocess.Popen(["sleep", "300"])
                subprocess.Popen(["sleep", "300"], start_new_session=True)
        return {{"score": 1}}
"""


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (UNIFORM, ["--strategy", "randm"], "strategy: there is no strategy 'randm'; did you mean 'random'?"),
        (UNIFORM, ["--max-trials", "0"], "max_trials: expected int >= 1, got 0"),
        (SWEEP_FILE.format(lr="{uniform: [1, 0]}"), [], "sweep.yaml:5: search_space.lr: Uniform: needs low < high"),
        (SWEEP_FILE.format(lr="{log_uniform: [0, 1]}"), [], "sweep.yaml:5: search_space.lr: .* got low=0; use"),
        (SWEEP_FILE.format(lr="{choice: []}"), [], "sweep.yaml:5: search_space.lr: Choice: needs at least one value"),
        (UNIFORM + "max_trails: 3\n", [], "sweep.yaml:6: max_trails: unknown key; did you mean 'max_trials'?"),
        (UNIFORM.replace("{lr}", "{rl}"), [], "command: '--lr={rl}' names 'rl', which is no parameter; .* lr"),
    ],
)
def test_a_sweep_file_that_cannot_be_is_refused(
    metta: CommandLine, text: str, options: list[str], message: str
) -> None:
    metta.write("sweep.yaml", text)
    before = metta.files()
    assert re.match(message, metta("run", "sweep.yaml", *options).error)
    assert metta.files() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TARGET.replace("LogUniform(1e-4, 1e-1)", "LogUniform(0, 1)"), r"train.py:6: LogUniform: .* needs low > 0"),
        (TARGET.replace("seed=7", "sede=7"), r"train.py:6: sede: unknown key; did you mean 'seed'\?"),
        (TARGET.replace("(config):", "(config:"), "target: train.py cannot be imported: SyntaxError: .*"),
        (TARGET.replace("@sweep", "@(lambda **_: lambda function: function)"), "target: train.py has no function dec"),
    ],
)
def test_a_script_that_cannot_be_swept_is_refused(metta: CommandLine, text: str, message: str) -> None:
    metta.write("train.py", text)
    before = metta.files()
    assert re.match(message, metta("run", "train.py").error)
    assert metta.files() == before


def test_a_missing_target_or_two_of_them_are_refused(metta: CommandLine) -> None:
    assert metta("run", "train.py").error == "target: there is no file train.py"
    assert metta("run", "train.py", "--resume", "x").error == metta("run").error
    assert metta.files() == set()


def test_a_file_that_is_no_database_is_refused_and_left_alone(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    notes = metta.write("notes.db", "These are the notes of somebody else, and no database at all.")
    before = metta.files(), notes.read_bytes()
    for command in (["run", "train.py"], ["status"]):
        assert "notes.db: file is not a database; it is some other" in metta(*command, "--store", "notes.db").error
    assert (metta.files(), notes.read_bytes()) == before


def test_a_folder_that_cannot_be_written_is_refused(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    metta.write("plain", "a file, not a folder")
    before = metta.files()
    for store in ("plain/sweeps.db", "missing/sweeps.db"):
        error = metta("run", "train.py", "--store", store).error
        assert error.startswith(f"store {metta.folder / store}: ")
        assert error.endswith("; its folder must exist and be writable")
    assert metta.files() == before


def test_a_disk_that_is_full_or_read_only_is_refused(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    disk = metta.folder / "disk"
    disk.mkdir()

    def run_on(mounted: str) -> str:
        # A mount that only this command sees, and that is gone after it.
        script = f'mount -t tmpfs -o {mounted} none "$0" && exec "$@"'
        prefix = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, str(disk)]
        return metta("run", "train.py", "--store", "disk/sweeps.db", prefix=prefix).error

    if _may_mount():
        assert "database or disk is full; free some space and resume the sweep" in run_on("size=32k")
        assert run_on("ro").endswith("its folder must exist and be writable")
    # What a quota does, and what can be had without mounting.
    limited = ["sh", "-c", 'ulimit -f 4; exec "$0" "$@"']
    error = metta("run", "train.py", "--store", "disk/sweeps.db", prefix=limited).error
    assert "disk I/O error; the disk is over its quota, gone or failing" in error
    assert [path.name for path in disk.iterdir() if path.stat().st_size] == []


def _may_mount() -> bool:
    done = subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.slow
def test_a_second_controller_is_refused_while_the_first_is_at_work(metta: CommandLine) -> None:
    first = metta.start_held()
    sweep_id = metta.latest().sweep_id
    for again in (
        ["train.py"],
        ["--resume", sweep_id],
        ["--resume", "train", "--max-trials", "9"],
        ["train.py", "--detach"],
    ):
        assert metta("run", *again).error.startswith(f"sweep {sweep_id}")
    assert "a controller is at work on it already" in metta("run", "train.py").error
    assert len(metta.store.fetch_sweeps()) == 1
    metta.release()
    assert first.wait().code == 0
    assert len(metta.executions()) == 4
    starts = [event for event in metta.store.read(sweep_id) if isinstance(event.body, ControllerStarted)]
    assert (len(starts), metta.latest().config.max_trials) == (1, 4)


def test_a_name_is_given_once(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    assert metta("run", "train.py", "--name", "mine", "--max-trials", "1").code == 0
    before = metta.latest().seq, metta.files()
    error = metta("run", "train.py", "--name", "mine", "--max-trials", "1").error
    sweep_id = metta.latest().sweep_id
    assert error == (
        f"name: sweep {sweep_id} is named 'mine'; "
        f"choose another --name, or go on with it: metta sweep run --resume {sweep_id}"
    )
    assert (metta.latest().seq, metta.files()) == before


@pytest.mark.slow
def test_ids_that_fit_nothing_or_too_much_are_refused(metta: CommandLine) -> None:
    assert "there is no such file; start a sweep first" in metta("status").error
    assert metta.files() == set()
    _create_two_sweeps(metta.folder)
    assert metta("status", "zzz").error == (
        "no sweep has the id, name or prefix 'zzz'; the latest are: 46h00 (second), 46g3f (first)"
    )
    assert metta("best", "46").error == "'46' fits 2 sweeps: 46g3f (first), 46h00 (second); give more characters"
    run_ids = [ids.run_id("46g3f", index) for index in range(33)]
    # Of 33 runs, two begin with the same of 32 characters.
    prefix = next(run_id[0] for run_id in run_ids if sum(other[0] == run_id[0] for other in run_ids) > 1)
    for command in ("show", "logs"):
        error = metta(command, f"first/{prefix}").error
        assert error.startswith(f"'first/{prefix}' fits several runs: 46g3f/{prefix}")
        assert error.endswith("; give more characters, or SWEEP/RUN")
        assert metta(command, "46h00/0").error.startswith("no run has the id or prefix '46h00/0'")
    assert metta("show", f"46g3f/{run_ids[0]}").code == 0


def _create_two_sweeps(folder: Path) -> None:
    store = open_store(str(folder / "sweeps.db"), create=True)
    store.append([sweep_created("46g3f", name="first")])
    store.append([run_events(index, sweep_id="46g3f")[0] for index in range(33)])
    store.append([sweep_created("46h00", name="second")])
    store.close()


def test_runs_that_misbehave_fail_with_the_reason_and_the_sweep_goes_on(metta: CommandLine) -> None:
    metta.write("train.py", MISBEHAVING.format(ways=[*FAILURES, *HARMLESS]))
    result = metta("run", "train.py")
    assert (result.code, "Traceback" in result.err) == (0, False)
    by_way = {run.config["how"]: run for run in metta.runs()}
    assert list(by_way) == [*FAILURES, *HARMLESS]
    for way, reason in FAILURES.items():
        run = by_way[way]
        assert (run.status, run.score) == (JobStatus.FAILED, None), way
        assert run.failure_reasons[-1].startswith(reason), way
        assert reason in result.err
    assert {by_way[way].status for way in HARMLESS} == {JobStatus.COMPLETED}
    garbage = by_way["prints garbage"].jobs[-1].log
    assert garbage is not None
    assert Path(garbage).read_bytes() == bytes(range(256)) * 1000
    # The children of the one that forked are killed with it, also one that hid in a session of its own.
    metta.wait_for_the_end_of_all_processes()


def test_a_sweep_whose_runs_all_fail_ends_with_code_1(metta: CommandLine) -> None:
    metta.write("train.py", MISBEHAVING.format(ways=["raises"]))
    assert metta("run", "train.py").code == 1
    assert metta.latest().counts == {JobStatus.FAILED: 1}
    assert metta("best").error.startswith(f"sweep {metta.latest().sweep_id} has no completed run yet; see: metta sweep")
