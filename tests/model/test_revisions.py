"""What users take back, mend and amend after the fact."""

import msgspec
import pytest

from metta.sweep.model import events as ev
from metta.sweep.model.run import JobStatus, Outcome, RetryPolicy, Undone
from metta.sweep.model.space import Choice, Range, SearchSpace, Uniform
from metta.sweep.model.sweep import AMENDABLE, LIMITS, SweepConfig, SweepStatus
from model.logs import (
    BEGIN,
    CANCEL,
    COMPLETE,
    CREATE,
    FAIL,
    FAILING,
    GRANT,
    RESTORE,
    RETRY,
    ROLL_BACK,
    RUN,
    SAVE,
    STARTED,
    SUCCEED,
    TRAIN,
    TRAINED,
    Log,
)
from model.strategies import GRID, RUN_IDS, START

DONE = [*TRAINED, COMPLETE]
INFINITE = SearchSpace.of({"x": Uniform(0, 9)})


def space(parameter):
    return {"search_space": msgspec.to_builtins(SearchSpace.of({"x": parameter}))}


def rescored(score):
    return ev.RunRescored(reason="another metric", score=score)


# ------------------------------------------------------------------------------------------------- rollback and restore


def test_a_run_that_is_rolled_back_counts_for_nothing_but_is_kept():
    log = Log(*DONE)
    before = log.run()
    log.add(*ROLL_BACK, at=START + 99)
    run = log.run()
    assert (run.status, run.score, run.ended_at) == (JobStatus.ROLLED_BACK, None, before.ended_at)
    assert run.undone == Undone(status=JobStatus.COMPLETED, score=1.0, at=START + 99)
    assert (run.jobs, run.metrics, run.cost) == (before.jobs, before.metrics, before.cost)
    assert (log.state.sweep.run_count, log.state.sweep.trial_count) == (1, 0)
    assert log.state.sweep.counts == {JobStatus.ROLLED_BACK: 1}
    assert log.state.sweep.ended_count == 0


def test_the_best_run_after_a_rollback_is_the_one_that_the_event_names():
    log = Log()
    for index, score in enumerate([1.0, 3.0, 2.0]):
        log.add_completed(index, score)
    log.add(ev.RunRolledBack(reason="", best_run_id=RUN_IDS[2], best_score=2.0), RUN_IDS[1])
    assert log.best() == (RUN_IDS[2], 2.0)
    log.add_completed(3, 2.5)
    assert log.best() == (RUN_IDS[3], 2.5)


def test_what_is_rolled_back_is_not_the_best_run():
    log = Log(*DONE)
    refusal = log.refuses(ev.RunRolledBack(reason="", best_run_id=RUN, best_score=1.0), RUN)
    assert "it would still be the best run" in refusal


@pytest.mark.parametrize("stage", [[CREATE], [CREATE, GRANT, BEGIN], TRAINED, FAILING, [*FAILING, RETRY]])
def test_a_run_that_has_not_ended_is_not_rolled_back(stage):
    assert "run_rolled_back does not fit" in Log(*stage).refuses(ROLL_BACK[0], RUN)


def test_nothing_is_rolled_back_twice_or_restored_without_having_been():
    log = Log(*DONE)
    assert "was not rolled back" in log.refuses(RESTORE[0], RUN)
    log.add(*ROLL_BACK)
    assert "is ROLLED_BACK" in log.refuses(ROLL_BACK[0], RUN)
    assert "is ROLLED_BACK" in log.refuses(ev.RunRequeued(reason="resumed"), RUN)


@pytest.mark.parametrize("end", [COMPLETE, FAIL, CANCEL])
def test_a_restored_run_is_what_it_was(end):
    log = Log(*TRAINED, end)
    before = log.state
    log.add(*ROLL_BACK)
    log.add(*RESTORE)
    assert log.run() == before.runs[RUN]
    assert log.best() == (before.sweep.best_run_id, before.sweep.best_score)
    assert log.state.sweep.counts == before.sweep.counts


def test_a_restored_run_is_the_best_only_if_it_is_better_than_what_is_there():
    log = Log()
    log.add_completed(0, 1.0)
    log.add_completed(1, 2.0)
    for index, rest in [(0, 1), (1, 0)]:
        best = {"best_run_id": RUN_IDS[rest], "best_score": log.run(rest).score}
        log.add(ev.RunRolledBack(reason="", **best), RUN_IDS[index])
        assert log.best()[0] == RUN_IDS[rest]
        log.add(ev.RunRestored(reason=""), RUN_IDS[index])
        assert log.best() == (RUN_IDS[1], 2.0)


def test_what_was_tried_by_a_run_that_is_rolled_back_may_be_tried_again():
    log = Log(*DONE)
    assert dict(log.state.tried) == {GRID.key({"x": 0}): RUN}
    log.add(*ROLL_BACK)
    assert not log.state.tried
    log.add(*RESTORE)
    assert dict(log.state.tried) == {GRID.key({"x": 0}): RUN}


def test_what_another_run_tried_as_well_stays_tried():
    log = Log(*DONE)
    log.add(*ROLL_BACK)
    log.add(ev.RunCreated(index=1, config={"x": 0}), RUN_IDS[1])
    log.add(ev.RunCancelled(reason="stopped"), RUN_IDS[1])
    log.add(*RESTORE)
    log.add(ev.RunRolledBack(reason="", best_run_id=RUN, best_score=1.0), RUN_IDS[1])
    assert dict(log.state.tried) == {GRID.key({"x": 0}): RUN}


def test_a_run_that_is_rolled_back_or_restored_in_another_space_leaves_what_was_tried_of_that():
    log = Log()
    for index in range(3):
        log.add_completed(index, 1.0)
    log.add(ev.RunRolledBack(reason="", best_run_id=RUN, best_score=1.0), RUN_IDS[2])
    log.add(ev.RunRolledBack(reason="", best_run_id=RUN, best_score=1.0), RUN_IDS[1])
    log.add(ev.SweepAmended(changes=space(Range(0, 1)), best_run_id=RUN, best_score=1.0))
    assert set(log.state.tried.values()) == {RUN}
    log.add(RESTORE[0], RUN_IDS[2])
    assert set(log.state.tried.values()) == {RUN}
    log.add(RESTORE[0], RUN_IDS[1])
    assert set(log.state.tried.values()) == {RUN, RUN_IDS[1]}


def test_a_run_may_be_rolled_back_and_restored_again_and_again():
    log = Log(*DONE)
    before = log.state
    for _ in range(3):
        log.add(*ROLL_BACK)
        log.add(*RESTORE)
    assert log.state.runs == before.runs


# ---------------------------------------------------------------------------------------------------------- rescoring


def test_a_rescored_run_has_another_score_or_none():
    log = Log(*DONE)
    log.add(rescored(5.0), RUN)
    assert (log.run().status, log.run().score) == (JobStatus.COMPLETED, 5.0)
    log.add(rescored(None), RUN)
    assert (log.run().status, log.run().score) == (JobStatus.FAILED, None)
    assert log.run().failure_reasons == ("another metric",)
    log.add(rescored(0.25), RUN)
    assert (log.run().status, log.run().score) == (JobStatus.COMPLETED, 0.25)
    assert log.state.sweep.counts == {JobStatus.COMPLETED: 1}


def test_a_run_whose_last_job_failed_has_no_result_by_any_metric_but_perhaps_a_last_value():
    log = Log(*FAILING)
    log.add(ev.RunFailed(reason="given up", partial_score=0.5), RUN)
    log.add(rescored(7.0), RUN)
    assert (log.run().status, log.run().score, log.run().partial_score) == (JobStatus.FAILED, None, 7.0)
    log.add(rescored(None), RUN)
    assert (log.run().status, log.run().partial_score) == (JobStatus.FAILED, None)
    assert log.best() == (None, None)


def test_a_run_rolled_back_is_rescored_as_well_so_that_it_comes_back_with_what_counts_now():
    log = Log(*DONE)
    log.add(*ROLL_BACK, at=START + 5)
    log.add(rescored(0.25), RUN)
    assert (log.run().status, log.run().score) == (JobStatus.ROLLED_BACK, None)
    assert log.run().undone == Undone(status=JobStatus.COMPLETED, score=0.25, at=START + 5)
    log.add(ev.SweepAmended(changes={"metric": "loss"}))
    log.add(*RESTORE)
    assert log.best() == (RUN, 0.25)


@pytest.mark.parametrize("stage", [[CREATE], TRAINED, [*TRAINED, CANCEL], FAILING, [*TRAINED, CANCEL, ROLL_BACK]])
def test_a_run_without_a_verdict_is_not_rescored(stage):
    assert "run_rescored does not fit" in Log(*stage).refuses(rescored(1.0), RUN)


# ---------------------------------------------------------------------------------------------------------- amendments


def test_an_amendment_changes_what_it_names_and_gives_the_best_run():
    log = Log()
    log.add_completed(0, 1.0, metrics={"reward": 1.0, "loss": 4.0})
    log.add_completed(1, 2.0, metrics={"reward": 2.0, "loss": 3.0})
    before = log.state.sweep.config
    log.add(rescored(4.0), RUN_IDS[0])
    log.add(rescored(3.0), RUN_IDS[1])
    changes = {"metric": "loss", "direction": "minimize"}
    log.add(ev.SweepAmended(changes=changes, best_run_id=RUN_IDS[1], best_score=3.0))
    assert log.state.sweep.config == msgspec.structs.replace(before, **changes)
    assert log.best() == (RUN_IDS[1], 3.0)
    log.add_completed(2, 3.5)
    assert log.best() == (RUN_IDS[1], 3.0)
    log.add_completed(3, 2.5)
    assert log.best() == (RUN_IDS[3], 2.5)


def test_a_checkpoint_is_scored_by_the_metric_of_its_time():
    log = Log(CREATE, GRANT, BEGIN)
    log.add(ev.MetricsReported(metrics={"reward": 1.0, "loss": 4.0}), RUN, TRAIN)
    log.add(*SAVE)
    log.add(ev.SweepAmended(changes={"metric": "loss"}))
    log.add(msgspec.structs.replace(SAVE[0], step=2), RUN, TRAIN)
    assert [each.score for each in log.run().checkpoints] == [1.0, 4.0]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        *(({name: None}, name) for name in sorted(set(SweepConfig.__struct_fields__) - set(AMENDABLE))),
        ({"metrics": "loss"}, "metrics"),
        ({"direction": "upwards"}, "upwards"),
        ({"search_space": {"parameters": {"x": {"type": "uniform", "low": 1, "high": 0}}}}, "1"),
        ({"metric": 7}, "metric"),
    ],
    ids=repr,
)
def test_an_amendment_that_cannot_be_is_refused(changes, named):
    assert named in Log(CREATE).refuses(ev.SweepAmended(changes=changes))


def test_limits_change_by_resuming_and_only_so():
    assert not set(LIMITS) & set(AMENDABLE)
    log = Log()
    for name in AMENDABLE:
        value = msgspec.to_builtins(getattr(log.state.sweep.config, name))
        assert name in log.refuses(ev.SweepResumed(changes={name: value}))
        log.add(ev.SweepAmended(changes={name: value}))
    for name in LIMITS:
        value = msgspec.to_builtins(getattr(log.state.sweep.config, name))
        assert name in log.refuses(ev.SweepAmended(changes={name: value}))
        log.add(ev.SweepResumed(changes={name: value}))
    log.add(ev.SweepResumed(changes={"retry": {"max_retries": 5}, "same_error_limit": 0}))
    assert log.state.sweep.config.retry == RetryPolicy(max_retries=5)
    assert log.state.sweep.config.same_error_limit == 0


def test_a_space_that_becomes_finite_remembers_what_was_tried_of_it():
    log = Log(CREATE, search_space=INFINITE)
    log.add(ev.RunCreated(index=1, config={"x": 1.5}), RUN_IDS[1])
    assert not log.state.tried
    log.add(ev.SweepAmended(changes=space(Choice([0, 1, 2]))))
    # 1.5 is none of its configurations: counted as one, it would make the space seem smaller than it is.
    assert dict(log.state.tried) == {GRID.key({"x": 0}): RUN}
    log.add(ev.RunCreated(index=2, config={"x": 2}), RUN_IDS[2])
    assert set(log.state.tried.values()) == {RUN, RUN_IDS[2]}


def test_a_space_that_grows_or_shrinks_remembers_what_was_tried_of_it():
    log = Log()
    for index in range(3):
        log.add(ev.RunCreated(index=index, config={"x": 4 * index}), RUN_IDS[index])
    log.add(ev.SweepAmended(changes=space(Range(0, 4))))
    assert set(log.state.tried.values()) == set(RUN_IDS[:2])
    log.add(ev.SweepAmended(changes=space(Range(0, 9))))
    assert set(log.state.tried.values()) == set(RUN_IDS[:3])


def test_a_space_that_becomes_infinite_forgets_what_was_tried():
    log = Log(CREATE)
    assert log.state.tried
    log.add(ev.SweepAmended(changes=space(Uniform(0, 9))))
    assert not log.state.tried


def test_an_amendment_does_not_touch_the_runs():
    log = Log(*DONE)
    before = log.state
    log.add(ev.SweepAmended(changes=space(Range(0, 4)), best_run_id=RUN, best_score=1.0))
    assert log.state.runs == before.runs
    assert log.state.runs[RUN] is before.runs[RUN]


# ------------------------------------------------------------------------------------------------------------- repairs


def repaired(**after):
    return ev.StateRepaired(problem="it was wrong", before={}, after=after)


def test_a_repair_changes_the_fields_it_names_and_all_that_adds_up_from_them():
    log = Log(*DONE)
    before = log.run()
    log.add(repaired(status="FAILED", score=None, cost=7.0, failure_reasons=["mended"]), RUN)
    assert log.run() == msgspec.structs.replace(
        before, status=JobStatus.FAILED, score=None, cost=7.0, failure_reasons=("mended",)
    )
    assert log.state.sweep.counts == {JobStatus.FAILED: 1}
    assert log.state.sweep.cost == 7.0
    log.add(repaired(status="PENDING", ended_at=None, jobs=[]), RUN)
    assert RUN in log.state.unfinished
    log.add(*GRANT)
    assert log.run().open_job.attempt == 1


def test_a_repaired_score_may_be_the_best():
    log = Log(*TRAINED, FAIL)
    log.add(repaired(status="COMPLETED", score=9.0), RUN)
    assert log.best() == (RUN, 9.0)


def test_a_repaired_configuration_is_not_tried_again():
    log = Log(CREATE)
    log.add(repaired(config={"x": 5}), RUN)
    assert log.state.tried[GRID.key({"x": 5})] == RUN


def test_a_repair_in_the_terms_of_python_means_what_it_means_in_jsons():
    log = Log(CREATE, GRANT, BEGIN, SAVE, SUCCEED, COMPLETE)
    whole = {
        name: value
        for name, value in msgspec.to_builtins(log.run()).items()
        if name not in {"sweep_id", "run_id", "index"}
    }
    before = log.run()
    log.add(repaired(**whole), RUN)
    assert log.run() == before


@pytest.mark.parametrize(
    ("after", "named"),
    [
        ({"sweep_id": "0ther"}, "sweep_id"),
        ({"run_id": "0ther", "status": "FAILED"}, "run_id"),
        ({"index": 3}, "index"),
        ({"status": "DONE"}, "status"),
        ({"cost": "much"}, "cost"),
        ({"cost": None}, "cost"),
        ({"jobs": [{}]}, "jobs"),
        ({"scoer": 1.0}, "scoer"),
        ({"score": {1, 2}}, "score"),
    ],
    ids=repr,
)
def test_a_repair_that_would_break_something_is_refused(after, named):
    assert named in Log(*DONE).refuses(repaired(**after), RUN)


# --------------------------------------------------------------------------------------------- after the sweep's end


def ended(*steps):
    log = Log(*steps)
    log.add(ev.SweepEnded(status=SweepStatus.COMPLETED, reason="done"), at=START + 9)
    return log


def test_what_was_is_revised_after_the_end_as_well_and_the_end_stays_the_end():
    log = ended(CREATE, GRANT, BEGIN, SAVE, SUCCEED, COMPLETE)
    log.add(rescored(0.5), RUN)
    log.add(ev.SweepAmended(changes={"metric": "loss"}, best_run_id=RUN, best_score=0.5))
    log.add(*ROLL_BACK)
    assert log.best() == (None, None)
    log.add(*RESTORE)
    assert log.best() == (RUN, 0.5)
    log.add(ev.CheckpointDeleted(step=1, reason="too many"), RUN)
    log.add(repaired(cost=7.0), RUN)
    assert (log.run().checkpoints, log.state.sweep.cost) == ((), 7.0)
    assert (log.state.sweep.status, log.state.sweep.ended_at) == (SweepStatus.COMPLETED, START + 9)


def test_a_run_is_tried_again_only_when_the_sweep_goes_on():
    log = ended(*TRAINED, FAIL)
    requeued = ev.RunRequeued(reason="the user asked")
    assert "the sweep is COMPLETED" in log.refuses(requeued, RUN)
    log.add(ev.SweepResumed())
    log.add(requeued, RUN)
    assert log.run().status is JobStatus.PENDING


def test_no_repair_leaves_something_to_do_in_a_sweep_that_has_ended():
    log = ended(*DONE)
    assert "the sweep is COMPLETED" in log.refuses(repaired(status="PENDING", score=None, ended_at=None), RUN)


def test_late_news_of_jobs_are_refused_after_the_end():
    log = ended(CREATE, GRANT, BEGIN, (ev.JobExited(outcome=Outcome.CANCELLED), RUN, TRAIN))
    for body in (STARTED, SAVE[0], SUCCEED[0]):
        assert "the sweep is COMPLETED" in log.refuses(body, RUN, TRAIN)
