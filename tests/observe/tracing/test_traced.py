"""Optimizers and dispatchers under observation do what they do without it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan

from metta.sweep.controller.controller import SweepController
from metta.sweep.dispatchers.simulated import SimulatedClock, SimulatedDispatcher, SimulatedStore
from metta.sweep.errors import DispatchError
from metta.sweep.model import events as ev
from metta.sweep.model.events import new_event
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobDefinition, JobType, Outcome
from metta.sweep.model.sweep import Strategy
from metta.sweep.observe.tracing.spans import NO_TRACING, Tracing
from metta.sweep.observe.tracing.traced import TracedDispatcher, TracedOptimizer
from metta.sweep.optimizers.random import RandomOptimizer
from metta.sweep.protocols import Dispatcher, History, Placement, Suggestion
from metta.sweep.testing import OptimizerContract
from metta.sweep.testing.fake_dispatcher import FakeCompute, FakeDispatcher
from metta.sweep.testing.sweeps import SWEEP, sweep_config
from observe.tracing.in_memory import Traced

JOB = JobDefinition(
    job_id="7kq.train.1", run_id="7kq", sweep_id=SWEEP, type=JobType.TRAIN, attempt=1, config={"lr": 0.1}
)


class TestTracedOptimizer(OptimizerContract):
    def new_optimizer(self) -> TracedOptimizer:
        return TracedOptimizer(RandomOptimizer(), NO_TRACING)


def run(tracing: Tracing) -> list[ev.Body]:
    """A sweep in virtual time, with jobs that fail now and then; what its log says."""
    config = sweep_config(
        strategy=Strategy(optimizer="tpe", scheduler="median"),
        fidelity=Fidelity(maximum=10),
        max_trials=30,
        same_error_limit=0,
    )
    clock = SimulatedClock()
    store = SimulatedStore(clock)
    store.append([new_event(ev.SweepCreated(config=config), sweep_id=SWEEP, at=0.0, actor="user")])
    dispatcher = SimulatedDispatcher(store, SWEEP, config, clock, failure_rate=0.2)
    SweepController(store, SWEEP, dispatcher, clock, tracing=tracing).run()
    return [event.body for event in store.read(SWEEP) if not isinstance(event.body, ev.ControllerStarted)]


class Recounting:
    """An optimizer that counts in its own way."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def check(self, config: Any) -> None:
        pass

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        self.counts.append(len(history.observations))
        return RandomOptimizer().suggest(history, n)


def of_name(traced: Traced, name: str) -> list[ReadableSpan]:
    return [span for span in traced.exporter.get_finished_spans() if span.name == name]


def attribute(span: ReadableSpan, name: str) -> Any:
    return (span.attributes or {}).get(f"metta.{name}")


def test_a_sweep_that_is_traced_decides_the_same() -> None:
    traced = Traced()
    assert run(traced.tracing) == run(NO_TRACING)
    assert sum(attribute(span, "suggestions") for span in of_name(traced, "suggest")) == 30


def test_observations_are_counted_as_the_optimizer_sees_them(monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Recounting()
    monkeypatch.setattr("metta.sweep.registry.optimizer", lambda *_: counting)
    traced = Traced()
    run(traced.tracing)
    assert [attribute(span, "observations") for span in of_name(traced, "suggest")] == counting.counts
    assert counting.counts[-1] > 10


class Watching(FakeDispatcher):
    """Remembers what it was given, and may refuse it."""

    def __init__(self, compute: FakeCompute) -> None:
        super().__init__("watching", compute)
        self.given: list[JobDefinition] = []
        self.refusal: str | None = None

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        self.given += jobs
        if self.refusal is not None:
            raise DispatchError(self.refusal)
        return super().dispatch(jobs)


@pytest.fixture
def watching() -> Watching:
    return Watching(FakeCompute())


def test_a_job_is_told_of_its_dispatch(watching: Watching) -> None:
    traced = Traced()
    dispatcher: Dispatcher = TracedDispatcher(watching, traced.tracing)
    assert dispatcher.dispatch([JOB]).keys() == {JOB.job_id}
    [span] = of_name(traced, "dispatch")
    [given] = watching.given
    assert f"{span.context.span_id:016x}" == (given.traceparent or "").split("-")[2]
    assert (attribute(span, "run_id"), attribute(span, "job_id")) == ("7kq", "7kq.train.1")
    assert attribute(span, "dispatcher") == "watching"


def test_a_dispatch_lasts_from_the_first_offer_until_somebody_has_room(watching: Watching) -> None:
    watching.compute.room = 0
    traced = Traced()
    dispatcher = TracedDispatcher(watching, traced.tracing)
    begun = traced.clock.now()
    for _ in range(3):
        assert dispatcher.dispatch([JOB]) == {}
        traced.clock.advance(1.0)
    assert of_name(traced, "dispatch") == []
    watching.compute.room = 1
    dispatcher.dispatch([JOB])
    [span] = of_name(traced, "dispatch")
    assert ((span.start_time or 0) / 1e9, (span.end_time or 0) / 1e9) == pytest.approx((begun, begun + 3.0))
    assert len({job.traceparent for job in watching.given}) == 1


def test_a_dispatch_that_is_refused_or_given_up_is_an_error(watching: Watching) -> None:
    traced = Traced()
    dispatcher = TracedDispatcher(watching, traced.tracing)
    watching.refusal = "nobody is there"
    with pytest.raises(DispatchError):
        dispatcher.dispatch([JOB])
    watching.refusal, watching.compute.room = None, 0
    dispatcher.dispatch([JOB])
    dispatcher.cancel([JOB.job_id], Outcome.CANCELLED, "the user stopped it")
    dispatcher.dispatch([JOB])
    dispatcher.close()
    assert [span.status.description for span in of_name(traced, "dispatch")] == [
        "nobody is there",
        "the user stopped it",
        "nobody had taken the job when its controller ended",
    ]
    assert watching.is_closed
