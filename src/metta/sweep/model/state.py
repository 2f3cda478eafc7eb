"""The state of a sweep as a pure fold over its events: the only place where anything changes status.

The same function serves the controller (the whole state, event by event), the store (only the runs that a batch
touches, to refuse what is illegal and to write the projections), and replay (any prefix of the log).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from contextlib import suppress

import immutables
import msgspec
from msgspec.structs import replace

from metta.sweep.errors import InvalidTransition, SearchSpaceError
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobStatus, Outcome, RunInfo
from metta.sweep.model.run_progress import with_inheritance, with_pause, with_progress, with_score
from metta.sweep.model.run_transitions import AFTER_THE_END, RUN_TRANSITIONS, created
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.model.sweep_transitions import SWEEP_TRANSITIONS, learned, refused
from metta.sweep.model.trail import Trail
from metta.sweep.model.waiting import WaitsFor, waits_for


class SweepState(msgspec.Struct, frozen=True, kw_only=True):
    """A sweep at one moment. The maps are persistent: a new state shares all that did not change with the old one."""

    metadata: SweepMetadata | None = None
    runs: immutables.Map[str, RunInfo] = immutables.Map()
    #: Ids of the runs that have not ended, each with what it waits for.
    unfinished: immutables.Map[str, WaitsFor] = immutables.Map()
    #: The same the other way round, so that whoever decides looks only at the runs that it decides about: thousands may
    #: wait for something else.
    waiting: immutables.Map[WaitsFor, immutables.Map[str, None]] = immutables.Map(
        (what, immutables.Map()) for what in WaitsFor
    )
    #: In finite spaces, the keys of all configurations tried (`SearchSpace.key`), so that none is tried twice, each
    #: with the first run that did; runs that were rolled back do not count.
    tried: immutables.Map[bytes, str] = immutables.Map()
    #: Runs in the order in which they were created, came to a level, ended, or came to count for something else.
    trail: Trail | None = None

    @property
    def sweep(self) -> SweepMetadata:
        """The sweep's metadata; only the state before the first event has none."""
        assert self.metadata is not None
        return self.metadata

    @property
    def seq(self) -> int:
        """Sequence number of the last event folded; 0 before the first."""
        return self.metadata.seq if self.metadata else 0

    @property
    def best(self) -> RunInfo | None:
        """The best run; None before any has completed."""
        return None if self.sweep.best_run_id is None else self.runs[self.sweep.best_run_id]

    def waiting_for(self, *what: WaitsFor) -> list[RunInfo]:
        """The runs that wait for one of these, by index."""
        runs = [self.runs[run_id] for each in what for run_id in self.waiting[each]]
        return sorted(runs, key=lambda run: run.index)

    def count_waiting(self, *what: WaitsFor) -> int:
        """How many runs wait for one of these."""
        return sum(len(self.waiting[each]) for each in what)

    def all_wait_for(self, what: WaitsFor) -> bool:
        """Whether nothing is unfinished but runs that wait for this."""
        return len(self.waiting[what]) == len(self.unfinished)


EMPTY = SweepState()


def fold(state: SweepState, events: Iterable[Event]) -> SweepState:
    """The state after `events`, which must follow `state` without a gap.

    Takes time in proportion to the events alone, however many runs the state holds.

    Raises:
        InvalidTransition: an event does not fit the state it meets; `state` is as it was.
    """
    draft = _Draft(state)
    for event in events:
        draft.apply(event)
    return draft.finish()


class _Draft:
    """A state being written; lives only inside `fold`."""

    def __init__(self, state: SweepState) -> None:
        self._metadata = state.metadata
        self._runs = state.runs.mutate()
        self._unfinished = state.unfinished.mutate()
        self._waiting = state.waiting
        #: Of those the ones that change.
        self._groups: dict[WaitsFor, immutables.MapMutation[str, None]] = {}
        self._tried = state.tried.mutate()
        self._counts = dict(state.metadata.counts) if state.metadata else {}
        self._seq = state.seq
        self._trail = state.trail

    def finish(self) -> SweepState:
        metadata = self._metadata
        if metadata is not None:
            metadata = replace(metadata, seq=self._seq, counts=self._counts)
        return SweepState(
            metadata=metadata,
            runs=self._runs.finish(),
            unfinished=self._unfinished.finish(),
            waiting=self._waiting_now(),
            tried=self._tried.finish(),
            trail=self._trail,
        )

    def _waiting_now(self) -> immutables.Map[WaitsFor, immutables.Map[str, None]]:
        if not self._groups:
            return self._waiting
        return self._waiting.update({what: group.finish() for what, group in self._groups.items()})

    def apply(self, event: Event) -> None:
        if event.seq != self._seq + 1:
            raise InvalidTransition(
                f"sweep {event.sweep_id}: event {event.seq} follows {self._seq}; events are missing"
            )
        if self._metadata is not None and event.sweep_id != self._metadata.sweep_id:
            raise refused(event, f"sweep {event.sweep_id} is another than {self._metadata.sweep_id}")
        body = event.body
        if event.run_id is None:
            if isinstance(body, ev.SweepEnded) and not all(status.ended for status in self._counts):
                raise refused(event, "some of its runs have not ended")
            transition = SWEEP_TRANSITIONS.get(type(body))
            if transition is None:
                raise refused(event, "it names no run")
            self._metadata = transition(self._metadata, event, body)
            if isinstance(body, ev.SweepAmended):
                self._note_all_tried()
        else:
            self._apply_to_run(event.run_id, event, body)
        self._seq = event.seq

    def _apply_to_run(self, run_id: str, event: Event, body: ev.Body) -> None:
        if self._metadata is None or (self._metadata.status.ended and not isinstance(body, AFTER_THE_END)):
            raise refused(event, f"the sweep is {self._metadata.status if self._metadata else 'not created'}")
        before = self._runs.get(run_id)
        if isinstance(body, ev.RunCreated):
            run = self._created(run_id, before, event, body)
        else:
            run = self._changed(before, event, body)
        self._runs[run_id] = run
        if before is None or isinstance(body, ev.RunRolledBack):
            self._note_tried(run)
        elif isinstance(body, ev.RunRestored | ev.StateRepaired):
            self._note_tried_if_fitting(run)
        if before is None or run.status is not before.status:
            self._count(before, run)
        if before is None or run.jobs is not before.jobs or _differs_in_what_it_waits_for(before, run):
            self._note_wait(run)
        if before is None or _teaches_otherwise(before, run):
            self._trail = Trail.after(self._trail, run_id, _lesson(run))
        if before is not None and run.cost != before.cost:
            self._metadata = replace(self._metadata, cost=self._metadata.cost + run.cost - before.cost)
        if run.status is JobStatus.COMPLETED and run.score is not None and self._metadata.is_better(run.score):
            self._metadata = replace(self._metadata, best_run_id=run_id, best_score=run.score)

    def _created(self, run_id: str, before: RunInfo | None, event: Event, body: ev.RunCreated) -> RunInfo:
        if before is not None:
            raise refused(event, "the run exists already")
        count = sum(self._counts.values())
        if body.index != count:
            raise refused(event, f"its index is {body.index}, the next one is {count}")
        return created(event, run_id, body)

    def _changed(self, before: RunInfo | None, event: Event, body: ev.Body) -> RunInfo:
        assert self._metadata is not None
        if before is None:
            raise refused(event, "there is no such run")
        transition = RUN_TRANSITIONS.get(type(body))
        if transition is None:
            raise refused(event, "it is about the sweep, not about a run")
        run = transition(before, event, body)
        if self._metadata.status.ended and not run.status.ended:
            raise refused(event, f"the sweep is {self._metadata.status}, the run would be {run.status}")
        self._metadata = learned(self._metadata, before, event)
        if isinstance(body, ev.CheckpointSaved):
            run = with_score(run, self._metadata.config.metric, body.step)
        elif isinstance(body, ev.CheckpointCopied):
            run = with_inheritance(run, self._metadata.config.metric, body.score)
        elif isinstance(body, ev.MetricsReported):
            config = self._metadata.config
            run = with_progress(run, config.fidelity, config.metric, event, body)
        elif isinstance(body, ev.JobExited) and body.outcome is Outcome.PAUSED:
            run = with_pause(run, self._metadata.config.fidelity, self._metadata.config.metric, event)
        return run

    def _note_tried(self, run: RunInfo) -> None:
        assert self._metadata is not None
        space = self._metadata.config.search_space
        if space.cardinality is None:
            return
        key = space.key(run.config)
        first = self._tried.get(key)
        if run.undone is not None:
            if first == run.run_id:
                del self._tried[key]
        elif first is None or run.index < self._runs[first].index:
            self._tried[key] = run.run_id

    def _note_tried_if_fitting(self, run: RunInfo) -> None:
        """As `_note_tried`, of a run that may have been created before the space was amended."""
        assert self._metadata is not None
        with suppress(SearchSpaceError):
            self._metadata.config.search_space.check(run.config)
            self._note_tried(run)

    def _note_all_tried(self) -> None:
        """Anew: an amended space may be finite where it was not, and without what was tried in it before."""
        assert self._metadata is not None
        runs = self._runs.finish()
        self._runs = runs.mutate()
        self._tried = SweepState().tried.mutate()
        for run in runs.values():
            self._note_tried_if_fitting(run)

    def _count(self, before: RunInfo | None, run: RunInfo) -> None:
        counts = self._counts
        if before is not None:
            counts[before.status] -= 1
            if not counts[before.status]:
                del counts[before.status]
        counts[run.status] = counts.get(run.status, 0) + 1

    def _note_wait(self, run: RunInfo) -> None:
        before, now = self._unfinished.get(run.run_id), waits_for(run)
        if now is before:
            return
        if before is not None:
            del self._group(before)[run.run_id]
        if now is None:
            del self._unfinished[run.run_id]
        else:
            self._unfinished[run.run_id] = now
            self._group(now)[run.run_id] = None

    def _group(self, what: WaitsFor) -> immutables.MapMutation[str, None]:
        if what not in self._groups:
            self._groups[what] = self._waiting[what].mutate()
        return self._groups[what]


def _lesson(run: RunInfo) -> Hashable:
    """What can be learned of a run, but for its configuration, which stays the same."""
    return (run.status.ended and run.status, run.score, run.partial_score, run.status.ended and run.cost, run.rungs)


def _differs_in_what_it_waits_for(before: RunInfo, run: RunInfo) -> bool:
    """Whether anything but its jobs has changed that `waits_for` looks at."""
    return (
        run.status is not before.status
        or run.retry_at != before.retry_at
        or run.stop_reason != before.stop_reason
        or run.wanted is not before.wanted
    )


def _teaches_otherwise(before: RunInfo, run: RunInfo) -> bool:
    """Whether who learns from the sweep's runs has to look at this one again."""
    return (
        (run.status is not before.status and (run.status.ended or before.status.ended))
        or run.score != before.score
        or run.partial_score != before.partial_score
        or run.config is not before.config
        or run.rungs is not before.rungs
        or (run.status.ended and run.cost != before.cost)
    )
