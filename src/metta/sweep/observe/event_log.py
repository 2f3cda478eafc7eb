"""The event log for code: typed views of what happened, and a way to write down what the system does not know."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any

import msgspec

from metta.sweep.clock import SystemClock
from metta.sweep.model import events as ev
from metta.sweep.model.acquisition import Acquisition, Alternative
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobStatus
from metta.sweep.model.space import Config
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.observe.explanations import Explanation, explain
from metta.sweep.observe.streams import Selection, select
from metta.sweep.protocols import Clock, Store


class Topic(StrEnum):
    """What a note is about; any other word will do as well."""

    NOTE = "note"
    STATE_TRANSITION = "state_transition"
    SCHEDULING_DECISION = "scheduling_decision"
    OPTIMIZATION_STEP = "optimization_step"


class StateTransition(msgspec.Struct, frozen=True, kw_only=True):
    """A run came from one status to another."""

    seq: int
    #: Seconds since the epoch.
    at: float
    actor: str
    run_id: str
    job_id: str | None
    #: None of a run that was created.
    before: JobStatus | None
    after: JobStatus
    #: What brought it there.
    event: Event


class OptimizationStep(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration was chosen."""

    seq: int
    #: Seconds since the epoch.
    at: float
    actor: str
    run_id: str | None
    suggestion: Config
    reasons: tuple[str, ...] = ()
    #: None from strategies without a model.
    acquisition_value: float | None = None
    #: By how much it was expected to beat the best so far, in units of the metric.
    expected_improvement: float | None = None
    #: What was considered and not chosen, best first.
    alternatives: tuple[Alternative, ...] = ()


class EventLog:
    """The log of one sweep.

    What the system does it writes itself, with its reasons; `transitions`, `scheduling_decisions` and
    `optimization_steps` show that. What `note` and the methods `log_...` write down beside it changes nothing: it is
    kept as an event of type `noted`, by whoever noted it, and shown by `metta sweep events` and `metta sweep why`.

    Args:
        store: Where the sweep is, as from `metta.sweep.stores.open_store`.
        sweep_id: Which sweep.
        actor: Who writes.
        clock: The time of what is written.
    """

    def __init__(self, store: Store, sweep_id: str, *, actor: str = "user", clock: Clock | None = None) -> None:
        self._store = store
        self._sweep_id = sweep_id
        self._actor = actor
        self._clock = SystemClock() if clock is None else clock

    # ------------------------------------------------------------------------------------------------- reading

    def replay_events(
        self,
        sweep_id: str | None = None,
        *,
        run_id: str | None = None,
        types: Collection[str] = (),
        after: int = 0,
        until: int | None = None,
    ) -> Iterator[Event]:
        """Everything that happened, in order, as it is read; fold it to see the sweep at any moment.

        Args:
            sweep_id: Another sweep of the store.
            run_id: Only what is about this run.
            types: Only events of these types, such as `run_created`; `job_*` stands for all that begin so.
            after: Only events with higher numbers.
            until: Only events up to this number.

        Raises:
            ConfigError: there are no events of such a type.
            DamagedStoreError: the log is not as it was written.
        """
        return select(self._store, sweep_id or self._sweep_id, Selection.of(types, run_id), after=after, until=until)

    def transitions(self, run_id: str | None = None) -> Iterator[StateTransition]:
        """Every change of a run's status, by the same fold that made the changes."""
        state = EMPTY
        for event in self.replay_events():
            before = state.runs.get(event.run_id or "")
            state = fold(state, [event])
            after = state.runs.get(event.run_id or "")
            if after is None or (before is not None and before.status is after.status):
                continue
            if run_id in {None, after.run_id}:
                yield StateTransition(
                    seq=event.seq,
                    at=event.at,
                    actor=event.actor,
                    run_id=after.run_id,
                    job_id=event.job_id,
                    before=None if before is None else before.status,
                    after=after.status,
                    event=event,
                )

    def scheduling_decisions(self, run_id: str | None = None) -> Iterator[Explanation]:
        """What was started, promoted, retried, stopped, ended, and why; with what was noted of scheduling."""
        for each in explain(self.replay_events(run_id=run_id)):
            if each.type in _SCHEDULING or each.decision == _NOTED_SCHEDULING:
                yield each

    def optimization_steps(self) -> Iterator[OptimizationStep]:
        """Each configuration that was chosen, and what the optimizer thought of it; with what was noted of others."""
        for event in self.replay_events(types=("run_created", "noted")):
            body = event.body
            if isinstance(body, ev.RunCreated):
                yield _step(event, body.config, body.acquisition, body.reasons)
            elif isinstance(body, ev.Noted) and body.topic == Topic.OPTIMIZATION_STEP and "acquisition" in body.data:
                acquisition = msgspec.convert(body.data["acquisition"], Acquisition)
                yield _step(event, body.data["suggestion"], acquisition, (body.text,) if body.text else ())

    # ------------------------------------------------------------------------------------------------- writing

    def note(
        self, text: str, data: Mapping[str, Any] | None = None, *, run_id: str | None = None, topic: str = Topic.NOTE
    ) -> Event:
        """Write something down about the sweep, or one of its runs.

        Args:
            text: For people.
            data: For programs: what JSON can hold.
            run_id: The run that it is about.
            topic: What kind of note it is.

        Returns:
            The event, with its number in the log.

        Raises:
            InvalidTransition: there is no such run, or the data is none that JSON can hold.
            StoreError: it cannot be written.
        """
        body = ev.Noted(topic=topic, text=text, data=dict(data or {}))
        event = new_event(body, sweep_id=self._sweep_id, at=self._clock.now(), actor=self._actor, run_id=run_id)
        [written] = self._store.append([event])
        return written

    def log_state_transition(
        self, run_id: str, from_state: str, to_state: str, metadata: Mapping[str, Any] | None = None
    ) -> Event:
        """Note that a run came from one state of your own to another, such as `warm-up` to `fine-tuning`.

        Its status in the sweep stays as it is: that follows from what its jobs do.
        """
        data = {"from_state": str(from_state), "to_state": str(to_state), "metadata": dict(metadata or {})}
        return self.note(f"{from_state} -> {to_state}", data, run_id=run_id, topic=Topic.STATE_TRANSITION)

    def log_scheduling_decision(
        self, scheduler: str, decision: str, reasoning: Mapping[str, Any] | None = None, *, run_id: str | None = None
    ) -> Event:
        """Note what a scheduler outside the system decided, and why."""
        data = {"scheduler": scheduler, "decision": decision, "reasoning": dict(reasoning or {})}
        return self.note(f"{scheduler}: {decision}", data, run_id=run_id, topic=Topic.SCHEDULING_DECISION)

    def log_optimization_step(
        self,
        suggestion: Config,
        expected_improvement: float | None,
        acquisition_value: float,
        alternatives: Sequence[Alternative] = (),
        *,
        text: str = "",
        run_id: str | None = None,
    ) -> Event:
        """Note what an optimizer outside the system thought; those inside say it in their suggestions."""
        acquisition = Acquisition(
            acquisition_value=acquisition_value,
            expected_improvement=expected_improvement,
            alternatives=tuple(alternatives),
        )
        data = {"suggestion": dict(suggestion), "acquisition": msgspec.to_builtins(acquisition)}
        return self.note(text, data, run_id=run_id, topic=Topic.OPTIMIZATION_STEP)


#: Types of events by which schedulers, guards and the controller say what they decided.
_SCHEDULING = frozenset(
    {
        "job_granted",
        "run_retry_scheduled",
        "run_requeued",
        "run_stop_requested",
        "run_stopped",
        "sweep_paused",
        "sweep_ended",
    }
)
#: See `explain`.
_NOTED_SCHEDULING = "noted scheduling decision"


def _step(event: Event, config: Config, acquisition: Acquisition | None, reasons: tuple[str, ...]) -> OptimizationStep:
    return OptimizationStep(
        seq=event.seq,
        at=event.at,
        actor=event.actor,
        run_id=event.run_id,
        suggestion=config,
        reasons=reasons,
        acquisition_value=None if acquisition is None else acquisition.acquisition_value,
        expected_improvement=None if acquisition is None else acquisition.expected_improvement,
        alternatives=() if acquisition is None else acquisition.alternatives,
    )
