"""The controller is stopped before and after every single thing it does: whatever the moment, the sweep ends the same.

A model check of the loop: a small sweep with everything in it (two phases, a job that is killed, one that is lost, a
checkpoint) is run once to count the controller's side effects, and then once for each of them and each side of it. The
store is real; the machine that runs the jobs is not, so that nothing depends on time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metta.sweep.controller.controller import SweepController
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import FailureKind, JobDefinition, JobState, JobStatus, Outcome, RetryPolicy
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import CommandTarget, SweepStatus
from metta.sweep.protocols import Placement, Standing, Store
from metta.sweep.stores import open_store
from metta.sweep.testing import ManualClock
from metta.sweep.testing.sweeps import SWEEP, sweep_config

#: What the controller does to the world; each is a moment to die before and after.
EFFECTS = {"append", "acquire_lease", "release_lease", "dispatch", "cancel", "close"}
TRIALS = 3


class Crash(BaseException):
    """The controller's process is gone."""


class Doom:
    """Lets the controller die at chosen moments, counted over its whole life."""

    def __init__(self, *moments: int) -> None:
        self._moments = set(moments)
        self.passed = 0
        self.is_dead = False

    def strike(self) -> None:
        """Dead processes do nothing any more, no farewells either."""
        if self.is_dead:
            raise Crash
        moment, self.passed = self.passed, self.passed + 1
        if moment in self._moments:
            self.is_dead = True
            raise Crash


class Doomed:
    """Anything whose methods with effects are moments to die."""

    def __init__(self, real: Any, doom: Doom, **instead: Callable[..., Any]) -> None:
        self._real, self._doom, self._instead = real, doom, instead

    def __getattr__(self, name: str) -> Any:
        method = self._instead.get(name) or getattr(self._real, name)
        if name not in EFFECTS:
            return method

        def doomed(*arguments: Any, **options: Any) -> Any:
            self._doom.strike()
            result = method(*arguments, **options)
            self._doom.strike()
            return result

        return doomed


class Machine:
    """Runs jobs one step at a time and outlives the controller, as an agent does."""

    name = "machine"

    def __init__(self, store: Store, clock: ManualClock) -> None:
        self._store, self._clock = store, clock
        self._jobs: dict[str, Iterator[list[ev.Body]]] = {}
        self._runs: dict[str, str] = {}
        self._ended: set[str] = set()
        self.executed: list[str] = []
        self.loaded: dict[str, list[int]] = {}

    def capacity(self) -> int | None:
        return None

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        for job in jobs:
            if job.job_id not in self._jobs and job.job_id not in self._ended:
                self._jobs[job.job_id] = self._life(job)
                self._runs[job.job_id] = job.run_id
                self.executed.append(job.job_id)
                self.loaded[job.job_id] = [checkpoint.step for checkpoint in job.checkpoints]
        return {job.job_id: Placement(dispatcher=self.name) for job in jobs}

    def _life(self, job: JobDefinition) -> Iterator[list[ev.Body]]:
        yield [ev.JobStarted(host="node", pid=1, log="log")]
        # The first run is killed in its first attempt after it saved a checkpoint, the second run is lost in its own.
        first, second = [*dict.fromkeys(self._runs.values()), ""][:2]
        if job.attempt == 1 and job.type == "train" and job.run_id == first:
            yield [ev.CheckpointSaved(step=4, path="step-4", sha256="0", size_bytes=1)]
            yield [ev.JobExited(outcome=Outcome.KILLED, failure=FailureKind.KILLED, seconds=1.0)]
            return
        if job.attempt == 1 and job.type == "train" and job.run_id == second:
            return
        yield [ev.MetricsReported(metrics={"reward": float(sum(map(ord, job.run_id)))})]
        yield [ev.JobExited(outcome=Outcome.SUCCEEDED, seconds=1.0)]

    def tick(self) -> None:
        """The oldest job gets one step further."""
        self._clock.advance(1.0)
        for job_id, life in list(self._jobs.items())[:1]:
            bodies = next(life, None)
            if bodies is None:  # lost: nobody knows it any more
                del self._jobs[job_id]
                return
            events = [
                new_event(
                    body,
                    sweep_id=SWEEP,
                    at=self._clock.now(),
                    actor="agent",
                    run_id=self._runs[job_id],
                    job_id=job_id,
                )
                for body in bodies
            ]
            self._store.append(events)
            if isinstance(bodies[-1], ev.JobExited):
                self._ended.add(job_id)
                del self._jobs[job_id]

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        known = self._jobs.keys() | self._ended
        return {job_id: Standing.KNOWN if job_id in known else Standing.LOST for job_id in job_ids}

    def held(self) -> list[str]:
        return list(self._jobs)

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        raise AssertionError(f"{list(job_ids)} are cancelled: {reason}")

    def close(self) -> None:
        """Nothing to let go of."""


def run_sweep(path: Path, doom: Doom) -> tuple[list[Event], SweepState, Machine]:
    """A whole sweep under a controller that dies as doomed and is started again each time."""
    clock = ManualClock()
    with closing(open_store(f"sqlite:///{path}?synchronous=normal", create=True)) as store:
        config = sweep_config(
            max_trials=TRIALS,
            max_parallel=2,
            evaluate=CommandTarget(argv=["evaluate"]),
            retry=RetryPolicy(retry_delay_seconds=5.0),
        )
        store.append([new_event(ev.SweepCreated(config=config), sweep_id=SWEEP, at=clock.now(), actor="user")])
        machine = Machine(store, clock)

        def wait(*_: object) -> bool:
            machine.tick()
            return True

        for _ in range(10):
            doom.is_dead = False
            try:
                doomed_store = Doomed(store, doom, wait_for_change=wait)
                controller = SweepController(doomed_store, SWEEP, Doomed(machine, doom), clock)  # type: ignore[arg-type]
                controller.run()
                break
            except Crash:
                continue
        events = list(store.read(SWEEP))
        state = fold(EMPTY, events)
        assert store.fetch_sweeps() == [state.sweep]
        assert {run.run_id: run for run in store.fetch_runs(SWEEP)} == dict(state.runs)
    return events, state, machine


def check(events: Sequence[Event], state: SweepState, machine: Machine) -> None:
    """Nothing lost, nothing done twice."""
    assert state.sweep.status is SweepStatus.COMPLETED
    assert {run.status for run in state.runs.values()} == {JobStatus.COMPLETED}
    assert sorted(run.index for run in state.runs.values()) == list(range(TRIALS))
    assert len(machine.executed) == len(set(machine.executed))
    for kind in (ev.RunCompleted, ev.RunCreated):
        assert Counter(event.run_id for event in events if isinstance(event.body, kind)) == dict.fromkeys(state.runs, 1)
    granted = [event.job_id for event in events if isinstance(event.body, ev.JobGranted)]
    assert sorted(granted) == sorted(machine.executed)
    # A retry goes on from the checkpoint.
    retried = [job for run in state.runs.values() for job in run.jobs if job.failure is FailureKind.KILLED]
    assert [machine.loaded[f"{job.job_id[:-1]}2"] for job in retried] == [[4]]
    assert sum(job.state is JobState.LOST for run in state.runs.values() for job in run.jobs) == 1


def results(state: SweepState) -> list[tuple[Any, ...]]:
    """What a sweep came to, whatever happened on the way."""
    runs = sorted(state.runs.values(), key=lambda run: run.index)
    return [(run.run_id, run.config, run.score, run.cost, [job.job_id for job in run.jobs]) for run in runs]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[tuple[Any, ...]]]:
    """The number of moments at which a controller can die in this sweep, and what the sweep comes to."""
    doom = Doom()
    events, state, machine = run_sweep(tmp_path_factory.mktemp("undisturbed") / "sweeps.db", doom)
    check(events, state, machine)
    return doom.passed, results(state)


@pytest.mark.slow
def test_a_controller_may_die_before_and_after_everything_it_does(
    undisturbed: tuple[int, list[tuple[Any, ...]]], tmp_path: Path
) -> None:
    moments, expected = undisturbed
    assert moments > 40, "the sweep has become too short to say much"
    for moment in range(moments):
        outcome = run_sweep(tmp_path / f"{moment}.db", Doom(moment))
        check(*outcome)
        assert results(outcome[1]) == expected, f"it died at moment {moment}"


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(moments=st.lists(st.integers(0, 90), min_size=2, max_size=6, unique=True))
def test_a_controller_may_die_again_and_again(
    undisturbed: tuple[int, list[tuple[Any, ...]]], tmp_path_factory: pytest.TempPathFactory, moments: list[int]
) -> None:
    outcome = run_sweep(tmp_path_factory.mktemp("again") / "sweeps.db", Doom(*moments))
    check(*outcome)
    assert results(outcome[1]) == undisturbed[1]
