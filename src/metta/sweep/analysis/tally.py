"""What has come of a sweep so far, in figures that are kept up with its events: the live views show them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from metta.sweep.analysis.comparable import in_order_of_end
from metta.sweep.analysis.curve import Curve, curve_of, extended
from metta.sweep.model.events import Event, SweepAmended
from metta.sweep.model.run import FailureKind, JobStatus, RunInfo
from metta.sweep.model.state import SweepState

#: Runs that ended last, of which more than one screen is not needed.
_RECENT = 50


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Figures over all runs; by `updated` they cost no more the more runs have ended."""

    #: How it came to its best score.
    curve: Curve = Curve()
    #: Attempts that failed, by what the failure is put down to; None stands for runs whose jobs ended well, without a
    #: result that counts.
    failures: Mapping[FailureKind | None, int] = {}
    #: Runs that ended last, the latest at the end, as they were then.
    recent: tuple[RunInfo, ...] = ()


def tally(state: SweepState) -> Tally:
    """The figures of a sweep, from all its runs."""
    runs = list(state.runs.values())
    return Tally(
        curve=curve_of(state.sweep.config, runs),
        failures=failures_of(runs),
        recent=tuple(in_order_of_end(runs)[-_RECENT:]),
    )


def updated(known: Tally, before: SweepState, state: SweepState, events: Sequence[Event]) -> Tally:
    """The figures after `events`, which led from the state before to this one."""
    touched = dict.fromkeys(event.run_id for event in events if event.run_id is not None)
    past = [run for run_id in touched if (run := before.runs.get(run_id)) is not None]
    is_amended = any(isinstance(event.body, SweepAmended) for event in events)
    if is_amended or any(run.status.ended and _result(run) != _result(state.runs[run.run_id]) for run in past):
        return tally(state)
    runs = [state.runs[run_id] for run_id in touched]
    failures = Counter(known.failures)
    failures.update(failures_of(runs))
    failures.subtract(failures_of(past))
    had_ended = {run.run_id for run in past if run.status.ended}
    ended = in_order_of_end(run for run in runs if run.run_id not in had_ended)
    return Tally(
        curve=extended(known.curve, state.sweep.config, ended),
        failures=+failures,
        recent=(*known.recent, *ended)[-_RECENT:],
    )


def _result(run: RunInfo) -> tuple[object, ...]:
    """What does not change once a run has ended, but where something is taken back or was told late."""
    return run.status, run.score, run.cost, run.ended_at


def failures_of(runs: Iterable[RunInfo]) -> Counter[FailureKind | None]:
    """Attempts of these runs that failed, by what the failure is put down to; see `Tally`."""
    failures: Counter[FailureKind | None] = Counter()
    for run in runs:
        kinds = [job.failure for job in run.jobs if job.failure is not None]
        failures.update(kinds)
        failures[None] += run.status is JobStatus.FAILED and not kinds
    return +failures


def last_failures_of(runs: Iterable[RunInfo]) -> Counter[FailureKind | None]:
    """Runs that have failed, by what the last failed attempt of each is put down to; None as in `Tally`."""
    return Counter(next((job.failure for job in reversed(run.jobs) if job.failure is not None), None) for run in runs)
