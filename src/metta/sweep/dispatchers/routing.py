"""Several dispatchers as one: which of them gets a job depends on what the job is and needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from metta.sweep.dispatchers.composite import CompositeDispatcher, ask, combined_standing, with_room
from metta.sweep.errors import DispatchError
from metta.sweep.model.dispatching import Condition
from metta.sweep.model.run import JobDefinition, Outcome, Resources
from metta.sweep.protocols import Dispatcher, Placement, Standing


class RoutingDispatcher(CompositeDispatcher):
    """See `protocols.Dispatcher`. A job goes to the member of the first rule whose condition it meets, and to no other.

    That is decided by the job alone, so it is the same however often and by whichever process the job is dispatched.

    Args:
        rules: Conditions, in order, each with the member for jobs that meet it; one may serve several rules.
    """

    def __init__(self, rules: Sequence[tuple[Condition, Dispatcher]]) -> None:
        self._rules = tuple(rules)
        self._members = tuple({id(member): member for _, member in self._rules}.values())
        super().__init__(self._members)
        self.name = f"route({', '.join(dict.fromkeys(member.name for member in self._members))})"
        #: Jobs of this process and their members: who is asked for them need not wait for others that are silent.
        self._sent: dict[str, Dispatcher] = {}

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        """See `Dispatcher.dispatch`.

        Raises:
            DispatchError: no job was placed, and a member failed or there are jobs that no rule takes.
        """
        placed: dict[str, Placement] = {}
        problems: list[str] = []
        sent: dict[int, list[JobDefinition]] = {}
        for job in jobs:
            if (number := self._rule_for(job)) is None:
                problems.append(self._no_rule(job))
            else:
                sent.setdefault(number, []).append(job)
        for number, its_jobs in sorted(sent.items()):
            try:
                placed |= self._send(number, its_jobs)
            except DispatchError as error:
                problems.append(f"{self._rules[number][1].name}: {error}")
        if problems and not placed:
            raise DispatchError("; ".join(problems))
        return placed

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        """See `Dispatcher.standing`."""
        return combined_standing(job_ids, self._members, lambda member, asked: ask(member, asked)[0], self._may_have)

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        """See `Dispatcher.cancel`."""
        for member in self._members:
            if concerned := [job_id for job_id in job_ids if self._may_have(member, job_id)]:
                with suppress(DispatchError):  # jobs of the other members are to end all the same
                    member.cancel(concerned, outcome, reason)

    def _may_have(self, member: Dispatcher, job_id: str) -> bool:
        return self._sent.get(job_id, member) is member

    def _rule_for(self, job: JobDefinition) -> int | None:
        numbers = (n for n, (condition, _) in enumerate(self._rules) if condition.takes(job.type, job.resources))
        return next(numbers, None)

    def _no_rule(self, job: JobDefinition) -> str:
        rules = "; ".join(str(condition) for condition, _ in self._rules)
        return (
            f"no rule takes job {job.job_id} (type {job.type}, {describe(job.resources)}); "
            f"there are rules for: {rules}; a last rule without a condition takes what is left"
        )

    def _send(self, number: int, jobs: Sequence[JobDefinition]) -> dict[str, Placement]:
        condition, member = self._rules[number]
        self._sent |= {job.job_id: member for job in jobs}
        fitting = with_room(member, jobs)
        if len(fitting) < len(jobs):
            # Those that it has behind it need no room.
            rest = {job.job_id: job for job in jobs if job not in fitting}
            standings, _ = ask(member, list(rest))
            fitting += [rest[job_id] for job_id, standing in standings.items() if standing is Standing.KNOWN]
        reason = f"rule {number + 1} sends {condition} to {member.name}"
        return {
            job_id: Placement(dispatcher=placement.dispatcher, reasons=(reason, *placement.reasons))
            for job_id, placement in (member.dispatch(fitting) if fitting else {}).items()
        }


def describe(resources: Resources) -> str:
    """What a job needs, as rules name it."""
    memory = "no memory limit" if resources.memory_gb is None else f"memory_gb {resources.memory_gb:g}"
    return f"cpus {resources.cpus}, gpus {resources.gpus}, {memory}"
