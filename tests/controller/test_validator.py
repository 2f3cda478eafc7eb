"""Each inconsistency, constructed by hand: that it is found, and what mends it; and that sound states are let alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from controller.broken_runs import INCONSISTENT, METRIC, SOUND, damaged_runs, job, run, running
from metta.sweep.controller.consistency import IssueKind
from metta.sweep.controller.validator import Issue, StateValidator, clocks_set_back
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import (
    FailureKind,
    JobStatus,
    JobType,
    Outcome,
    Parent,
    RunInfo,
)
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.model.waiting import WaitsFor, waits_for
from metta.sweep.protocols import Heartbeat
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

VALIDATOR = StateValidator()
#: An hour's training lies behind a sweep of the sample runs.
LATER = START + 3600


@pytest.mark.parametrize("what", SOUND)
def test_a_sound_run_has_no_issues_and_stays_the_very_same(what: str) -> None:
    assert VALIDATOR.validate_run_state(SOUND[what], METRIC) == []
    assert VALIDATOR.auto_fix_states(SOUND[what], METRIC) is SOUND[what]


@pytest.mark.parametrize("what", INCONSISTENT)
def test_an_inconsistent_run_is_found_and_mended(what: str) -> None:
    wrong, words, expected = INCONSISTENT[what]
    assert words in "; ".join(VALIDATOR.validate_run_state(wrong, METRIC))
    mended = VALIDATOR.auto_fix_states(wrong, METRIC)
    assert {name: getattr(mended, name) for name in expected} == expected
    assert VALIDATOR.validate_run_state(mended, METRIC) == []


@pytest.mark.parametrize("what", INCONSISTENT)
def test_the_repairs_folded_give_the_mended_run(what: str) -> None:
    wrong = INCONSISTENT[what][0]
    state = SweepState(metadata=state_of([]).metadata, runs=EMPTY.runs.set("r", wrong), **unended(wrong))
    state = replace(state, metadata=replace(state.sweep, counts={wrong.status: 1}))
    repairs = [issue for issue in check(state, now=10.0) if issue.repairs and issue.kind is not IssueKind.BEST]
    assert [issue.problem for issue in repairs] == VALIDATOR.validate_run_state(wrong, METRIC)
    assert applied(state, repairs).runs["r"] == VALIDATOR.auto_fix_states(wrong, METRIC)


def test_without_a_metric_a_missing_score_makes_the_run_failed() -> None:
    wrong = run(JobStatus.COMPLETED, job(), score=None)
    assert VALIDATOR.auto_fix_states(wrong).status is JobStatus.FAILED


# ------------------------------------------------------------------------------------------------------- whole sweeps


def state_of(events: Sequence[Event], **config: Any) -> SweepState:
    """A sweep in which these happened."""
    log = [sweep_created(**config), *events]
    return fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(log, start=1)])


def unended(run: RunInfo) -> dict[str, Any]:
    """As the fold keeps it of a run that has not ended; nothing of one that has."""
    what = waits_for(run)
    if what is None:
        return {}
    group = EMPTY.waiting[what].set(run.run_id, None)
    return {"unfinished": EMPTY.unfinished.set(run.run_id, what), "waiting": EMPTY.waiting.set(what, group)}


def check(state: SweepState, *, now: float = LATER, controlled: bool = True, **world: Any) -> list[Issue]:
    return VALIDATOR.check(state, now=now, controlled=controlled, **world)


def applied(state: SweepState, issues: Sequence[Issue]) -> SweepState:
    """The state after the repairs of all issues, as the store would fold them."""
    for issue in issues:
        for decision in issue.repairs:
            event = new_event(
                decision.body,
                sweep_id=SWEEP,
                at=LATER,
                actor="doctor",
                run_id=decision.run_id,
                job_id=decision.job_id,
            )
            state = fold(state, [replace(event, seq=state.seq + 1)])
    return state


RUN, JOB = ids.run_id(SWEEP, 0), ids.job_id(ids.run_id(SWEEP, 0), JobType.TRAIN, 1)
GRANTED, DISPATCHED, RUNNING = (state_of(run_events(0)[:count]) for count in (2, 3, 4))


def beat(at: float, host: str = "node") -> Heartbeat:
    return Heartbeat(sweep_id=SWEEP, host=host, pid=1, at=at, jobs=1)


def test_a_grant_that_is_not_dispatched_is_serious_only_while_a_controller_is_at_work() -> None:
    [issue] = check(GRANTED, now=START + 61)
    assert (issue.kind, issue.job_id, issue.is_serious, issue.repairs) == (IssueKind.NOT_DISPATCHED, JOB, True, ())
    assert "granted 61 s ago" in issue.problem
    [issue] = check(GRANTED, now=START + 61, controlled=False)
    assert (issue.is_serious, issue.remedy) == (
        False,
        "the next controller offers it to the dispatcher again when it starts",
    )
    assert check(GRANTED, now=START + 59) == []


def test_a_grant_that_the_dispatcher_has_is_no_more_than_a_note() -> None:
    [issue] = check(GRANTED, held=[JOB])
    assert (issue.kind, issue.is_serious) == (IssueKind.NOT_DISPATCHED, False)


def test_a_grant_says_how_often_the_dispatcher_refused() -> None:
    refused = new_event(
        ev.DispatchFailed(dispatcher="slurm", reason="no", retry_at=START), sweep_id=SWEEP, at=START, actor="controller"
    )
    [issue] = check(state_of([*run_events(0)[:2], refused]))
    assert "the dispatcher refused 1 times in a row" in issue.problem


@pytest.mark.parametrize(
    ("state", "held", "seen", "kind"),
    [
        # The dispatcher answers, and does not know the job: certain once nobody beside it was heard of.
        (RUNNING, [], LATER - 61, IssueKind.JOB_LOST),
        (RUNNING, [], None, IssueKind.JOB_LOST),
        (DISPATCHED, [], None, IssueKind.JOB_LOST),
        (RUNNING, [], LATER - 59, None),
        # It knows the job: whatever the agent's silence means, the job is not lost.
        (RUNNING, [JOB], LATER - 61, IssueKind.SILENT_AGENT),
        (RUNNING, [JOB], LATER - 1, None),
        # Nobody can be asked: only a long silence counts, and a queue may be longer still.
        (RUNNING, None, LATER - 899, IssueKind.SILENT_AGENT),
        (RUNNING, None, LATER - 901, IssueKind.JOB_LOST),
        (DISPATCHED, None, None, None),
    ],
)
def test_a_job_is_lost_only_when_that_is_certain(
    state: SweepState, held: list[str] | None, seen: float | None, kind: IssueKind | None
) -> None:
    beats = [] if seen is None else [beat(seen)]
    issues = check(state, held=held, heartbeats=[beat(LATER, "another"), *beats])
    assert [issue.kind for issue in issues] == ([] if kind is None else [kind])
    if kind is IssueKind.JOB_LOST:
        lost = applied(state, issues).runs[RUN]
        assert (lost.status, lost.jobs[-1].failure) == (JobStatus.RETRYING, FailureKind.NODE_LOST)
    else:
        assert not any(issue.repairs for issue in issues)


def test_a_job_that_just_started_is_not_lost_though_its_agent_has_not_beaten_yet() -> None:
    assert check(RUNNING, now=START + 30, held=[], heartbeats=[]) == []


def test_nothing_is_lost_where_the_heartbeats_are_not_known() -> None:
    assert check(RUNNING, held=[]) == check(RUNNING) == []


def test_a_job_that_the_log_does_not_know_is_cancelled_at_the_dispatcher() -> None:
    issues = check(RUNNING, held=[JOB, "stray"], heartbeats=[beat(LATER)])
    assert [(issue.kind, issue.cancels, issue.repairs) for issue in issues] == [(IssueKind.STRAY_JOB, ("stray",), ())]
    [issue] = check(state_of(run_events(0)), held=[JOB])
    assert issue.cancels == (JOB,)


def test_a_failure_without_a_decision_is_serious_only_while_a_controller_is_at_work() -> None:
    exited = replace(
        run_events(0)[5], body=ev.JobExited(outcome=Outcome.KILLED, failure=FailureKind.KILLED), at=START + 10
    )
    state = state_of([*run_events(0)[:5], exited])
    [issue] = check(state, now=START + 71)
    assert (issue.kind, issue.is_serious, issue.repairs) == (IssueKind.UNDECIDED, True, ())
    [issue] = check(state, now=START + 71, controlled=False)
    assert not issue.is_serious
    assert check(state, now=START + 69) == []


def test_clocks_that_differ_are_reported_and_nothing_is_changed() -> None:
    issues = check(state_of(run_events(0)), heartbeats=[beat(LATER + 61), beat(LATER + 59, "other")])
    assert [issue.problem for issue in issues] == ["the clock of node is 61 s ahead of this machine's"]
    early = [replace(event, at=START - 90) if event.type == "job_started" else event for event in run_events(0)]
    [issue] = check(state_of(early))
    assert issue.problem == "1 jobs on node started before they were granted, up to 90 s"
    assert (issue.is_serious, issue.repairs) == (False, ())


def test_a_clock_that_went_back_is_found_in_the_log_of_its_own_actor() -> None:
    times = [("agent", 1, 100.0), ("controller", 2, 10.0), ("agent", 3, 30.0), ("agent", 4, 31.0), ("agent", 5, 29.0)]
    [issue] = clocks_set_back(times, 60.0)
    assert issue.problem == "the clock of agent went back by 70 s before event 3"


def test_a_run_that_an_ended_sweep_left_open_is_cancelled() -> None:
    events = run_events(0)
    end = new_event(
        ev.SweepEnded(status=SweepStatus.COMPLETED, reason="enough"), sweep_id=SWEEP, at=LATER, actor="test"
    )
    state = state_of([*events, end])
    wrong = run(JobStatus.IN_TRAINING, running(), run_id=RUN)
    state = replace(state, runs=state.runs.set(RUN, wrong), **unended(wrong))
    repairs = [issue for issue in check(state) if issue.repairs]
    assert repairs[0].problem == "it is IN_TRAINING though its sweep has ended"
    metadata = replace(state.sweep, counts={JobStatus.IN_TRAINING: 1})
    mended = applied(replace(state, metadata=metadata), repairs)
    assert (mended.runs[RUN].status, mended.runs[RUN].open_job) == (JobStatus.CANCELLED, None)
    assert (mended.sweep.status, list(mended.unfinished)) == (SweepStatus.COMPLETED, [])
    assert mended.sweep.best_run_id is None


TWO = state_of([*run_events(0, score=1.0), *run_events(1, score=3.0)])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"counts": {JobStatus.COMPLETED: 3}}, "runs by status are counted as 3 COMPLETED; there are 2 COMPLETED"),
        ({"cost": 1.0}, "cost is 1 s; that of the runs adds up to 7200 s"),
        ({"ended_at": 5.0}, "the sweep is RUNNING, and the time of its end is 5.0"),
    ],
)
def test_sums_that_do_not_add_up_are_reported(changes: dict[str, Any], words: str) -> None:
    [issue] = check(replace(TWO, metadata=replace(TWO.sweep, **changes)))
    assert (issue.kind, issue.problem, issue.repairs) == (IssueKind.TOTALS, words, ())


def test_wrong_indices_ids_and_unfinished_runs_are_reported() -> None:
    [first, second] = sorted(TWO.runs.values(), key=lambda run: run.index)
    twin = replace(second, index=5, jobs=first.jobs)
    state = replace(TWO, runs=TWO.runs.set(second.run_id, twin), unfinished=TWO.unfinished.set(RUN, WaitsFor.VERDICT))
    assert [issue.problem for issue in check(state)] == [
        "1 runs count as unfinished, which are not those that are",
        "the indices of 2 runs are not 0 to 1",
        f"several jobs have one id: {JOB}",
    ]


def test_a_run_goes_on_from_an_earlier_one_of_its_sweep() -> None:
    [first, second] = sorted(TWO.runs.values(), key=lambda run: run.index)
    sound = Parent(run_id=first.run_id, level=1.0, step=1, replaces=first.run_id)
    assert check(replace(TWO, runs=TWO.runs.set(second.run_id, replace(second, parent=sound)))) == []
    for parent, other in ((replace(sound, run_id="nobody"), "nobody"), (replace(sound, replaces="later"), "later")):
        [issue] = check(replace(TWO, runs=TWO.runs.set(second.run_id, replace(second, parent=parent))))
        assert (issue.kind, issue.run_id) == (IssueKind.LINEAGE, second.run_id)
        assert issue.problem == f"it comes after run {other}, which is no earlier run of the sweep"
    later = replace(first, parent=replace(sound, run_id=second.run_id, replaces=second.run_id))
    assert len(check(replace(TWO, runs=TWO.runs.set(first.run_id, later)))) == 1


@pytest.mark.parametrize("best", [(RUN, 1.0), (RUN, 3.0), (None, None), ("nobody", 9.0)])
def test_a_wrong_best_run_is_set_right(best: tuple[str | None, float | None]) -> None:
    state = replace(TWO, metadata=replace(TWO.sweep, best_run_id=best[0], best_score=best[1]))
    [issue] = check(state)
    assert issue.kind is IssueKind.BEST
    assert applied(state, [issue]).sweep.best_run_id == ids.run_id(SWEEP, 1)
    assert check(applied(state, [issue])) == []


def test_the_best_run_is_found_anew_when_a_repair_takes_its_score_away() -> None:
    best = TWO.runs[ids.run_id(SWEEP, 1)]
    state = replace(TWO, runs=TWO.runs.set(best.run_id, replace(best, score=None, metrics={}, jobs=())))
    mended = applied(state, check(state))
    assert (mended.sweep.best_run_id, mended.sweep.best_score) == (RUN, 1.0)
    assert mended.sweep.counts == {JobStatus.COMPLETED: 1, JobStatus.FAILED: 1}
    assert check(mended) == []


def test_the_controllers_check_looks_at_unfinished_runs_alone() -> None:
    wrong = replace(TWO.runs[RUN], ended_at=None)
    state = state_of([*run_events(0), *run_events(1)[:4]])
    state = replace(state, runs=state.runs.set(RUN, wrong))
    second = ids.job_id(ids.run_id(SWEEP, 1), JobType.TRAIN, 1)
    issues = VALIDATOR.check_unfinished(state, now=LATER, heartbeats=[], held=["stray"])
    assert [(issue.kind, issue.job_id) for issue in issues] == [
        (IssueKind.JOB_LOST, second),
        (IssueKind.STRAY_JOB, "stray"),
    ]


# ------------------------------------------------------------------------------------------------- whatever may happen

THOROUGH = settings(max_examples=60, deadline=None)


def history_of(seed: int, length: int) -> SweepState:
    log = random_history(seed, length)
    return fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(log, start=1)])


@THOROUGH
@given(seed=st.integers(0, 10**6), length=st.integers(1, 120))
def test_no_state_that_the_fold_reaches_needs_a_repair(seed: int, length: int) -> None:
    state = history_of(seed, length)
    issues = check(state, now=START + length)
    bodies = [decision.body for issue in issues for decision in issue.repairs]
    assert not [body for body in bodies if isinstance(body, ev.StateRepaired)]
    assert not [issue for issue in issues if issue.kind is IssueKind.TOTALS]


@settings(THOROUGH, max_examples=500)
@given(damaged=damaged_runs(), metric=st.sampled_from([METRIC, "loss", None]))
def test_whatever_is_wrong_with_a_run_mending_it_once_is_enough(damaged: RunInfo, metric: str | None) -> None:
    mended = VALIDATOR.auto_fix_states(damaged, metric)
    assert VALIDATOR.validate_run_state(mended, metric) == []
    assert VALIDATOR.auto_fix_states(mended, metric) is mended


@settings(THOROUGH, max_examples=300)
@given(damaged=damaged_runs(), is_over=st.booleans())
def test_whatever_is_wrong_with_a_run_the_fold_takes_its_repairs_and_leaves_a_sound_sweep(
    damaged: RunInfo, is_over: bool
) -> None:
    empty = state_of([])
    status, ended_at = (SweepStatus.STOPPED, LATER) if is_over else (SweepStatus.RUNNING, None)
    metadata = replace(empty.sweep, counts={damaged.status: 1}, cost=damaged.cost, status=status, ended_at=ended_at)
    state = replace(empty, metadata=metadata, runs=empty.runs.set("r", damaged), **unended(damaged))
    issues = check(state, now=10.0)
    mended = applied(state, [issue for issue in issues if issue.repairs])
    left = check(mended, now=10.0)
    assert not [issue for issue in left if issue.repairs]
    if not is_over:
        assert mended.runs["r"] == VALIDATOR.auto_fix_states(damaged, METRIC)
