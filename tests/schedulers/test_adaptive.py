"""Fifo with an eye on the search: the same jobs, less and less exploration, and an end on a plateau."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from metta.sweep import LogUniform, registry, sweep
from metta.sweep.errors import ConfigError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobStatus, Observation
from metta.sweep.model.space import Choice, SearchSpace
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.protocols import CreateRuns, Finish, StartJob
from metta.sweep.schedulers.adaptive import AdaptiveScheduler
from metta.sweep.schedulers.fifo import FifoScheduler
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

HOUR = 3600.0
#: One more evaluation without an improvement than it takes.
PLATEAU = [1.0, *[0.5] * 37]


def state_of(scores: list[float | None], *more: Event, running: int = 0, **config: Any) -> SweepState:
    """A sweep of runs that ended with these scores, None being a failure, an hour each, and some that still run."""
    runs = [
        event for index, score in enumerate(scores) for event in run_events(index, score=score, at=START + HOUR * index)
    ]
    runs += [event for index in range(len(scores), len(scores) + running) for event in run_events(index)[:4]]
    return numbered([sweep_created(**config), *runs, *more])


def numbered(log: list[Event]) -> SweepState:
    return fold(EMPTY, [replace(event, seq=seq) for seq, event in enumerate(log, start=1)])


def observations(scores: list[float]) -> list[Observation]:
    return [Observation(run_id=str(k), config={}, score=score, cost=1.0, metrics={}) for k, score in enumerate(scores)]


def exploration(state: SweepState) -> float:
    [wish] = [wish for wish in AdaptiveScheduler().schedule(state, None) if isinstance(wish, CreateRuns)]
    return wish.exploration


def finishing(state: SweepState, **options: Any) -> str | None:
    """The reason for which the search is to end."""
    wishes = AdaptiveScheduler(stop_when_converged=True, **options).schedule(state, None)
    reasons = [wish.reason for wish in wishes if isinstance(wish, Finish)]
    assert not reasons or not any(isinstance(wish, CreateRuns) for wish in wishes)
    return reasons[0] if reasons else None


class TestExploration:
    def test_the_phases_are_those_of_the_founding_document(self) -> None:
        scheduler = AdaptiveScheduler()
        assert scheduler.adjust_exploration("early") == pytest.approx(0.8)
        assert scheduler.adjust_exploration("middle") == pytest.approx(0.5)
        assert scheduler.adjust_exploration("convergence") == pytest.approx(0.2)

    def test_an_unknown_phase_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^phase: there is no phase 'late'; known: convergence, early, middle$"):
            AdaptiveScheduler().adjust_exploration("late")

    def test_it_falls_from_the_first_run_to_the_last(self) -> None:
        rates = [exploration(state_of([0.0] * done, max_trials=11)) for done in range(11)]
        assert rates == pytest.approx([0.8 - 0.6 * done / 11 for done in range(11)])

    def test_it_falls_with_the_hours_that_are_spent(self) -> None:
        assert exploration(state_of([0.0] * 3, budget_hours=12)) == pytest.approx(0.8 - 0.6 * 3 / 12)
        assert exploration(state_of([0.0] * 3, max_hours=6)) == pytest.approx(0.5)

    def test_the_limit_that_is_nearest_counts(self) -> None:
        assert exploration(state_of([0.0] * 3, max_hours=6, max_trials=300, budget_hours=300)) == pytest.approx(0.5)

    def test_a_finite_space_is_a_limit(self) -> None:
        space = SearchSpace.of({"lr": Choice([0.01, 0.02])})
        assert exploration(state_of([0.0], search_space=space)) == pytest.approx(0.5)

    def test_without_a_limit_it_stays_in_the_middle(self) -> None:
        assert exploration(state_of([0.0] * 50)) == pytest.approx(0.5)


class TestConvergence:
    def test_a_plateau_is_detected_in_either_direction(self) -> None:
        scheduler = AdaptiveScheduler()
        assert scheduler.detect_convergence(observations(PLATEAU))
        assert scheduler.detect_convergence(observations([-score for score in PLATEAU]), "minimize")
        assert not scheduler.detect_convergence(observations(PLATEAU[:36]))
        assert not scheduler.detect_convergence([])

    def test_a_search_that_improves_is_none(self) -> None:
        assert not AdaptiveScheduler().detect_convergence(observations([k / 10 for k in range(200)]))
        assert not AdaptiveScheduler().detect_convergence(observations([-k / 10 for k in range(200)]), "minimize")

    def test_the_sweep_ends_only_where_the_user_asked(self) -> None:
        state = state_of(PLATEAU)
        assert any(isinstance(wish, CreateRuns) for wish in AdaptiveScheduler().schedule(state, None))
        reason = finishing(state)
        assert reason is not None
        assert reason.startswith("converged: none of the last 37 of 38 evaluations was better by more than 0")

    def test_what_runs_by_then_is_brought_to_its_end(self) -> None:
        waiting = run_events(len(PLATEAU))[:1]
        state = state_of(PLATEAU, *waiting)
        start, finish = AdaptiveScheduler(stop_when_converged=True).schedule(state, None)
        assert isinstance(start, StartJob)
        assert start.run_id == ids.run_id(SWEEP, len(PLATEAU))
        assert isinstance(finish, Finish)

    def test_the_search_goes_on_when_one_of_them_is_better_after_all(self) -> None:
        assert finishing(state_of([*PLATEAU, 2.0])) is None

    def test_options_decide_how_long_it_takes(self) -> None:
        assert finishing(state_of(PLATEAU[:20])) is None
        assert finishing(state_of(PLATEAU[:20]), patience=4) is not None
        assert finishing(state_of(PLATEAU[:24]), false_stop_rate=0.5) is not None

    def test_failed_runs_count_only_as_the_sweep_wants_partial_results(self) -> None:
        failed = [
            replace(event, body=ev.RunFailed(reason="no reward", partial_score=0.5))
            if isinstance(event.body, ev.RunFailed)
            else event
            for index in range(1, 38)
            for event in run_events(index, score=None)
        ]
        assert finishing(numbered([sweep_created(), *run_events(0), *failed])) is None
        assert finishing(numbered([sweep_created(partial_results=True), *run_events(0), *failed])) is not None

    def test_a_run_that_is_rolled_back_counts_no_more(self) -> None:
        best = ids.run_id(SWEEP, 38)
        body = ev.RunRolledBack(reason="the user asked", best_run_id=ids.run_id(SWEEP, 0), best_score=1.0)
        undo = new_event(body, sweep_id=SWEEP, at=START, actor="user", run_id=best)
        scheduler = AdaptiveScheduler(stop_when_converged=True)
        before, after = state_of([*PLATEAU, 2.0]), state_of([*PLATEAU, 2.0], undo)
        assert [isinstance(wish, Finish) for wish in scheduler.schedule(before, None)] == [False]
        assert [isinstance(wish, Finish) for wish in scheduler.schedule(after, None)] == [True]


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"stop_when_converged": "yes"}, "stop_when_converged: expected true or false, got 'yes'"),
            ({"patience": 1}, "patience: expected a whole number from 2 to 1000000, got 1"),
            ({"patience": 2.5}, "patience: expected a whole number from 2 to 1000000, got 2.5"),
            ({"patience": True}, "patience: expected a whole number from 2 to 1000000, got True"),
            ({"tolerance": -0.1}, "tolerance: expected a number from 0 to 1, got -0.1"),
            ({"tolerance": float("nan")}, "tolerance: expected a number from 0 to 1, got nan"),
            ({"false_stop_rate": 0}, "false_stop_rate: expected a number above 0, up to 0.5, got 0"),
            ({"false_stop_rate": 0.6}, "false_stop_rate: expected a number above 0, up to 0.5, got 0.6"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError) as caught:
            registry.scheduler("adaptive", options)
        assert str(caught.value) == f"strategy.scheduler_options.{message}"

    def test_an_unknown_one_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"^strategy: adaptive does not take these options {'patienc': 3}"):
            registry.scheduler("adaptive", {"patienc": 3})


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 150), capacity=st.none() | st.integers(0, 6))
@example(seed=2402, length=125, capacity=None)
def test_it_wishes_for_what_fifo_does_and_depends_on_the_state_alone(
    seed: int, length: int, capacity: int | None
) -> None:
    """Whatever happens to a sweep: one scheduler that saw all of it says the same as one that sees only the end."""
    options: dict[str, Any] = {"stop_when_converged": True, "patience": 2, "false_stop_rate": 0.5}
    followed = AdaptiveScheduler(**options)
    state = EMPTY
    for seq, event in enumerate(random_history(seed, length), start=1):
        state = fold(state, [replace(event, seq=seq)])
        if seq % 5 == 0 or seq == length:
            wishes = followed.schedule(state, capacity)
            assert wishes == AdaptiveScheduler(**options).schedule(state, capacity)
            plain = FifoScheduler().schedule(state, capacity)
            jobs = [wish for wish in wishes if isinstance(wish, StartJob)]
            assert jobs == [wish for wish in plain if isinstance(wish, StartJob)]
            new = [wish.count for wish in wishes if isinstance(wish, CreateRuns)]
            expected = [wish.count for wish in plain if isinstance(wish, CreateRuns)]
            assert new == ([] if any(isinstance(wish, Finish) for wish in wishes) else expected)
            assert all(0.2 <= wish.exploration <= 0.8 for wish in wishes if isinstance(wish, CreateRuns))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), length=st.integers(1, 150))
def test_it_agrees_with_detect_convergence_about_the_observations_of_a_sweep(seed: int, length: int) -> None:
    scheduler = AdaptiveScheduler(stop_when_converged=True, patience=2, false_stop_rate=0.5)
    state = numbered(random_history(seed, length))
    trail = [] if state.trail is None else state.trail.since(None)
    runs = [state.runs[run_id] for run_id in trail or []]
    seen = observations([r.score for r in runs if r.status is JobStatus.COMPLETED and r.score is not None])
    is_finishing = any(isinstance(wish, Finish) for wish in scheduler.schedule(state, None))
    assert is_finishing == scheduler.detect_convergence(seen, state.sweep.config.direction)


def test_following_a_sweep_looks_only_at_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    from metta.sweep.schedulers import adaptive

    score = adaptive._score
    monkeypatch.setattr(adaptive, "_score", lambda run, config: looked_at.append(run.run_id) or score(run, config))
    scheduler = AdaptiveScheduler(stop_when_converged=True)
    state = state_of([0.1 * index for index in range(200)])
    scheduler.schedule(state, None)
    assert len(looked_at) == 200
    looked_at.clear()
    more = [replace(event, seq=state.seq + number) for number, event in enumerate(run_events(200), start=1)]
    scheduler.schedule(fold(state, more), None)
    assert looked_at == [ids.run_id(SWEEP, 200)]


class TestSweep:
    def test_a_real_sweep_ends_early_with_that_reason(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        options = {"stop_when_converged": True, "patience": 2, "false_stop_rate": 0.5}

        @sweep(
            search_space={"x": LogUniform(1e-4, 1.0)},
            metric="score",
            strategy={"optimizer": "random", "scheduler": "adaptive", "scheduler_options": options},
            max_trials=60,
            max_parallel=2,
            isolation="reuse",
            seed=7,
        )
        def train(config: dict[str, Any]) -> dict[str, float]:
            return {"score": 1.0}

        result = train.run(store=tmp_path / "sweeps.db", progress=False)
        assert result.status is SweepStatus.COMPLETED
        assert result.reason is not None
        assert result.reason.startswith("converged: none of the last ")
        assert 3 <= len(result.runs) < 10
        assert {run.status for run in result.runs} == {JobStatus.COMPLETED}

    def test_it_is_written_in_a_sweep_file_in_the_same_way(self, tmp_path: Path) -> None:
        from metta.sweep.config import parse_strategy
        from metta.sweep.config_file import load

        strategy = {"optimizer": "sobol", "scheduler": "adaptive", "scheduler_options": {"stop_when_converged": True}}
        path = tmp_path / "sweep.yaml"
        path.write_text(f"command: 'true'\nmetric: y\nsearch_space: {{x: 1}}\nstrategy: {json.dumps(strategy)}\n")
        parsed = parse_strategy(load(path).strategy)
        assert isinstance(registry.scheduler(parsed.scheduler, parsed.scheduler_options), AdaptiveScheduler)
        assert parse_strategy("adaptive").scheduler == "adaptive"
