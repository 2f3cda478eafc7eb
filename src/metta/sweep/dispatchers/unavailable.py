"""A dispatcher that cannot be had in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from metta.sweep.errors import DispatchError
from metta.sweep.model.run import JobDefinition, Outcome
from metta.sweep.protocols import Placement, Standing


class UnavailableDispatcher:
    """Takes no jobs and knows nothing of any, not even that they are lost: an earlier process may have reached it.

    Args:
        name: The dispatcher that it stands for.
        reason: Why that one cannot be had.
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self._reason = reason

    def capacity(self) -> int | None:
        """See `Dispatcher.capacity`."""
        return 0

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        """See `Dispatcher.dispatch`."""
        raise DispatchError(self._reason)

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        """See `Dispatcher.standing`; raises, so that the reason is seen."""
        raise DispatchError(self._reason)

    def held(self) -> list[str]:
        """See `Dispatcher.held`."""
        raise DispatchError(self._reason)

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        """See `Dispatcher.cancel`."""

    def close(self) -> None:
        """See `Dispatcher.close`."""
