"""Several dispatchers as one: where the first fails or is full, the next one steps in."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec

from metta.sweep.dispatchers.circuit import CircuitBreaker, CircuitState
from metta.sweep.dispatchers.composite import CompositeDispatcher, ask, combined_standing, with_room
from metta.sweep.dispatchers.offers import Offers
from metta.sweep.errors import DispatchError
from metta.sweep.model.run import JobDefinition, Outcome
from metta.sweep.protocols import Clock, Dispatcher, Placement, Standing

logger = logging.getLogger(__name__)


class FallbackDispatcher(CompositeDispatcher):
    """See `protocols.Dispatcher`. A job goes to the first member that takes it.

    No job goes to two. Before a job is offered to a member, that is written down (`Offers`); who may have a job is
    asked before anybody else is offered it; and while that one does not answer, the job waits. This holds as far as
    members keep to their part: once a `dispatch` has failed, `standing` says LOST only when the job can't come to them
    any more by that call.

    A member that fails again and again is left alone for a while (`CircuitBreaker`).

    Args:
        members: In the order in which they are tried.
        clock: The time.
        directory: The sweep's folder; what is offered is kept there.
    """

    def __init__(self, members: Sequence[Dispatcher], clock: Clock, directory: str) -> None:
        super().__init__(members)
        names = [member.name for member in members]
        self.name = f"fallback({', '.join(names)})"
        self._members = [
            # Two members of one kind, such as two clusters, have the same name.
            _Member(dispatcher=member, key=_key(names, position), circuit=CircuitBreaker(clock))
            for position, member in enumerate(members)
        ]
        self._offers = Offers(directory)
        #: Doubts that were told: a job, and the key of the member that may have it.
        self._told: set[tuple[str, str]] = set()

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        """See `Dispatcher.dispatch`.

        Raises:
            DispatchError: no job was placed, and all members fail, or it is news that one may have jobs or not. Where
                jobs were placed, their reasons tell of the members that failed.
        """
        self._offers.refresh()
        batch = _Batch(waiting={job.job_id: job for job in jobs})
        self._find_earlier(batch)
        failed = 0
        for member in self._members:
            if not batch.waiting:
                break
            try:
                self._offer(member, batch)
            except DispatchError as error:
                failed += 1
                batch.reasons.append(f"{member.dispatcher.name}: {error}")
        have_all_failed = failed == len(self._members) and batch.waiting
        if not batch.placed and (have_all_failed or batch.doubts):
            # Each doubt once: a failure keeps the controller from offering other jobs for a while.
            self._told |= batch.doubtful
            raise DispatchError("; ".join([*batch.reasons, *batch.doubts]))
        return batch.placed

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        """See `Dispatcher.standing`: asks those who may have the job, or all members where nothing is written of it."""
        try:
            self._offers.refresh()
        except DispatchError:
            return dict.fromkeys(job_ids, Standing.UNKNOWN)
        return combined_standing(job_ids, self._members, _ask, self._may_have)

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        """See `Dispatcher.cancel`."""
        for member in self._members:
            if concerned := [job_id for job_id in job_ids if self._may_have(member, job_id)]:
                try:
                    member.dispatcher.cancel(concerned, outcome, reason)
                except DispatchError as error:
                    # Jobs of the other members are to end all the same.
                    logger.warning("%s: jobs cannot be cancelled just now: %s", member.dispatcher.name, error)

    def _may_have(self, member: _Member, job_id: str) -> bool:
        holders = self._offers.holders(job_id)
        return holders is None or member.key in holders

    # ------------------------------------------------------------------------------------------------------ dispatch

    def _find_earlier(self, batch: _Batch) -> None:
        """Take jobs out of the batch that are somewhere already, or may be."""
        offered = {job_id: holders for job_id in batch.waiting if (holders := self._offers.holders(job_id))}
        doubtful: set[str] = set()
        for member in self._members:
            asked = [job_id for job_id, holders in offered.items() if member.key in holders]
            standings = _ask(member, asked) if asked else {}
            self._sort(member, batch, standings, "it was there already")
            doubtful |= _those(standings, Standing.UNKNOWN)
        for job_id in doubtful:
            batch.waiting.pop(job_id, None)

    def _sort(self, member: _Member, batch: _Batch, standings: Mapping[str, Standing], reason: str) -> None:
        """Place what the member has, and tell of what it may have; note what it has not."""
        placement = Placement(dispatcher=member.dispatcher.name, reasons=(*batch.reasons, reason))
        for job_id in _those(standings, Standing.KNOWN):
            batch.place(job_id, placement)
        self._offers.decline(_those(standings, Standing.LOST), member.key)
        untold = {(job_id, member.key) for job_id in _those(standings, Standing.UNKNOWN)} - self._told
        if untold:
            batch.doubtful |= untold
            names = ", ".join(sorted(job_id for job_id, _ in untold))
            batch.doubts.append(
                f"{member.dispatcher.name} may have {names} or not; nobody else is given them until it answers"
            )

    def _offer(self, member: _Member, batch: _Batch) -> None:
        """Give the member what waits and fits.

        Raises:
            DispatchError: it takes no jobs now, for another reason than want of room.
        """
        if member.circuit.state is CircuitState.OPEN:
            raise DispatchError(member.why_not)
        # A member that is silent before it is offered anything leaves no doubt about who has the job.
        standings = _ask(member, list(batch.waiting))
        known = _those(standings, Standing.KNOWN)
        if known:
            self._offers.record(known, member.key)
            self._sort(member, batch, dict.fromkeys(known, Standing.KNOWN), "it was there already")
        lost = _those(standings, Standing.LOST)
        if not (known or lost):
            raise DispatchError(member.why_not)
        try:
            fitting = with_room(member.dispatcher, [job for job in batch.waiting.values() if job.job_id in lost])
        except DispatchError as error:
            member.fail(str(error))
            raise DispatchError(member.why_not) from error
        if fitting:
            if not member.circuit.permits():
                raise DispatchError(member.why_not)
            self._dispatch_to(member, fitting, batch)
        if batch.waiting:
            batch.reasons.append(f"{member.dispatcher.name}: no room")

    def _dispatch_to(self, member: _Member, jobs: Sequence[JobDefinition], batch: _Batch) -> None:
        job_ids = [job.job_id for job in jobs]
        self._offers.record(job_ids, member.key)
        try:
            placements = member.dispatcher.dispatch(jobs)
        except DispatchError as error:
            member.fail(str(error))
            standings, _ = ask(member.dispatcher, job_ids)  # however open the circuit is: much hangs on the answer
            self._sort(member, batch, standings, f"it is there, though {member.dispatcher.name} said: {error}")
            for job_id in _those(standings, Standing.UNKNOWN):
                del batch.waiting[job_id]
            raise DispatchError(member.why_not) from error
        member.circuit.succeed()
        for job_id, placement in placements.items():
            reasons = (*batch.reasons, *placement.reasons)
            batch.place(job_id, Placement(dispatcher=placement.dispatcher, reasons=reasons))
        self._offers.decline((job_id for job_id in job_ids if job_id not in placements), member.key)


class _Batch(msgspec.Struct):
    """Jobs on their way through the members."""

    #: Still to be placed, by id, in the order in which they came.
    waiting: dict[str, JobDefinition]
    placed: dict[str, Placement] = {}
    #: Why the members asked so far did not take those that wait.
    reasons: list[str] = []
    #: Which jobs are left out because somebody may have them, where that has not been told: in words, and with whom.
    doubts: list[str] = []
    doubtful: set[tuple[str, str]] = set()

    def place(self, job_id: str, placement: Placement) -> None:
        if self.waiting.pop(job_id, None) is not None:
            self.placed[job_id] = placement


class _Member(msgspec.Struct):
    dispatcher: Dispatcher
    #: What it is called in the offers.
    key: str
    circuit: CircuitBreaker
    #: What went wrong last.
    failure: str = ""
    was_silent: bool = False

    def fail(self, reason: str) -> None:
        self.failure = reason
        self.circuit.fail()

    @property
    def why_not(self) -> str:
        """Why it gets no jobs now."""
        remaining_s = self.circuit.remaining_s
        return f"{self.failure}; circuit open for {remaining_s:.0f} s" if remaining_s else self.failure


def _key(names: Sequence[str], position: int) -> str:
    earlier = names[:position].count(names[position])
    return f"{names[position]}#{earlier + 1}" if earlier else names[position]


def _ask(member: _Member, job_ids: Sequence[str]) -> dict[str, Standing]:
    """What the member knows of each job. Nothing of any is silence, which is a failure."""
    if member.circuit.state is CircuitState.OPEN:
        return dict.fromkeys(job_ids, Standing.UNKNOWN)  # each question to one who is silent waits for its time-out
    standings, silence = ask(member.dispatcher, job_ids)
    if silence is not None:
        member.fail(silence)
    elif member.was_silent:
        member.circuit.succeed()
    member.was_silent = silence is not None
    return standings


def _those(standings: Mapping[str, Standing], wanted: Standing) -> set[str]:
    return {job_id for job_id, standing in standings.items() if standing is wanted}
