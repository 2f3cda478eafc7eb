"""The controller's thinking, driven through whole sweeps by a world in which everything goes wrong that can."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import cycle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep import registry
from metta.sweep.controller.decide import (
    Decision,
    Policy,
    decide,
    jobs_to_dispatch,
    jobs_to_stop,
    open_jobs,
    revive,
)
from metta.sweep.controller.retries import MOST_LOSSES, MOST_REFUSALS, next_deadline
from metta.sweep.guards.limits import BudgetLimit, TimeLimit, TrialLimit
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import (
    FailureKind,
    JobDefinition,
    JobInfo,
    JobState,
    JobStatus,
    JobType,
    Outcome,
    Parent,
    RetryPolicy,
    RunInfo,
)
from metta.sweep.model.space import Choice, LogUniform, Range, SearchSpace
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import CommandTarget, Strategy, SweepConfig, SweepStatus
from metta.sweep.protocols import BranchRun, StartJob, StopRun
from metta.sweep.testing import ManualClock, sweep_config
from metta.sweep.testing.sweeps import START, SWEEP

THOROUGH = settings(max_examples=100, deadline=None)
QUICK = settings(max_examples=40, deadline=None)
HOUR = 3600.0

SPACES = [
    SearchSpace.of({"lr": LogUniform(1e-5, 1e-1)}),
    SearchSpace.of({"x": Range(1, 5)}),
    SearchSpace.of({"model": Choice(["linear", "net"]), "layers": Range(1, 6, when={"model": "net"})}),
]
EVALUATION = CommandTarget(argv=["evaluate"])

#: How a job may end: scored, without the metric that counts, or as the outcome says; before or after it has started.
#: What a job that ends so is put down to.
FAILURES = {
    Outcome.FAILED: FailureKind.USER_ERROR,
    Outcome.KILLED: FailureKind.KILLED,
    Outcome.TIMED_OUT: FailureKind.TIMED_OUT,
}
#: Nobody asks for an early stop here; tests/schedulers/test_asha.py does.
UNASKED = {Outcome.SUCCEEDED, Outcome.PAUSED, Outcome.STOPPED}
ENDINGS = ["scored"] * 6 + ["unscored", "lost", "lost early", "failed early", *(set(Outcome) - UNASKED)]
GUARDS = (TrialLimit(), BudgetLimit(), TimeLimit())


def policy_of(config: SweepConfig) -> Policy:
    strategy = config.strategy
    return Policy(
        optimizer=registry.optimizer(strategy.optimizer, strategy.optimizer_options),
        scheduler=registry.scheduler(strategy.scheduler, strategy.scheduler_options),
        guards=GUARDS,
    )


class World:
    """A sweep whose jobs end as the script says, which starts over when it is through.

    Args:
        capacity: Of the dispatcher.
        endings: Of each job in turn.
        pace: How many of the open jobs end in each round.
        seconds: How much time passes in each round.
        config: Fields of the sweep's configuration.
    """

    def __init__(
        self,
        *,
        capacity: int | None = None,
        endings: Sequence[str] = ("scored",),
        pace: Sequence[int] = (1,),
        seconds: Sequence[float] = (60.0,),
        **config: Any,
    ) -> None:
        config = {"same_error_limit": 0, **config}
        self.capacity = capacity
        self.clock = ManualClock(START)
        self.log: list[Event] = []
        self.state = EMPTY
        self._endings, self._pace, self._seconds = cycle(endings), cycle(pace), cycle(seconds)
        self.policy = policy_of(sweep_config(**config))
        self.write(ev.SweepCreated(config=sweep_config(**config)))

    def __repr__(self) -> str:
        return "\n".join(f"{event.seq} {event.job_id or event.run_id} {event.body}" for event in self.log)

    def write(self, body: Body, run_id: str | None = None, job_id: str | None = None) -> None:
        now = self.clock.now()
        event = new_event(body, sweep_id=SWEEP, at=now, actor="test", run_id=run_id, job_id=job_id)
        self.log.append(replace(event, seq=self.state.seq + 1))
        self.state = fold(self.state, self.log[-1:])

    # -------------------------------------------------------------------------------------------- the controller's half

    def decide(self, *, starting: bool = True) -> list[Decision]:
        """One step of the controller, after which everything holds that always must."""
        is_refused = any(guard.refuse(self.state, self.clock.now()) for guard in GUARDS)
        decisions = self._ask(self.policy, starting)
        assert self._ask(policy_of(self.state.sweep.config), starting) == decisions
        assert fold(EMPTY, self.log) == self.state
        for decision in decisions:
            self.write(decision.body, decision.run_id, decision.job_id)
        assert self._ask(self.policy, starting) == []

        started = [decision.body for decision in decisions if isinstance(decision.body, ev.RunCreated | ev.JobGranted)]
        assert all(any(body.reasons) for body in started)
        assert starting or not started
        if is_refused:
            assert not any(isinstance(body, ev.RunCreated) for body in started)
        self._check_limits()
        return decisions

    def _ask(self, policy: Policy, starting: bool) -> list[Decision]:
        return decide(self.state, policy, now=self.clock.now(), capacity=self.capacity, starting=starting)

    def _check_limits(self) -> None:
        config = self.state.sweep.config
        number = Counter(job.type for _, job in self.open)
        assert number[JobType.TRAIN] <= config.max_parallel
        assert number[JobType.EVAL] <= config.max_parallel_eval
        assert self.capacity is None or number.total() <= self.capacity
        assert config.max_trials is None or len(self.state.runs) <= config.max_trials
        assert len(self.state.tried) == (0 if config.search_space.cardinality is None else len(self.state.runs))

    # ------------------------------------------------------------------------------------------------ the world's half

    @property
    def runs(self) -> list[RunInfo]:
        return sorted(self.state.runs.values(), key=lambda run: run.index)

    @property
    def open(self) -> list[tuple[RunInfo, JobInfo]]:
        return [(run, job) for run in self.runs if (job := run.open_job) is not None]

    def pass_time(self) -> None:
        """Open jobs start, some of them end."""
        self.clock.advance(next(self._seconds))
        for run, job in self.open[: next(self._pace)]:
            self._end(run, job, next(self._endings))
        for run, job in self.open:
            if job.state is JobState.GRANTED:
                self._start(run, job)

    def _start(self, run: RunInfo, job: JobInfo) -> None:
        self.write(ev.JobDispatched(dispatcher="test"), run.run_id, job.job_id)
        self.write(ev.JobStarted(host="node", pid=1, log="log"), run.run_id, job.job_id)

    def _end(self, run: RunInfo, job: JobInfo, ending: str) -> None:
        at = run.run_id, job.job_id
        if ending == "lost early":
            self.write(ev.JobLost(reason="gone", failure=FailureKind.NODE_LOST), *at)
            return
        if ending == "failed early":
            body = ev.JobExited(outcome=Outcome.FAILED, error="cannot start", failure=FailureKind.USER_ERROR)
            self.write(body, *at)
            return
        if job.state is JobState.GRANTED:
            self._start(run, job)
        if ending == "lost":
            self.write(ev.JobLost(reason="gone", failure=FailureKind.NODE_LOST), *at)
            return
        if ending in {"scored", "unscored"}:
            self.write(ev.MetricsReported(metrics={"loss": 0.5, "accuracy": 0.9}), *at)
        if ending == "scored":
            self.write(ev.MetricsReported(metrics={"reward": float(run.index % 3)}), *at)
        outcome = Outcome.SUCCEEDED if ending in {"scored", "unscored"} else Outcome(ending)
        started_at = job.started_at or self.clock.now()
        seconds = self.clock.now() - started_at
        self.write(ev.JobExited(outcome=outcome, seconds=seconds, failure=FAILURES.get(outcome)), *at)

    def wait(self) -> None:
        """Until the first retry is due, when nothing else will happen."""
        due = next_deadline(self.state)
        if not self.open and due is not None and due > self.clock.now():
            self.clock.advance(due - self.clock.now() + 0.001)

    def run_to_the_end(self) -> None:
        for _ in range(3000):
            self.decide()
            if self.state.sweep.status.ended:
                return
            self.wait()
            self.decide()
            assert self.open, "nothing runs, nothing starts, nothing waits, and the sweep has not ended"
            self.pass_time()
        raise AssertionError("the sweep does not end")


@st.composite
def worlds(draw: st.DrawFn, *, limited: bool = False) -> World:
    space = draw(st.sampled_from(SPACES))
    fewest = 0 if space.cardinality is None else draw(st.sampled_from([0, 0, None]))
    pace = draw(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any))
    config: dict[str, Any] = {}
    if limited:
        config["budget_hours"] = draw(st.none() | st.sampled_from([0.5, 1.0, 3.0]))
        config["max_hours"] = draw(st.sampled_from([0.5, 1.0, 3.0])) if config["budget_hours"] is None else None
    return World(
        capacity=draw(st.none() | st.integers(1, 6)),
        endings=draw(st.lists(st.sampled_from(ENDINGS), min_size=1, max_size=20)),
        pace=pace,
        seconds=draw(st.lists(st.sampled_from([0.0, 60.0, 0.5 * HOUR, 2 * HOUR]), min_size=1, max_size=4)),
        search_space=space,
        strategy=Strategy(optimizer=draw(st.sampled_from(["random", "grid", "sobol"]))),
        seed=draw(st.integers(0, 99)),
        max_parallel=draw(st.integers(1, 5)),
        max_parallel_eval=draw(st.integers(1, 3)),
        evaluate=draw(st.sampled_from([None, EVALUATION])),
        max_trials=None if fewest is None else draw(st.integers(0, 10)),
        **config,
    )


def expected_runs(config: SweepConfig) -> int:
    sizes = [config.max_trials, config.search_space.cardinality]
    if config.strategy.optimizer == "grid" and config.search_space.cardinality is None:
        sizes.append(5)  # levels
    return min(size for size in sizes if size is not None)


# ---------------------------------------------------------------------------------------------------- whole sweeps


@THOROUGH
@given(world=worlds())
def test_a_sweep_ends_when_all_runs_there_can_be_have_ended(world: World) -> None:
    world.run_to_the_end()
    sweep = world.state.sweep
    assert sweep.status is SweepStatus.COMPLETED
    assert sweep.reason
    assert len(world.runs) == expected_runs(sweep.config)
    assert [run.index for run in world.runs] == list(range(len(world.runs)))
    assert not world.state.unfinished
    keys = {sweep.config.search_space.key(run.config) for run in world.runs}
    assert len(keys) == len(world.runs)


@QUICK
@given(world=worlds())
def test_every_run_ends_as_its_jobs_did(world: World) -> None:
    world.run_to_the_end()
    last_type = JobType.EVAL if world.state.sweep.config.evaluate else JobType.TRAIN
    for run in world.runs:
        assert run.status.ended
        last = run.jobs[-1]
        is_whole = last.type is last_type and last.outcome is Outcome.SUCCEEDED
        if run.status is JobStatus.COMPLETED:
            assert is_whole
            assert "reward" in last.reported
            assert run.score == run.metrics["reward"]
        elif run.status is JobStatus.CANCELLED:
            assert last.outcome in {Outcome.CANCELLED, Outcome.INTERRUPTED}
        else:
            assert run.failure_reasons
            assert "reward" not in last.reported if is_whole else last.failure is not None
            if last.state is JobState.LOST:
                assert len(run.jobs) >= MOST_LOSSES
        killed = [job for job in run.jobs if job.failure is FailureKind.KILLED and job.type is last.type]
        assert len(killed) <= 1 + 3
        assert run.retry_count <= 3


@QUICK
@given(world=worlds(limited=True))
def test_a_sweep_with_a_budget_or_a_deadline_ends_early_and_no_run_starts_after_it(world: World) -> None:
    world.run_to_the_end()  # `World.decide` checks that guards are obeyed
    sweep = world.state.sweep
    assert sweep.status is SweepStatus.COMPLETED
    assert len(world.runs) <= expected_runs(sweep.config)
    assert all(run.status.ended for run in world.runs)
    if len(world.runs) < expected_runs(sweep.config):
        assert sweep.reason
        assert sweep.reason.startswith(("budget_hours", "max_hours"))


@QUICK
@given(world=worlds(), rounds=st.integers(0, 8))
def test_a_stopped_sweep_starts_nothing_cancels_what_waits_and_ends_with_its_last_job(
    world: World, rounds: int
) -> None:
    for _ in range(rounds):
        world.decide()
        if world.state.sweep.status.ended:
            return
        world.pass_time()
    world.write(ev.SweepStopRequested(reason="enough"))
    known = len(world.runs)
    while not world.state.sweep.status.ended:
        decisions = world.decide()
        assert {type(decision.body) for decision in decisions} <= {ev.RunCancelled, ev.SweepEnded}
        assert len(world.open) == len(world.state.unfinished)
        if not world.state.sweep.status.ended:
            assert world.open
            world.pass_time()
    assert (world.state.sweep.status, world.state.sweep.reason) == (SweepStatus.STOPPED, "enough")
    assert len(world.runs) == known
    assert all(run.status.ended for run in world.runs)


@QUICK
@given(world=worlds(), rounds=st.integers(0, 8))
def test_winding_down_starts_nothing_and_a_later_controller_goes_on(world: World, rounds: int) -> None:
    for _ in range(rounds):
        world.decide()
        if world.state.sweep.status.ended:
            return
        world.pass_time()
    known = len(world.runs)
    while world.open:
        world.decide(starting=False)
        world.pass_time()
    world.decide(starting=False)
    assert len(world.runs) == known
    assert world.state.sweep.status is SweepStatus.RUNNING
    # What has all its jobs behind it was judged; the others wait.
    assert {run.status for run in world.runs if not run.status.ended} <= {
        JobStatus.PENDING,
        JobStatus.RETRYING,
        JobStatus.TRAINING_DONE_NO_EVAL,
    }
    world.run_to_the_end()
    assert len(world.runs) == expected_runs(world.state.sweep.config)


@QUICK
@given(world=worlds())
def test_a_resumed_sweep_tries_interrupted_runs_again_and_no_others(world: World) -> None:
    world.run_to_the_end()
    interrupted = {run.run_id for run in world.runs if run.jobs[-1].outcome is Outcome.INTERRUPTED}
    before = {run.run_id: run for run in world.runs}
    world.write(ev.SweepResumed())
    revived = revive(world.state, world.clock.now())
    assert {decision.run_id for decision in revived} == interrupted
    for decision in revived:
        world.write(decision.body, decision.run_id)
    world.run_to_the_end()
    assert len(world.runs) == len(before)
    assert all(run.status.ended for run in world.runs)
    for run in world.runs:
        assert (len(run.jobs) > len(before[run.run_id].jobs)) == (run.run_id in interrupted)


@QUICK
@given(world=worlds(), more=st.integers(1, 5))
def test_a_resumed_sweep_with_more_trials_goes_on_to_the_new_number(world: World, more: int) -> None:
    world.run_to_the_end()
    world.write(ev.SweepResumed(changes={"max_trials": len(world.runs) + more}))
    world.run_to_the_end()
    assert len(world.runs) == expected_runs(world.state.sweep.config)


# ------------------------------------------------------------------------------------------------- single decisions


def bodies(decisions: Sequence[Decision]) -> list[type]:
    return [type(decision.body) for decision in decisions]


def test_a_slot_that_becomes_free_is_filled_in_the_same_step() -> None:
    world = World(max_parallel=1, max_trials=2)
    assert bodies(world.decide()) == [ev.RunCreated, ev.JobGranted]
    world.pass_time()
    assert bodies(world.decide()) == [ev.RunCompleted, ev.RunCreated, ev.JobGranted]
    world.pass_time()
    assert bodies(world.decide()) == [ev.RunCompleted, ev.SweepEnded]
    assert world.state.sweep.reason == "max_trials: all 2 runs are done"
    assert world.decide() == []


def test_a_space_that_is_used_up_ends_the_sweep() -> None:
    world = World(search_space=SearchSpace.of({"x": Range(1, 3)}), max_parallel=2)
    world.run_to_the_end()
    assert world.state.sweep.reason == "search space exhausted: 3 configurations were tried"


def test_a_trained_run_is_evaluated_and_then_complete() -> None:
    world = World(max_trials=1, evaluate=EVALUATION)
    world.run_to_the_end()
    [run] = world.runs
    assert [job.type for job in run.jobs] == [JobType.TRAIN, JobType.EVAL]
    assert run.status is JobStatus.COMPLETED


@pytest.mark.parametrize("evaluate", [None, EVALUATION], ids=["trained", "evaluated"])
def test_a_run_without_the_metric_fails_and_says_what_it_reported(evaluate: CommandTarget | None) -> None:
    world = World(max_trials=1, endings=["unscored"], evaluate=evaluate)
    world.run_to_the_end()
    [run] = world.runs
    assert run.status is JobStatus.FAILED
    last = "train" if evaluate is None else "eval"
    assert run.failure_reasons == (f"metric 'reward' was not reported; {last} reported: accuracy, loss",)


def test_what_training_reported_is_no_evaluation() -> None:
    world = World(max_trials=1, evaluate=EVALUATION)
    for metrics in ({"reward": 1.0}, {"loss": 2.0}):
        world.decide()
        [(run, job)] = world.open
        world.write(ev.JobStarted(host="node", pid=1, log="log"), run.run_id, job.job_id)
        world.write(ev.MetricsReported(metrics=metrics), run.run_id, job.job_id)
        world.write(ev.JobExited(outcome=Outcome.SUCCEEDED), run.run_id, job.job_id)
    world.decide()
    [run] = world.runs
    assert run.failure_reasons == ("metric 'reward' was not reported; eval reported: loss",)


def test_a_run_that_reported_nothing_fails_and_says_so() -> None:
    world = World(max_trials=1)
    world.decide()
    [(run, job)] = world.open
    world.write(ev.JobStarted(host="node", pid=1, log="log"), run.run_id, job.job_id)
    world.write(ev.JobExited(outcome=Outcome.SUCCEEDED), run.run_id, job.job_id)
    world.decide()
    [run] = world.runs
    assert run.failure_reasons == ("metric 'reward' was not reported; train reported: no metrics at all",)


@pytest.mark.parametrize("ending", ["lost", "lost early"])
def test_a_lost_job_is_tried_again_until_it_was_lost_too_often_in_a_row(ending: str) -> None:
    world = World(max_trials=1, endings=[ending])
    world.run_to_the_end()
    [run] = world.runs
    assert [job.attempt for job in run.jobs] == list(range(1, MOST_LOSSES + 1))
    assert run.status is JobStatus.FAILED
    assert run.failure_reasons[-1] == f"its jobs were lost {MOST_LOSSES} times in a row without saving a checkpoint"
    assert run.retry_count == 0


def test_a_run_that_was_lost_less_often_is_completed() -> None:
    world = World(max_trials=1, endings=["lost"] * (MOST_LOSSES - 1) + ["scored"])
    world.run_to_the_end()
    [run] = world.runs
    assert run.status is JobStatus.COMPLETED
    assert len(run.jobs) == MOST_LOSSES


def test_a_job_that_succeeds_ends_a_row_of_losses() -> None:
    endings = ["lost"] * 6 + ["scored"] + ["lost"] * 6 + ["scored"]
    world = World(max_trials=1, endings=endings, evaluate=EVALUATION)
    world.run_to_the_end()
    [run] = world.runs
    assert run.status is JobStatus.COMPLETED
    assert [job.type for job in run.jobs] == [JobType.TRAIN] * 7 + [JobType.EVAL] * 7


def test_a_run_that_saves_checkpoints_may_be_lost_for_ever() -> None:
    world = World(max_trials=1, endings=["lost"] * 30 + ["scored"])
    while not world.state.sweep.status.ended:
        world.decide()
        world.wait()
        world.decide()
        for run, job in world.open:
            world._start(run, job)
            saved = ev.CheckpointSaved(step=job.attempt, path="p", sha256="0", size_bytes=1)
            world.write(saved, run.run_id, job.job_id)
        world.pass_time()
    [run] = world.runs
    assert run.status is JobStatus.COMPLETED
    assert len(run.jobs) == 31


# ---------------------------------------------------------------------------------------------------------- retries


def test_a_run_waits_ever_longer_between_its_attempts_and_is_then_given_up() -> None:
    retry = RetryPolicy(max_retries=3, retry_delay_seconds=60.0, jitter=0.0)
    world = World(max_trials=1, endings=[Outcome.FAILED], retry=retry, seconds=[1.0])
    waits = []
    for _ in range(3):
        world.decide()
        world.pass_time()
        assert bodies(world.decide()) == [ev.RunRetryScheduled]
        [run] = world.runs
        assert run.status is JobStatus.RETRYING
        assert run.retry_at is not None
        waits.append(run.retry_at - world.clock.now())
        world.clock.advance(waits[-1] - 0.5)
        assert world.decide() == []
        world.clock.advance(0.5)
        assert bodies(world.decide()) == [ev.RunRequeued, ev.JobGranted]
    assert waits == [60.0, 120.0, 240.0]
    world.pass_time()
    assert bodies(world.decide()) == [ev.RunFailed, ev.SweepEnded]
    [run] = world.runs
    assert run.failure_reasons == (*["train failed"] * 4, "given up after 3 retries: train failed")


def test_the_codes_own_errors_are_tried_again_only_when_the_user_asks_for_retries() -> None:
    outcomes = {}
    for asked in (None, 1):
        for ending in (Outcome.FAILED, Outcome.TIMED_OUT, Outcome.KILLED):
            retry = RetryPolicy(max_retries=asked)
            world = World(max_trials=1, endings=[ending, "scored"], retry=retry)
            world.run_to_the_end()
            outcomes[asked, ending] = world.runs[0].status
    assert outcomes == {
        (None, Outcome.FAILED): JobStatus.FAILED,
        (None, Outcome.TIMED_OUT): JobStatus.FAILED,
        (None, Outcome.KILLED): JobStatus.COMPLETED,
        (1, Outcome.FAILED): JobStatus.COMPLETED,
        (1, Outcome.TIMED_OUT): JobStatus.COMPLETED,
        (1, Outcome.KILLED): JobStatus.COMPLETED,
    }


def test_eval_jobs_may_have_a_policy_of_their_own() -> None:
    retry, retry_eval = RetryPolicy(max_retries=0), RetryPolicy(max_retries=1)
    endings = ["scored", Outcome.FAILED, "scored"]
    world = World(max_trials=1, endings=endings, evaluate=EVALUATION, retry=retry, retry_eval=retry_eval)
    world.run_to_the_end()
    [run] = world.runs
    assert run.status is JobStatus.COMPLETED
    assert [job.type for job in run.jobs] == [JobType.TRAIN, JobType.EVAL, JobType.EVAL]


def test_a_slot_is_not_kept_for_a_run_that_waits() -> None:
    world = World(max_trials=2, max_parallel=1, endings=[Outcome.KILLED, "scored"])
    world.decide()
    world.pass_time()
    assert bodies(world.decide()) == [ev.RunRetryScheduled, ev.RunCreated, ev.JobGranted]
    world.run_to_the_end()
    assert [run.status for run in world.runs] == [JobStatus.COMPLETED] * 2


def test_a_job_to_dispatch_says_what_became_of_its_earlier_attempts_and_where_it_may_go_on() -> None:
    world = World(max_trials=1, endings=[Outcome.KILLED])
    world.decide()
    [(run, job)] = world.open
    world._start(run, job)
    world.write(ev.CheckpointSaved(step=3, path="p", sha256="0", size_bytes=1), run.run_id, job.job_id)
    world.pass_time()
    world.decide()
    world.wait()
    world.decide()
    [definition] = jobs_to_dispatch(world.state)
    assert (definition.attempt, definition.retry_count, definition.max_retries) == (2, 1, 3)
    assert definition.failure_reasons == ("train killed",)
    assert [checkpoint.step for checkpoint in definition.checkpoints] == [3]


@pytest.mark.parametrize("last", ["typo", "unscored"])
def test_the_same_error_three_times_in_a_row_pauses_the_sweep(last: str) -> None:
    world = World(max_parallel=2, same_error_limit=3, endings=["unscored"])
    for number in range(3):
        world.decide()
        run, job = world.open[0]
        world._start(run, job)
        if last == "typo":
            error = {"error": "NameError: x", "signature": "NameError train.py:7", "failure": FailureKind.USER_ERROR}
            world.write(ev.JobExited(outcome=Outcome.FAILED, **error), run.run_id, job.job_id)
        else:
            world.write(ev.JobExited(outcome=Outcome.SUCCEEDED), run.run_id, job.job_id)
        assert world.state.sweep.status is SweepStatus.RUNNING, number
    decisions = world.decide()
    assert bodies(decisions) == [ev.RunFailed, ev.SweepPaused]
    reason = world.state.sweep.reason
    assert reason is not None
    assert reason.startswith("3 jobs in a row failed in the same way: ")
    assert ("NameError" in reason) == (last == "typo")
    # The other job ends, and nothing follows it.
    world.pass_time()
    world.pass_time()
    assert ev.JobGranted not in bodies(world.decide())
    world.write(ev.SweepResumed())
    assert ev.JobGranted in bodies(world.decide())


def fail(world: World, signature: str = "flaky") -> None:
    """The oldest open job starts and fails."""
    run, job = world.open[0]
    if job.state is JobState.GRANTED:
        world._start(run, job)
    body = ev.JobExited(outcome=Outcome.FAILED, failure=FailureKind.USER_ERROR, signature=signature)
    world.write(body, run.run_id, job.job_id)


def test_an_error_that_a_second_attempt_gets_over_pauses_nothing() -> None:
    world = World(max_parallel=1, max_trials=20, same_error_limit=3, retry=RetryPolicy(max_retries=9))
    for _ in range(3):
        world.decide()
        fail(world)
    # Nothing new starts until the second attempts have told whether the error passes.
    assert bodies(world.decide()) == [ev.RunRetryScheduled]
    assert not world.open
    world.wait()
    assert bodies(world.decide()) == [ev.RunRequeued, ev.JobGranted]
    world.pass_time()
    world.pass_time()
    assert ev.RunCompleted in bodies(world.decide())
    for _ in range(7):
        fail(world)
        world.decide()
        world.wait()
        world.decide()
        assert world.state.sweep.status is SweepStatus.RUNNING


def test_an_error_that_second_attempts_do_not_get_over_pauses_the_sweep() -> None:
    world = World(max_parallel=3, max_trials=20, same_error_limit=3, retry=RetryPolicy(max_retries=9))
    for attempt in range(2):
        world.decide()
        world.clock.advance(100.0 * attempt)
        world.decide()
        for _ in range(3):
            fail(world)
    assert ev.SweepPaused in bodies(world.decide())
    assert len(world.runs) == 3


def test_a_dispatcher_that_refuses_again_and_again_pauses_the_sweep() -> None:
    world = World(max_trials=1)
    world.decide()
    for _ in range(MOST_REFUSALS):
        assert world.decide() == []
        world.write(ev.DispatchFailed(dispatcher="test", reason="no", retry_at=world.clock.now()))
    assert bodies(world.decide()) == [ev.SweepPaused]


def test_a_paused_sweep_judges_what_ends_and_starts_nothing() -> None:
    world = World(max_parallel=2, max_trials=4, endings=["scored", Outcome.KILLED])
    world.decide()
    world.write(ev.SweepPaused(reason="by hand"))
    world.pass_time()
    assert bodies(world.decide()) == [ev.RunCompleted]
    world.pass_time()
    assert bodies(world.decide()) == [ev.RunRetryScheduled]
    world.clock.advance(HOUR)
    assert world.decide() == []
    world.write(ev.SweepResumed())
    world.run_to_the_end()
    assert len(world.runs) == 4


def test_a_spent_budget_stops_new_runs_and_lets_begun_ones_end() -> None:
    world = World(max_parallel=2, budget_hours=1.0, endings=["lost", "scored", "scored"], seconds=[2 * HOUR])
    world.decide()
    world.pass_time()
    # The lost one, once more.
    assert bodies(world.decide()) == [ev.RunRetryScheduled, ev.RunRequeued, ev.JobGranted]
    world.run_to_the_end()
    assert [run.status for run in world.runs] == [JobStatus.COMPLETED] * 2
    assert world.state.sweep.reason is not None
    assert world.state.sweep.reason.startswith("budget_hours: ")


def test_a_dispatcher_without_room_gets_nothing_and_ends_nothing() -> None:
    world = World(max_trials=3, capacity=0)
    assert world.decide() == []
    world.capacity = 2
    assert bodies(world.decide()) == [ev.RunCreated, ev.JobGranted] * 2


def test_stopping_cancels_runs_that_wait_and_waits_for_those_that_run() -> None:
    world = World(max_parallel=2, endings=["lost", "scored"])
    world.decide()
    world.pass_time()
    world.write(ev.SweepStopRequested(reason="enough"))
    assert bodies(world.decide()) == [ev.RunCancelled]
    assert world.decide() == []
    world.pass_time()
    # Its result is kept in the log; the verdict on it is that of the stop.
    assert bodies(world.decide()) == [ev.RunCancelled, ev.SweepEnded]
    assert [run.failure_reasons[-1] for run in world.runs] == ["enough", "enough"]


def test_an_ended_sweep_needs_no_decisions() -> None:
    world = World()
    world.write(ev.SweepEnded(status=SweepStatus.STOPPED, reason="enough"))
    assert world.decide() == []


def test_jobs_to_dispatch_are_those_that_no_dispatcher_has_taken_yet() -> None:
    world = World(max_parallel=3)
    world.decide()
    first, second, third = world.runs
    assert jobs_to_dispatch(world.state)[0] == JobDefinition(
        job_id=f"{first.run_id}.train.1",
        run_id=first.run_id,
        sweep_id=SWEEP,
        type=JobType.TRAIN,
        attempt=1,
        config=first.config,
        max_retries=3,
        retry_delay_seconds=60.0,
    )
    assert [job.run_id for job in jobs_to_dispatch(world.state)] == [first.run_id, second.run_id, third.run_id]
    world.write(ev.JobDispatched(dispatcher="test"), second.run_id, f"{second.run_id}.train.1")
    assert [job.run_id for job in jobs_to_dispatch(world.state)] == [first.run_id, third.run_id]
    assert open_jobs(world.state) == [f"{run.run_id}.train.1" for run in world.runs]
    world.write(ev.JobLost(reason="gone"), first.run_id, f"{first.run_id}.train.1")
    assert [job.run_id for job in jobs_to_dispatch(world.state)] == [third.run_id]
    assert open_jobs(world.state) == [f"{run.run_id}.train.1" for run in (second, third)]


def test_only_runs_that_an_interruption_ended_are_revived() -> None:
    endings = [Outcome.INTERRUPTED, Outcome.CANCELLED, Outcome.FAILED, "scored", "lost"]
    world = World(max_parallel=5, max_trials=5, endings=endings, pace=[5])
    world.decide()
    world.pass_time()
    world.write(ev.RunCancelled(reason="by hand"), world.runs[4].run_id)
    [decision] = revive(world.state, world.clock.now())
    assert decision.run_id == world.runs[0].run_id
    world.write(decision.body, decision.run_id)
    assert revive(world.state, world.clock.now()) == []


def test_a_run_cancelled_while_it_waited_to_be_tried_again_is_not_revived() -> None:
    world = World(max_trials=1, endings=[Outcome.INTERRUPTED])
    world.decide()
    world.pass_time()
    [decision] = revive(world.state, world.clock.now())
    world.write(decision.body, decision.run_id)
    world.clock.advance(1)
    world.write(ev.SweepStopRequested(reason="enough"))
    world.decide()
    assert revive(world.state, world.clock.now()) == []


class Halving:
    """A scheduler that wishes for what it is told to."""

    def __init__(self, *wishes: Any) -> None:
        self.wishes = wishes

    def check(self, config: SweepConfig) -> None:
        """Whatever."""

    def schedule(self, state: SweepState, capacity: int | None) -> list[Any]:
        return list(self.wishes)


def decided(world: World, *wishes: Any, now: float = START) -> list[Body]:
    policy = replace(world.policy, scheduler=Halving(*wishes))
    return [each.body for each in decide(world.state, policy, now=now, capacity=None, starting=True)]


def paused_world(**config: Any) -> World:
    """A sweep whose only run has come to a level."""
    world = World(max_trials=1, fidelity=Fidelity(maximum=9), **config)
    world.write(ev.RunCreated(index=0, config={"lr": 0.01}), "r0")
    world.write(ev.JobGranted(job_type=JobType.TRAIN, attempt=1, until=1.0), "r0", "r0.train.1")
    world.write(ev.JobStarted(host="node", pid=1, log="log"), "r0", "r0.train.1")
    world.write(ev.MetricsReported(metrics={"reward": 0.5, "epoch": 1.0}), "r0", "r0.train.1")
    world.write(ev.JobExited(outcome=Outcome.PAUSED, seconds=2 * HOUR), "r0", "r0.train.1")
    return world


def test_a_run_that_waits_is_stopped_at_once_with_what_it_had_reached() -> None:
    bodies = decided(paused_world(), StopRun(run_id="r0", reason="others are better"))
    assert bodies[0] == ev.RunStopped(reason="others are better", partial_score=0.5)
    assert isinstance(bodies[-1], ev.SweepEnded)


def test_a_run_under_way_is_asked_to_stop_and_counts_when_its_job_has_ended() -> None:
    world = World(max_trials=1, fidelity=Fidelity(maximum=9))
    world.write(ev.RunCreated(index=0, config={"lr": 0.01}), "r0")
    world.write(ev.JobGranted(job_type=JobType.TRAIN, attempt=1), "r0", "r0.train.1")
    world.write(ev.JobStarted(host="node", pid=1, log="log"), "r0", "r0.train.1")
    assert decided(world, StopRun(run_id="r0", reason="beaten")) == [ev.RunStopRequested(reason="beaten")]
    world.write(ev.RunStopRequested(reason="beaten"), "r0")
    assert jobs_to_stop(world.state) == {"r0.train.1": "beaten"}
    # It may fail on the way to its end: nobody tries again what is given up.
    world.write(ev.JobExited(outcome=Outcome.FAILED, failure=FailureKind.USER_ERROR), "r0", "r0.train.1")
    assert decided(world)[0] == ev.RunStopped(reason="beaten")


def test_one_that_comes_to_its_end_before_it_is_stopped_is_completed() -> None:
    world = World(max_trials=1, fidelity=Fidelity(maximum=9))
    world.write(ev.RunCreated(index=0, config={"lr": 0.01}), "r0")
    world.write(ev.JobGranted(job_type=JobType.TRAIN, attempt=1), "r0", "r0.train.1")
    world.write(ev.JobStarted(host="node", pid=1, log="log"), "r0", "r0.train.1")
    world.write(ev.RunStopRequested(reason="beaten"), "r0")
    world.write(ev.MetricsReported(metrics={"reward": 0.7, "epoch": 9.0}), "r0", "r0.train.1")
    world.write(ev.JobExited(outcome=Outcome.SUCCEEDED), "r0", "r0.train.1")
    assert decided(world)[0] == ev.RunCompleted(score=0.7)


def test_what_is_paused_goes_on_beyond_the_last_trial_and_not_beyond_the_budget() -> None:
    onwards = StartJob(run_id="r0", type=JobType.TRAIN, until=3.0)
    [granted] = decided(paused_world(), onwards)
    assert granted == ev.JobGranted(job_type=JobType.TRAIN, attempt=2, until=3.0)
    stopped, ended = decided(paused_world(budget_hours=1.0), onwards)
    assert isinstance(stopped, ev.RunStopped)
    assert stopped.partial_score == 0.5
    assert stopped.reason.startswith("budget_hours")
    assert isinstance(ended, ev.SweepEnded)


def test_of_wall_time_a_job_gets_what_its_run_has_left_to_the_level() -> None:
    world = paused_world()
    seconds = replace(world.state.sweep.config, fidelity=Fidelity(resource="seconds", maximum=9 * HOUR))
    world.write(ev.JobGranted(job_type=JobType.TRAIN, attempt=2, until=3 * HOUR), "r0", "r0.train.2")
    state = replace(world.state, metadata=replace(world.state.sweep, config=seconds))
    assert [job.until for job in jobs_to_dispatch(world.state)] == [3 * HOUR]
    assert [job.until for job in jobs_to_dispatch(state)] == [HOUR]


def test_a_job_that_ends_at_its_level_has_come_there_whenever_it_reported_last() -> None:
    world = World(max_trials=1, fidelity=Fidelity(resource="seconds", maximum=9))
    world.write(ev.RunCreated(index=0, config={"lr": 0.01}), "r0")
    world.write(ev.JobGranted(job_type=JobType.TRAIN, attempt=1, until=3.0), "r0", "r0.train.1")
    world.write(ev.JobStarted(host="node", pid=1, log="log"), "r0", "r0.train.1")
    world.write(ev.MetricsReported(metrics={"reward": 0.5}), "r0", "r0.train.1")
    world.write(ev.JobExited(outcome=Outcome.PAUSED, seconds=3.0), "r0", "r0.train.1")
    run = world.state.runs["r0"]
    assert run.progress == 3.0
    assert [(rung.level, rung.value) for rung in run.rungs] == [(1.0, 0.5), (3.0, 0.5)]


def test_a_run_that_the_user_wants_after_all_is_trained_to_its_end_whatever_the_scheduler_wishes() -> None:
    world = paused_world()
    world.write(ev.RunStopped(reason="beaten", partial_score=0.5), "r0")
    world.write(ev.RunRequeued(reason="the user asked"), "r0")
    against = StopRun(run_id="r0", reason="beaten")
    for wishes in ([against], []):
        [granted] = decided(world, *wishes)
        assert granted == ev.JobGranted(job_type=JobType.TRAIN, attempt=2, reasons=("the user wants it",), until=None)
    world.write(granted, "r0", "r0.train.2")
    assert decided(world, against) == []
    # A failure on the way is retried as any, and it stays wanted.
    world.write(ev.JobLost(reason="gone", failure=FailureKind.NODE_LOST), "r0", "r0.train.2")
    retried = decided(world, against)
    assert [type(body) for body in retried] == [ev.RunRetryScheduled, ev.RunRequeued, ev.JobGranted]
    assert retried[-1].until is None


def test_a_run_that_the_user_wants_waits_for_a_free_slot() -> None:
    world = paused_world(max_parallel=1)
    world.write(ev.RunRequeued(reason="the user asked"), "r0")
    world.write(ev.RunCreated(index=1, config={"lr": 0.02}), "r1")
    world.write(ev.JobGranted(job_type=JobType.TRAIN, attempt=1), "r1", "r1.train.1")
    assert decided(world) == []


def branching_world(**config: Any) -> World:
    """A sweep of two runs at a level, each with a checkpoint there."""
    world = World(fidelity=Fidelity(maximum=9), **config)
    for index, reward in enumerate((0.9, 0.1)):
        run_id, job_id = f"r{index}", f"r{index}.train.1"
        world.write(ev.RunCreated(index=index, config={"lr": 0.01}), run_id)
        world.write(ev.JobGranted(job_type=JobType.TRAIN, attempt=1, until=3.0), run_id, job_id)
        world.write(ev.JobStarted(host="node", pid=1, log="log"), run_id, job_id)
        for epoch in (1, 3):
            world.write(ev.MetricsReported(metrics={"reward": reward, "epoch": float(epoch)}), run_id, job_id)
            path = f"checkpoints/{epoch}"
            saved = ev.CheckpointSaved(step=epoch, path=path, sha256="0" * 64, size_bytes=1)
            world.write(saved, run_id, job_id)
        world.write(ev.JobExited(outcome=Outcome.PAUSED, seconds=HOUR), run_id, job_id)
    return world


PARENT = Parent(run_id="r0", level=3.0, step=3, replaces="r1")
BRANCH = BranchRun(parent=PARENT, config={"lr": 0.02}, reasons=("r1 was the worst",))


def test_a_run_takes_the_place_of_another_with_all_that_its_parent_had_reached() -> None:
    world = branching_world()
    stopped, created, granted = decided(world, BRANCH)
    assert stopped == ev.RunStopped(reason="r1 was the worst", partial_score=0.1)
    assert created == ev.RunCreated(
        index=2, config={"lr": 0.02}, reasons=BRANCH.reasons, parent=PARENT, rungs=world.state.runs["r0"].rungs
    )
    assert granted == ev.JobGranted(job_type=JobType.TRAIN, attempt=1, reasons=BRANCH.reasons)


@pytest.mark.parametrize(("step", "steps"), [(3, [1, 3]), (2, [1]), (0, [])])
def test_its_job_is_told_what_to_copy_until_it_has_something_of_its_own(step: int, steps: list[int]) -> None:
    world = branching_world()
    child = ids.run_id(SWEEP, 2)
    for body in decided(world, replace(BRANCH, parent=replace(PARENT, step=step))):
        run_id = "r1" if isinstance(body, ev.RunStopped) else child
        world.write(body, run_id, f"{child}.train.1" if isinstance(body, ev.JobGranted) else None)
    [job] = jobs_to_dispatch(world.state)
    assert job.inheritance is not None
    assert job.inheritance.run_id == "r0"
    assert [each.step for each in job.inheritance.checkpoints] == steps
    copied = ev.CheckpointCopied(source="r0", step=1, path="p", sha256="0" * 64, size_bytes=1)
    world.write(copied, child, f"{child}.train.1")
    [job] = jobs_to_dispatch(world.state)
    assert job.inheritance is None
    assert [each.step for each in job.checkpoints] == [1]


def test_what_is_fixed_is_put_into_what_the_optimizer_suggests() -> None:
    world = branching_world(search_space=SearchSpace.of({"lr": LogUniform(1e-5, 1e-1), "width": Range(1, 1000)}))
    wish = replace(BRANCH, config={"lr": 0.02, "width": 7}, ask=True, fixed={"width": 7})
    created = decided(world, wish)[1]
    assert isinstance(created, ev.RunCreated)
    assert created.config["width"] == 7
    assert created.config["lr"] != 0.02
    assert created.reasons == ("r1 was the worst", "random draw 2")


def test_nobody_is_given_up_for_a_run_that_may_not_start() -> None:
    assert decided(branching_world(max_trials=2), BRANCH) == []
    # With its budget used up the sweep ends, and nobody goes on.
    bodies = decided(branching_world(budget_hours=1.0), BRANCH)
    assert [type(body) for body in bodies] == [ev.RunStopped, ev.RunStopped, ev.SweepEnded]
