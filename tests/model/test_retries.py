"""Failures that are decided on, waits, checkpoints to go on from, and pauses before all is burnt."""

import msgspec
import pytest

from metta.sweep.model import events as ev
from metta.sweep.model.run import Checkpoint, FailureKind, JobState, JobStatus, JobType, Outcome
from metta.sweep.model.sweep import SweepStatus
from model.logs import (
    BEGIN,
    BEGIN_2,
    BEGIN_3,
    BEGIN_EVAL,
    CANCEL,
    COMPLETE,
    CRASH,
    CRASH_2,
    CRASH_EVAL,
    CREATE,
    DISPATCH,
    EVAL,
    FAIL,
    FAILING,
    GRANT,
    GRANT_2,
    GRANT_3,
    GRANT_EVAL,
    REQUEUE,
    RETRY,
    RUN,
    SAVE,
    STARTED,
    SUCCEED,
    SUCCEED_2,
    SUCCEED_EVAL,
    TRAIN,
    TRAIN_2,
    TRAIN_3,
    TRAINED,
    Log,
    crash,
    saved,
)
from model.strategies import RUN_IDS, START

#: A second attempt is under way.
RETRIED = [*FAILING, RETRY, REQUEUE, GRANT_2, BEGIN_2]
LOST = ev.JobLost(reason="no heartbeat", failure=FailureKind.NODE_LOST)


# ------------------------------------------------------------------------------------------------ from failure to retry


def test_a_failure_with_a_kind_waits_for_a_decision():
    log = Log(CREATE, GRANT, BEGIN)
    log.add(crash("ValueError at train.py:7", error="ValueError: no"), RUN, TRAIN, at=START + 5)
    run = log.run()
    assert (run.status, run.retry_at, run.ended_at) == (JobStatus.RETRYING, None, None)
    assert run.failure_reasons == ("train failed: ValueError: no",)
    assert (run.jobs[0].failure, run.jobs[0].signature) == (FailureKind.USER_ERROR, "ValueError at train.py:7")
    assert RUN in log.state.unfinished


def test_a_job_lost_with_a_kind_waits_for_a_decision_and_costs_its_time():
    log = Log(CREATE, GRANT)
    log.add(STARTED, RUN, TRAIN, at=START + 10)
    log.add(LOST, RUN, TRAIN, at=START + 14)
    run = log.run()
    assert (run.status, run.retry_at, run.cost) == (JobStatus.RETRYING, None, 4.0)
    assert run.failure_reasons == ("train lost: no heartbeat",)
    assert (run.jobs[0].state, run.jobs[0].failure) == (JobState.LOST, FailureKind.NODE_LOST)


@pytest.mark.parametrize("outcome", [Outcome.CANCELLED, Outcome.INTERRUPTED])
def test_what_was_stopped_on_purpose_is_cancelled_whatever_else_is_said(outcome):
    log = Log(CREATE, GRANT, BEGIN)
    log.add(crash("SIGTERM", outcome=outcome, failure=FailureKind.KILLED), RUN, TRAIN)
    assert log.run().status is JobStatus.CANCELLED
    assert log.state.sweep.same_failures == 0


def test_a_scheduled_retry_waits_for_its_time_and_is_decided_once():
    log = Log(*FAILING, RETRY)
    assert (log.run().status, log.run().retry_at, log.run().retry_count) == (JobStatus.RETRYING, START + 60, 1)
    assert "is RETRYING" in log.refuses(RETRY[0], RUN)
    assert "is RETRYING" in log.refuses(GRANT_2[0], RUN, TRAIN_2)


def test_after_the_wait_the_same_job_is_tried_again_and_its_past_is_kept():
    log = Log(*FAILING, RETRY, REQUEUE)
    run = log.run()
    assert (run.status, run.retry_at, run.retry_count) == (JobStatus.PENDING, None, 1)
    assert run.failure_reasons == ("train failed: ValueError",)
    log.add(*GRANT_2)
    assert log.run().open_job.attempt == 2


def test_a_retried_evaluation_does_not_train_again():
    log = Log(*TRAINED, GRANT_EVAL, BEGIN_EVAL, CRASH_EVAL, RETRY, REQUEUE)
    assert log.run().status is JobStatus.TRAINING_DONE_NO_EVAL


def test_a_run_that_is_given_up_says_once_why():
    log = Log(*FAILING)
    log.add(ev.RunFailed(reason="train failed: ValueError", partial_score=0.5), RUN, at=START + 9)
    run = log.run()
    assert (run.status, run.ended_at, run.score, run.partial_score) == (JobStatus.FAILED, START + 9, None, 0.5)
    assert run.failure_reasons == ("train failed: ValueError",)
    other = Log(*FAILING, RETRY)
    other.add(ev.RunFailed(reason="given up"), RUN)
    assert other.run().failure_reasons == ("train failed: ValueError", "given up")


@pytest.mark.parametrize("end", [CANCEL, FAIL])
def test_a_run_that_ends_in_its_wait_waits_no_more(end):
    log = Log(*FAILING, RETRY, end)
    assert log.run().retry_at is None
    assert not log.state.unfinished


def test_a_score_before_a_failure_is_no_score_and_gone_when_the_run_is_tried_again():
    log = Log(*FAILING)
    log.add(ev.RunFailed(reason="given up", partial_score=0.5), RUN)
    assert log.best() == (None, None)
    log.add(*REQUEUE)
    assert log.run().partial_score is None


# --------------------------------------------------------------------------------------- how many failures are forgiven


def test_forgiven_failures_are_counted_over_the_waits_until_a_job_succeeds():
    log = Log(*RETRIED, CRASH_2)
    assert log.run().retry_count == 1
    log.add(ev.RunRetryScheduled(retry_at=START + 180, retry_count=2, reason="it may pass"), RUN)
    for step in (REQUEUE, GRANT_3, BEGIN_3):
        log.add(*step)
        assert log.run().retry_count == 2
    log.add(SUCCEED[0], RUN, TRAIN_3)
    assert log.run().retry_count == 0


def test_a_failure_that_does_not_count_leaves_the_count():
    log = Log(*RETRIED)
    log.add(LOST, RUN, TRAIN_2)
    log.add(ev.RunRetryScheduled(retry_at=START, retry_count=1, reason="the node is gone"), RUN)
    assert log.run().retry_count == 1


@pytest.mark.parametrize("end", [CANCEL, FAIL])
def test_a_run_that_the_user_resumes_starts_with_a_clean_sheet(end):
    log = Log(*RETRIED, CRASH_2, end, REQUEUE)
    assert (log.run().retry_count, log.run().status, log.run().ended_at) == (0, JobStatus.PENDING, None)
    assert RUN in log.state.unfinished


def test_a_retry_may_change_the_memory_that_is_allowed_from_then_on():
    log = Log(*FAILING)
    log.add(msgspec.structs.replace(RETRY[0], memory_gb=4.0), RUN)
    assert log.run().memory_gb == 4.0
    for step in (REQUEUE, GRANT_2, BEGIN_2, CRASH_2, RETRY):
        log.add(*step)
    assert log.run().memory_gb == 4.0


# --------------------------------------------------------------------------------------------------------- checkpoints


def test_a_checkpoint_is_remembered_with_what_the_metric_was_then():
    log = Log(CREATE, GRANT, BEGIN)
    log.add(saved(1), RUN, TRAIN, at=START + 1)
    log.add(ev.MetricsReported(metrics={"reward": 0.5, "loss": 2.0}), RUN, TRAIN)
    log.add(saved(2), RUN, TRAIN, at=START + 2)
    log.add(ev.MetricsReported(metrics={"reward": 0.75}), RUN, TRAIN)
    assert log.run().checkpoints == tuple(
        Checkpoint(
            step=step,
            path=f"checkpoints/{step}",
            sha256="0" * 64,
            size_bytes=4096,
            at=START + step,
            job_id=TRAIN,
            score=score,
        )
        for step, score in [(1, None), (2, 0.5)]
    )


def test_checkpoints_are_in_order_of_their_steps_and_one_replaces_that_of_its_step():
    log = Log(CREATE, GRANT, BEGIN)
    for step in (30, 10, 20):
        log.add(saved(step), RUN, TRAIN)
    log.add(ev.MetricsReported(metrics={"reward": 0.5}), RUN, TRAIN)
    log.add(saved(20, path="again", sha256="f" * 64), RUN, TRAIN)
    kept = [(each.step, each.path, each.sha256[0], each.score) for each in log.run().checkpoints]
    assert kept == [
        (10, "checkpoints/10", "0", None),
        (20, "again", "f", 0.5),
        (30, "checkpoints/30", "0", None),
    ]


def test_a_deleted_checkpoint_is_gone_and_cannot_be_deleted_or_gone_on_from():
    log = Log(CREATE, GRANT, BEGIN, SAVE)
    log.add(saved(2), RUN, TRAIN)
    log.add(ev.CheckpointDeleted(step=1, reason="too many"), RUN)
    assert [each.step for each in log.run().checkpoints] == [2]
    assert "no checkpoint of step 1" in log.refuses(ev.CheckpointDeleted(step=1, reason="too many"), RUN)
    log.add(*CRASH)
    refusal = log.refuses(ev.RunRequeued(reason="resumed", checkpoint=1), RUN)
    assert "there is no checkpoint of step 1; there are: 2" in refusal
    log.add(ev.CheckpointDeleted(step=2, reason="damaged"), RUN)
    assert "there are: none" in log.refuses(ev.RunRequeued(reason="resumed", checkpoint=2), RUN)


def test_a_job_that_does_not_run_saves_nothing():
    for steps in ((CREATE, GRANT), (CREATE, GRANT, DISPATCH)):
        assert "it is not running" in Log(*steps).refuses(*SAVE)


def with_checkpoints(*steps):
    """A run in training with checkpoints of the steps 1 to 3, and what came then."""
    log = Log(CREATE, GRANT, BEGIN)
    for step in (1, 2, 3):
        log.add(saved(step), RUN, TRAIN)
    for step in steps:
        log.add(*step)
    return log


GO_BACK = (ev.RunRequeued(reason="the user asked", checkpoint=2), RUN, None)


def usable(log):
    return [each.step for each in log.run().usable_checkpoints]


def test_without_a_wish_a_run_goes_on_from_its_last_checkpoint():
    assert usable(with_checkpoints(CRASH, RETRY, REQUEUE)) == [1, 2, 3]


def test_a_run_goes_on_from_the_step_that_the_user_names():
    log = with_checkpoints(CRASH, FAIL, GO_BACK)
    assert (log.run().resume_from, usable(log)) == (2, [1, 2])
    assert len(log.run().checkpoints) == 3


def test_a_wish_to_go_back_outlasts_failed_attempts_and_ends_with_the_first_that_succeeds():
    log = with_checkpoints(CRASH, FAIL, GO_BACK, GRANT_2, BEGIN_2, CRASH_2, RETRY, REQUEUE)
    assert usable(log) == [1, 2]
    for step in (GRANT_3, BEGIN_3, (SUCCEED[0], RUN, TRAIN_3)):
        log.add(*step)
    assert log.run().resume_from is None


def test_an_attempt_from_an_earlier_step_that_is_lost_does_not_lose_what_it_saved_itself():
    log = with_checkpoints(CRASH, FAIL)
    log.add(ev.RunRequeued(reason="the user asked", checkpoint=1), RUN)
    for step in (GRANT_2, BEGIN_2, (saved(2, path="anew"), RUN, TRAIN_2), (LOST, RUN, TRAIN_2), RETRY, REQUEUE):
        log.add(*step)
    # Step 3 belongs to the way that the user did not want to follow.
    assert usable(log) == [1, 2]
    assert log.run().usable_checkpoints[-1].path == "anew"


@pytest.mark.parametrize("end", [CANCEL, FAIL])
def test_a_trained_run_that_goes_back_to_a_checkpoint_is_trained_again(end):
    log = with_checkpoints(SUCCEED, end, GO_BACK)
    assert log.run().status is JobStatus.PENDING
    log.add(*GRANT_2)
    assert log.run().open_job.type is JobType.TRAIN


@pytest.mark.parametrize(
    "steps",
    [
        (GRANT_2, BEGIN_2, CRASH_2),
        (GRANT_2, BEGIN_2, (ev.JobExited(outcome=Outcome.INTERRUPTED), RUN, TRAIN_2)),
        (GRANT_2, BEGIN_2, (LOST, RUN, TRAIN_2)),
        (CANCEL,),
    ],
    ids=["failed", "interrupted", "lost", "cancelled"],
)
def test_a_run_that_is_trained_again_is_not_evaluated_before_that_succeeds(steps):
    """Its first training did succeed, but it is not what the user wants to have evaluated."""
    log = with_checkpoints(SUCCEED, CANCEL, GO_BACK, *steps, REQUEUE)
    assert log.run().status is JobStatus.PENDING


def test_a_run_trained_again_is_evaluated_like_any_other():
    log = with_checkpoints(SUCCEED, CANCEL, GO_BACK, GRANT_2, BEGIN_2, SUCCEED_2)
    assert log.run().status is JobStatus.TRAINING_DONE_NO_EVAL
    for step in (GRANT_EVAL, BEGIN_EVAL, (ev.JobExited(outcome=Outcome.INTERRUPTED), RUN, EVAL), REQUEUE):
        log.add(*step)
    assert log.run().status is JobStatus.TRAINING_DONE_NO_EVAL


UNREPORTED = (ev.RunFailed(reason="metric 'reward' was not reported"), RUN, None)


@pytest.mark.parametrize("saves", [[], [SAVE]], ids=["without a checkpoint", "with one"])
def test_a_run_that_reported_no_result_is_trained_again_however_many_attempts_that_takes(saves):
    log = Log(CREATE, GRANT, BEGIN, *saves, SUCCEED, UNREPORTED, REQUEUE)
    assert log.run().status is JobStatus.PENDING
    assert len(log.run().usable_checkpoints) == len(saves)
    for step in (GRANT_2, BEGIN_2, CRASH_2, RETRY, REQUEUE):
        log.add(*step)
    assert log.run().status is JobStatus.PENDING
    for step in (GRANT_3, BEGIN_3, (SUCCEED[0], RUN, TRAIN_3)):
        log.add(*step)
    assert (log.run().status, log.run().resume_from) == (JobStatus.TRAINING_DONE_NO_EVAL, None)


@pytest.mark.parametrize("exit_of_evaluation", [CRASH_EVAL, SUCCEED_EVAL], ids=["failed", "reported no result"])
def test_a_run_that_failed_in_its_evaluation_is_evaluated_again(exit_of_evaluation):
    log = Log(*TRAINED, GRANT_EVAL, BEGIN_EVAL, exit_of_evaluation, UNREPORTED, REQUEUE)
    assert log.run().status is JobStatus.TRAINING_DONE_NO_EVAL


def test_a_run_that_fails_again_and_again_keeps_the_first_reason_and_the_latest():
    log = Log(CREATE)
    for attempt in range(1, 31):
        job_id = f"{RUN}.train.{attempt}"
        log.add(ev.JobGranted(job_type=JobType.TRAIN, attempt=attempt), RUN, job_id)
        log.add(STARTED, RUN, job_id)
        log.add(crash(error=f"error {attempt}"), RUN, job_id)
        log.add(*REQUEUE)
        assert len(log.run().failure_reasons) == min(attempt, 20)
    assert log.run().failure_reasons == tuple(f"train failed: error {attempt}" for attempt in (1, *range(12, 31)))


# ---------------------------------------------------------------------------------------------- failures that are alike


def fail(log, index, signature, *attempts):
    """A new run of which each attempt fails with the next of these signatures, or succeeds (None)."""
    run_id = RUN_IDS[index]
    log.add(ev.RunCreated(index=index, config={"x": index}), run_id)
    for attempt, each in enumerate([signature, *attempts], start=1):
        job_id = f"{run_id}.train.{attempt}"
        log.add(ev.JobGranted(job_type=JobType.TRAIN, attempt=attempt), run_id, job_id)
        log.add(STARTED, run_id, job_id)
        log.add(crash(each, error=each) if each else SUCCEED[0], run_id, job_id)
        if each:
            log.add(ev.RunRequeued(reason="tried again"), run_id)


def alike(log):
    return log.state.sweep.failure_signature, log.state.sweep.same_failures


def test_failures_with_one_signature_are_counted_over_runs_and_attempts():
    log = Log()
    fail(log, 0, "A")
    fail(log, 1, "A", "A")
    assert alike(log) == ("A", 3)
    assert log.state.sweep.failure_reason == "A"


def test_another_failure_starts_another_count_and_one_without_signature_none():
    log = Log()
    fail(log, 0, "A", "A", "B")
    assert alike(log) == ("B", 1)
    log.add(ev.JobGranted(job_type=JobType.TRAIN, attempt=4), RUN, f"{RUN}.train.4")
    log.add(crash(None), RUN, f"{RUN}.train.4")
    assert alike(log) == (None, 0)


def test_lost_jobs_and_failures_of_older_versions_say_nothing_of_the_code():
    log = Log()
    fail(log, 0, "A")
    log.add(*GRANT_2)
    log.add(LOST, RUN, TRAIN_2)
    log.add(*REQUEUE)
    log.add(*GRANT_3)
    log.add(ev.JobExited(outcome=Outcome.FAILED), RUN, TRAIN_3)
    assert alike(log) == ("A", 1)


def test_a_run_that_completes_ends_the_count():
    log = Log(CREATE, GRANT, BEGIN, SUCCEED)
    fail(log, 1, "A", "A")
    assert alike(log) == ("A", 2)
    log.add(*COMPLETE)
    assert alike(log) == (None, 0)
    assert log.state.sweep.failure_reason is None


def test_a_failure_found_after_the_job_counts_like_others():
    log = Log(*TRAINED)
    log.add(ev.RunFailed(reason="no reward", signature="train without reward"), RUN)
    assert alike(log) == ("train without reward", 1)
    fail(log, 1, "A")
    assert alike(log) == ("A", 1)
    log.add(ev.RunFailed(reason="given up"), RUN_IDS[1])
    assert alike(log) == ("A", 1)


def test_a_failure_that_a_later_attempt_got_over_is_not_counted_any_more():
    log = Log()
    fail(log, 0, "A", "A", None)
    assert log.state.sweep.passing_failures == ("A",)
    assert alike(log) == (None, 0)
    fail(log, 1, "A", "A", "A")
    assert alike(log) == (None, 0)
    fail(log, 2, "B")
    assert alike(log) == ("B", 1)


def test_what_one_run_got_over_says_nothing_of_another_kind_of_failure_at_hand():
    log = Log()
    fail(log, 0, "A")
    fail(log, 1, "B")
    log.add(*GRANT_2)
    log.add(SUCCEED[0], RUN, TRAIN_2)
    assert log.state.sweep.passing_failures == ("A",)
    assert alike(log) == ("B", 1)


def test_an_evaluation_that_succeeds_gets_over_no_failure_of_the_training():
    log = Log(*TRAINED, GRANT_EVAL, BEGIN_EVAL)
    log.add(crash("eval"), RUN, EVAL)
    fail(log, 1, "train", None)
    assert log.state.sweep.passing_failures == ("train",)
    log.add(*REQUEUE)
    second = f"{RUN}.eval.2"
    log.add(ev.JobGranted(job_type=JobType.EVAL, attempt=2), RUN, second)
    log.add(SUCCEED[0], RUN, second)
    assert log.state.sweep.passing_failures == ("train", "eval")


def test_only_the_latest_failures_that_passed_are_remembered():
    log = Log()
    log.add(*CREATE)
    signatures = [f"{number:02}" for number in range(20)]
    for attempt, signature in enumerate([*signatures, None], start=1):
        job_id = f"{RUN}.train.{attempt}"
        log.add(ev.JobGranted(job_type=JobType.TRAIN, attempt=attempt), RUN, job_id)
        log.add(crash(signature) if signature else SUCCEED[0], RUN, job_id)
        if signature:
            log.add(*REQUEUE)
    assert log.state.sweep.passing_failures == tuple(signatures[4:])


# -------------------------------------------------------------------------------------------------------------- pauses


def test_a_paused_sweep_says_why_and_its_jobs_go_on():
    log = Log(CREATE, GRANT, BEGIN)
    log.add(ev.SweepPaused(reason="three failures alike"))
    assert (log.state.sweep.status, log.state.sweep.reason) == (SweepStatus.PAUSED, "three failures alike")
    assert not log.state.sweep.status.ended
    log.add(*SUCCEED)
    log.add(*COMPLETE)
    assert log.best() == (RUN, 1.0)


def test_only_a_sweep_that_runs_is_paused():
    pause = ev.SweepPaused(reason="the user asked")
    log = Log()
    log.add(pause)
    assert "it is PAUSED" in log.refuses(pause)
    log.add(ev.SweepStopRequested(reason="enough"))
    assert "it is STOPPING" in log.refuses(pause)
    log.add(ev.SweepEnded(status=SweepStatus.STOPPED, reason="enough"))
    assert "it is STOPPED" in log.refuses(pause)
    log.add(ev.SweepResumed())
    log.add(pause)
    assert log.state.sweep.status is SweepStatus.PAUSED


def test_a_paused_sweep_may_end_without_being_resumed():
    log = Log()
    log.add(ev.SweepPaused(reason="the user asked"))
    log.add(ev.SweepEnded(status=SweepStatus.COMPLETED, reason="the budget is spent"))
    assert log.state.sweep.status is SweepStatus.COMPLETED


def test_a_resumption_forgets_failures_and_pause_but_not_what_passes():
    log = Log()
    fail(log, 0, "B", None)
    fail(log, 1, "A", "A")
    log.add(ev.DispatchFailed(dispatcher="slurm", reason="no such partition", retry_at=START + 8))
    log.add(ev.SweepPaused(reason="two failures alike"))
    log.add(ev.SweepResumed())
    sweep = log.state.sweep
    assert (sweep.status, sweep.reason) == (SweepStatus.RUNNING, None)
    assert (sweep.failure_signature, sweep.failure_reason, sweep.same_failures) == (None, None, 0)
    assert (sweep.dispatch_failures, sweep.dispatch_at) == (0, None)
    assert sweep.passing_failures == ("B",)


def test_failed_dispatches_are_counted_until_one_succeeds():
    log = Log(CREATE, GRANT)
    for wait in (1, 2):
        log.add(ev.DispatchFailed(dispatcher="slurm", reason="no such partition", retry_at=START + wait))
    assert (log.state.sweep.dispatch_failures, log.state.sweep.dispatch_at) == (2, START + 2)
    log.add(*DISPATCH)
    assert (log.state.sweep.dispatch_failures, log.state.sweep.dispatch_at) == (0, None)
