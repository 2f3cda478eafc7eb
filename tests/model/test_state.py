"""The state of a sweep follows from its log alone, and the log takes nothing that does not fit."""

import math
from collections import Counter
from functools import reduce

import immutables
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from metta.sweep.errors import InvalidTransition
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Body, Event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import FailureKind, JobState, JobStatus, JobType, Outcome
from metta.sweep.model.run_transitions import AFTER_THE_END
from metta.sweep.model.space import Choice, SearchSpace, Uniform
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.model.usage import JobUsage
from metta.sweep.model.waiting import waits_for
from model.logs import (
    BEGIN,
    BEGIN_EVAL,
    BRANCH,
    CANCEL,
    COMPLETE,
    COPY,
    CRASH,
    CRASH_EVAL,
    CREATE,
    DISPATCH,
    EVAL,
    FAIL,
    FAILING,
    GRANT,
    GRANT_EVAL,
    PARENT,
    PAUSE,
    REQUEST_STOP,
    RETRY,
    ROLL_BACK,
    RUN,
    RUNGS,
    SAVE,
    STARTED,
    STOP,
    SUCCEED,
    SUCCEED_EVAL,
    TRAIN,
    TRAINED,
    Log,
    crash,
    offer,
    saved,
)
from model.strategies import (
    QUICK,
    RUN_IDS,
    START,
    SWEEP,
    created,
    event,
    histories,
    next_events,
    sweep_config,
)

# ------------------------------------------------------------------------------ what is allowed, where, and to what end

#: What happened to a run before.
STAGES = {
    "created": [CREATE],
    "granted": [CREATE, GRANT],
    "branched and granted": [BRANCH, GRANT],
    "training a branch": [BRANCH, GRANT, COPY, BEGIN],
    "dispatched": [CREATE, GRANT, DISPATCH],
    "training": [CREATE, GRANT, DISPATCH, BEGIN],
    "trained": TRAINED,
    "eval granted": [*TRAINED, GRANT_EVAL],
    "evaluating": [*TRAINED, GRANT_EVAL, BEGIN_EVAL],
    "evaluated": [*TRAINED, GRANT_EVAL, BEGIN_EVAL, SUCCEED_EVAL],
    "completed": [*TRAINED, COMPLETE],
    "failed": [*TRAINED, FAIL],
    "failed before training": [CREATE, FAIL],
    "failed with a checkpoint": [CREATE, GRANT, BEGIN, SAVE, CRASH, FAIL],
    "cancelled": [*TRAINED, CANCEL],
    "cancelled with a checkpoint": [CREATE, GRANT, BEGIN, SAVE, SUCCEED, CANCEL],
    "cancelled before training": [CREATE, CANCEL],
    "retrying undecided": FAILING,
    "retrying scheduled": [*FAILING, RETRY],
    "retrying its evaluation": [*TRAINED, GRANT_EVAL, BEGIN_EVAL, CRASH_EVAL, RETRY],
    "being stopped": [CREATE, GRANT, DISPATCH, BEGIN, REQUEST_STOP],
    "paused": [CREATE, GRANT, DISPATCH, BEGIN, PAUSE],
    "stopped early": [CREATE, GRANT, DISPATCH, BEGIN, PAUSE, STOP],
    "rolled back": [*TRAINED, COMPLETE, ROLL_BACK],
    "rolled back after a failure": [*TRAINED, FAIL, ROLL_BACK],
}
#: What may happen next; job events are about the run's last job.
NEXT = {
    "created again": ev.RunCreated(index=1, config={"x": 1}),
    "train granted": ev.JobGranted(job_type=JobType.TRAIN, attempt=1),
    "train granted again": ev.JobGranted(job_type=JobType.TRAIN, attempt=2),
    "eval granted": ev.JobGranted(job_type=JobType.EVAL, attempt=1),
    "dispatched": ev.JobDispatched(dispatcher="local"),
    "started": STARTED,
    "reported": ev.MetricsReported(metrics={"reward": 1.0}),
    "measured": ev.ResourcesMeasured(usage=JobUsage(seconds=12.0)),
    "succeeded": ev.JobExited(outcome=Outcome.SUCCEEDED),
    "crashed": ev.JobExited(outcome=Outcome.FAILED),
    "killed": ev.JobExited(outcome=Outcome.KILLED),
    "timed out": ev.JobExited(outcome=Outcome.TIMED_OUT),
    "job cancelled": ev.JobExited(outcome=Outcome.CANCELLED),
    "interrupted": ev.JobExited(outcome=Outcome.INTERRUPTED),
    "paused": ev.JobExited(outcome=Outcome.PAUSED),
    "job stopped": ev.JobExited(outcome=Outcome.STOPPED),
    "stop requested": ev.RunStopRequested(reason="others are better"),
    "stopped": ev.RunStopped(reason="others are better", partial_score=1.0),
    "lost": ev.JobLost(reason="its agent is gone"),
    "crashed for a reason": crash(),
    "killed for a reason": crash(outcome=Outcome.KILLED, failure=FailureKind.KILLED),
    "timed out for a reason": crash(outcome=Outcome.TIMED_OUT, failure=FailureKind.TIMED_OUT),
    "lost for a reason": ev.JobLost(reason="its node is gone", failure=FailureKind.NODE_LOST),
    "checkpoint saved": saved(2),
    "checkpoint copied": COPY[0],
    "checkpoint deleted": ev.CheckpointDeleted(step=1, reason="too many"),
    "completed": ev.RunCompleted(score=1.0),
    "failed": ev.RunFailed(reason="no reward"),
    "cancelled": ev.RunCancelled(reason="stopped"),
    "retry scheduled": RETRY[0],
    "requeued": ev.RunRequeued(reason="resumed"),
    "requeued from its checkpoint": ev.RunRequeued(reason="resumed", checkpoint=1),
    "rolled back": ROLL_BACK[0],
    "restored": ev.RunRestored(reason="no mistake"),
    "rescored": ev.RunRescored(reason="another metric", score=2.0),
    "rescored to nothing": ev.RunRescored(reason="another metric"),
    "repaired": ev.StateRepaired(problem="its cost was wrong", before={"cost": 0.0}, after={"cost": 1.0}),
}


def _exits(after_success: JobStatus) -> dict[str, JobStatus]:
    ends = {
        "succeeded": after_success,
        "job cancelled": JobStatus.CANCELLED,
        "interrupted": JobStatus.CANCELLED,
        "paused": JobStatus.PAUSED,
        "job stopped": JobStatus.PAUSED,
        "lost for a reason": JobStatus.RETRYING,
    }
    for name in ("crashed", "killed", "timed out"):
        ends |= {name: JobStatus.FAILED, f"{name} for a reason": JobStatus.RETRYING}
    return ends


_WITHOUT_RESULT = {"failed": JobStatus.FAILED, "stopped": JobStatus.STOPPED, "cancelled": JobStatus.CANCELLED}
_RETRYING = {"dispatched": JobStatus.RETRYING, "requeued": JobStatus.PENDING, **_WITHOUT_RESULT}
_ROLLED_BACK = dict.fromkeys(("dispatched", "rescored", "rescored to nothing"), JobStatus.ROLLED_BACK)
_TRAIN_OPEN = {
    **dict.fromkeys(("dispatched", "lost", "stop requested"), JobStatus.PENDING),
    **_exits(JobStatus.TRAINING_DONE_NO_EVAL),
}
_EVAL_OPEN = {
    **dict.fromkeys(("dispatched", "lost", "stop requested"), JobStatus.TRAINING_DONE_NO_EVAL),
    **_exits(JobStatus.EVAL_DONE_NOT_COMPLETED),
}
#: All that is allowed, with the status it leads to, besides repairs, which always are; the rest is refused.
ALLOWED = {
    "created": {"train granted": JobStatus.PENDING, **_WITHOUT_RESULT},
    "granted": {"started": JobStatus.IN_TRAINING, **_TRAIN_OPEN},
    "branched and granted": {
        "started": JobStatus.IN_TRAINING,
        "checkpoint copied": JobStatus.PENDING,
        **_TRAIN_OPEN,
    },
    "training a branch": {
        **_TRAIN_OPEN,
        **dict.fromkeys(
            ("reported", "measured", "checkpoint saved", "dispatched", "stop requested"), JobStatus.IN_TRAINING
        ),
    },
    "dispatched": {"started": JobStatus.IN_TRAINING, **_TRAIN_OPEN},
    "training": {
        **_TRAIN_OPEN,
        **dict.fromkeys(
            ("reported", "measured", "checkpoint saved", "dispatched", "stop requested"), JobStatus.IN_TRAINING
        ),
    },
    "trained": {
        "eval granted": JobStatus.TRAINING_DONE_NO_EVAL,
        "dispatched": JobStatus.TRAINING_DONE_NO_EVAL,
        "completed": JobStatus.COMPLETED,
        **_WITHOUT_RESULT,
    },
    "eval granted": {"started": JobStatus.IN_EVAL, **_EVAL_OPEN},
    "evaluating": {
        **_EVAL_OPEN,
        **dict.fromkeys(
            ("reported", "measured", "checkpoint saved", "dispatched", "stop requested"), JobStatus.IN_EVAL
        ),
    },
    "evaluated": {
        "dispatched": JobStatus.EVAL_DONE_NOT_COMPLETED,
        "completed": JobStatus.COMPLETED,
        **_WITHOUT_RESULT,
    },
    # The news that a job was handed over may come after all else; it changes nothing any more.
    "completed": {
        "dispatched": JobStatus.COMPLETED,
        "rolled back": JobStatus.ROLLED_BACK,
        "rescored": JobStatus.COMPLETED,
        "rescored to nothing": JobStatus.FAILED,
    },
    "failed": {
        "dispatched": JobStatus.FAILED,
        "requeued": JobStatus.PENDING,
        "rolled back": JobStatus.ROLLED_BACK,
        "rescored": JobStatus.COMPLETED,
        "rescored to nothing": JobStatus.FAILED,
    },
    "failed before training": {
        "requeued": JobStatus.PENDING,
        "rolled back": JobStatus.ROLLED_BACK,
        "rescored": JobStatus.FAILED,
        "rescored to nothing": JobStatus.FAILED,
    },
    "failed with a checkpoint": {
        "dispatched": JobStatus.FAILED,
        "checkpoint deleted": JobStatus.FAILED,
        "requeued": JobStatus.PENDING,
        "requeued from its checkpoint": JobStatus.PENDING,
        "rolled back": JobStatus.ROLLED_BACK,
        "rescored": JobStatus.FAILED,
        "rescored to nothing": JobStatus.FAILED,
    },
    "cancelled": {
        "dispatched": JobStatus.CANCELLED,
        "requeued": JobStatus.TRAINING_DONE_NO_EVAL,
        "rolled back": JobStatus.ROLLED_BACK,
    },
    "cancelled with a checkpoint": {
        "dispatched": JobStatus.CANCELLED,
        "checkpoint deleted": JobStatus.CANCELLED,
        "requeued": JobStatus.TRAINING_DONE_NO_EVAL,
        "requeued from its checkpoint": JobStatus.PENDING,
        "rolled back": JobStatus.ROLLED_BACK,
    },
    "cancelled before training": {"requeued": JobStatus.PENDING, "rolled back": JobStatus.ROLLED_BACK},
    "retrying undecided": {**_RETRYING, "retry scheduled": JobStatus.RETRYING},
    "retrying scheduled": _RETRYING,
    "retrying its evaluation": {**_RETRYING, "requeued": JobStatus.TRAINING_DONE_NO_EVAL},
    "being stopped": {
        **{name: status for name, status in _TRAIN_OPEN.items() if name != "stop requested"},
        **dict.fromkeys(("reported", "measured", "checkpoint saved", "dispatched"), JobStatus.IN_TRAINING),
    },
    "paused": {
        "dispatched": JobStatus.PAUSED,
        "train granted again": JobStatus.PENDING,
        "requeued": JobStatus.PENDING,
        **_WITHOUT_RESULT,
    },
    "stopped early": {
        "dispatched": JobStatus.STOPPED,
        "requeued": JobStatus.PENDING,
        "rolled back": JobStatus.ROLLED_BACK,
        "rescored": JobStatus.STOPPED,
        "rescored to nothing": JobStatus.STOPPED,
    },
    "rolled back": {**_ROLLED_BACK, "restored": JobStatus.COMPLETED},
    "rolled back after a failure": {**_ROLLED_BACK, "restored": JobStatus.FAILED},
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_takes_exactly_the_events_that_fit_its_stage(stage):
    log = Log(*STAGES[stage])
    last_job = log.run().jobs[-1].job_id if log.run().jobs else TRAIN
    taken = {}
    for name, body in NEXT.items():
        job_id = last_job
        if isinstance(body, ev.JobGranted):
            job_id = ids.job_id(RUN, body.job_type, body.attempt)
        happened = event(body, seq=log.state.seq + 1, run_id=RUN, job_id=job_id)
        after, refusal = offer(log.state, happened)
        if after is not None:
            taken[name] = after.runs[RUN].status
        else:
            assert RUN in refusal
            assert happened.type in refusal
    assert taken.pop("repaired") is log.run().status
    assert taken == ALLOWED[stage]


def test_the_table_of_transitions_speaks_of_every_event_about_runs():
    about_sweeps = {
        ev.SweepCreated,
        ev.SweepResumed,
        ev.SweepPaused,
        ev.SweepAmended,
        ev.DispatchFailed,
        ev.SweepStopRequested,
        ev.SweepEnded,
        ev.ControllerStarted,
        ev.ControllerStopped,
        ev.Notified,
    }
    about_either = {ev.Noted}
    assert {type(body) for body in NEXT.values()} == set(Body.__args__) - about_sweeps - about_either


def test_only_the_next_attempt_is_granted():
    log = Log(*TRAINED[:-1])
    log.add(ev.JobLost(reason="gone"), RUN, TRAIN)
    for attempt in (0, 1, 3):
        assert "earlier ones" in log.refuses(ev.JobGranted(job_type=JobType.TRAIN, attempt=attempt), RUN, TRAIN)
    log.add(ev.JobGranted(job_type=JobType.TRAIN, attempt=2), RUN, f"{RUN}.train.2")
    assert log.run().attempts(JobType.TRAIN) == 2
    assert log.run().attempts(JobType.EVAL) == 0


def test_a_grant_names_its_job():
    assert "job_granted does not fit" in Log(CREATE).refuses(GRANT[0], RUN, None)


@pytest.mark.parametrize(
    "body",
    [
        STARTED,
        ev.MetricsReported(metrics={"reward": 9.0}),
        SUCCEED[0],
        ev.JobExited(outcome=Outcome.FAILED),
        crash(),
        saved(1),
        NEXT["lost"],
        NEXT["lost for a reason"],
    ],
    ids=lambda body: type(body).__name__,
)
@pytest.mark.parametrize("meanwhile", range(8))
def test_a_late_report_of_a_job_that_was_lost_is_refused(body, meanwhile):
    """Its agent was thought dead and comes back; by now another attempt may be under way or done."""
    second = f"{RUN}.train.2"
    log = Log(CREATE, GRANT, BEGIN)
    log.add(ev.JobLost(reason="its agent is silent"), RUN, TRAIN)
    steps = [
        (ev.JobGranted(job_type=JobType.TRAIN, attempt=2), RUN, second),
        (STARTED, RUN, second),
        (SUCCEED[0], RUN, second),
        GRANT_EVAL,
        BEGIN_EVAL,
        SUCCEED_EVAL,
        COMPLETE,
    ]
    for step in steps[:meanwhile]:
        log.add(*step)
    assert TRAIN in log.refuses(body, RUN, TRAIN)


def test_late_news_of_the_dispatch_of_an_earlier_attempt_changes_nothing():
    log = Log(CREATE, GRANT, BEGIN)
    log.add(ev.JobLost(reason="gone"), RUN, TRAIN)
    log.add(ev.JobGranted(job_type=JobType.TRAIN, attempt=2), RUN, f"{RUN}.train.2")
    before = log.run()
    log.add(*DISPATCH)
    assert log.run() == before
    assert "has no such job" in log.refuses(DISPATCH[0], RUN, f"{RUN}.train.3")


# ------------------------------------------------------------------------------------------------ what a run remembers


def test_a_run_goes_from_creation_to_completion():
    log = Log()
    log.add(*CREATE, at=START + 1)
    log.add(*GRANT, at=START + 2)
    log.add(*DISPATCH, at=START + 3)
    log.add(ev.JobStarted(host="node", pid=4321, log="train.log"), RUN, TRAIN, at=START + 4)
    log.add(ev.MetricsReported(metrics={"reward": 0.5, "loss": 2.0}), RUN, TRAIN, at=START + 5)
    log.add(ev.MetricsReported(metrics={"reward": 0.75}), RUN, TRAIN, at=START + 6)
    log.add(ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=3.0, exit_code=0), RUN, TRAIN, at=START + 7)
    state = log.add(ev.RunCompleted(score=0.75), RUN, at=START + 8)
    run = state.runs[RUN]
    job = run.jobs[0]
    assert (run.status, run.score, run.reports, run.cost) == (JobStatus.COMPLETED, 0.75, 2, 3.0)
    assert run.metrics == {"reward": 0.75, "loss": 2.0}
    assert (run.created_at, run.started_at, run.ended_at) == (START + 1, START + 4, START + 8)
    assert (job.state, job.outcome, job.host, job.pid, job.log) == (
        JobState.EXITED,
        Outcome.SUCCEEDED,
        "node",
        4321,
        "train.log",
    )
    assert (job.granted_at, job.started_at, job.ended_at) == (START + 2, START + 4, START + 7)
    assert state.sweep.counts == {JobStatus.COMPLETED: 1}
    assert (state.sweep.best_run_id, state.sweep.best_score, state.sweep.cost) == (RUN, 0.75, 3.0)
    assert not state.unfinished


def test_a_failed_run_says_why():
    log = Log(CREATE, GRANT, BEGIN)
    log.add(ev.JobExited(outcome=Outcome.FAILED, error="ValueError: no such file"), RUN, TRAIN)
    assert log.run().failure_reasons == ("train failed: ValueError: no such file",)
    assert Log(CREATE, FAIL).run().failure_reasons == ("no reward",)


def test_a_lost_job_costs_the_time_since_its_start_and_sends_the_run_back():
    log = Log(CREATE, GRANT)
    log.add(STARTED, RUN, TRAIN, at=START + 10)
    log.add(ev.JobLost(reason="gone"), RUN, TRAIN, at=START + 14)
    assert (log.run().status, log.run().cost, log.state.sweep.cost) == (JobStatus.PENDING, 4.0, 4.0)
    assert (log.run().jobs[0].state, log.run().jobs[0].ended_at) == (JobState.LOST, START + 14)
    assert log.run().open_job is None


@pytest.mark.parametrize("at", [START, START + 5])
def test_a_job_lost_before_it_started_or_by_a_clock_that_lags_costs_nothing(at):
    log = Log(CREATE, GRANT)
    if at != START:
        log.add(STARTED, RUN, TRAIN, at=START + 10)
    log.add(ev.JobLost(reason="gone"), RUN, TRAIN, at=at)
    assert log.state.sweep.cost == 0.0


def test_a_requeued_run_starts_over_but_keeps_its_past():
    log = Log(CREATE, GRANT, BEGIN)
    log.add(ev.JobExited(outcome=Outcome.INTERRUPTED, seconds=5.0), RUN, TRAIN, at=START + 5)
    assert (log.run().status, log.run().ended_at) == (JobStatus.CANCELLED, START + 5)
    log.add(ev.RunRequeued(reason="resumed"), RUN)
    assert (log.run().status, log.run().ended_at, log.run().cost) == (JobStatus.PENDING, None, 5.0)
    assert len(log.run().jobs) == 1
    assert RUN in log.state.unfinished
    log.add(ev.JobGranted(job_type=JobType.TRAIN, attempt=2), RUN, f"{RUN}.train.2")
    assert log.run().open_job.attempt == 2


def test_a_run_interrupted_in_its_evaluation_is_not_trained_again():
    log = Log(*TRAINED, GRANT_EVAL, BEGIN_EVAL)
    log.add(ev.JobExited(outcome=Outcome.INTERRUPTED), RUN, EVAL)
    log.add(ev.RunRequeued(reason="resumed"), RUN)
    assert log.run().status is JobStatus.TRAINING_DONE_NO_EVAL


# ------------------------------------------------------------------------------------------------------ sweeps and runs


def test_nothing_comes_before_the_creation_of_the_sweep():
    for body, run_id in ((CREATE[0], RUN), (ev.SweepResumed(), None), (ev.ControllerStopped(reason=""), None)):
        with pytest.raises(InvalidTransition):
            fold(EMPTY, [event(body, seq=1, run_id=run_id)])
    assert EMPTY.seq == 0


def test_a_sweep_is_created_once():
    assert "the sweep exists already" in Log().refuses(ev.SweepCreated(config=sweep_config()))


def test_runs_are_created_in_the_order_of_their_index():
    log = Log()
    assert "its index is 1, the next one is 0" in log.refuses(ev.RunCreated(index=1, config={"x": 1}), RUN)
    log.add(*CREATE)
    assert "the run exists already" in log.refuses(ev.RunCreated(index=1, config={"x": 1}), RUN)
    assert "its index is 0, the next one is 1" in log.refuses(ev.RunCreated(index=0, config={"x": 1}), RUN_IDS[1])
    log.add(ev.RunCreated(index=1, config={"x": 1}), RUN_IDS[1])
    assert log.state.sweep.run_count == 2


def test_a_run_that_was_never_created_takes_no_events():
    assert "there is no such run" in Log(CREATE).refuses(COMPLETE[0], RUN_IDS[1])


@pytest.mark.parametrize("seq", [0, 1, 2, 4, 9])
def test_a_gap_or_a_repetition_in_the_numbers_is_refused(seq):
    state = Log(CREATE).state
    with pytest.raises(InvalidTransition, match=f"event {seq} follows 2; events are missing"):
        fold(state, [event(GRANT[0], seq=seq, run_id=RUN, job_id=TRAIN)])


def test_an_event_of_another_sweep_is_refused():
    stray = msgspec.structs.replace(event(CREATE[0], seq=2, run_id=RUN), sweep_id="0ther")
    with pytest.raises(InvalidTransition, match="0ther"):
        fold(Log().state, [stray])


@pytest.mark.parametrize("body", [body for body in NEXT.values() if not isinstance(body, ev.RunCreated)], ids=repr)
def test_an_event_about_a_run_has_to_name_it(body):
    assert "does not fit" in Log(CREATE, GRANT, BEGIN).refuses(body, None, TRAIN)


@pytest.mark.parametrize(
    "body",
    [
        ev.SweepResumed(),
        ev.SweepPaused(reason=""),
        ev.SweepAmended(changes={}),
        ev.DispatchFailed(dispatcher="local", reason="", retry_at=START),
        ev.SweepStopRequested(reason=""),
        ev.ControllerStopped(reason=""),
    ],
    ids=lambda body: type(body).__name__,
)
def test_an_event_about_a_sweep_names_no_run(body):
    assert "does not fit" in Log(CREATE).refuses(body, RUN)


@pytest.mark.parametrize("status", [SweepStatus.COMPLETED, SweepStatus.STOPPED])
def test_no_run_goes_on_after_the_end_of_the_sweep(status):
    log = Log(CREATE)
    log.add(*CANCEL)
    log.add(ev.SweepEnded(status=status, reason="done"))
    for body in NEXT.values():
        if isinstance(body, AFTER_THE_END):
            continue
        assert f"the sweep is {status}" in log.refuses(body, RUN, TRAIN)
    assert "the sweep is" in log.refuses(ev.RunCreated(index=1, config={"x": 1}), RUN_IDS[1])


def test_an_ended_sweep_cannot_be_stopped_or_ended_again_but_controllers_may_come_and_go():
    log = Log()
    log.add(ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done"), at=START + 9)
    assert (log.state.sweep.reason, log.state.sweep.ended_at) == ("done", START + 9)
    assert "COMPLETED already" in log.refuses(ev.SweepStopRequested(reason="too late"))
    assert "COMPLETED already" in log.refuses(ev.SweepEnded(status=SweepStatus.STOPPED, reason="too late"))
    log.add(ev.ControllerStopped(reason="sweep ended"))
    assert log.state.sweep.status is SweepStatus.COMPLETED


@pytest.mark.parametrize("status", [SweepStatus.RUNNING, SweepStatus.STOPPING])
def test_a_sweep_ends_in_a_status_that_is_an_end(status):
    assert f"{status} is no end" in Log().refuses(ev.SweepEnded(status=status, reason="?"))


def test_a_stop_that_is_asked_for_shows_until_the_end():
    log = Log(CREATE)
    log.add(ev.SweepStopRequested(reason="enough"))
    assert (log.state.sweep.status, log.state.sweep.reason) == (SweepStatus.STOPPING, "enough")
    assert log.state.sweep.ended_at is None
    log.add(*CANCEL)
    log.add(ev.SweepEnded(status=SweepStatus.STOPPED, reason="enough"))
    assert log.state.sweep.status is SweepStatus.STOPPED


@pytest.mark.parametrize("status", [SweepStatus.COMPLETED, SweepStatus.STOPPED])
def test_a_resumed_sweep_is_open_again(status):
    log = Log(CREATE)
    log.add(*CANCEL)
    log.add(ev.SweepEnded(status=status, reason="done"))
    log.add(ev.SweepResumed())
    assert (log.state.sweep.status, log.state.sweep.reason, log.state.sweep.ended_at) == (
        SweepStatus.RUNNING,
        None,
        None,
    )
    log.add(ev.RunCreated(index=1, config={"x": 1}), RUN_IDS[1])
    assert log.state.sweep.run_count == 2


def test_a_sweep_does_not_end_before_its_runs():
    ending = ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done")
    for steps in ((CREATE,), (CREATE, GRANT), (CREATE, GRANT, BEGIN), FAILING, [*FAILING, RETRY]):
        assert "some of its runs have not ended" in Log(*steps).refuses(ending)


def test_a_resume_changes_the_fields_it_names_and_no_others():
    log = Log(max_trials=3, budget_hours=1.5)
    before = log.state.sweep.config
    log.add(ev.SweepResumed(changes={"max_trials": 9, "budget_hours": None}))
    assert log.state.sweep.config == msgspec.structs.replace(before, max_trials=9, budget_hours=None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"max_trials": "many"}, "max_trials"),
        ({"max_trails": 9}, "max_trails"),
        ({"search_space": {"parameters": {}}}, "search_space"),
    ],
    ids=repr,
)
def test_a_resume_with_changes_that_cannot_be_is_refused(changes, named):
    assert named in Log().refuses(ev.SweepResumed(changes=changes))


@pytest.mark.parametrize("undone", [[], [ROLL_BACK]])
def test_a_completed_run_is_rescored_as_such_though_its_last_job_was_lost(undone):
    """Its evaluation was lost, and then wanted no more."""
    log = Log(*TRAINED, GRANT_EVAL, BEGIN_EVAL, (ev.JobLost(reason="its agent is gone"), RUN, EVAL), COMPLETE, *undone)
    log.add(ev.RunRescored(reason="another metric", score=2.0), RUN)
    run = log.state.runs[RUN]
    assert (run.undone.score if undone else run.score) == 2.0
    assert run.partial_score is None


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_hold_are_kept_out_of_the_log(number):
    """Written down, they would come back as null: as something else, or as a log that cannot be read again."""
    log = Log(CREATE, GRANT, BEGIN)
    assert "'loss'" in log.refuses(ev.MetricsReported(metrics={"reward": 1.0, "loss": number}), RUN, TRAIN)
    assert "seconds" in log.refuses(ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=number), RUN, TRAIN)
    assert "cost" in log.refuses(ev.StateRepaired(problem="", before={}, after={"cost": number}), RUN)
    assert "reward" in log.refuses(ev.StateRepaired(problem="", before={}, after={"metrics": {"reward": number}}), RUN)
    log.add(*CRASH)
    retry = ev.RunRetryScheduled(retry_at=START, retry_count=0, reason="")
    assert "retry_at" in log.refuses(msgspec.structs.replace(retry, retry_at=number), RUN)
    assert "memory_gb" in log.refuses(msgspec.structs.replace(retry, memory_gb=number), RUN)
    assert "partial_score" in log.refuses(ev.RunFailed(reason="", partial_score=number), RUN)
    log.add(*CANCEL)
    assert "best_score" in log.refuses(ev.RunRolledBack(reason="", best_run_id="other", best_score=number), RUN)
    done = Log(*TRAINED)
    assert "score" in done.refuses(ev.RunCompleted(score=number), RUN)
    done.add(*COMPLETE)
    assert "score" in done.refuses(ev.RunRescored(reason="", score=number), RUN)
    assert "best_score" in done.refuses(ev.SweepAmended(changes={}, best_run_id=RUN, best_score=number))
    assert "budget_hours" in done.refuses(ev.SweepResumed(changes={"budget_hours": number}))
    assert "retry_at" in done.refuses(ev.DispatchFailed(dispatcher="local", reason="", retry_at=number))


@pytest.mark.parametrize(("direction", "best"), [("maximize", [0, 0, 2, 2]), ("minimize", [0, 1, 1, 1])])
def test_the_best_run_has_the_best_score_and_of_equals_the_first(direction, best):
    log = Log(direction=direction)
    for index, score in enumerate([1.0, -1.0, 2.0, 2.0 if direction == "maximize" else -1.0]):
        log.add_completed(index, score)
        assert log.state.sweep.best_run_id == RUN_IDS[best[index]]


def test_configurations_tried_are_remembered_in_finite_spaces_only():
    finite = SearchSpace.of({"x": Choice([0, 1])})
    assert dict(Log(CREATE, search_space=finite).state.tried) == {finite.key({"x": 0}): RUN}
    assert not Log(CREATE, search_space=SearchSpace.of({"x": Uniform(0, 1)})).state.tried


# ---------------------------------------------------------------------------------------------------- laws of every log


@QUICK
@given(log=histories(), data=st.data())
def test_a_log_may_be_folded_in_any_number_of_pieces(log, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(log)), max_size=3)))
    pieces = [log[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(log)], strict=True)]
    assert reduce(fold, pieces, EMPTY) == fold(EMPTY, log) == fold(EMPTY, log)


@QUICK
@given(log=histories(), data=st.data())
def test_a_refused_event_spoils_no_state_however_much_was_folded_before_it(log, data):
    middle = data.draw(st.integers(1, len(log)))
    state = fold(EMPTY, log[:middle])
    runs, unfinished, counts = dict(state.runs), set(state.unfinished), dict(state.sweep.counts)
    with pytest.raises(InvalidTransition):
        fold(state, [*log[middle:], event(ev.ControllerStopped(reason=""), seq=len(log) + 2)])
    assert state == fold(EMPTY, log[:middle])
    assert (dict(state.runs), set(state.unfinished), state.sweep.counts) == (runs, unfinished, counts)


@QUICK
@given(log=histories())
def test_a_log_comes_back_from_json_and_folds_to_the_same_state(log):
    loaded = msgspec.json.decode(msgspec.json.encode(log), type=list[Event])
    assert loaded == log
    assert fold(EMPTY, loaded) == fold(EMPTY, log)


def test_a_branch_has_come_as_far_as_its_parent_had():
    log = Log(BRANCH, GRANT, COPY, fidelity=Fidelity(maximum=27))
    run = log.run()
    assert (run.parent, run.progress, run.rungs, run.inherited) == (PARENT, 3.0, RUNGS, 2)
    assert [(each.step, each.score, each.job_id) for each in run.checkpoints] == [(3, 0.3, TRAIN)]
    log.add(STARTED, RUN, TRAIN)
    for epoch in (2.0, 3.0, 9.0):
        log.add(ev.MetricsReported(metrics={"epoch": epoch, "reward": epoch}), RUN, TRAIN)
    # What its parent had reached stays; what comes again, as after an older checkpoint, is no news.
    assert [rung.value for rung in log.run().rungs] == [0.1, 0.3, 9.0]
    assert log.run().inherited == 2


def test_seconds_of_a_branch_count_on_from_its_parents():
    log = Log(BRANCH, GRANT, COPY, fidelity=Fidelity(resource="seconds", maximum=27))
    log.add(STARTED, RUN, TRAIN)
    log.add(ev.MetricsReported(metrics={"reward": 1.0}), RUN, TRAIN, at=START + 6)
    log.add(ev.JobExited(outcome=Outcome.PAUSED, seconds=7.0), RUN, TRAIN, at=START + 7)
    assert log.run().progress == 9.0
    assert log.run().seconds == 10.0


def test_what_the_parent_had_at_the_checkpoint_counts_for_a_branch_until_it_reports_itself():
    """It may have nothing left to report: where the checkpoint is of the end, say."""
    log = Log(BRANCH, GRANT, COPY, fidelity=Fidelity(maximum=27))
    log.add(STARTED, RUN, TRAIN)
    assert log.run().metrics == {"reward": 0.3}
    assert log.run().jobs[-1].reported == ("reward",)
    log.add(ev.MetricsReported(metrics={"epoch": 9.0, "reward": 0.5}), RUN, TRAIN)
    assert log.run().metrics == {"epoch": 9.0, "reward": 0.5}


def test_a_branch_comes_from_another_run():
    itself = msgspec.structs.replace(BRANCH[0], parent=msgspec.structs.replace(PARENT, run_id=RUN))
    nowhere = msgspec.structs.replace(BRANCH[0], parent=msgspec.structs.replace(PARENT, level=math.inf))
    assert "it would come from itself" in Log().refuses(itself, RUN)
    assert "'level' is inf" in Log().refuses(nowhere, RUN)


#: The events and fields that came with retries, all of them with something to say.
FULL = [
    ev.SweepPaused(reason="three alike"),
    ev.SweepAmended(changes={"metric": "loss"}, best_run_id=RUN, best_score=0.5),
    ev.DispatchFailed(dispatcher="slurm", reason="no such partition", retry_at=START + 1),
    ev.JobDispatched(dispatcher="slurm", reasons=("it has a GPU",)),
    ev.JobExited(outcome=Outcome.KILLED, failure=FailureKind.OUT_OF_MEMORY, signature="train:9", error="Killed"),
    ev.JobLost(reason="no heartbeat", failure=FailureKind.NODE_LOST),
    ev.CheckpointSaved(step=3, path="checkpoints/3", sha256="f" * 64, size_bytes=2**40),
    COPY[0],
    BRANCH[0],
    ev.JobGranted(job_type=JobType.TRAIN, attempt=2, reasons=("its turn",), until=9.0, keep=(1, 3)),
    ev.CheckpointDeleted(step=3, reason="too many"),
    ev.RunFailed(reason="given up", partial_score=0.25, signature="no reward"),
    ev.RunRetryScheduled(retry_at=START + 60, retry_count=2, reason="it may pass", memory_gb=4.0),
    ev.RunRequeued(reason="the user asked", checkpoint=0),
    ev.RunRolledBack(reason="a mistake", best_run_id=RUN, best_score=-0.5),
    ev.RunRestored(reason="no mistake"),
    ev.RunRescored(reason="another metric", score=0.0),
    ev.StateRepaired(problem="a lost event", before={"cost": 0.0, "score": None}, after={"cost": 1.5, "score": 2.0}),
]


@pytest.mark.parametrize("body", FULL, ids=lambda body: type(body).__name__)
def test_an_event_comes_back_from_json_with_all_that_it_said(body):
    told = event(body, seq=7, run_id=RUN, job_id=TRAIN)
    assert msgspec.json.decode(msgspec.json.encode(told), type=Event) == told
    required = {field.name: getattr(body, field.name) for field in msgspec.structs.fields(body) if field.required}
    short = event(type(body)(**required), seq=7)
    assert msgspec.json.decode(msgspec.json.encode(short), type=Event) == short
    assert set(msgspec.json.decode(msgspec.json.encode(short.body))) == {"type", *required}


def test_a_new_state_shares_with_the_old_one_all_that_did_not_change():
    log = Log()
    for index in range(3):
        log.add_completed(index, float(index))
    before = log.state
    log.add(ev.RunRolledBack(reason="a mistake", best_run_id=RUN_IDS[2], best_score=2.0), RUN_IDS[1])
    assert [log.run(index) is before.runs[RUN_IDS[index]] for index in range(3)] == [True, False, True]
    assert before.runs[RUN_IDS[1]].status is JobStatus.COMPLETED
    assert before.sweep.counts == {JobStatus.COMPLETED: 3}


@QUICK
@given(log=histories(), data=st.data())
def test_folding_onto_the_runs_that_a_batch_touches_gives_the_same_totals_and_runs(log, data):
    """So that a store can check and project a batch without loading all runs of the sweep."""
    middle = data.draw(st.integers(1, len(log)))
    whole = fold(EMPTY, log[:middle])
    touched = {event.run_id for event in log[middle:]}
    runs = immutables.Map({run_id: run for run_id, run in whole.runs.items() if run_id in touched})
    part = fold(SweepState(metadata=whole.metadata, runs=runs), log[middle:])
    after = fold(whole, log[middle:])
    assert part.metadata == after.metadata
    assert dict(part.runs) == {run_id: run for run_id, run in after.runs.items() if run_id in touched}


class Sweep(RuleBasedStateMachine):
    """Any events in any order: those that fit are taken, the others leave no trace, and the state always adds up."""

    @initialize(direction=st.sampled_from(["maximize", "minimize"]))
    def create(self, direction):
        self.log = [created(direction)]
        self.state = fold(EMPTY, self.log)

    @rule(data=st.data())
    def something_happens(self, data):
        happened = data.draw(next_events(self.state))
        before, counts = self.state, dict(self.state.sweep.counts)
        after, refusal = offer(before, happened)
        if after is None:
            assert happened.type in refusal
            assert before == fold(EMPTY, self.log)
            assert before.sweep.counts == counts
        else:
            self.log.append(happened)
            self.state = after
            self._was_allowed(before, happened)

    def _was_allowed(self, before: SweepState, happened: Event) -> None:
        if happened.run_id is None:
            return
        assert not before.sweep.status.ended or isinstance(happened.body, AFTER_THE_END)
        if isinstance(happened.body, ev.RunCreated):
            assert happened.run_id not in before.runs
            return
        run = before.runs[happened.run_id]
        of_open_jobs = (
            ev.JobStarted | ev.MetricsReported | ev.JobExited | ev.JobLost | ev.CheckpointSaved | ev.CheckpointCopied
        )
        if isinstance(happened.body, of_open_jobs):
            assert run.open_job.job_id == happened.job_id
        elif not isinstance(happened.body, ev.JobDispatched | ev.CheckpointDeleted | ev.StateRepaired):
            assert run.open_job is None
        others = before.runs.delete(happened.run_id)
        assert self.state.runs.delete(happened.run_id) == others

    def _bodies(self, kind: type, run_id: str) -> list:
        return [happened.body for happened in self.log if isinstance(happened.body, kind) and happened.run_id == run_id]

    @invariant()
    def totals_are_what_the_runs_add_up_to(self):
        runs = self.state.runs.values()
        sweep = self.state.sweep
        assert sweep.counts == Counter(run.status for run in runs)
        assert sweep.run_count == len(self.state.runs)
        assert sweep.ended_count == sum(run.status.ended and run.undone is None for run in runs)
        assert sweep.cost == sum(run.cost for run in runs)
        assert dict(self.state.unfinished) == {run.run_id: waits_for(run) for run in runs if not run.status.ended}
        for what, group in self.state.waiting.items():
            assert set(group) == {run.run_id for run in runs if waits_for(run) is what}
        assert self.state.seq == sweep.seq == len(self.log)
        assert sorted(run.index for run in runs) == list(range(len(self.state.runs)))

    @invariant()
    def the_best_is_a_completed_run_with_the_best_score(self):
        sweep = self.state.sweep
        telling = [
            type(happened.body)
            for happened in self.log
            if isinstance(happened.body, ev.RunRescored | ev.RunRolledBack | ev.SweepAmended)
        ]
        if telling and telling[-1] is ev.RunRescored:
            return  # the amendment that it is part of has not come yet
        completed = {run.run_id: run.score for run in self.state.runs.values() if run.status is JobStatus.COMPLETED}
        choose = max if sweep.config.direction == "maximize" else min
        assert sweep.best_score == choose(completed.values(), default=None)
        assert sweep.best_score == (completed[sweep.best_run_id] if sweep.best_run_id else None)

    @invariant()
    def only_completed_runs_have_scores(self):
        for run in self.state.runs.values():
            assert (run.score is not None) == (run.status is JobStatus.COMPLETED)
            assert (run.undone is not None) == (run.status is JobStatus.ROLLED_BACK)
            partial = {JobStatus.STOPPED, JobStatus.FAILED}
            assert run.partial_score is None or partial & {run.status, run.undone and run.undone.status}
            if run.undone is not None:
                assert run.undone.status.ended
                assert (run.undone.score is not None) == (run.undone.status is JobStatus.COMPLETED)

    @invariant()
    def a_run_that_waits_for_a_retry_has_failed_before(self):
        for run in self.state.runs.values():
            if run.status is JobStatus.RETRYING:
                assert run.jobs[-1].failure is not None
                assert run.failure_reasons
            else:
                assert run.retry_at is None

    @invariant()
    def checkpoints_are_in_the_order_of_their_steps(self):
        for run in self.state.runs.values():
            steps = [checkpoint.step for checkpoint in run.checkpoints]
            assert steps == sorted(set(steps))
            assert {checkpoint.job_id for checkpoint in run.checkpoints} <= {job.job_id for job in run.jobs}

    @invariant()
    def nothing_is_unfinished_in_a_sweep_that_has_ended(self):
        assert not (self.state.sweep.status.ended and self.state.unfinished)

    @invariant()
    def each_run_is_what_its_own_events_say(self):
        for run in self.state.runs.values():
            reports = self._bodies(ev.MetricsReported, run.run_id)
            assert run.reports == len(reports)
            reported = reduce(lambda known, report: known | report.metrics, reports, {})
            assert run.metrics == run.metrics | reported
            inherited = [value for name, value in run.metrics.items() if name not in reported]
            assert set(inherited) <= {copy.score for copy in self._bodies(ev.CheckpointCopied, run.run_id)}
            started = [job.started_at for job in run.jobs if job.started_at is not None]
            assert run.started_at == (started[0] if started else None)
            exited = sum(body.seconds for body in self._bodies(ev.JobExited, run.run_id))
            lost = [job for job in run.jobs if job.state is JobState.LOST and job.started_at is not None]
            spent = exited + sum(max(0.0, job.ended_at - job.started_at) for job in lost)
            repairs = self._bodies(ev.StateRepaired, run.run_id)
            assert run.cost == spent + sum(body.after["cost"] - body.before["cost"] for body in repairs)
            assert run.status.ended == (run.ended_at is not None)

    @invariant()
    def at_most_the_last_job_of_a_run_is_open(self):
        for run in self.state.runs.values():
            assert not any(job.state.open for job in run.jobs[:-1])
            assert run.open_job is (run.jobs[-1] if run.jobs and run.jobs[-1].state.open else None)
            assert run.open_job is None or not run.status.ended
            for job_type in JobType:
                attempts = [job.attempt for job in run.jobs if job.type is job_type]
                assert attempts == list(range(1, run.attempts(job_type) + 1))
            assert len({job.job_id for job in run.jobs}) == len(run.jobs)
            assert all(job.state.open == (job.ended_at is None) for job in run.jobs)
            assert all((job.state is JobState.EXITED) == (job.outcome is not None) for job in run.jobs)

    @invariant()
    def the_status_of_a_run_agrees_with_its_jobs(self):
        for run in self.state.runs.values():
            trained = any(job.type is JobType.TRAIN and job.outcome is Outcome.SUCCEEDED for job in run.jobs)
            running = run.open_job is not None and run.open_job.state is JobState.RUNNING
            if run.status in {JobStatus.IN_TRAINING, JobStatus.IN_EVAL}:
                assert running
                assert run.open_job.type is (JobType.TRAIN if run.status is JobStatus.IN_TRAINING else JobType.EVAL)
            else:
                assert not running
            if run.status in {JobStatus.PENDING, JobStatus.IN_TRAINING}:
                assert not trained or run.resume_from is not None
            elif run.status in {JobStatus.TRAINING_DONE_NO_EVAL, JobStatus.IN_EVAL, JobStatus.COMPLETED}:
                assert trained
                assert run.resume_from is None
            if run.status is JobStatus.EVAL_DONE_NOT_COMPLETED:
                assert (run.jobs[-1].type, run.jobs[-1].outcome) == (JobType.EVAL, Outcome.SUCCEEDED)

    @invariant()
    def configurations_tried_are_those_of_the_runs_as_far_as_the_space_has_them(self):
        space = self.state.sweep.config.search_space
        tried = {space.key(self.state.runs[run_id].config): key for key, run_id in self.state.tried.items()}
        assert all(key == tried_key for key, tried_key in tried.items())
        if space.cardinality is None:
            assert not tried
        else:
            limit = space.cardinality
            assert all(self.state.runs[run_id].undone is None for run_id in self.state.tried.values())
            undone = {space.key(run.config) for run in self.state.runs.values() if run.undone is not None}
            assert {
                space.key(run.config) for run in self.state.runs.values() if run.config["x"] < limit
            } - undone <= set(tried)

    @invariant()
    def the_end_of_the_sweep_is_dated_while_it_lasts(self):
        assert self.state.sweep.status.ended == (self.state.sweep.ended_at is not None)
        assert self.state.sweep.sweep_id == SWEEP


TestAnySequenceOfEvents = Sweep.TestCase
TestAnySequenceOfEvents.settings = settings(QUICK, max_examples=40, stateful_step_count=40)
