"""What every dispatcher promises, as tests."""
# ruff: noqa: D102 (the names of the tests are the sentences that docstrings would be)

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import JobStarted, new_event
from metta.sweep.model.run import JobDefinition, JobState, JobStatus, JobType, Outcome, RunInfo
from metta.sweep.model.sweep import CommandTarget, SweepConfig
from metta.sweep.protocols import Dispatcher, Standing, Store
from metta.sweep.testing.sweeps import SWEEP, sweep_config

_TIMEOUT_S = 60.0
#: A job that runs until it is let go, and says so.
_SCRIPT = """echo run >> executions; while [ ! -e go ]; do sleep 0.01; done; echo '{"score": 1}'"""


class DispatcherContract:
    """The guarantees of `protocols.Dispatcher`. Subclass it with a `store` fixture and a `dispatcher` method.

    The dispatcher has to have room for three jobs.
    """

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        """A new, empty store that jobs can reach; closed when the test is over."""
        raise NotImplementedError

    def dispatcher(self, store: Store, config: SweepConfig) -> Dispatcher:
        """A dispatcher for the sweep in the store, as a process of its own would make it."""
        raise NotImplementedError

    @pytest.fixture
    def config(self, store: Store, tmp_path: Path) -> SweepConfig:
        """A sweep in the store, in a folder of its own."""
        files = tmp_path / "files"
        files.mkdir()
        config = msgspec.structs.replace(
            sweep_config(),
            target=CommandTarget(argv=["bash", "-c", _SCRIPT]),
            directory=str(files),
            working_directory=str(tmp_path),
            grace_s=0.2,
        )
        store.append([new_event(ev.SweepCreated(config=config), sweep_id=SWEEP, at=time.time(), actor="user")])
        return config

    # --------------------------------------------------------------- 1. one job id, one job, however often dispatched

    def test_a_job_dispatched_twice_starts_once(self, store: Store, config: SweepConfig, tmp_path: Path) -> None:
        job = grant(store)
        first, second = self.dispatcher(store, config), self.dispatcher(store, config)
        first.dispatch([job])
        second.dispatch([job])
        (tmp_path / "go").touch()
        wait_until(lambda: the_run(store).jobs[-1].state is JobState.EXITED)
        second.dispatch([job])
        assert second.standing([job.job_id]) == {job.job_id: Standing.KNOWN}
        assert (tmp_path / "executions").read_text().split() == ["run"]
        first.close()
        second.close()

    def test_each_job_taken_is_named_also_when_it_was_taken_before(
        self, store: Store, config: SweepConfig, tmp_path: Path
    ) -> None:
        jobs = [grant(store, index) for index in range(3)]
        job_ids = {job.job_id for job in jobs}
        first, second = self.dispatcher(store, config), self.dispatcher(store, config)
        placements = first.dispatch(jobs[:2])
        assert placements.keys() == {job.job_id for job in jobs[:2]}
        assert all(placement.dispatcher for placement in placements.values())
        assert second.dispatch(jobs).keys() == job_ids
        (tmp_path / "go").touch()
        wait_until(lambda: all(run.jobs[-1].state is JobState.EXITED for run in store.fetch_runs(SWEEP)))
        assert second.dispatch(jobs).keys() == job_ids
        assert (tmp_path / "executions").read_text().split() == ["run"] * 3
        first.close()
        second.close()

    # ---------------------------------------------------------------------------------- 2. an unknown job is lost

    def test_a_job_that_nobody_knows_is_lost(self, store: Store, config: SweepConfig) -> None:
        dispatcher = self.dispatcher(store, config)
        assert dispatcher.standing(["x.train.1"]) == {"x.train.1": Standing.LOST}
        dispatcher.close()

    # --------------------------------------------------------------------- 3. jobs outlive the one that dispatched them

    def test_jobs_go_on_without_their_dispatcher_and_the_next_one_finds_them(
        self, store: Store, config: SweepConfig, tmp_path: Path
    ) -> None:
        job = grant(store)
        first = self.dispatcher(store, config)
        first.dispatch([job])
        wait_until(lambda: the_run(store).jobs[-1].state is JobState.RUNNING)
        first.close()
        second = self.dispatcher(store, config)
        assert second.standing([job.job_id]) == {job.job_id: Standing.KNOWN}
        (tmp_path / "go").touch()
        wait_until(lambda: the_run(store).status is JobStatus.TRAINING_DONE_NO_EVAL)
        second.close()

    def test_a_job_is_held_until_it_ends(self, store: Store, config: SweepConfig, tmp_path: Path) -> None:
        dispatcher = self.dispatcher(store, config)
        assert dispatcher.held() == []
        job = grant(store)
        dispatcher.dispatch([job])
        assert dispatcher.held() == [job.job_id]
        (tmp_path / "go").touch()
        wait_until(lambda: the_run(store).jobs[-1].state is JobState.EXITED)
        wait_until(lambda: dispatcher.held() == [])
        dispatcher.close()

    def test_a_job_that_the_log_has_given_up_is_found_by_whoever_comes_next(
        self, store: Store, config: SweepConfig
    ) -> None:
        job = grant(store)
        first = self.dispatcher(store, config)
        first.dispatch([job])
        wait_until(lambda: the_run(store).jobs[-1].state is JobState.RUNNING)
        lost = ev.JobLost(reason="nobody knew it")
        store.append(
            [new_event(lost, sweep_id=SWEEP, at=time.time(), actor="test", run_id=job.run_id, job_id=job.job_id)]
        )
        first.close()
        second = self.dispatcher(store, config)
        assert second.held() == [job.job_id]
        second.cancel([job.job_id], Outcome.CANCELLED, "given up")
        wait_until(lambda: second.held() == [])
        second.close()

    # ---------------------------------------------------------------- 4. what happens to a job is written to the store

    def test_start_metrics_and_exit_of_a_job_are_in_the_log(
        self, store: Store, config: SweepConfig, tmp_path: Path
    ) -> None:
        (tmp_path / "go").touch()
        job = grant(store)
        dispatcher = self.dispatcher(store, config)
        dispatcher.dispatch([job])
        wait_until(lambda: the_run(store).jobs[-1].state is JobState.EXITED)
        run = the_run(store)
        assert run.metrics == {"score": 1.0}
        assert run.jobs[-1].outcome is Outcome.SUCCEEDED
        [started] = [event.body for event in store.read(SWEEP) if isinstance(event.body, JobStarted)]
        assert Path(started.log).read_text() == '{"score": 1}\n'
        dispatcher.close()

    def test_a_cancelled_job_exits_with_the_outcome_asked_for(self, store: Store, config: SweepConfig) -> None:
        job = grant(store)
        dispatcher = self.dispatcher(store, config)
        dispatcher.dispatch([job])
        wait_until(lambda: the_run(store).jobs[-1].state is JobState.RUNNING)
        dispatcher.cancel([job.job_id], Outcome.CANCELLED, "no longer needed")
        wait_until(lambda: the_run(store).status is JobStatus.CANCELLED)
        assert the_run(store).failure_reasons == ("train cancelled: no longer needed",)
        dispatcher.close()


def grant(store: Store, index: int = 0) -> JobDefinition:
    """Create the sweep's run of that index and grant its training."""
    run_id = ids.run_id(SWEEP, index)
    job_id = ids.job_id(run_id, JobType.TRAIN, 1)
    config = sweep_config().search_space.decode([0.5] * len(sweep_config().search_space.dimensions))
    bodies: list[tuple[ev.Body, str | None]] = [
        (ev.RunCreated(index=index, config=config), None),
        (ev.JobGranted(job_type=JobType.TRAIN, attempt=1), job_id),
    ]
    store.append(
        [
            new_event(body, sweep_id=SWEEP, at=time.time(), actor="test", run_id=run_id, job_id=job)
            for body, job in bodies
        ]
    )
    return JobDefinition(job_id=job_id, run_id=run_id, sweep_id=SWEEP, type=JobType.TRAIN, attempt=1, config=config)


def the_run(store: Store) -> RunInfo:
    """The sweep's only run."""
    [run] = store.fetch_runs(SWEEP)
    return run


def wait_until(condition: Callable[[], object]) -> None:
    """Return as soon as the condition holds; fail when it does not in time."""
    never = threading.Event()
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        never.wait(0.005)
