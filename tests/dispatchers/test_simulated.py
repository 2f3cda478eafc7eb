"""Sweeps in virtual time: equal seeds, equal logs; what goes wrong goes wrong as in reality, and hours take no time."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from metta.sweep.controller.controller import SweepController
from metta.sweep.dispatchers.simulated import (
    Course,
    JobModel,
    Report,
    SimulatedClock,
    SimulatedDispatcher,
    SimulatedStore,
    resumed_from,
)
from metta.sweep.errors import ConfigError, SweepError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import FailureKind, JobDefinition, JobStatus, JobType, Outcome, RetryPolicy, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import CommandTarget, Strategy, SweepConfig, SweepStatus
from metta.sweep.protocols import Standing, Store
from metta.sweep.testing import DispatcherContract, sweep_config
from metta.sweep.testing.dispatchers import grant, the_run, wait_until
from metta.sweep.testing.sweeps import SWEEP


class World:
    """One simulated sweep."""

    def __init__(
        self,
        model: JobModel | None = None,
        *,
        reaction_s: float = 1.0,
        options: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        self.config = sweep_config(**fields)
        self.clock = SimulatedClock()
        self.store = SimulatedStore(self.clock, reaction_s)
        self.store.append([new_event(ev.SweepCreated(config=self.config), sweep_id=SWEEP, at=0.0, actor="user")])
        self.dispatcher = SimulatedDispatcher(
            self.store, SWEEP, self.config, self.clock, model, **{"workers": None, **(options or {})}
        )

    def run(self) -> SweepState:
        return SweepController(self.store, SWEEP, self.dispatcher, self.clock).run()

    @property
    def log(self) -> list[Event]:
        return list(self.store.read(SWEEP))

    def bodies(self, kind: type) -> list[Any]:
        return [event.body for event in self.log if isinstance(event.body, kind)]

    def append(self, body: ev.Body, run: RunInfo | None = None, job_id: str | None = None) -> None:
        run_id = None if run is None else run.run_id
        self.store.append(
            [new_event(body, sweep_id=SWEEP, at=self.clock.now(), actor="test", run_id=run_id, job_id=job_id)]
        )

    def grant(self, until: float | None = None) -> JobDefinition:
        """The next train job of the sweep's first run, which is created if there is none; dispatched at once."""
        run = self.store.state(SWEEP).runs.get(ids.run_id(SWEEP, 0))
        if run is None:
            created = ev.RunCreated(index=0, config={"lr": 0.01})
            at = self.clock.now()
            self.store.append([new_event(created, sweep_id=SWEEP, at=at, actor="test", run_id=ids.run_id(SWEEP, 0))])
            run = self.store.state(SWEEP).runs[ids.run_id(SWEEP, 0)]
        attempt = run.attempts(JobType.TRAIN) + 1
        job_id = ids.job_id(run.run_id, JobType.TRAIN, attempt)
        self.append(ev.JobGranted(job_type=JobType.TRAIN, attempt=attempt, until=until), run, job_id)
        job = JobDefinition(
            job_id=job_id,
            run_id=run.run_id,
            sweep_id=SWEEP,
            type=JobType.TRAIN,
            attempt=attempt,
            config=run.config,
            checkpoints=run.usable_checkpoints,
            until=until,
        )
        self.dispatcher.dispatch([job])
        return job


def epochs(job: JobDefinition) -> Course:
    """Ten epochs, a minute each."""
    left = range(resumed_from(job) + 1, 11)
    reports = [
        Report(60.0 * (epoch - resumed_from(job)), {"epoch": float(epoch), "reward": epoch / 10}) for epoch in left
    ]
    return Course(reports=reports, seconds=60.0 * len(left))


# ---------------------------------------------------------------------------------------------------------- determinism


def troubled_log() -> bytes:
    """A log in which everything happens that chance brings."""
    world = World(
        max_trials=40,
        max_parallel=8,
        evaluate=CommandTarget(argv=["evaluate"]),
        retry=RetryPolicy(max_retries=2),
        options={"failure_rate": 0.2, "preemption_rate": 0.2, "straggler_rate": 0.2},
    )
    world.run()
    return msgspec.json.encode(world.log)


def test_equal_seeds_make_equal_logs_to_the_last_byte_also_in_another_process() -> None:
    log = troubled_log()
    assert troubled_log() == log
    script = "import sys; from dispatchers.test_simulated import troubled_log; sys.stdout.buffer.write(troubled_log())"
    other = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONHASHSEED": "77"},
        capture_output=True,
        check=True,
    )
    assert other.stdout == log


def test_another_seed_makes_another_log() -> None:
    logs = []
    for seed in (1, 2):
        world = World(max_trials=3, seed=seed)
        world.run()
        logs.append([event.at for event in world.log])
    assert logs[0] != logs[1]


def test_what_happens_to_a_job_depends_on_the_seed_and_the_job_alone() -> None:
    def fates(max_parallel: int) -> dict[str, Any]:
        world = World(epochs, max_trials=30, max_parallel=max_parallel, options={"failure_rate": 0.5})
        world.run()
        return {
            event.job_id: event.body for event in world.log if isinstance(event.body, ev.JobExited) and event.job_id
        }

    assert {job: (body.outcome, round(body.seconds, 6)) for job, body in fates(1).items()} == {
        job: (body.outcome, round(body.seconds, 6)) for job, body in fates(30).items()
    }


# ------------------------------------------------------------------------------------------- what jobs do, and how many


def test_a_job_starts_reports_and_exits_at_the_times_of_its_course() -> None:
    world = World(epochs, max_trials=1, options={"startup_seconds": 7.0})
    state = world.run()
    [run] = state.runs.values()
    assert (run.status, run.score, run.reports, run.cost) == (JobStatus.COMPLETED, 1.0, 10, 600.0)
    agents = [(event.type, event.at) for event in world.log if event.actor == "agent@simulated"]
    assert agents[:2] == [("job_started", 7.0), ("metrics_reported", 67.0)]
    assert agents[-2:] == [("metrics_reported", 607.0), ("job_exited", 607.0)]


def test_a_thousand_workers_are_busy_at_one_time() -> None:
    world = World(epochs, max_trials=1500, max_parallel=1000)
    state = world.run()
    assert state.sweep.counts == {JobStatus.COMPLETED: 1500}
    assert most_at_once(world.log) == 1000


def test_workers_that_are_too_few_are_never_more_than_they_are() -> None:
    world = World(epochs, max_trials=9, max_parallel=9, options={"workers": 2})
    assert world.run().sweep.counts == {JobStatus.COMPLETED: 9}
    assert most_at_once(world.log) == 2
    assert world.dispatcher.capacity() == 2


def most_at_once(log: Iterable[Event]) -> int:
    running = most = 0
    for event in log:
        running += isinstance(event.body, ev.JobStarted) - isinstance(event.body, ev.JobExited)
        most = max(most, running)
    return most


def test_some_jobs_straggle() -> None:
    world = World(epochs, max_trials=200, max_parallel=200, options={"straggler_rate": 0.25, "straggler_factor": 3.0})
    world.run()
    seconds = [body.seconds for body in world.bodies(ev.JobExited)]
    assert set(seconds) == {600.0, 1800.0}
    assert 30 < seconds.count(1800.0) < 70


def test_where_many_runs_are_under_way_a_controller_that_waits_notices_later() -> None:
    few, many = (World(epochs, max_trials=count, max_parallel=count) for count in (10, 600))
    for world in (few, many):
        world.run()
    # They all end at 601 s.
    assert few.clock.now() == 602.0
    assert many.clock.now() == 604.0


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_a_retry_in_an_hour_takes_no_real_time() -> None:
    def fails_twice(job: JobDefinition) -> Course:
        if job.attempt < 3:
            return Course(seconds=5.0, outcome=Outcome.FAILED, failure=FailureKind.USER_ERROR, error="no luck")
        return epochs(job)

    retry = RetryPolicy(max_retries=2, retry_delay_seconds=3600, backoff=2, max_delay_seconds=1e6, jitter=0)
    world = World(fails_twice, max_trials=1, retry=retry)
    before = time.monotonic()
    state = world.run()
    assert time.monotonic() - before < 5
    [run] = state.runs.values()
    assert (run.status, len(run.jobs)) == (JobStatus.COMPLETED, 3)
    granted = [job.granted_at for job in run.jobs]
    # Five seconds of running, one each to start and to be noticed, and the wait.
    assert [after - before for before, after in pairwise(granted)] == [3607.0, 7207.0]


def test_failures_and_preemptions_strike_on_the_way_and_are_told_apart() -> None:
    rates = {"failure_rate": 0.3, "preemption_rate": 0.3}
    world = World(epochs, max_trials=100, max_parallel=50, retry=RetryPolicy(max_retries=9), options=rates)
    state = world.run()
    assert state.sweep.status is SweepStatus.COMPLETED
    exits = world.bodies(ev.JobExited)
    kinds = [body.failure for body in exits]
    assert {kinds.count(None), 100} == {100, state.sweep.counts[JobStatus.COMPLETED]}
    assert kinds.count(FailureKind.USER_ERROR) > 20
    assert kinds.count(FailureKind.PREEMPTED) > 20
    assert all(0 < body.seconds < 600 for body in exits if body.failure is not None)


def test_the_same_error_in_every_job_pauses_the_sweep_as_in_reality() -> None:
    def typo(job: JobDefinition) -> Course:
        return Course(
            seconds=1.0,
            outcome=Outcome.FAILED,
            failure=FailureKind.USER_ERROR,
            error="NameError: lr",
            signature="NameError at train.py:3",
        )

    state = World(typo, max_trials=100, max_parallel=2).run()
    assert state.sweep.status is SweepStatus.PAUSED
    assert len(state.runs) < 10


def test_a_sweep_in_which_nothing_can_ever_happen_says_so() -> None:
    world = World(epochs, max_trials=1, options={"workers": 0})
    with pytest.raises(SweepError, match=r"stands still.*\(its runs: none\)"):
        world.run()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("failure_rate", 1.5, "failure_rate: expected a share of jobs from 0 to 1, got 1.5"),
        ("preemption_rate", -0.1, "preemption_rate: expected a share of jobs from 0 to 1, got -0.1"),
        ("startup_seconds", -1.0, "startup_seconds: expected at least 0, got -1.0"),
        ("straggler_factor", 0.5, "straggler_factor: expected at least 1, got 0.5"),
    ],
)
def test_options_that_make_no_sense_are_refused(option: str, value: float, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        World(options={option: value})
    assert str(caught.value) == message


# -------------------------------------------------------------------------------------- cancelling, pausing, resuming


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.STOPPED, Outcome.INTERRUPTED])
@pytest.mark.parametrize("moment", [0.5, 100.0], ids=["while it starts", "while it trains"])
def test_a_cancelled_job_exits_once_with_the_outcome_asked_for(outcome: Outcome, moment: float) -> None:
    world = World(epochs)
    job = world.grant()
    world.clock.advance_to(moment)
    world.dispatcher.cancel([job.job_id, "other.train.1"], outcome, "enough")
    world.dispatcher.cancel([job.job_id], Outcome.CANCELLED, "again")
    assert world.dispatcher.held() == [job.job_id]
    world.clock.advance_to(10_000.0)
    assert world.dispatcher.held() == []
    [exited] = world.bodies(ev.JobExited)
    assert (exited.outcome, exited.error, exited.seconds) == (outcome, "enough", max(0.0, moment - 1))
    assert world.log[-1].at == moment


def test_a_sweep_that_is_stopped_cancels_its_jobs() -> None:
    world = World(epochs, max_trials=100, max_parallel=5)
    stop = ev.SweepStopRequested(reason="enough")
    world.clock.call_at(1000.0, "user", lambda: world.append(stop))
    state = world.run()
    assert state.sweep.status is SweepStatus.STOPPED
    assert state.sweep.counts == {JobStatus.COMPLETED: 5, JobStatus.CANCELLED: 5}
    assert world.clock.now() < 1010


FIDELITY = Fidelity(maximum=10, grace_period=1, reduction_factor=3)


def test_a_job_pauses_where_it_is_to_train_to_and_the_next_one_goes_on_from_there() -> None:
    world = World(epochs, fidelity=FIDELITY)
    first = world.grant(until=3)
    world.clock.advance_to(1000.0)
    run = world.store.state(SWEEP).runs[first.run_id]
    assert (run.status, run.progress, run.cost) == (JobStatus.PAUSED, 3.0, 180.0)
    assert [rung.level for rung in run.rungs] == [1.0, 3.0]
    [checkpoint] = run.checkpoints
    assert (checkpoint.step, checkpoint.score, len(checkpoint.sha256)) == (3, 0.3, 64)

    second = world.grant()
    assert resumed_from(second) == 3
    world.clock.advance_to(10_000.0)
    run = world.store.state(SWEEP).runs[first.run_id]
    assert (run.status, run.progress) == (JobStatus.TRAINING_DONE_NO_EVAL, 10.0)
    # Nothing was trained twice.
    assert (run.cost, run.reports) == (600.0, 10)


def test_who_is_to_train_up_to_the_maximum_is_done_with_it() -> None:
    world = World(epochs, fidelity=FIDELITY)
    job = world.grant(until=10)
    world.clock.advance_to(1000.0)
    assert world.store.state(SWEEP).runs[job.run_id].status is JobStatus.TRAINING_DONE_NO_EVAL


@pytest.mark.parametrize("resource", ["epoch", "seconds"])
def test_made_up_jobs_pause_and_go_on_too(resource: str) -> None:
    fidelity = Fidelity(resource=resource, maximum=1000, grace_period=10, reduction_factor=4)
    world = World(fidelity=fidelity)
    for until in (*fidelity.levels[1:], None):
        job = world.grant(until)
        world.clock.advance_to(world.clock.now() + 10_000)
        run = world.store.state(SWEEP).runs[job.run_id]
        assert run.status is (JobStatus.TRAINING_DONE_NO_EVAL if until is None else JobStatus.PAUSED)
        assert run.progress is not None
        assert run.progress >= (until or 1000)
    assert len(run.rungs) == len(fidelity.levels)
    if resource == "seconds":
        assert run.cost == pytest.approx(1000, abs=len(fidelity.levels))


def test_a_job_that_the_log_has_given_up_goes_on_unheard() -> None:
    world = World(epochs)
    job = world.grant()
    world.clock.advance_to(100.0)
    run = world.store.state(SWEEP).runs[job.run_id]
    world.append(ev.JobLost(reason="nobody knew it", failure=FailureKind.NODE_LOST), run, job.job_id)
    seq = world.log[-1].seq
    world.clock.advance_to(200.0)
    assert world.dispatcher.held() == [job.job_id]
    world.clock.advance_to(1000.0)
    assert (world.dispatcher.held(), world.log[-1].seq) == ([], seq)


def test_a_controller_that_comes_later_finds_the_jobs_of_the_one_before() -> None:
    world = World(epochs, max_trials=4, max_parallel=2)
    first = SweepController(world.store, SWEEP, world.dispatcher, world.clock)
    first.step()
    world.clock.advance_to(30.0)
    state = world.run()
    assert state.sweep.counts == {JobStatus.COMPLETED: 4}
    assert all(len(run.jobs) == 1 for run in state.runs.values())


# -------------------------------------------------------------------------------------------------------- made-up jobs


def test_made_up_evaluations_report_the_metric() -> None:
    world = World(max_trials=5, max_parallel_eval=2, evaluate=CommandTarget(argv=["evaluate"]))
    state = world.run()
    assert state.sweep.counts == {JobStatus.COMPLETED: 5}
    assert all([job.type for job in run.jobs] == [JobType.TRAIN, JobType.EVAL] for run in state.runs.values())


# ------------------------------------------------------------------------------------------------------------ contract


class Pumped(SimulatedStore):
    """A store in which time passes when somebody looks: as far as jobs are let go."""

    def __init__(self, clock: SimulatedClock, pump: Callable[[], None]) -> None:
        super().__init__(clock)
        self._pump = pump

    def fetch_runs(self, *arguments: Any, **options: Any) -> list[RunInfo]:
        self._pump()
        return super().fetch_runs(*arguments, **options)


class Looked(SimulatedDispatcher):
    """One that lets time pass when it is asked."""

    pump: Callable[[], None]

    def held(self) -> list[str]:
        held = super().held()
        self.pump()
        return held


class TestSimulatedDispatcher(DispatcherContract):
    """Its jobs run until a file is there, as those of the contract; it stands for the compute behind it as well."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        self.clock, self.folder, self.shared = SimulatedClock(), tmp_path, None
        return Pumped(self.clock, self.pump)

    def pump(self) -> None:
        """Half a job's time is past the start of all jobs, and before any end."""
        self.clock.advance_to(10_000.0 if (self.folder / "go").exists() else 500.0)

    def dispatcher(self, store: Store, config: SweepConfig) -> SimulatedDispatcher:
        if self.shared is None:
            self.shared = Looked(store, SWEEP, config, self.clock, self.course)
            self.shared.pump = self.pump
        return self.shared

    def course(self, job: JobDefinition) -> Course:
        with (self.folder / "executions").open("a") as executions:
            executions.write("run\n")
        return Course(reports=[Report(1000.0, {"score": 1.0})], seconds=1000.0)

    def test_start_metrics_and_exit_of_a_job_are_in_the_log(
        self, store: Store, config: SweepConfig, tmp_path: Path
    ) -> None:
        """As in the contract, but for the output: simulated jobs print nothing."""
        (tmp_path / "go").touch()
        self.dispatcher(store, config).dispatch([grant(store)])
        wait_until(lambda: the_run(store).jobs[-1].outcome is Outcome.SUCCEEDED)
        assert the_run(store).metrics == {"score": 1.0}


def test_a_job_that_was_never_dispatched_is_lost() -> None:
    assert World().dispatcher.standing(["x.train.1"]) == {"x.train.1": Standing.LOST}


@pytest.mark.parametrize("mode", ["stop", "promote"])
def test_runs_compete_by_the_wall_time_of_their_training_too(mode: str) -> None:
    def model(job: JobDefinition) -> Course:
        """One report a second, fifty-four in all; a run that was paused has some behind it."""
        left = 54 - resumed_from(job)
        reports = [Report(float(second), {"reward": job.config["lr"] * second}) for second in range(1, left + 1)]
        return Course(reports=reports, seconds=float(left))

    strategy = Strategy(scheduler="asha", scheduler_options={"mode": mode})
    fidelity = Fidelity(resource="seconds", maximum=54, grace_period=2)
    world = World(model, reaction_s=0.1, max_trials=27, strategy=strategy, fidelity=fidelity)
    state = world.run()
    assert set(state.sweep.counts) == {JobStatus.COMPLETED, JobStatus.STOPPED}
    assert state.sweep.counts[JobStatus.STOPPED] > 15
    paused = [(run, job) for run in state.runs.values() for job in run.jobs if job.outcome is Outcome.PAUSED]
    assert bool(paused) == (mode == "promote")
    # Up to the first level two seconds, to the second four more, to the third twelve more.
    assert {round(body.seconds) for body in world.bodies(ev.JobExited) if body.outcome is Outcome.PAUSED} <= {2, 4, 12}
    assert all(run.rungs for run in state.runs.values())


def test_a_job_whose_first_report_is_its_end_has_succeeded_though_it_was_to_pause() -> None:
    def model(_: JobDefinition) -> Course:
        return Course(reports=[Report(60.0, {"epoch": 9.0, "reward": 1.0})], seconds=70.0)

    strategy = Strategy(scheduler="asha", scheduler_options={"mode": "promote"})
    state = World(model, max_trials=6, strategy=strategy, fidelity=Fidelity(maximum=9)).run()
    assert state.sweep.counts == {JobStatus.COMPLETED: 6}
    assert all(len(run.jobs) == 1 and run.cost == 70.0 for run in state.runs.values())
