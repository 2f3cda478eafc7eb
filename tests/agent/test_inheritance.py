"""Runs that go on from another's checkpoint, with real processes: they begin with a copy of it, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.test_checkpoints import RUN, SAVE, SWEEP, World
from metta.sweep import checkpoints
from metta.sweep.controller.decide import jobs_to_dispatch
from metta.sweep.errors import CheckpointError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.run import FailureKind, JobState, JobType, Outcome, Parent, RunInfo
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.model.sweep import CommandTarget, Retention
from waiting import wait_until

CHILD = ids.run_id(SWEEP, 1)

#: Goes on for two steps from wherever it is.
TWO_STEPS = """
    from metta.sweep import load_checkpoint, save_checkpoint

    def train(config):
        checkpoint = load_checkpoint()
        done = checkpoint.value["done"] if checkpoint else []
        print("done", done)
        for step in range(len(done) + 1, len(done) + 3):
            done = [*done, step]
            save_checkpoint({"done": done, "by": config["x"]}, step)
        return {"score": len(done)}
"""
#: Fails there, but for the third time.
FAILING = TWO_STEPS.replace("return", "assert len(done) >= 6\n        return")


class Family(World):
    """A run that has been trained, and another one that goes on from it."""

    def attempt_keeping(self, *steps: int) -> None:
        """Another attempt of the first run, at whose end these steps are still there."""
        self._append(ev.RunRequeued(reason="again"), run_id=RUN)
        attempt = self.run.attempts(JobType.TRAIN) + 1
        granted = ev.JobGranted(job_type=JobType.TRAIN, attempt=attempt, keep=steps)
        self._append(granted, ids.job_id(RUN, JobType.TRAIN, attempt), RUN)
        self.dispatcher().dispatch(jobs_to_dispatch(fold(EMPTY, self.store.read(SWEEP))))
        wait_until(lambda: self.run.jobs[-1].state is JobState.EXITED, what="the end of the attempt")

    def branch(self, step: int = 2) -> RunInfo:
        """The child, once its first attempt has ended."""
        parent = Parent(run_id=RUN, level=1.0, step=step, replaces=RUN)
        self._append(ev.RunCreated(index=1, config={"x": 2}, parent=parent), run_id=CHILD)
        return self.try_child()

    def try_child(self) -> RunInfo:
        attempt = self.child.attempts(JobType.TRAIN) + 1
        job_id = ids.job_id(CHILD, JobType.TRAIN, attempt)
        self._append(ev.JobGranted(job_type=JobType.TRAIN, attempt=attempt), job_id, CHILD)
        self.dispatcher().dispatch(jobs_to_dispatch(fold(EMPTY, self.store.read(SWEEP))))
        wait_until(lambda: self.child.jobs[-1].state is JobState.EXITED, what="the end of the child's attempt")
        return self.child

    def requeue_child(self) -> None:
        self._append(ev.RunRequeued(reason="again"), run_id=CHILD)

    @property
    def run(self) -> RunInfo:
        return next(run for run in self.store.fetch_runs(SWEEP) if run.run_id == RUN)

    @property
    def child(self) -> RunInfo:
        return next(run for run in self.store.fetch_runs(SWEEP) if run.run_id == CHILD)

    @property
    def child_directory(self) -> Path:
        return self.folder / "files" / "runs" / CHILD

    def child_log(self) -> str:
        return (self.child_directory / f"train-{len(self.child.jobs)}.log").read_text()

    def copied(self) -> list[ev.CheckpointCopied]:
        return [event.body for event in self.store.read(SWEEP) if isinstance(event.body, ev.CheckpointCopied)]

    def order_of_child(self) -> list[str]:
        return [event.type for event in self.store.read(SWEEP, run_id=CHILD)]


@pytest.fixture
def family(tmp_path: Path) -> Iterator[Family]:
    made = Family(tmp_path)
    yield made
    made.close()


def test_a_child_begins_with_a_copy_of_its_parents_checkpoint_and_leaves_that_as_it_is(family: Family) -> None:
    family.create(family.function(TWO_STEPS))
    family.attempt()
    before = {path.name: path.read_bytes() for path in (family.run_directory / checkpoints.FOLDER).iterdir()}
    child = family.branch(step=2)
    assert child.jobs[-1].outcome is Outcome.SUCCEEDED, family.child_log()
    assert family.child_log() == "done [1, 2]\n"
    [copy, *own] = child.checkpoints
    assert [each.step for each in own] == [3, 4]
    assert (copy.step, copy.sha256, copy.job_id) == (2, family.run.checkpoints[-1].sha256, child.jobs[0].job_id)
    assert checkpoints.digest(family.child_directory / copy.path) == (copy.sha256, copy.size_bytes)
    assert {path.name: path.read_bytes() for path in (family.run_directory / checkpoints.FOLDER).iterdir()} == before
    # It is in the log before the job has started.
    assert family.order_of_child()[:5] == [
        "run_created",
        "job_granted",
        "checkpoint_copied",
        "job_started",
        "checkpoint_saved",
    ]
    assert family.copied()[0].source == RUN


def test_a_later_step_of_the_parent_is_not_what_it_was_to_go_on_from(family: Family) -> None:
    family.create(family.function(TWO_STEPS))
    family.attempt()
    family.branch(step=1)
    assert family.child_log() == "done [1]\n"


@pytest.mark.parametrize("isolation", ["process", "reuse"])
@pytest.mark.parametrize(("step", "said"), [(1, "1 weights []\n"), (2, "2 model ['deep', 'weights']\n")])
def test_files_and_folders_are_copied_with_their_names(family: Family, isolation: Any, step: int, said: str) -> None:
    target = family.function(
        """
        from metta.sweep import load_checkpoint, run_directory, save_checkpoint
        def train(config):
            if found := load_checkpoint():
                assert found.path.is_relative_to(run_directory())
                print(found.step, found.path.name.split("-")[-1], sorted(path.name for path in found.path.rglob("*")))
                return {"score": 1}
            model = run_directory() / "model"
            (model / "deep").mkdir(parents=True)
            (model / "deep" / "weights").write_text("w" * 1000)
            save_checkpoint(model / "deep" / "weights", 1)
            save_checkpoint(model, 2)
            return {"score": 1}
        """
    )
    family.create(target, isolation=isolation)
    family.attempt()
    family.branch(step=step)
    assert family.child_log() == said


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before_and_the_log_says_so(family: Family) -> None:
    family.create(family.function(TWO_STEPS))
    family.attempt()
    newest = family.path(2)
    newest.write_bytes(newest.read_bytes()[:-1] + b"?")
    child = family.branch(step=2)
    warning, *rest = family.child_log().splitlines()
    assert warning.startswith("metta sweep: warning: the checkpoint of step 2 is damaged: ")
    assert warning.endswith("; going on from step 1")
    assert rest == ["done [1]"]
    assert [each.step for each in child.checkpoints] == [1, 2, 3]
    assert family.steps == [1]
    assert family.deleted()[2].startswith("damaged: ")


@pytest.mark.parametrize("kind", ["missing", "damaged"])
def test_without_any_that_is_sound_it_fails_and_does_not_begin_at_nothing(family: Family, kind: str) -> None:
    family.create(family.function(TWO_STEPS))
    family.attempt()
    for step in (1, 2):
        family.path(step).unlink() if kind == "missing" else family.path(step).write_text("other")
    child = family.branch(step=2)
    assert child.jobs[-1].outcome is Outcome.FAILED
    assert child.jobs[-1].failure is FailureKind.USER_ERROR
    assert child.jobs[-1].pid is None
    assert f"run {RUN} has no checkpoint that this one could go on from: that of step 2 is {kind}: " in str(
        child.failure_reasons
    )
    assert not child.checkpoints
    assert not family.copied()
    # Nor later: what the log lists no more is not there either.
    family.requeue_child()
    assert "could go on from: it lists none" in family.try_child().failure_reasons[-1]


def test_what_changes_while_it_is_copied_is_no_copy(family: Family) -> None:
    family.create(family.function(TWO_STEPS))
    original = family.attempt().checkpoints[-1]
    family.path(2).write_text("other")
    with pytest.raises(CheckpointError, match=r"damaged: .* was saved with SHA-256"):
        checkpoints.copy(family.child_directory, family.run_directory, original)
    assert list((family.child_directory / checkpoints.FOLDER).iterdir()) == []


def test_what_was_copied_is_not_copied_again_and_goes_when_the_rules_give_it_up(family: Family) -> None:
    family.create(family.function(FAILING), checkpoints=Retention(last=1))
    family.attempt()
    child = family.branch(step=2)
    assert child.jobs[-1].outcome is Outcome.FAILED
    wait_until(lambda: [each.step for each in family.child.checkpoints] == [4], what="the rules being applied")
    family.requeue_child()
    child = family.try_child()
    assert child.jobs[-1].outcome is Outcome.SUCCEEDED
    assert family.child_log() == "done [1, 2, 3, 4]\n"
    assert len(family.copied()) == 1


def test_a_checkpoint_that_others_may_need_stays_whatever_the_rules_say(family: Family) -> None:
    family.create(family.function(FAILING), checkpoints=Retention(last=1))
    family.attempt()
    wait_until(lambda: family.steps == [2], what="the rules being applied")
    family.attempt_keeping(2)
    wait_until(lambda: family.steps == [2, 4], what="the rules being applied")
    family.branch(step=2)
    assert family.child_log().startswith("done [1, 2]\n")


SCRIPT = f"""
echo "from=$METTA_SWEEP_CHECKPOINT step=$METTA_SWEEP_CHECKPOINT_STEP arguments=$*"
cat $METTA_SWEEP_CHECKPOINT > model.txt < /dev/null
echo line >> model.txt
{SAVE} model.txt --step $(( ${{METTA_SWEEP_CHECKPOINT_STEP:-0}} + 1 )) || exit 2
echo '{{"score": 1}}'
"""


def test_a_command_is_told_of_the_copy_as_of_a_checkpoint_of_its_own(family: Family) -> None:
    argv = ["bash", "-c", SCRIPT, "bash", "{x}", "--resume={checkpoint}"]
    family.create(CommandTarget(argv=argv))
    family.attempt()
    child = family.branch(step=1)
    copy = family.child_directory / child.checkpoints[0].path
    assert family.child_log().splitlines()[0] == f"from={copy} step=1 arguments=2 --resume={copy}"
    assert copy.read_text() == "line\n"
    assert copy.name.endswith("-model.txt")
    assert [each.step for each in child.checkpoints] == [1, 2]
