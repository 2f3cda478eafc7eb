"""What has become of a population: who came to which level, what each left there, and whose run has failed."""

from __future__ import annotations

from collections.abc import Sequence

from metta.sweep.model.run import Checkpoint, JobStatus, Outcome, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.trail import Trail
from metta.sweep.schedulers.standings import Arrival, Standings

#: Runs that no longer stand for what they had reached: they are replaced, and nobody goes on from their checkpoints.
DISOWNED = frozenset({JobStatus.FAILED, JobStatus.ROLLED_BACK})
#: A member that has failed so often in a row is given up: copies that cannot be loaded would fail for ever.
_MOST_FAILURES = 3


class Population:
    """The members of a sweep's population, kept up with what changes in it: only a cache, a new one comes to the same.

    A member is a series of runs. Its first, a founder, has no parent; each of the others takes the place of the one
    before it.
    """

    def __init__(self) -> None:
        self._standings = Standings(lambda _: 0)
        self._trail: Trail | None = None
        self._forget()

    def _forget(self) -> None:
        self._known: set[str] = set()
        self._replaced: set[str] = set()
        self._lost: set[str] = set()
        self._arrivals: dict[int, list[Arrival]] = {}
        self._positions: dict[tuple[int, str], int] = {}
        #: Number of runs without a parent.
        self.founders = 0

    def keep_up(self, state: SweepState) -> None:
        """Take in what is new."""
        changed = None if state.trail is None or self._trail is None else state.trail.since(self._trail)
        arrivals, is_anew = self._standings.keep_up(state)
        if changed is None or is_anew:
            self._forget()
            self._standings = Standings(lambda _: 0)
            arrivals, _ = self._standings.keep_up(state)
            changed = [] if state.trail is None else state.trail.since(None) or []
        self._trail = state.trail
        for arrival in arrivals:
            level = self._arrivals.setdefault(arrival.number, [])
            self._positions[arrival.number, arrival.run.run_id] = len(level)
            level.append(arrival)
        for run_id in changed:
            self._take(state.runs[run_id])
        self._lost -= self._replaced

    def _take(self, run: RunInfo) -> None:
        if run.run_id not in self._known:
            self._known.add(run.run_id)
            self.founders += run.parent is None
            if run.parent is not None:
                self._replaced.add(run.parent.replaces)
        if run.status in DISOWNED:
            self._lost.add(run.run_id)
        else:
            self._lost.discard(run.run_id)

    def lost(self, state: SweepState) -> list[RunInfo]:
        """The runs that have failed for good or were rolled back, and in whose place somebody is to be."""
        return [run for run_id in self._lost if not _is_given_up(state, run := state.runs[run_id])]

    def arrivals_at(self, number: int) -> Sequence[Arrival]:
        """Who has come to the level of this number, in that order."""
        return self._arrivals.get(number, [])

    def position(self, run: RunInfo, number: int) -> int | None:
        """How many had come to the level before the run; None where it has not come there itself."""
        return self._positions.get((number, run.run_id))


def _is_given_up(state: SweepState, run: RunInfo) -> bool:
    for _ in range(_MOST_FAILURES - 1):
        if run.status is not JobStatus.FAILED or run.parent is None:
            return False
        run = state.runs[run.parent.replaces]
    return run.status is JobStatus.FAILED


def has_paused_at(run: RunInfo, level: float) -> bool:
    """Whether the job of the run that brought it to this level has ended there."""
    end = _end_of_job(run, level)
    return any(job.until == end and job.outcome is Outcome.PAUSED for job in run.jobs)


def is_on_its_way_to(run: RunInfo, level: float) -> bool:
    """Whether the run's last job is to end at this level, or at one before that it told of together with this one."""
    return run.jobs[-1].until == _end_of_job(run, level)


def checkpoint_at(run: RunInfo, level: float) -> Checkpoint | None:
    """The last that the run had saved when it paused at the level; None where that is no more, or there was none."""
    end = _end_of_job(run, level)
    earlier: set[str] = set()
    for job in run.jobs:
        earlier.add(job.job_id)
        if job.until == end and job.outcome is Outcome.PAUSED:
            return next((each for each in reversed(run.checkpoints) if each.job_id in earlier), None)
    return None


def _end_of_job(run: RunInfo, level: float) -> float:
    """Where the job was to end that brought the run to this level: a run that reports seldom comes to several at once.

    The lowest of those that came with one report, since jobs end at the next level.
    """
    seq = next((rung.seq for rung in run.rungs if rung.level == level), None)
    return next((rung.level for rung in run.rungs if rung.seq == seq), level)
