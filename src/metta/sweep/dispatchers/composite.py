"""What dispatchers made of dispatchers have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TypeVar

from metta.sweep.errors import DispatchError
from metta.sweep.model.run import JobDefinition
from metta.sweep.protocols import Dispatcher, Standing

Member = TypeVar("Member")


class CompositeDispatcher:
    """Capacity, jobs held and the end of several dispatchers as of one.

    Args:
        members: The dispatchers; one may stand among them, or inside them, more than once.
    """

    def __init__(self, members: Iterable[Dispatcher]) -> None:
        self._leaves: tuple[Dispatcher, ...] = tuple({id(leaf): leaf for leaf in _leaves(members)}.values())

    def capacity(self) -> int | None:
        """See `Dispatcher.capacity`: the sum, each dispatcher counted once."""
        capacities = [leaf.capacity() for leaf in self._leaves]
        limits = [capacity for capacity in capacities if capacity is not None]
        return sum(limits) if len(limits) == len(capacities) else None

    def held(self) -> list[str]:
        """See `Dispatcher.held`: of all that answer."""
        found: dict[str, None] = {}
        for leaf in self._leaves:
            with suppress(DispatchError):
                found.update(dict.fromkeys(leaf.held()))
        return list(found)

    def close(self) -> None:
        """See `Dispatcher.close`."""
        with ExitStack() as stack:
            for leaf in self._leaves:
                stack.callback(leaf.close)


def _leaves(members: Iterable[Dispatcher]) -> Iterable[Dispatcher]:
    for member in members:
        if isinstance(member, CompositeDispatcher):
            yield from member._leaves
        else:
            yield member


def ask(member: Dispatcher, job_ids: Sequence[str]) -> tuple[dict[str, Standing], str | None]:
    """What a member knows of each job, UNKNOWN where it does not say; and why it said nothing at all, if it did."""
    try:
        answer = member.standing(job_ids)
    except DispatchError as error:
        return dict.fromkeys(job_ids, Standing.UNKNOWN), str(error)
    standings = {job_id: answer.get(job_id, Standing.UNKNOWN) for job_id in job_ids}
    is_silent = all(standing is Standing.UNKNOWN for standing in standings.values())
    return standings, "does not answer" if is_silent else None


def combined_standing(
    job_ids: Sequence[str],
    members: Iterable[Member],
    ask: Callable[[Member, Sequence[str]], Mapping[str, Standing]],
    concerns: Callable[[Member, str], bool],
) -> dict[str, Standing]:
    """What is known of each job by the members that it concerns, each asked once.

    Known is what one of them knows, and lost only what all of them say is lost.
    """
    found: dict[str, set[Standing]] = {job_id: set() for job_id in job_ids}
    for member in members:
        if asked := [job_id for job_id in job_ids if concerns(member, job_id)]:
            for job_id, standing in ask(member, asked).items():
                found[job_id].add(standing)
    return {job_id: _combine(standings) for job_id, standings in found.items()}


def _combine(standings: set[Standing]) -> Standing:
    return next((each for each in (Standing.KNOWN, Standing.UNKNOWN) if each in standings), Standing.LOST)


def with_room(member: Dispatcher, jobs: Sequence[JobDefinition]) -> list[JobDefinition]:
    """The first of the jobs, as many as fit into the member now, and those that it runs already.

    Raises:
        DispatchError: the member does not say.
    """
    capacity = member.capacity()
    if capacity is None:
        return list(jobs)
    held = set(member.held())
    free = capacity - len(held)
    fitting: list[JobDefinition] = []
    for job in jobs:
        if job.job_id in held:
            fitting.append(job)
        elif free > 0:
            fitting.append(job)
            free -= 1
    return fitting
