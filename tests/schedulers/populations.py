"""Populations in virtual time: a real controller, and trainings that are worth what all of their past makes of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from metta.sweep.controller import revisions
from metta.sweep.controller.controller import SweepController
from metta.sweep.controller.decide import Decision
from metta.sweep.dispatchers.simulated import (
    Course,
    JobModel,
    Report,
    SimulatedClock,
    SimulatedDispatcher,
    SimulatedStore,
    resumed_from,
)
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobDefinition, JobStatus, RunInfo
from metta.sweep.model.space import SearchSpace, Uniform
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import Strategy
from metta.sweep.testing import sweep_config
from metta.sweep.testing.sweeps import SWEEP

EPOCHS = 20
FIDELITY = Fidelity(maximum=EPOCHS, grace_period=4, interval=4)
LEVELS = (4.0, 8.0, 12.0, 16.0)

Seconds = Callable[[JobDefinition], float]


def gain(config: dict[str, Any]) -> float:
    """What an epoch adds to the reward: the more, the nearer to 0.7."""
    return 1.0 - abs(float(config["lr"]) - 0.7)


class Training:
    """A job model: each epoch adds to what the checkpoint had that the job goes on from."""

    def __init__(self, seconds: Seconds = lambda _: 60.0) -> None:
        self._seconds = seconds

    def __call__(self, job: JobDefinition) -> Course:
        begun = resumed_from(job)
        inherited = () if job.inheritance is None else job.inheritance.checkpoints
        found = (job.checkpoints or inherited)[-1:]
        reward = float(found[0].score or 0.0) if found else 0.0
        reports = []
        for epoch in range(begun + 1, EPOCHS + 1):
            reward += gain(job.config)
            reports.append(Report(self._seconds(job) * (epoch - begun), {"epoch": float(epoch), "reward": reward}))
        return Course(reports=reports, seconds=self._seconds(job) * (EPOCHS - begun))


class PopulationSweep:
    """One simulated sweep.

    Args:
        scheduler_options: Of `pbt`.
        seconds: What an epoch of a job takes.
        trouble: Options of the dispatcher: rates of failures, stragglers, preemptions.
        model: Of the jobs, instead of `Training`.
        strategy: Instead of `pbt` with a random start.
        fields: Of the sweep.
    """

    def __init__(
        self,
        scheduler_options: dict[str, Any] | None = None,
        *,
        seconds: Seconds = lambda _: 60.0,
        trouble: dict[str, Any] | None = None,
        strategy: Strategy | None = None,
        model: JobModel | None = None,
        **fields: Any,
    ) -> None:
        defaults: dict[str, Any] = {
            "strategy": strategy or Strategy(scheduler="pbt", scheduler_options=scheduler_options or {}),
            "search_space": SearchSpace.of({"lr": Uniform(0.0, 1.0)}),
            "fidelity": FIDELITY,
            "max_parallel": 4,
            "same_error_limit": 0,
        }
        self.config = sweep_config(**{**defaults, **fields})
        self.clock = SimulatedClock()
        self.store = SimulatedStore(self.clock)
        self.store.append([new_event(ev.SweepCreated(config=self.config), sweep_id=SWEEP, at=0.0, actor="user")])
        options = {"workers": None, **(trouble or {})}
        self.dispatcher = SimulatedDispatcher(
            self.store, SWEEP, self.config, self.clock, model or Training(seconds), **options
        )

    def controller(self) -> SweepController:
        return SweepController(self.store, SWEEP, self.dispatcher, self.clock)

    def run(self) -> SweepState:
        return self.controller().run()

    def amend(self, changes: Mapping[str, Any]) -> None:
        """As a user does who starts the sweep again with another file."""
        self.decide(lambda state: revisions.amend(state, changes))

    def decide(self, decisions: Callable[[SweepState], list[Decision]]) -> None:
        """As a user does who changes something about the sweep."""
        for decision in decisions(self.state()):
            event = new_event(decision.body, sweep_id=SWEEP, at=self.clock.now(), actor="user", run_id=decision.run_id)
            self.store.append([event])

    @property
    def log(self) -> list[Event]:
        return list(self.store.read(SWEEP))

    @property
    def text(self) -> bytes:
        return msgspec.json.encode(self.log)

    def state(self) -> SweepState:
        return fold(EMPTY, self.log)


def by_index(state: SweepState) -> list[RunInfo]:
    return sorted(state.runs.values(), key=lambda run: run.index)


def lineage(state: SweepState) -> list[list[RunInfo]]:
    """The runs of each member, in order."""
    members = {run.run_id: [run] for run in by_index(state) if run.parent is None}
    for run in by_index(state):
        if run.parent is not None:
            [member] = [runs for runs in members.values() if runs[-1].run_id == run.parent.replaces]
            member.append(run)
    return list(members.values())


def most_alive(log: list[Event]) -> int:
    """The largest number of runs that had not ended at one time, after whole appends of the controller."""
    state, most = EMPTY, 0
    for event in log:
        state = fold(state, [event])
        most = max(most, sum(not run.status.ended for run in state.runs.values()))
    return most


def completed(state: SweepState) -> list[RunInfo]:
    return [run for run in by_index(state) if run.status is JobStatus.COMPLETED]
