"""Checkpoints with real processes: what is listed can be used, whoever dies; what goes is what the rules give up."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from metta.sweep import checkpoints
from metta.sweep.agent.location import read_address
from metta.sweep.agent.retention import superseded
from metta.sweep.clock import SystemClock
from metta.sweep.controller.controller import SweepController
from metta.sweep.dispatchers.local import LocalDispatcher
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import new_event
from metta.sweep.model.run import JobDefinition, JobState, JobStatus, JobType, Outcome, RetryPolicy, RunInfo
from metta.sweep.model.space import Range, SearchSpace
from metta.sweep.model.sweep import CommandTarget, FunctionTarget, Retention, SweepConfig
from metta.sweep.protocols import Store
from metta.sweep.stores import open_store
from processes import kill_all_in
from waiting import wait_until

SWEEP = "abcde"
RUN = ids.run_id(SWEEP, 0)
#: `metta sweep checkpoint`, called without the other commands.
SAVE = f"""{sys.executable} -c '
import typer
from metta.sweep.cli import checkpoints
app = typer.Typer()
checkpoints.register(app)
app()'"""


class World:
    """A store with one sweep, and one run in it whose attempts the test makes itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(f"sqlite:///{folder}/sweeps.db", create=True)
        self.dispatchers: list[LocalDispatcher] = []

    def function(self, body: str, name: str = "train") -> FunctionTarget:
        path = self.folder / f"{name}_target.py"
        path.write_text(textwrap.dedent(body))
        return FunctionTarget(module=str(path), name=name)

    def create(self, target: Any, **settings: Any) -> None:
        defaults = {
            "name": "world",
            "target": target,
            "search_space": SearchSpace.of({"x": Range(1, 1_000_000)}),
            "metric": "score",
            "seed": 1,
            "max_parallel": 1,
            "max_trials": 1,
            "grace_s": 0.2,
            "directory": str(self.folder / "files"),
            "working_directory": str(self.folder),
        }
        self.config = SweepConfig(**{**defaults, **settings})
        Path(self.config.directory).mkdir()
        self._append(ev.SweepCreated(config=self.config))

    def _append(self, body: ev.Body, job_id: str | None = None, run_id: str | None = None) -> None:
        event = new_event(body, sweep_id=SWEEP, at=time.time(), actor="test", run_id=run_id, job_id=job_id)
        self.store.append([event])

    def dispatcher(self) -> LocalDispatcher:
        self.dispatchers.append(LocalDispatcher(self.store, SWEEP, self.config, SystemClock()))
        return self.dispatchers[-1]

    def sweep(self) -> list[RunInfo]:
        """All runs of the sweep, by a real controller."""
        state = SweepController(self.store, SWEEP, self.dispatcher(), SystemClock()).run()
        return sorted(state.runs.values(), key=lambda run: run.index)

    def start(self) -> JobDefinition:
        """The next attempt at the run's train job, with the checkpoints that the log lists."""
        runs = self.store.fetch_runs(SWEEP)
        if not runs:
            self._append(ev.RunCreated(index=0, config={"x": 1}), run_id=RUN)
        elif runs[0].status is not JobStatus.PENDING:
            self._append(ev.RunRequeued(reason="again"), run_id=RUN)
        run = self.run
        attempt = run.attempts(JobType.TRAIN) + 1
        job_id = ids.job_id(RUN, JobType.TRAIN, attempt)
        self._append(ev.JobGranted(job_type=JobType.TRAIN, attempt=attempt), job_id, RUN)
        job = JobDefinition(
            job_id=job_id,
            run_id=RUN,
            sweep_id=SWEEP,
            type=JobType.TRAIN,
            attempt=attempt,
            config={"x": 1},
            checkpoints=run.usable_checkpoints,
        )
        self.dispatcher().dispatch([job])
        return job

    def attempt(self) -> RunInfo:
        """The run after another attempt."""
        self.start()
        wait_until(lambda: self.run.jobs[-1].state is JobState.EXITED, what="the end of the attempt")
        return self.run

    def lose(self) -> None:
        self._append(ev.JobLost(reason="the test says so"), self.run.jobs[-1].job_id, RUN)

    @property
    def run(self) -> RunInfo:
        return self.store.fetch_runs(SWEEP)[0]

    @property
    def steps(self) -> list[int]:
        return [each.step for each in self.run.checkpoints]

    @property
    def run_directory(self) -> Path:
        return self.folder / "files" / "runs" / RUN

    def path(self, step: int) -> Path:
        [found] = [each for each in self.run.checkpoints if each.step == step]
        return self.run_directory / found.path

    def on_disk(self) -> set[str]:
        return {path.name for path in (self.run_directory / checkpoints.FOLDER).iterdir()}

    def listed(self) -> set[str]:
        return {Path(each.path).name for each in self.run.checkpoints}

    def deleted(self) -> dict[int, str]:
        """What the log says to have gone, and why."""
        bodies = [event.body for event in self.store.read(SWEEP)]
        return {body.step: body.reason for body in bodies if isinstance(body, ev.CheckpointDeleted)}

    def log(self) -> str:
        log = self.run.jobs[-1].log
        assert log is not None
        return Path(log).read_text()

    def assert_all_are_sound(self) -> None:
        """To be called when no job is at work."""
        rules = (self.config.checkpoints, self.config.direction)
        wait_until(lambda: not superseded(self.run.checkpoints, *rules), what="the rules being applied")
        for each in self.run.checkpoints:
            assert checkpoints.digest(self.run_directory / each.path) == (each.sha256, each.size_bytes)

    def close(self) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.close()
        self.store.close()
        kill_all_in(self.folder)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


#: Saves steps until somebody kills it: objects, files and folders in turn.
ENDLESS = """
    import itertools, os, subprocess
    from pathlib import Path
    from metta.sweep import load_checkpoint, report_metrics, run_directory, save_checkpoint

    def train(config):
        checkpoint = load_checkpoint()
        first = checkpoint.step + 1 if checkpoint else 0
        print("from", first)
        delay = Path("delay")
        if delay.exists():
            subprocess.Popen(["bash", "-c", f"sleep {delay.read_text()}; kill -9 {os.getpid()}"])
        model = run_directory() / "model"
        model.mkdir(exist_ok=True)
        for step in itertools.count(first):
            content = os.urandom(500_000) * 4
            for name in ("a", "b"):
                (model / name).write_bytes(content)
            save_checkpoint(({"content": content}, model / "a", model)[step % 3], step)
            report_metrics({"score": step})
"""

#: Goes on to step 3 and fails there, the first time; then to step 6.
THREE_STEPS = """
    from metta.sweep import load_checkpoint, save_checkpoint

    def train(config):
        checkpoint = load_checkpoint()
        done = checkpoint.value["done"] if checkpoint else []
        print("done", done)
        for step in range(len(done) + 1, len(done) + 4):
            done = [*done, step]
            save_checkpoint({"done": done}, step)
        if len(done) < 6:
            raise RuntimeError("the power went out")
        return {"score": len(done)}
"""


def test_a_second_attempt_goes_on_from_the_last_checkpoint(world: World) -> None:
    world.create(world.function(THREE_STEPS))
    failed = world.attempt()
    assert failed.jobs[-1].outcome is Outcome.FAILED
    assert world.steps == [1, 2, 3]
    done = world.attempt()
    assert done.jobs[-1].outcome is Outcome.SUCCEEDED
    assert world.steps == [1, 2, 3, 4, 5, 6]
    assert "done [1, 2, 3]\n" in world.log()
    assert [each.job_id for each in done.checkpoints] == [done.jobs[0].job_id] * 3 + [done.jobs[1].job_id] * 3
    world.assert_all_are_sound()


def test_a_run_that_is_killed_goes_on_by_itself_in_its_next_attempt(world: World) -> None:
    killed = THREE_STEPS.replace('raise RuntimeError("the power went out")', "os.kill(os.getpid(), 9)")
    world.create(world.function("    import os" + killed), retry=RetryPolicy(retry_delay_seconds=0.01))
    [run] = world.sweep()
    assert (run.status, run.score) == (JobStatus.COMPLETED, 6.0)
    assert [job.outcome for job in run.jobs] == [Outcome.KILLED, Outcome.SUCCEEDED]
    assert [each.step for each in run.checkpoints] == [1, 2, 3, 4, 5, 6]


@pytest.mark.slow
def test_whenever_a_job_is_killed_every_listed_checkpoint_is_whole_and_the_next_attempt_goes_on(world: World) -> None:
    world.create(world.function(ENDLESS), checkpoints=Retention(last=3))
    choose = random.Random(4)
    for _ in range(12):
        before = world.steps[-1] if world.store.fetch_runs(SWEEP) and world.steps else -1
        (world.folder / "delay").write_text(f"{choose.uniform(0.02, 0.3):.3f}")
        run = world.attempt()
        assert (run.jobs[-1].outcome, world.log().count("from ")) == (Outcome.KILLED, 1)
        assert world.log().startswith(f"from {before + 1}\n")
        world.assert_all_are_sound()
        assert not any(name.startswith(".") for name in world.on_disk())
    assert world.steps[-1] > 0
    assert "damaged" not in str(world.deleted())


def test_a_checkpoint_counts_however_soon_after_it_the_job_dies(world: World) -> None:
    target = world.function(
        """
        import os, signal
        from metta.sweep import save_checkpoint
        def train(config):
            for step in range(50):
                save_checkpoint([step], step)
            os.kill(os.getpid(), signal.SIGKILL)
        """
    )
    world.create(target)
    assert world.attempt().jobs[-1].outcome is Outcome.KILLED
    assert world.steps == list(range(50))
    world.assert_all_are_sound()


def test_when_the_agent_is_killed_too_the_next_one_finds_what_is_listed_and_clears_the_rest(world: World) -> None:
    world.create(world.function(ENDLESS), checkpoints=Retention(last=2))
    world.start()
    wait_until(lambda: world.store.fetch_runs(SWEEP) and len(world.steps) >= 2, what="two checkpoints")
    address = read_address(world.config.directory)
    assert address is not None
    os.kill(address.pid, signal.SIGKILL)
    wait_until(lambda: not _is_running(address.pid), what="the agent's end")
    wait_until(lambda: not _is_running(world.run.jobs[-1].pid), what="the job's end")
    last = world.steps[-1]
    (world.run_directory / checkpoints.FOLDER / ".unfinished-step-9-aabbccdd-model").mkdir()
    world.lose()
    world.start()
    wait_until(lambda: world.steps[-1] > last, what="progress")
    pid = world.run.jobs[-1].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: world.run.jobs[-1].state is JobState.EXITED, what="the end of the attempt")
    assert world.log().startswith(f"from {last + 1}\n")
    world.assert_all_are_sound()
    assert ".unfinished-step-9-aabbccdd-model" not in world.on_disk()


def _is_running(pid: int | None) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_flipped_bit_makes_the_next_attempt_take_the_checkpoint_before_and_the_log_says_so(world: World) -> None:
    world.create(world.function(THREE_STEPS))
    world.attempt()
    newest = world.path(3)
    content = bytearray(newest.read_bytes())
    content[-5] ^= 8
    newest.write_bytes(content)
    world.attempt()
    warning, *rest = world.log().splitlines()
    assert warning.startswith(
        f"metta sweep: warning: the checkpoint of step 3 is damaged: {newest.name} was saved with"
    )
    assert warning.endswith("; going on from step 2")
    assert rest[0] == "done [1, 2]"
    assert world.deleted()[3].startswith(f"damaged: {newest.name} was saved with SHA-256 ")
    assert newest.with_name(f"{newest.name}.damaged").read_bytes() == bytes(content)
    # The step was reached again, and is listed as what it is now.
    assert world.steps == [1, 2, 3, 4, 5]
    world.assert_all_are_sound()


def test_a_missing_file_is_passed_over_too(world: World) -> None:
    world.create(world.function(THREE_STEPS))
    world.attempt()
    for step in (2, 3):
        world.path(step).unlink()
    world.attempt()
    assert "done [1]" in world.log()
    assert {step: reason.split(":")[0] for step, reason in world.deleted().items()} == {2: "missing", 3: "missing"}


def test_on_disk_is_what_the_log_lists_and_that_is_what_the_rules_keep(world: World) -> None:
    target = world.function(
        """
        from metta.sweep import report_metrics, save_checkpoint
        def train(config):
            for step in range(1, 41):
                report_metrics({"score": -abs(step - 17), "other": step})
                save_checkpoint([step], step)
        """
    )
    policy = Retention(last=2, best=3, every=10)
    world.create(target, checkpoints=policy)
    run = world.attempt()
    world.assert_all_are_sound()
    wait_until(lambda: world.on_disk() == world.listed(), what="the files' end")
    # The best were the last ones too when they came, so none of them went before it was known to be one.
    assert world.steps == [10, 16, 17, 18, 20, 30, 39, 40]
    assert {each.step: each.score for each in world.run.checkpoints}[18] == -1.0
    assert set(world.deleted().values()) == {"retention: kept are last=2, best=3, every=10"}
    assert superseded(world.run.checkpoints, policy, "maximize") == []
    world.assert_all_are_sound()
    assert run.jobs[-1].outcome is Outcome.SUCCEEDED


def test_without_rules_nothing_goes_and_a_step_that_is_saved_again_is_there_once(world: World) -> None:
    target = world.function(
        """
        from metta.sweep import save_checkpoint
        def train(config):
            for round in range(3):
                for step in range(4):
                    save_checkpoint([round, step], step)
            return {"score": 1}
        """
    )
    world.create(target)
    world.attempt()
    wait_until(lambda: world.on_disk() == world.listed(), what="the files' end")
    assert world.steps == [0, 1, 2, 3]
    assert world.deleted() == {}
    for each in world.run.checkpoints:
        assert checkpoints.load(world.run_directory, each) == [2, each.step]


def test_nothing_is_removed_for_a_job_that_the_log_has_given_up(world: World) -> None:
    target = world.function(
        """
        import time
        from pathlib import Path
        from metta.sweep import save_checkpoint
        def train(config):
            save_checkpoint([1], 1)
            while not Path("go").exists():
                time.sleep(0.01)
            for step in (1, 2, 3):
                save_checkpoint(["of nobody's interest"], step)
            time.sleep(60)
        """
    )
    world.create(target, checkpoints=Retention(last=1))
    world.start()
    wait_until(lambda: world.store.fetch_runs(SWEEP) and world.steps == [1], what="a checkpoint")
    pid = world.run.jobs[-1].pid
    world.lose()
    (world.folder / "go").touch()
    wait_until(lambda: not _is_running(pid), what="the end of the job")
    assert world.steps == [1]
    assert world.deleted() == {}
    world.assert_all_are_sound()


@pytest.mark.parametrize("isolation", ["process", "reuse"])
def test_each_run_has_its_own_checkpoints_and_its_evaluation_finds_them(world: World, isolation: Any) -> None:
    train = world.function(
        """
        from metta.sweep import current_run, load_checkpoint, run_directory, save_checkpoint
        def train(config):
            assert load_checkpoint() is None, "another run's"
            model = run_directory() / "model"
            model.mkdir()
            (model / "weights").write_text(str(config["x"]))
            save_checkpoint(model, 1)
            save_checkpoint({"run": current_run().run_id}, 2)
        """
    )
    evaluate = world.function(
        """
        from metta.sweep import current_run, load_checkpoint
        def evaluate(config):
            assert load_checkpoint().value == {"run": current_run().run_id}
            return {"score": int((load_checkpoint(step=1).value / "weights").read_text())}
        """,
        "evaluate",
    )
    world.create(train, evaluate=evaluate, isolation=isolation, max_trials=4, max_parallel=2)
    runs = world.sweep()
    assert [run.status for run in runs] == [JobStatus.COMPLETED] * 4
    assert [run.score for run in runs] == [run.config["x"] for run in runs]
    assert all([each.step for each in run.checkpoints] == [1, 2] for run in runs)


# -------------------------------------------------------------------------------------------------------- commands

SCRIPT = f"""
echo "from=$METTA_SWEEP_CHECKPOINT step=$METTA_SWEEP_CHECKPOINT_STEP arguments=$*"
step=$(( ${{METTA_SWEEP_CHECKPOINT_STEP:-0}} + 1 ))
cat $METTA_SWEEP_CHECKPOINT > model.txt < /dev/null
echo $step >> model.txt
echo "{{\\"score\\": $step}}"
{SAVE} model.txt --step $step || exit 2
exit $(( step < 3 ))
"""


def test_a_command_saves_and_is_told_what_to_go_on_from(world: World) -> None:
    argv = ["bash", "-c", SCRIPT, "bash", "{x}", "--resume={checkpoint}"]
    world.create(CommandTarget(argv=argv))
    for step in (1, 2, 3):
        run = world.attempt()
        first, *_ = world.log().splitlines()
        if step == 1:
            assert first == "from= step= arguments=1"
        else:
            before = world.path(step - 1)
            assert first == f"from={before} step={step - 1} arguments=1 --resume={before}"
        assert world.path(step).name.endswith("-model.txt")
    assert run.jobs[-1].outcome is Outcome.SUCCEEDED, world.log()
    assert world.path(3).read_text() == "1\n2\n3\n"
    assert [each.score for each in run.checkpoints] == [1.0, 2.0, 3.0]


def test_a_command_is_given_only_what_is_sound(world: World) -> None:
    world.create(CommandTarget(argv=["bash", "-c", SCRIPT, "bash", "--resume={checkpoint}"]))
    world.attempt()
    world.attempt()
    newest, older = world.path(2), world.path(1)
    newest.write_text("other")
    world.attempt()
    warning, first, *_ = world.log().splitlines()
    assert warning.startswith("metta sweep: warning: the checkpoint of step 2 is damaged: ")
    assert warning.endswith("; going on from step 1")
    assert first == f"from={older} step=1 arguments=--resume={older}"
    assert world.deleted()[2].endswith(f", kept as {newest.name}.damaged")


def test_a_command_that_is_stopped_while_its_checkpoint_is_looked_at_never_starts(world: World) -> None:
    world.create(CommandTarget(argv=["bash", "-c", SCRIPT]))
    world.attempt()
    os.truncate(world.path(1), 1 << 40)  # all of it holes, it takes a quarter of an hour to read
    job = world.start()
    world.dispatchers[-1].cancel([job.job_id], Outcome.CANCELLED, "the user asked")
    os.truncate(world.path(1), 0)
    wait_until(lambda: world.run.jobs[-1].state is JobState.EXITED, what="the end of the attempt")
    assert world.run.jobs[-1].outcome is Outcome.CANCELLED
    assert world.run.jobs[-1].pid is None


def test_outside_a_job_the_command_saves_nothing_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "model.txt").touch()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METTA_SWEEP")}
    for arguments, code, said in (
        ("model.txt --step 1", 0, "not in a sweep: nothing saved\n"),
        ("nothing.txt --step 1", 2, "does not exist"),
        ("model.txt --step -1", 2, "x>=0"),
    ):
        done = subprocess.run(
            ["bash", "-c", f"{SAVE} {arguments}"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code
        assert said in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["model.txt"]
