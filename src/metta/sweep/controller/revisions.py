"""What users change of a sweep after the fact, as the events that record it.

Nothing is ever deleted: what an event did another one undoes. They are computed from the whole state, so they are
appended only if nothing else has happened meanwhile (`Store.append(..., expected_seq=...)`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from msgspec.structs import replace

from metta.sweep.controller.decide import Decision, reported_by_last_job
from metta.sweep.errors import ConfigError, NotFoundError
from metta.sweep.model import events as ev
from metta.sweep.model.run import JobStatus, JobType, Outcome, RunInfo
from metta.sweep.model.run_transitions import REQUEUED_FROM
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepConfig, SweepMetadata, SweepStatus


def roll_back(state: SweepState, count: int, reason: str) -> list[Decision]:
    """Take back the `count` runs that ended last, fewer where there are fewer; `count` is at least 1."""
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    ended = [run for run in state.runs.values() if run.status.ended and run.undone is None]
    chosen = sorted(ended, key=lambda run: (run.ended_at or 0.0, run.index))[-count:]
    kept = {run.run_id: run for run in state.runs.values()}
    for run in chosen:
        del kept[run.run_id]
    best = _best(kept.values(), state.sweep.config)
    body = ev.RunRolledBack(
        reason=reason,
        best_run_id=best.run_id if best is not None else None,
        best_score=best.score if best is not None else None,
    )
    return [Decision(body=body, run_id=run.run_id) for run in reversed(chosen)]


def restore(state: SweepState, reason: str) -> list[Decision]:
    """Undo the latest rollback that is still in force."""
    undone = [run for run in state.runs.values() if run.undone is not None]
    latest = max((run.undone.at for run in undone if run.undone is not None), default=None)
    decisions: list[Decision] = []
    for run in sorted(undone, key=lambda run: run.index):
        assert run.undone is not None
        if run.undone.at == latest:
            # First its score, in case another one counts by now: restored, it may be the best.
            before = replace(run, status=run.undone.status, score=run.undone.score)
            decisions += _rescored(before, state.sweep.config, "the sweep was amended while it was rolled back")
            decisions.append(Decision(body=ev.RunRestored(reason=reason), run_id=run.run_id))
    return decisions


def amend(state: SweepState, changes: Mapping[str, Any]) -> list[Decision]:
    """Change what is searched; results are judged anew where what counts has changed.

    Args:
        state: The sweep.
        changes: Fields of `AMENDABLE` with their new values, in JSON's terms.

    Raises:
        ConfigError: the metric would change, and runs have come to levels of which only the old one is known.
    """
    config = msgspec.convert({**msgspec.to_builtins(state.sweep.config), **changes}, SweepConfig)
    _check_metric(state, config)
    reason = f"the sweep was amended: {', '.join(sorted(changes))}"
    runs = dict(state.runs)
    decisions: list[Decision] = []
    for run in sorted(state.runs.values(), key=lambda run: run.index):
        for decision in _rescored(run, config, reason):
            decisions.append(decision)
            assert isinstance(decision.body, ev.RunRescored)
            if run.status is not JobStatus.STOPPED and _has_result(run, config):
                status = JobStatus.FAILED if decision.body.score is None else JobStatus.COMPLETED
                runs[run.run_id] = replace(run, status=status, score=decision.body.score)
    best = _best(runs.values(), config)
    body = ev.SweepAmended(
        changes=dict(changes),
        best_run_id=best.run_id if best is not None else None,
        best_score=best.score if best is not None else None,
    )
    return [*decisions, Decision(body=body)]


def _check_metric(state: SweepState, config: SweepConfig) -> None:
    before = state.sweep.config.metric
    if config.metric != before and any(run.rungs for run in state.runs.values()):
        raise ConfigError(
            f"metric: cannot change from {before!r} to {config.metric!r} once runs have come to levels of the "
            f"fidelity, since what they had reached there is known of {before!r} alone; start another sweep with "
            "--name NAME"
        )


def _rescored(run: RunInfo, config: SweepConfig, reason: str) -> list[Decision]:
    """The event that gives a run the score it has under this configuration, if it has another one."""
    if run.status not in {JobStatus.COMPLETED, JobStatus.STOPPED, JobStatus.FAILED}:
        return []
    if run.status is not JobStatus.STOPPED and _has_result(run, config):
        before, score = run.score, run.metrics[config.metric] if config.metric in reported_by_last_job(run) else None
    else:
        before, score = run.partial_score, run.metrics.get(config.metric)
    if score == before:
        return []
    if score is None:
        reason = f"{reason}; the run did not report {config.metric!r}"
    return [Decision(body=ev.RunRescored(reason=reason, score=score), run_id=run.run_id)]


def _has_result(run: RunInfo, config: SweepConfig) -> bool:
    """Whether the run went through to its end, whatever it reported."""
    final = JobType.TRAIN if config.evaluate is None else JobType.EVAL
    return bool(run.jobs) and run.jobs[-1].outcome is Outcome.SUCCEEDED and run.jobs[-1].type is final


def _best(runs: Iterable[RunInfo], config: SweepConfig) -> RunInfo | None:
    """The best completed run; of equal ones the one that was there first."""
    sign = 1.0 if config.direction == "maximize" else -1.0

    def rank(run: RunInfo) -> tuple[float, float, int]:
        assert run.score is not None
        return sign * run.score, -(run.ended_at or 0.0), -run.index

    scored = (run for run in runs if run.status is JobStatus.COMPLETED and run.score is not None)
    return max(scored, key=rank, default=None)


def resume_sweep(sweep: SweepMetadata, changes: Mapping[str, Any]) -> list[Decision]:
    """Let a sweep go on that is paused or has ended, or change its limits; nothing when it goes on as it is."""
    if sweep.status is SweepStatus.STOPPING:
        raise ConfigError(
            f"sweep {sweep.sweep_id} is being stopped; bring it to its end with: metta sweep stop {sweep.sweep_id}"
        )
    if not changes and sweep.status is SweepStatus.RUNNING:
        return []
    return [Decision(body=ev.SweepResumed(changes=dict(changes)))]


def resume_run(sweep: SweepMetadata, run: RunInfo, checkpoint: int | None) -> list[Decision]:
    """Try a run again that failed or was cancelled, from its last checkpoint or the one of that step.

    One that was stopped, or waits at a level, goes on from there to its end, whatever the search thinks of it.

    Raises:
        NotFoundError: it has no such checkpoint.
        ConfigError: it is not over, or has its result.
    """
    steps = [str(each.step) for each in run.checkpoints]
    if checkpoint is not None and str(checkpoint) not in steps:
        raise NotFoundError(
            f"run {run.run_id} has no checkpoint of step {checkpoint}; it has: {', '.join(steps) or 'none'}"
        )
    if run.status not in REQUEUED_FROM:
        *others, last = sorted(REQUEUED_FROM)
        raise ConfigError(f"run {run.run_id} is {run.status}; only {', '.join(others)} and {last} runs can be resumed")
    body = ev.RunRequeued(reason="the user asked", checkpoint=checkpoint)
    return [*resume_sweep(sweep, {}), Decision(body=body, run_id=run.run_id)]
