"""What training code calls, inside a sweep and outside."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from metta.sweep import (
    TrialStopped,
    current_run,
    load_checkpoint,
    report_metrics,
    run_directory,
    save_checkpoint,
    session,
    should_stop,
)
from metta.sweep.errors import CheckpointError, MetricError
from metta.sweep.model.events import CheckpointSaved
from metta.sweep.model.run import Checkpoint, Damaged, JobType, Outcome
from metta.sweep.session import Ending, RunConfig, RunContext, Session


class Tensor:
    """As far as metrics go, one of torch's."""

    def __init__(self, *values: float) -> None:
        self._values = values

    def item(self) -> float:
        if len(self._values) != 1:
            raise RuntimeError("a Tensor with several elements cannot be converted to Scalar")
        return self._values[0]


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return RunContext(
        sweep_id="46g3f",
        run_id="7kq9z",
        job_id="7kq9z.train.1",
        type=JobType.TRAIN,
        directory=str(tmp_path / "runs" / "7kq9z"),
    )


@pytest.fixture
def sent(context: RunContext) -> Iterator[list[dict[str, float]]]:
    """Metrics that reach the agent while this process is a job's."""
    reports: list[dict[str, float]] = []
    session.enter(Session(context, reports.append))
    yield reports
    session.enter(None)


class TestOutside:
    def test_a_report_does_nothing_whatever_it_says(self) -> None:
        report_metrics({"accuracy": 0.9})
        report_metrics({"accuracy": math.nan})
        report_metrics({})

    def test_there_is_no_run_and_its_folder_is_the_working_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert current_run() is None
        assert run_directory() == tmp_path

    def test_nothing_is_saved_and_there_is_nothing_to_go_on_from(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert save_checkpoint({"epoch": 3}, 3) is None
        assert save_checkpoint("no such file", 4) is None
        assert load_checkpoint() is None
        assert load_checkpoint(step=3) is None
        assert list(tmp_path.iterdir()) == []

    def test_nothing_is_ever_to_stop_and_steps_may_repeat(self) -> None:
        for _ in range(2):
            report_metrics({"epoch": 3}, raise_on_stop=True)
        assert not should_stop()


class TestInside:
    def test_reports_are_sent_one_by_one(self, sent: list[dict[str, float]]) -> None:
        report_metrics({"accuracy": 0.5, "epoch": 1})
        report_metrics({"accuracy": 0.75})
        assert sent == [{"accuracy": 0.5, "epoch": 1.0}, {"accuracy": 0.75}]

    def test_an_empty_report_is_not_sent(self, sent: list[dict[str, float]]) -> None:
        report_metrics({})
        assert sent == []

    @pytest.mark.parametrize(
        "value",
        [0.5, np.float32(0.5), np.float64(0.5), np.array(0.5), np.array([0.5]), Tensor(0.5)],
    )
    def test_scalars_of_all_libraries_are_numbers(self, sent: list[dict[str, float]], value: Any) -> None:
        report_metrics({"accuracy": value})
        assert sent == [{"accuracy": 0.5}]
        assert type(sent[0]["accuracy"]) is float

    @pytest.mark.parametrize(
        ("value", "number"), [(3, 3.0), (True, 1.0), (np.int64(3), 3.0), (np.True_, 1.0), (10**300, 1e300)]
    )
    def test_integers_and_truth_values_are_numbers_too(
        self, sent: list[dict[str, float]], value: Any, number: float
    ) -> None:
        report_metrics({"accuracy": value})
        assert sent == [{"accuracy": number}]

    @pytest.mark.parametrize(
        ("metrics", "message"),
        [
            ({"acc": math.nan}, "metric 'acc' is nan; only finite numbers can be compared"),
            ({"loss": 1, "acc": math.inf}, "metric 'acc' is inf; only finite numbers can be compared"),
            ({"acc": np.float32("-inf")}, "metric 'acc' is -inf; only finite numbers can be compared"),
            ({"acc": Tensor(math.nan)}, "metric 'acc' is nan; only finite numbers can be compared"),
            ({"acc": 10**400}, "metric 'acc' is inf; only finite numbers can be compared"),
            ({"acc": "high"}, "metric 'acc' must be a number, got str: 'high'"),
            ({"acc": "0.9"}, "metric 'acc' must be a number, got str: '0.9'"),
            ({"acc": None}, "metric 'acc' must be a number, got NoneType: None"),
            ({"acc": 1j}, "metric 'acc' must be a number, got complex: 1j"),
            ({"acc": Fraction(1, 2)}, "metric 'acc' must be a number, got Fraction: Fraction(1, 2)"),
            ({"acc": [0.9]}, "metric 'acc' must be a number, got list: [0.9]"),
            ({"acc": np.array([1.0, 2.0])}, "metric 'acc' must be one number, got ndarray of several"),
            ({"acc": Tensor(1, 2)}, "metric 'acc' must be one number, got Tensor of several"),
            ({3: 0.5}, "metric names must be non-empty strings, got 3"),
            ({"": 0.5}, "metric names must be non-empty strings, got ''"),
            ({"\udc80": 0.5}, "metric names must be text that can be written as UTF-8, got '\\udc80'"),
            (0.9, "metrics must be a dict of names to numbers, got float: 0.9"),
            ([("acc", 0.9)], "metrics must be a dict of names to numbers, got list: [('acc', 0.9)]"),
            (None, "metrics must be a dict of names to numbers, got NoneType: None"),
        ],
    )
    def test_what_is_no_report_is_refused_whole(self, sent: list[dict[str, float]], metrics: Any, message: str) -> None:
        with pytest.raises(MetricError) as caught:
            report_metrics(metrics)
        assert str(caught.value) == message
        assert sent == []

    def test_the_first_bad_report_is_remembered_for_code_that_swallows_errors(self, context: RunContext) -> None:
        current = Session(context, lambda metrics: None)
        for value in (math.nan, 1.0, math.inf):
            try:
                current.report({"acc": value})
            except MetricError:
                continue
        assert str(current.error) == "metric 'acc' is nan; only finite numbers can be compared"

    @pytest.mark.usefixtures("sent")
    def test_the_run_is_known_and_has_a_folder_of_its_own(self, context: RunContext) -> None:
        assert current_run() is context
        assert run_directory() == run_directory() == Path(context.directory)
        assert run_directory().is_dir()


class TestStopping:
    """A trial that is to train up to a level, or that the agent asks to stop."""

    @pytest.fixture
    def trial(self, context: RunContext) -> Iterator[Trial]:
        made = Trial(context, "epoch", 3)
        yield made
        session.enter(None)

    def test_it_ends_by_the_report_that_comes_to_the_level_and_that_is_sent(self, trial: Trial) -> None:
        report_metrics({"score": 1, "epoch": 2.5})
        assert not should_stop()
        with pytest.raises(TrialStopped, match=r"^epoch has reached 3$"):
            report_metrics({"score": 2, "epoch": 3})
        assert trial.sent == [{"score": 1, "epoch": 2.5}, {"score": 2, "epoch": 3}]
        assert trial.outcome is Outcome.PAUSED

    def test_no_handler_for_exceptions_keeps_it_from_ending(self, trial: Trial) -> None:
        assert not issubclass(TrialStopped, Exception)
        with pytest.raises(TrialStopped):
            report_metrics({"epoch": 4})
        with pytest.raises(TrialStopped):
            report_metrics({"score": 1})
        assert trial.outcome is Outcome.PAUSED

    def test_code_that_wants_to_save_first_asks_instead(self, trial: Trial) -> None:
        report_metrics({"epoch": 3}, raise_on_stop=False)
        assert should_stop()
        assert trial.outcome is Outcome.PAUSED

    def test_it_ends_when_the_agent_asks_it_to_and_is_asked_only_until_it_does(self, trial: Trial) -> None:
        report_metrics({"epoch": 1})
        assert trial.outcome is None
        trial.ending = Ending(Outcome.STOPPED, "others are better")
        with pytest.raises(TrialStopped, match="others are better"):
            report_metrics({"epoch": 2})
        asked = trial.asked
        assert should_stop()
        assert trial.asked == asked
        assert trial.outcome is Outcome.STOPPED

    def test_it_is_paused_when_it_comes_to_its_level_after_it_was_asked_to_stop(self, trial: Trial) -> None:
        trial.ending = Ending(Outcome.STOPPED, "others are better")
        report_metrics({"epoch": 2}, raise_on_stop=False)
        report_metrics({"epoch": 3}, raise_on_stop=False)
        assert trial.outcome is Outcome.PAUSED

    @pytest.mark.parametrize("value", [2, 1, -1])
    def test_a_step_that_was_reported_before_is_refused(self, trial: Trial, value: int) -> None:
        report_metrics({"epoch": 2})
        with pytest.raises(MetricError) as caught:
            report_metrics({"epoch": value, "score": 1})
        assert str(caught.value) == (
            f"metric 'epoch' is {value} after 2, and it tells how far the training is; "
            "report each step once, in ascending order"
        )
        assert trial.current.error is caught.value
        assert trial.sent == [{"epoch": 2}]

    def test_reports_without_the_step_may_come_at_any_time(self, trial: Trial) -> None:
        for metrics in ({"score": 1}, {"epoch": 1_000_000.5 - 1_000_000}, {"score": 1}, {"score": 0}, {"epoch": 2}):
            report_metrics(metrics)
        assert len(trial.sent) == 5

    def test_the_result_may_name_the_last_step_again_but_no_earlier(self, trial: Trial) -> None:
        report_metrics({"epoch": 2})
        trial.current.report_result({"epoch": 2, "score": 1})
        assert trial.outcome is None
        with pytest.raises(MetricError, match=r"^metric 'epoch' is 1 after 2"):
            trial.current.report_result({"epoch": 1})

    def test_a_result_that_comes_to_the_level_is_a_pause_and_one_that_nobody_told_to_stop_is_none(
        self, trial: Trial
    ) -> None:
        trial.ending = Ending(Outcome.STOPPED, "others are better")
        trial.current.report_result({"epoch": 2})
        assert trial.outcome is None
        trial.current.report_result({"epoch": 3})
        assert trial.outcome is Outcome.PAUSED

    def test_a_level_in_seconds_is_one_of_wall_time(self, context: RunContext, monkeypatch: pytest.MonkeyPatch) -> None:
        now = 100.0
        monkeypatch.setattr(session.time, "monotonic", lambda: now)
        trial = Trial(context, "seconds", 10)
        try:
            for _ in range(2):
                report_metrics({"seconds": 50})  # the user's own measure of something
            now = 110.0
            with pytest.raises(TrialStopped, match=r"^seconds has reached 10$"):
                report_metrics({"score": 1})
        finally:
            session.enter(None)
        assert trial.outcome is Outcome.PAUSED

    def test_a_whole_training_has_no_level(self, context: RunContext) -> None:
        trial = Trial(context, "epoch", None)
        report_metrics({"epoch": 1e9})
        session.enter(None)
        assert trial.outcome is None


class Trial:
    """This process as a trial that the agent may ask to stop."""

    def __init__(self, context: RunContext, resource: str, until: float | None) -> None:
        self.sent: list[dict[str, float]] = []
        self.ending: Ending | None = None
        self.asked = 0
        context = msgspec.structs.replace(context, resource=resource, until=until)
        self.current = Session(context, self.sent.append, ask=self._ask)
        session.enter(self.current)

    def _ask(self) -> Ending | None:
        self.asked += 1
        return self.ending

    @property
    def outcome(self) -> Outcome | None:
        """What it would end by if it returned now."""
        return None if self.current.ending is None else self.current.ending.outcome


class Job:
    """This process as one attempt at a job: what it tells the agent, and the attempt that follows it."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.told: list[CheckpointSaved | Damaged] = []
        #: What the log would list.
        self.listed: dict[int, Checkpoint] = {each.step: each for each in context.checkpoints}
        session.enter(Session(context, lambda _: None, self._hear))

    def _hear(self, note: CheckpointSaved | Damaged) -> None:
        self.told.append(note)
        if isinstance(note, Damaged):
            assert self.listed.pop(note.step).path == note.path
            return
        assert (self.folder / note.path).exists(), "it has to be on the disk before anybody hears of it"
        self.listed[note.step] = Checkpoint(**msgspec.structs.asdict(note), at=0.0, job_id=self.context.job_id)

    @property
    def folder(self) -> Path:
        return Path(self.context.directory)

    def file(self, step: int) -> Path:
        return self.folder / self.listed[step].path

    def next(self) -> Job:
        checkpoints = tuple(each for _, each in sorted(self.listed.items()))
        return Job(msgspec.structs.replace(self.context, job_id="7kq9z.train.2", checkpoints=checkpoints))


@pytest.fixture
def job(context: RunContext) -> Iterator[Job]:
    yield Job(context)
    session.enter(None)


class Network:
    """A class that pickling finds by its name."""

    def __init__(self, weights: list[float]) -> None:
        self.weights = weights


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


class TestCheckpoints:
    def test_an_object_comes_back_in_the_same_attempt_and_in_the_next(self, job: Job) -> None:
        assert load_checkpoint() is None
        state = {"weights": np.arange(200_000.0), "network": Network([0.5]), "epoch": 3}
        path = save_checkpoint(state, step=3)
        assert path == job.file(3)
        for attempt in (job, job.next()):
            loaded = load_checkpoint()
            assert loaded is not None
            assert (loaded.step, loaded.path) == (3, attempt.file(3))
            assert loaded.value["network"].weights == [0.5]
            assert (loaded.value["weights"] == state["weights"]).all()

    def test_the_newest_is_loaded_and_any_other_by_its_step(self, job: Job) -> None:
        for step in (10, 2, 30):
            save_checkpoint({"epoch": step}, step)
        job.next()
        for step in (None, 30, 10, 2):
            loaded = load_checkpoint(step)
            assert loaded is not None
            assert loaded.value == {"epoch": loaded.step}
            assert loaded.step == (step or 30)

    def test_a_file_is_copied_under_its_own_name_and_loaded_as_a_path(self, job: Job, tmp_path: Path) -> None:
        mine = tmp_path / "model.tar.gz"
        mine.write_bytes(b"weights")
        for path, step in ((mine, 1), (str(mine), 2)):
            kept = save_checkpoint(path, step)
            assert kept is not None
            assert kept.name.endswith("-model.tar.gz")
        mine.write_bytes(b"other weights")
        job.next()
        loaded = load_checkpoint()
        assert loaded is not None
        assert loaded.value == loaded.path
        assert loaded.value.read_bytes() == b"weights"

    def test_a_pickle_of_the_users_own_stays_a_file(self, job: Job, tmp_path: Path) -> None:
        (tmp_path / ".pickle").write_bytes(b"not even a pickle")
        save_checkpoint(tmp_path / ".pickle", 1)
        loaded = load_checkpoint()
        assert loaded is not None
        assert loaded.value.read_bytes() == b"not even a pickle"

    def test_a_folder_is_copied_with_all_that_is_in_it(self, job: Job, tmp_path: Path) -> None:
        folder = run_directory() / "model"
        (folder / "sub" / "empty").mkdir(parents=True)
        (folder / "sub" / "weights").write_bytes(b"1" * 3_000_000)
        (folder / "link").symlink_to("sub/weights")
        (folder / "ä name\xa0").touch()
        save_checkpoint(folder, 7)
        (folder / "sub" / "weights").unlink()
        loaded = load_checkpoint()
        assert loaded is not None
        assert (loaded.value / "sub" / "empty").is_dir()
        for name in ("link", "sub/weights"):
            assert (loaded.value / name).read_bytes() == b"1" * 3_000_000
        assert not (loaded.value / "link").is_symlink()
        assert job.listed[7].size_bytes == 6_000_000

    def test_the_hash_of_a_checkpoint_can_be_computed_by_hand(self, job: Job, tmp_path: Path) -> None:
        folder = tmp_path / "model"
        (folder / "b").mkdir(parents=True)
        for name in ("b.txt", "b/a", "a", "ä"):
            (folder / name).write_text(name)
        save_checkpoint(folder, 1)
        save_checkpoint(folder / "a", 2)
        by_hand = "find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum"
        for step, command, place in (
            (1, by_hand, job.file(1)),
            (2, f"sha256sum {job.file(2).name}", job.file(2).parent),
        ):
            done = subprocess.run(["bash", "-c", command], cwd=place, capture_output=True, text=True, check=True)
            assert done.stdout.split()[0] == job.listed[step].sha256

    def test_what_only_this_process_knows_by_name_is_carried_by_value(self, job: Job) -> None:
        save_checkpoint({"schedule": lambda epoch: 0.1 / epoch}, 1)
        loaded = load_checkpoint()
        assert loaded is not None
        assert loaded.value["schedule"](2) == 0.05

    def test_the_same_step_again_takes_the_place_of_the_earlier(self, job: Job) -> None:
        first = save_checkpoint(["earlier"], 5)
        second = save_checkpoint(["later"], 5)
        assert first != second
        job.next()
        loaded = load_checkpoint()
        assert loaded is not None
        assert (loaded.value, loaded.path) == (["later"], second)

    @pytest.mark.parametrize("step", [np.int64(3), np.uint8(3), np.array(3)])
    def test_an_integer_of_any_library_is_a_step(self, job: Job, step: Any) -> None:
        save_checkpoint([], step)
        assert list(job.listed) == [3]
        assert type(job.told[0].step) is int

    @pytest.mark.parametrize("step", [-1, 2**63, True, 1.0, "1", None, np.float64(1)])
    def test_anything_else_is_not(self, job: Job, step: Any) -> None:
        with pytest.raises(CheckpointError, match="step must be an integer from 0 on"):
            save_checkpoint([], step)
        assert job.told == []

    def test_neither_is_an_integer_that_is_too_long_to_be_written_out(self, job: Job) -> None:
        for step in (10**5000, -(10**5000)):
            with pytest.raises(CheckpointError, match="got int: beyond 63 bits"):
                save_checkpoint([], step)

    def test_a_file_that_is_not_there_is_named(self, job: Job) -> None:
        with pytest.raises(CheckpointError, match=r"no file or folder 'no/such.pt'.*put it into a dict"):
            save_checkpoint("no/such.pt", 1)
        with pytest.raises(CheckpointError, match=r"no file or folder 'no/such.pt' to save as a checkpoint$"):
            save_checkpoint(Path("no/such.pt"), 1)

    def test_what_would_hold_itself_or_never_end_is_refused(self, job: Job, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="holds the run's checkpoints"):
            save_checkpoint(run_directory(), 1)
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="neither a file nor a folder"):
            save_checkpoint(tmp_path / "pipe", 1)
        folder = tmp_path / "folder"
        folder.mkdir()
        (folder / "loop").symlink_to(folder)
        with pytest.raises(CheckpointError, match="link to a folder"):
            save_checkpoint(folder, 1)
        (folder / "loop").unlink()
        os.mkfifo(folder / "pipe")
        with pytest.raises(CheckpointError, match="neither a file nor a folder"):
            save_checkpoint(folder, 1)
        assert job.told == []
        assert list((job.folder / "checkpoints").iterdir()) == []

    def test_what_cannot_be_pickled_is_named_with_the_way_out(self, job: Job) -> None:
        with pytest.raises(CheckpointError, match=r"^dict cannot be pickled: .*lock.*; save it to a file"):
            save_checkpoint({"lock": threading.Lock()}, 1)
        assert list((job.folder / "checkpoints").iterdir()) == []

    def test_a_full_disk_is_told_as_one_and_leaves_nothing_behind(
        self, job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").touch()

        def fail(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        save_checkpoint(["good"], 1)
        monkeypatch.setattr(os, "fsync", fail)
        for what in (["lost"], tmp_path / "folder", tmp_path / "folder" / "file"):
            with pytest.raises(OSError, match="No space left"):
                save_checkpoint(what, 2)
        assert list((job.folder / "checkpoints").iterdir()) == [job.file(1)]
        assert list(job.listed) == [1]


class TestDamagedCheckpoints:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "weights").write_bytes(b"0123456789")
        return folder

    def test_the_one_before_is_used_and_agent_and_log_are_told(
        self, job: Job, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for step in (1, 2, 3):
            save_checkpoint({"epoch": step}, step)
        save_checkpoint(folder, 4)
        flip_a_bit(job.file(4) / "weights")
        flip_a_bit(job.file(3))
        job.file(2).unlink()
        names = {step: job.file(step).name for step in (2, 3, 4)}
        later = job.next()
        for _ in range(2):
            loaded = load_checkpoint()
            assert loaded is not None
            assert (loaded.step, loaded.value) == (1, {"epoch": 1})
        reasons = {note.step: note.reason for note in later.told if isinstance(note, Damaged)}
        assert list(reasons) == [4, 3, 2]
        for step in (3, 4):
            assert reasons[step].startswith(f"damaged: {names[step]} was saved with SHA-256 ")
            assert reasons[step].endswith(f", kept as {names[step]}.damaged")
            assert (job.folder / "checkpoints" / f"{names[step]}.damaged").exists()
        assert reasons[2] == f"missing: there is no {names[2]}"
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 3
        assert all(line.startswith("metta sweep: warning: the checkpoint of step ") for line in lines)
        assert all(line.endswith("; going on from step 1") for line in lines)

    @pytest.mark.parametrize("instead", [os.mkfifo, os.mkdir, lambda path: path.symlink_to(path)])
    def test_what_is_there_instead_is_passed_over(self, job: Job, instead: Callable[[Path], Any]) -> None:
        save_checkpoint({"epoch": 1}, 1)
        save_checkpoint({"epoch": 2}, 2)
        job.file(2).unlink()
        instead(job.file(2))
        job.next()
        loaded = load_checkpoint()
        assert loaded is not None
        assert loaded.step == 1

    @pytest.mark.parametrize(
        "damage",
        [
            lambda folder: os.mkfifo(folder / "pipe"),
            lambda folder: (folder / "another").touch(),
            lambda folder: (folder / "weights").rename(folder / "heights"),
            lambda folder: (folder / "weights").unlink(),
            lambda folder: os.truncate(folder / "weights", 9),
        ],
    )
    def test_any_change_in_a_folder_is_seen(self, job: Job, folder: Path, damage: Callable[[Path], Any]) -> None:
        save_checkpoint(folder, 1)
        damage(job.file(1))
        assert load_checkpoint() is None
        assert [note.step for note in job.told if isinstance(note, Damaged)] == [1]

    def test_where_none_is_left_the_attempt_starts_without(self, job: Job, capsys: pytest.CaptureFixture[str]) -> None:
        save_checkpoint([1], 1)
        job.file(1).write_bytes(b"")
        job.next()
        assert load_checkpoint() is None
        assert capsys.readouterr().err.endswith("; starting without one\n")

    def test_asked_for_by_its_step_it_is_an_error_that_names_the_others(self, job: Job) -> None:
        for step in (1, 2, 30):
            save_checkpoint([step], step)
        with pytest.raises(CheckpointError, match=r"^run 7kq9z has no checkpoint of step 3; it has: 1, 2, 30$"):
            load_checkpoint(step=3)
        flip_a_bit(job.file(30))
        with pytest.raises(CheckpointError, match=r"^the checkpoint of step 30 is damaged: .*; it has: 1, 2$"):
            load_checkpoint(step=30)
        loaded = load_checkpoint()
        assert loaded is not None
        assert loaded.step == 2

    def test_what_the_code_can_no_longer_make_sense_of_is_an_error_and_stays(
        self, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_checkpoint(Network([1.0]), 1)
        monkeypatch.delitem(globals(), "Network")
        with pytest.raises(CheckpointError, match=r"cannot be loaded: AttributeError: .*Network.*; the classes"):
            load_checkpoint()
        assert job.file(1).exists()
        assert not any(isinstance(note, Damaged) for note in job.told)

    def test_a_disk_that_is_away_for_a_moment_condemns_no_checkpoint(
        self, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save_checkpoint([1], 1)

        def fail(*_: Any, **__: Any) -> None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", fail)
            with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
                load_checkpoint()
        assert load_checkpoint() is not None


class TestConfig:
    CONFIG = RunConfig.of({"lr": 0.1, "trainer.optimizer.kind": "sgd", "trainer.layers": [1, 2], "trainer.x": None})

    def test_it_is_nested_where_names_have_dots(self) -> None:
        assert self.CONFIG == {
            "lr": 0.1,
            "trainer": {"optimizer": {"kind": "sgd"}, "layers": [1, 2], "x": None},
        }

    def test_it_is_read_by_dot_path_too(self) -> None:
        assert self.CONFIG["trainer.optimizer.kind"] == self.CONFIG["trainer"]["optimizer"]["kind"] == "sgd"
        assert self.CONFIG["trainer.optimizer"] == {"kind": "sgd"}
        assert self.CONFIG["trainer.x"] is None
        assert self.CONFIG["lr"] == 0.1

    def test_a_parameter_that_may_be_missing_is_asked_for_by_dot_path_too(self) -> None:
        assert "trainer.optimizer.kind" in self.CONFIG
        assert self.CONFIG.get("trainer.optimizer.kind", "adam") == "sgd"
        assert self.CONFIG.get("trainer.x", 3) is None

    @pytest.mark.parametrize("name", ["trainer.momentum", "lr.x", "x", "trainer.", ".lr", "", "trainer.layers.0", 3])
    def test_a_name_that_is_not_there_is_a_key_error_with_the_whole_name(self, name: Any) -> None:
        with pytest.raises(KeyError) as caught:
            self.CONFIG[name]
        assert caught.value.args == (name,)
        assert name not in self.CONFIG
        assert self.CONFIG.get(name, "default") == "default"

    def test_it_is_a_dict_in_every_other_way(self) -> None:
        assert dict(**self.CONFIG) == self.CONFIG
        assert list(self.CONFIG) == ["lr", "trainer"]
        assert self.CONFIG.get("momentum", 0.9) == 0.9
        assert isinstance(self.CONFIG["trainer"], dict)
