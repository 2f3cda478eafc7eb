"""Finds what is inconsistent in a sweep's state, and says by which events it is mended; pure, like `decide`.

`consistency` knows what must hold of a run by itself. Here it is put together with the world: what the dispatcher
holds, when agents were heard of last, whether a controller is at work.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from metta.sweep.controller.consistency import Flaw, IssueKind, flaws_of
from metta.sweep.controller.decide import Decision
from metta.sweep.model import events as ev
from metta.sweep.model.run import FailureKind, JobInfo, JobState, JobStatus, RunInfo
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepMetadata, SweepStatus
from metta.sweep.model.waiting import WaitsFor
from metta.sweep.protocols import Heartbeat

#: Sums of floating-point numbers in another order differ by so much.
_ROUNDING = 1e-6


class Issue(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it should be."""

    kind: IssueKind
    #: In one line, for people.
    problem: str
    #: What mends it, or why nothing does it automatically.
    remedy: str
    run_id: str | None = None
    job_id: str | None = None
    #: Whether something is wrong, or only worth knowing.
    is_serious: bool = True
    #: Events that mend it.
    repairs: tuple[Decision, ...] = ()
    #: Jobs that the dispatcher is to cancel, because the log knows nothing of them.
    cancels: tuple[str, ...] = ()


class StateValidator(msgspec.Struct, frozen=True, kw_only=True):
    """Detects inconsistent states and says how they are mended. Times are in seconds."""

    #: A job that was granted is handed over within this time.
    dispatch_within_s: float = 60.0
    #: So long after a failure it is decided whether the run is tried again.
    decide_within_s: float = 60.0
    #: An agent that was not heard of for so long is silent. What the dispatcher doesn't know then is lost.
    heartbeat_within_s: float = 60.0
    #: Where no dispatcher can be asked, jobs of an agent that was silent for so long are lost.
    give_up_after_s: float = 900.0
    #: Clocks of several machines may differ by this.
    clock_tolerance_s: float = 60.0

    def validate_run_state(self, run: RunInfo, metric: str | None = None) -> list[str]:
        """What is inconsistent in the run by itself, in words; all of it is what `auto_fix_states` mends.

        Args:
            run: The run.
            metric: The sweep's metric, from which a missing score is taken.
        """
        return [flaw.problem for flaw in flaws_of(run, metric)]

    def auto_fix_states(self, run: RunInfo, metric: str | None = None) -> RunInfo:
        """The run without its inconsistencies; arguments as of `validate_run_state`."""
        flaws = flaws_of(run, metric)
        return flaws[-1].after if flaws else run

    def check(
        self,
        state: SweepState,
        *,
        now: float,
        heartbeats: Iterable[Heartbeat] | None = None,
        held: Sequence[str] | None = None,
        controlled: bool,
    ) -> list[Issue]:
        """All that is wrong with a sweep, its finished runs and its totals included.

        Args:
            state: The fold of its log.
            now: Seconds since the epoch.
            heartbeats: The last sign of life of each agent; None where they are not known, so that no job is lost.
            held: Ids of all jobs that the dispatcher runs, keeps waiting or has not yet reported the end of, as it said
                before the state was read; None where it could not be asked.
            controlled: Whether a controller is at work.
        """
        world = _World(self, state, now=now, heartbeats=heartbeats, held=held, controlled=controlled)
        runs = sorted(state.runs.values(), key=lambda run: run.index)
        issues = [issue for run in runs for issue in world.issues_of(run)]
        return [*issues, *world.stray_jobs(), *world.clocks(), *_totals(state), *_best(state), *_lineage(state)]

    def check_unfinished(
        self,
        state: SweepState,
        *,
        now: float,
        heartbeats: Iterable[Heartbeat] | None = None,
        held: Sequence[str] | None = None,
        controlled: bool = True,
        sound: SweepState | None = None,
    ) -> list[Issue]:
        """As `check`, of unfinished runs alone: what a controller does at each step must not grow with what is done.

        With `sound`, an earlier state in which nothing was wrong, runs that are as they were then are not looked
        through again; thousands may be paused.
        """
        world = _World(self, state, now=now, heartbeats=heartbeats, held=held, controlled=controlled, sound=sound)
        runs = sorted(world.doubtful(), key=lambda run: run.index)
        return [*(issue for run in runs for issue in world.issues_of(run)), *world.stray_jobs()]


class _World:
    """A sweep's state among the facts that it is compared with."""

    def __init__(
        self,
        limits: StateValidator,
        state: SweepState,
        *,
        now: float,
        heartbeats: Iterable[Heartbeat] | None,
        held: Sequence[str] | None,
        controlled: bool,
        sound: SweepState | None = None,
    ) -> None:
        self._limits = limits
        # Another configuration may find fault with the same runs.
        is_same = sound is not None and sound.sweep.config is state.sweep.config
        self._sound: Mapping[str, RunInfo] = sound.runs if sound is not None and is_same else {}
        self._state = state
        self._now = now
        self._beats = None if heartbeats is None else {beat.host: beat.at for beat in heartbeats}
        self._held = None if held is None else frozenset(held)
        self._controlled = controlled
        self._is_paused = state.sweep.status is SweepStatus.PAUSED

    def doubtful(self) -> list[RunInfo]:
        """Unfinished runs with which something may be wrong: time alone does nothing to those that are paused."""
        return [
            run
            for run_id, waits_for in self._state.unfinished.items()
            if (run := self._state.runs[run_id]) is not self._sound.get(run_id) or waits_for is not WaitsFor.PROMOTION
        ]

    def issues_of(self, run: RunInfo) -> Iterator[Issue]:
        sweep = self._state.sweep
        was_sound = self._sound.get(run.run_id) is run
        flaws = [] if was_sound else flaws_of(run, sweep.config.metric, is_over=sweep.status.ended)
        yield from map(_flawed, flaws)
        run = flaws[-1].after if flaws else run
        if run.status.ended:
            return
        job = run.open_job
        if job is None:
            yield from self._undecided(run)
        elif job.state is JobState.GRANTED:
            yield from self._not_dispatched(run, job)
        else:
            yield from self._lost(run, job)

    def _undecided(self, run: RunInfo) -> Iterator[Issue]:
        failed_at = run.jobs[-1].ended_at if run.jobs else None
        if run.status is not JobStatus.RETRYING or run.retry_at is not None or failed_at is None:
            return
        if (waited_s := self._now - failed_at) > self._limits.decide_within_s:
            yield Issue(
                kind=IssueKind.UNDECIDED,
                problem=f"its last job failed {waited_s:.0f} s ago, and nobody has decided what follows",
                remedy=self._left_to_controller("decides"),
                run_id=run.run_id,
                is_serious=self._controlled,
            )

    def _not_dispatched(self, run: RunInfo, job: JobInfo) -> Iterator[Issue]:
        if (waited_s := self._now - job.granted_at) <= self._limits.dispatch_within_s:
            return
        refusals = self._state.sweep.dispatch_failures
        because = f"; the dispatcher refused {refusals} times in a row" if refusals else ""
        is_known = self._held is not None and job.job_id in self._held
        yield Issue(
            kind=IssueKind.NOT_DISPATCHED,
            problem=f"job granted {waited_s:.0f} s ago and not dispatched, as far as the log tells{because}",
            remedy="the dispatcher has it; what happens to it will be in the log"
            if is_known
            else self._left_to_controller("offers it to the dispatcher again"),
            run_id=run.run_id,
            job_id=job.job_id,
            is_serious=self._controlled and not self._is_paused and not is_known,
        )

    def _left_to_controller(self, does: str) -> str:
        if self._controlled:
            return f"the controller {does} at each step; where it does not, its log says why"
        return f"the next controller {does} when it starts"

    def _lost(self, run: RunInfo, job: JobInfo) -> Iterator[Issue]:
        """Certain is a loss when the dispatcher answers, doesn't know the job, and no agent beside it can tell either.

        Where nobody can be asked, only a long silence counts: an agent may have lost the way to the store alone.
        """
        if self._beats is None:
            return
        known_since = job.granted_at if job.started_at is None else job.started_at
        silent_s = self._now - max(self._beats.get(job.host or "", known_since), known_since)
        if silent_s <= self._limits.heartbeat_within_s:
            return
        where = f" on {job.host}" if job.host else ""
        if self._held is not None and job.job_id not in self._held:
            reason = f"the dispatcher does not know it, and its agent{where} was silent for {silent_s:.0f} s"
        elif self._held is None and job.state is JobState.RUNNING and silent_s > self._limits.give_up_after_s:
            reason = f"its agent{where} was silent for {silent_s:.0f} s"
        else:
            if job.state is JobState.RUNNING:
                yield self._silent(run, job, silent_s)
            return
        body = ev.JobLost(reason=reason, failure=FailureKind.NODE_LOST)
        yield Issue(
            kind=IssueKind.JOB_LOST,
            problem=f"job is {job.state}, but {reason}",
            remedy="the job is given up as lost; the retry policy says what follows",
            run_id=run.run_id,
            job_id=job.job_id,
            repairs=(Decision(body=body, run_id=run.run_id, job_id=job.job_id),),
        )

    def _silent(self, run: RunInfo, job: JobInfo, silent_s: float) -> Issue:
        return Issue(
            kind=IssueKind.SILENT_AGENT,
            problem=f"job is running, but its agent on {job.host} was silent for {silent_s:.0f} s",
            remedy="the dispatcher still has it: the agent hangs, or can't reach the store and delivers later"
            if self._held is not None
            else f"nothing is concluded before {self._limits.give_up_after_s:.0f} s of silence; look at {job.host}",
            run_id=run.run_id,
            job_id=job.job_id,
        )

    def stray_jobs(self) -> Iterator[Issue]:
        """Jobs that run although the log has given them up, or never heard of them."""
        if not self._held:
            return
        runs = (self._state.runs[run_id] for run_id in self._state.unfinished)
        known = {job.job_id for run in runs if (job := run.open_job) is not None}
        for job_id in sorted(self._held - known):
            yield Issue(
                kind=IssueKind.STRAY_JOB,
                problem="the dispatcher runs a job that is over, or unknown, as far as the log tells",
                remedy="the dispatcher cancels it; what it reports would be refused anyway",
                job_id=job_id,
                cancels=(job_id,),
            )

    def clocks(self) -> Iterator[Issue]:
        """Clocks that differ by more than may be, from this machine's or from the controller's."""
        early: dict[str, list[float]] = {}
        for run in self._state.runs.values():
            for job in run.jobs:
                if job.started_at is not None and job.granted_at - job.started_at > self._limits.clock_tolerance_s:
                    early.setdefault(job.host or "unknown", []).append(job.granted_at - job.started_at)
        for host, times in sorted(early.items()):
            yield _clock(f"{len(times)} jobs on {host} started before they were granted, up to {max(times):.0f} s")
        for host, at in sorted((self._beats or {}).items()):
            if (ahead_s := at - self._now) > self._limits.clock_tolerance_s:
                yield _clock(f"the clock of {host} is {ahead_s:.0f} s ahead of this machine's")


def _flawed(flaw: Flaw) -> Issue:
    repair = flaw.repair
    changes = [
        f"{name} {repair.before[name]} -> {value}" if isinstance(value, str | int | float | None) else f"{name} mended"
        for name, value in repair.after.items()
    ]
    run_id = flaw.before.run_id
    return Issue(
        kind=flaw.kind,
        problem=flaw.problem,
        remedy=", ".join(changes),
        run_id=run_id,
        repairs=(Decision(body=repair, run_id=run_id),),
    )


def _clock(problem: str, run_id: str | None = None, job_id: str | None = None) -> Issue:
    return Issue(
        kind=IssueKind.CLOCK,
        problem=problem,
        remedy="durations across machines are off by that much; let NTP set the clocks",
        run_id=run_id,
        job_id=job_id,
        is_serious=False,
    )


def clocks_set_back(times: Iterable[tuple[str, int, float]], tolerance_s: float) -> list[Issue]:
    """Clocks that went back by more than the tolerance, from the actor, number and time of each event of a log."""
    latest: dict[str, float] = {}
    jumps: dict[str, list[tuple[int, float]]] = {}
    for actor, seq, at in times:
        if (back_s := latest.get(actor, at) - at) > tolerance_s:
            jumps.setdefault(actor, []).append((seq, back_s))
        latest[actor] = at
    return [
        _clock(f"the clock of {actor} went back by {back_s:.0f} s before event {seq}" + _and_again(len(found) - 1))
        for actor, found in jumps.items()
        for seq, back_s in found[:1]
    ]


def _and_again(times: int) -> str:
    return f", and {times} times after it" if times else ""


# -------------------------------------------------------------------------------------------------------------- totals


def _totals(state: SweepState) -> Iterator[Issue]:
    """Sums that the fold keeps along the way, against those over all runs."""
    sweep, runs = state.sweep, list(state.runs.values())
    counts = dict(Counter(run.status for run in runs))
    if counts != sweep.counts:
        yield _wrong_total(f"runs by status are counted as {_counted(sweep.counts)}; there are {_counted(counts)}")
    cost = math.fsum(run.cost for run in runs)
    if not math.isclose(cost, sweep.cost, rel_tol=_ROUNDING, abs_tol=_ROUNDING):
        yield _wrong_total(f"cost is {sweep.cost:.6g} s; that of the runs adds up to {cost:.6g} s")
    if {run.run_id for run in runs if not run.status.ended} != set(state.unfinished):
        yield _wrong_total(f"{len(state.unfinished)} runs count as unfinished, which are not those that are")
    if sorted(run.index for run in runs) != list(range(len(runs))):
        yield _wrong_total(f"the indices of {len(runs)} runs are not 0 to {len(runs) - 1}")
    if sweep.status.ended != (sweep.ended_at is not None):
        yield _wrong_total(f"the sweep is {sweep.status}, and the time of its end is {sweep.ended_at}")
    job_ids = Counter(job.job_id for run in runs for job in run.jobs)
    if double := [job_id for job_id, count in job_ids.items() if count > 1]:
        yield _wrong_total(f"several jobs have one id: {', '.join(sorted(double)[:5])}")


def _counted(counts: Mapping[JobStatus, int]) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "none"


def _wrong_total(problem: str) -> Issue:
    remedy = "no event mends it: the log itself says so, or the fold has a fault; please report it"
    return Issue(kind=IssueKind.TOTALS, problem=problem, remedy=remedy)


def _best(state: SweepState) -> Iterator[Issue]:
    """The sweep's best run, as it will be when the runs are mended."""
    sweep = expected = state.sweep
    sign = 1.0 if sweep.config.direction == "maximize" else -1.0
    scores: dict[str, float] = {}
    for run in state.runs.values():
        for flaw in flaws_of(run, sweep.config.metric, is_over=sweep.status.ended):
            run = flaw.after  # noqa: PLW2901 (one repair after the other, as the fold will meet them)
            expected = _best_after(expected, run)
        if (score := _score(run)) is not None:
            scores[run.run_id] = score
    best_id = max(scores, key=lambda run_id: (sign * scores[run_id], -state.runs[run_id].index), default=None)
    best = None if best_id is None else scores[best_id]
    claimed = None if expected.best_run_id is None else scores.get(expected.best_run_id)
    if (claimed, expected.best_score) == (best, best):
        return
    yield Issue(
        kind=IssueKind.BEST,
        problem=f"the best run is given as {sweep.best_run_id} with {sweep.best_score}; it is {best_id} with {best}",
        remedy="the best run is set anew",
        run_id=best_id,
        repairs=(Decision(body=ev.SweepAmended(changes={}, best_run_id=best_id, best_score=best)),),
    )


def _score(run: RunInfo) -> float | None:
    return run.score if run.status is JobStatus.COMPLETED else None


def _best_after(sweep: SweepMetadata, run: RunInfo) -> SweepMetadata:
    """What the fold makes of the best run when it meets this one."""
    score = _score(run)
    if score is None or not sweep.is_better(score):
        return sweep
    return msgspec.structs.replace(sweep, best_run_id=run.run_id, best_score=score)


def _lineage(state: SweepState) -> Iterator[Issue]:
    """Runs that go on from others, which must have been there before them."""
    for run in sorted(state.runs.values(), key=lambda run: run.index):
        others = () if run.parent is None else (run.parent.run_id, run.parent.replaces)
        for other in sorted({other for other in others if not _is_older(state, other, run)}):
            yield Issue(
                kind=IssueKind.LINEAGE,
                problem=f"it comes after run {other}, which is no earlier run of the sweep",
                remedy="no event mends it: the log itself says so; please report it",
                run_id=run.run_id,
            )


def _is_older(state: SweepState, run_id: str, than: RunInfo) -> bool:
    known = state.runs.get(run_id)
    return known is not None and known.index < than.index
