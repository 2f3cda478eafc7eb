"""PB2 keeps the promises of all optimizers, and in a population learns what improves a training from where it is."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from metta.sweep.config import parse_strategy
from metta.sweep.model import events as ev
from metta.sweep.model.run import JobStatus, Parent
from metta.sweep.model.space import Choice, LogUniform, Range, SearchSpace, Uniform
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import Strategy
from metta.sweep.optimizers.pb2 import PB2Optimizer
from metta.sweep.protocols import History, Suggestion
from metta.sweep.testing import OptimizerContract
from schedulers.populations import FIDELITY, PopulationSweep, by_index, completed, gain

PB2 = parse_strategy("pb2")
MIXED = SearchSpace.of(
    {
        "lr": Uniform(0.0, 1.0),
        "kind": Choice(["a", "b", "c"]),
        "layers": Range(1, 100),
        "momentum": LogUniform(0.01, 1.0, when={"kind": "b"}),
    }
)


class TestPB2(OptimizerContract):
    def new_optimizer(self) -> PB2Optimizer:
        return PB2Optimizer()


def population(**fields: Any) -> PopulationSweep:
    sweep = PopulationSweep(strategy=PB2, **fields)
    sweep.run()
    return sweep


def asked(state: SweepState, level: float, **fields: Any) -> History:
    """What is asked when a run is to go on from the best that there is, from this level."""
    best = max(completed(state), key=lambda run: run.score or 0.0)
    parent = Parent(run_id=best.run_id, level=level, step=int(level), replaces=by_index(state)[0].run_id)
    return replace(History.of(state), parent=parent, **fields)


def suggested(history: History) -> Suggestion:
    [suggestion] = PB2Optimizer().suggest(history, 1)
    return suggestion


def test_new_values_are_near_those_that_gain_most() -> None:
    """Once each level has shown what is gained by which."""
    state = population(seed=3).state()
    for level in FIDELITY.levels:
        config = suggested(asked(state, level, exploration=0.0)).config
        assert gain(config) > 0.9


def test_a_population_gains_more_by_them_than_by_perturbation() -> None:
    def mean_score(sweep: PopulationSweep) -> float:
        return fmean(run.score or 0.0 for run in completed(sweep.state()))

    scores = []
    for strategy in (PB2, Strategy(optimizer="pb2", scheduler="pbt")):
        found = []
        for seed in range(6):
            sweep = PopulationSweep(strategy=strategy, seed=seed)
            sweep.run()
            found.append(mean_score(sweep))
        scores.append(fmean(found))
    assert scores[0] > scores[1]


def test_it_says_what_it_expects_and_json_holds_it() -> None:
    sweep = population()
    bodies = [event.body for event in sweep.log if isinstance(event.body, ev.RunCreated)]
    reasons = [body.reasons for body in bodies if body.parent is not None and body.acquisition is not None]
    assert reasons
    assert all("expected to change reward by " in reason[-1] for reason in reasons)
    suggestion = suggested(asked(sweep.state(), 8.0))
    assert msgspec.json.decode(msgspec.json.encode(suggestion), type=Suggestion) == suggestion


def test_what_is_fixed_stays_and_the_rest_is_a_configuration() -> None:
    state = population(search_space=MIXED).state()
    for kind in ("a", "b"):
        config = suggested(asked(state, 8.0, fixed={"kind": kind, "layers": 7})).config
        MIXED.check(config)
        assert (config["kind"], config["layers"]) == (kind, 7)


@pytest.mark.parametrize("seed", range(3))
def test_it_goes_elsewhere_than_members_that_are_on_their_way(seed: int) -> None:
    history = asked(population(seed=seed).state(), 8.0, exploration=1.0)
    alone = suggested(history).config
    assert history.parent is not None
    source = history.runs[history.parent.run_id]
    rungs = tuple(rung for rung in source.rungs if rung.level <= 8.0)
    under_way = {
        f"run{index}": replace(
            source,
            run_id=f"run{index}",
            index=index,
            config=alone,
            rungs=rungs,
            score=None,
            status=JobStatus.IN_TRAINING,
        )
        for index in (100, 101, 102)
    }
    beside = suggested(replace(history, runs={**history.runs, **under_way})).config
    assert abs(beside["lr"] - alone["lr"]) > 0.05


def test_to_minimize_is_to_maximize_the_negative() -> None:
    state = population(seed=1).state()
    sign_changed = replace(state.sweep.config, direction="minimize")
    runs = {
        run.run_id: replace(
            run,
            score=None if run.score is None else -run.score,
            rungs=tuple(replace(rung, value=-rung.value) for rung in run.rungs),
        )
        for run in state.runs.values()
    }
    history = asked(state, 8.0)
    mirrored = replace(history, config=sign_changed, runs=runs)
    assert suggested(mirrored).config == suggested(history).config


def test_the_order_in_which_runs_are_mapped_does_not_matter_nor_who_was_asked_before() -> None:
    history = asked(population().state(), 12.0)
    runs = by_index(population().state())
    optimizer = PB2Optimizer()
    first = optimizer.suggest(history, 1)
    assert optimizer.suggest(replace(history, runs={run.run_id: run for run in reversed(runs)}), 1) == first
    assert PB2Optimizer().suggest(history, 1) == first


def test_while_little_is_known_it_has_nothing_better_and_the_perturbed_values_hold() -> None:
    sweep = population()
    bodies = [event.body for event in sweep.log if isinstance(event.body, ev.RunCreated)]
    first = next(body for body in bodies if body.parent is not None)
    assert first.parent is not None
    assert first.parent.level == 4.0
    assert first.acquisition is None


@pytest.mark.parametrize("value", [1e300, -1e300, 0.0])
def test_changes_may_be_huge_or_all_equal(value: float) -> None:
    state = population().state()
    runs = {
        run.run_id: replace(run, rungs=tuple(replace(rung, value=value) for rung in run.rungs), score=-value)
        for run in state.runs.values()
        if run.score is not None
    }
    history = replace(asked(state, 8.0), runs=runs)
    suggestion = suggested(history)
    history.config.search_space.check(suggestion.config)
    assert msgspec.json.decode(msgspec.json.encode(suggestion), type=Suggestion) == suggestion
