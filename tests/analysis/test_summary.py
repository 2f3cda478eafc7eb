"""What came of a sweep."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from types import ModuleType

import pytest

from analysis.runs import metadata, run, runs_of
from metta.sweep.analysis.summary import analyse
from metta.sweep.model.run import FailureKind, JobInfo, JobState, JobStatus, JobType, Outcome
from metta.sweep.testing.sweeps import START


def failed_job(run_id: str, attempt: int, kind: FailureKind, signature: str) -> JobInfo:
    return JobInfo(
        job_id=f"{run_id}.train.{attempt}",
        type=JobType.TRAIN,
        attempt=attempt,
        granted_at=START,
        started_at=START,
        ended_at=START + 30,
        state=JobState.EXITED,
        outcome=Outcome.FAILED,
        failure=kind,
        signature=signature,
    )


def test_failures_are_gathered_by_kind_and_place() -> None:
    same = [failed_job("a", attempt, FailureKind.USER_ERROR, "ValueError at train.py:7") for attempt in (1, 2)]
    runs = [
        run(0, status=JobStatus.FAILED, jobs=tuple(same), failure_reasons=("train failed: ValueError: no",)),
        run(1, 0.5, jobs=(failed_job("b", 1, FailureKind.OUT_OF_MEMORY, "oom"),), failure_reasons=("too much",)),
        run(2, status=JobStatus.FAILED, failure_reasons=("reward was not reported",)),
    ]
    found = analyse(metadata(), runs).failures
    facts = [(each.kind, each.attempts, each.runs, each.failed_runs, each.seconds) for each in found]
    assert facts == [("user_error", 2, 1, 1, 60.0), (None, 1, 1, 1, 0.0), ("out_of_memory", 1, 1, 0, 30.0)]
    assert found[0].reason == "train failed: ValueError: no"
    assert found[1].reason == "reward was not reported"


def test_convergence_tells_what_the_last_quarter_brought() -> None:
    scores = [0.1, 0.5, 0.5, 0.4, 0.3, 0.5, 0.7, 0.2]
    found = analyse(metadata(), [run(index, score) for index, score in enumerate(scores)]).convergence
    assert [(each.runs, each.score) for each in found.curve.improvements] == [(1, 0.1), (2, 0.5), (7, 0.7)]
    assert (found.runs_since_best, found.last_runs, found.last_gain) == (1, 2, pytest.approx(0.2))


def test_cost_is_told_by_what_became_of_it() -> None:
    sweep = metadata(max_parallel=2)
    runs = [run(0, 0.5), run(1, status=JobStatus.STOPPED, cost=600.0), run(2, 0.6, cost=1200.0)]
    found = analyse(sweep, runs).cost
    assert found.by_status == {"COMPLETED": 4800.0, "STOPPED": 600.0}
    assert found.median_run == 2400.0
    assert found.elapsed == 3600 + 120


def test_a_sweep_without_runs_has_an_analysis_too() -> None:
    found = analyse(metadata(), [])
    assert (found.best, found.failures, found.importance, found.cost.used) == ((), (), None, None)
    assert "it takes ten" in str(found.importance_note)


def test_without_scikit_learn_all_else_is_there_and_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def without(
        name: str,
        globals: Mapping[str, object] | None = None,  # noqa: A002 (the builtin's name)
        locals: Mapping[str, object] | None = None,  # noqa: A002
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return import_module(name, globals, locals, fromlist, level)

    monkeypatch.setattr(builtins, "__import__", without)
    found = analyse(metadata(), runs_of(lambda config: float(config["layers"]), 40))
    assert found.best
    assert "metta-sweep[analysis]" in str(found.importance_note)
