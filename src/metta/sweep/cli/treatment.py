"""What `metta sweep doctor --fix` does about what it found: tables written anew, events appended, stray jobs ended."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import msgspec

from metta.sweep.agent.messages import Cancel
from metta.sweep.cli.examination import Examination, ask_agent, examine
from metta.sweep.controller import lease as leases
from metta.sweep.controller.consistency import IssueKind
from metta.sweep.controller.validator import Issue
from metta.sweep.errors import DispatchError, InvalidTransition, LeaseHeldError, StaleWriteError
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import Outcome
from metta.sweep.protocols import Clock, Store

#: A sweep in which something happens between looking and mending every time is looked at so often.
_MOST_ATTEMPTS = 10


class Treatment(msgspec.Struct, frozen=True, kw_only=True):
    """What was mended, and how the sweep is now."""

    mended: tuple[Issue, ...]
    after: Examination


def is_mendable(issue: Issue) -> bool:
    """Whether `--fix` does something about it."""
    return bool(issue.repairs or issue.cancels) or issue.kind is IssueKind.PROJECTIONS


def treat(store: Store, sweep_id: str, clock: Clock, *, thorough: bool = False) -> Treatment:
    """Mend what can be mended of a sweep. Each event is appended to the state that it was thought of, and no other.

    Raises:
        StaleWriteError: something else happens in the sweep all the time.
        DamagedStoreError: its log is damaged.
    """
    mended: list[Issue] = []
    for _ in range(_MOST_ATTEMPTS):
        found = examine(store, sweep_id, now=clock.now(), thorough=thorough)
        # A job that was told to end takes its time.
        done = {job_id for issue in mended for job_id in issue.cancels}
        found = msgspec.structs.replace(
            found, issues=tuple(issue for issue in found.issues if not issue.cancels or done.isdisjoint(issue.cancels))
        )
        todo = [issue for issue in found.issues if is_mendable(issue)]
        if not todo:
            return Treatment(mended=tuple(mended), after=found)
        mended += _mend(store, found, todo, clock)
    raise StaleWriteError(
        f"sweep {sweep_id}: it changed each of the {_MOST_ATTEMPTS} times that it was looked at, or is never sound; "
        "stop its controller and try again"
    )


def _mend(store: Store, found: Examination, todo: Sequence[Issue], clock: Clock) -> list[Issue]:
    """What could be done of it this time."""
    tables = [issue for issue in todo if issue.kind is IssueKind.PROJECTIONS]
    if tables:
        # What else there is can be judged only when these are right.
        store.rebuild(found.sweep_id)
        return tables
    strays = [issue for issue in todo if issue.cancels and _is_cancelled(found, issue)]
    repaired = [issue for issue in todo if issue.repairs]
    if not repaired:
        return strays
    with suppress(StaleWriteError, InvalidTransition), _lease(store, found.sweep_id, clock) as fence:
        store.append(_events(found.sweep_id, repaired, clock.now()), fence=fence, expected_seq=found.seq)
        return [*strays, *repaired]
    return strays


def _is_cancelled(found: Examination, issue: Issue) -> bool:
    request = Cancel(job_ids=list(issue.cancels), outcome=Outcome.CANCELLED, reason="the log knows nothing of this job")
    try:
        return found.directory is not None and ask_agent(found.directory, request) is not None
    except DispatchError:
        return False


def _events(sweep_id: str, issues: Sequence[Issue], now: float) -> list[Event]:
    actor = f"doctor@{socket.gethostname()}"
    return [
        new_event(decision.body, sweep_id=sweep_id, at=now, actor=actor, run_id=decision.run_id, job_id=decision.job_id)
        for issue in issues
        for decision in issue.repairs
    ]


@contextmanager
def _lease(store: Store, sweep_id: str, clock: Clock) -> Iterator[int | None]:
    """Keep controllers from starting meanwhile; None where one is at work, which `expected_seq` is enough against."""
    try:
        lease = leases.acquire(store, sweep_id, clock.now())
    except LeaseHeldError:
        yield None
        return
    try:
        yield lease.fence
    finally:
        store.release_lease(lease)
