"""What every optimizer promises, as tests."""
# ruff: noqa: D102 (the names of the tests are the sentences that docstrings would be)

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest
from msgspec.structs import replace

from metta.sweep.model.events import Event
from metta.sweep.model.space import (
    Choice,
    Config,
    Constant,
    LogNormal,
    LogUniform,
    Normal,
    Range,
    SearchSpace,
    Uniform,
)
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import History, Optimizer, Suggestion
from metta.sweep.testing.sweeps import run_events, sweep_config, sweep_created

#: Spaces of every kind. Subclasses may take some away that their optimizer refuses in `check`.
SPACES = {
    "continuous": SearchSpace.of(
        {
            "lr": LogUniform(1e-5, 1e-1),
            "dropout": Uniform(0.0, 0.5),
            "init": Normal(0.0, 0.02),
            "scale": LogNormal(0.0, 1.0),
            "batch": Range(16, 4096, log=True),
            "seed": Constant(1),
        }
    ),
    "conditional": SearchSpace.of(
        {
            "optimizer": Choice(["adam", "sgd"]),
            "adam": {"beta": Uniform(0.8, 0.999, when={"optimizer": "adam"})},
            "sgd": {"momentum": Uniform(0.0, 0.99, when={"optimizer": "sgd"})},
        }
    ),
    "finite": SearchSpace.of(
        {"layers": Range(1, 4), "width": Choice([64, 128, 256]), "rate": Range(0.1, 0.3, step=0.1)}
    ),
    "finite on a log scale": SearchSpace.of({"batch": Range(1, 40, log=True)}),
    "finite and conditional": SearchSpace.of(
        {
            "model": Choice(["linear", "tree", "net"]),
            "depth": Range(1, 5, when={"model": "tree"}),
            "layers": Range(1, 3, when={"model": "net"}),
            "width": Choice([32, 64], when={"layers": [2, 3]}),
        }
    ),
    "of one point": SearchSpace.of({"lr": Constant(0.1)}),
}
FINITE = sorted(name for name, space in SPACES.items() if space.cardinality is not None)


class OptimizerContract:
    """The guarantees of `protocols.Optimizer`. Subclass it with a `new_optimizer` method."""

    def new_optimizer(self) -> Optimizer:
        """An optimizer that was never asked anything."""
        raise NotImplementedError

    @pytest.mark.parametrize("space", SPACES)
    def test_every_suggestion_is_a_configuration_of_the_space_and_has_a_reason(self, space: str) -> None:
        config = sweep_config(search_space=SPACES[space])
        self.new_optimizer().check(config)
        for suggestion in suggest(self.new_optimizer(), config, [4, 4]):
            SPACES[space].check(suggestion.config)
            assert list(suggestion.config) == [name for name in SPACES[space].parameters if name in suggestion.config]
            assert any(suggestion.reasons)

    @pytest.mark.parametrize("space", SPACES)
    def test_a_new_optimizer_goes_on_where_another_stopped(self, space: str) -> None:
        config = sweep_config(search_space=SPACES[space])
        optimizer = self.new_optimizer()
        state = started(config)
        for size in [2, 3, 1]:
            suggestions = optimizer.suggest(history_of(state), size)
            assert self.new_optimizer().suggest(history_of(state), size) == suggestions
            state = with_runs(state, suggestions)

    def test_what_it_was_asked_before_does_not_matter(self) -> None:
        optimizer = self.new_optimizer()
        histories = [
            history_of(started(sweep_config(search_space=space, seed=seed)))
            for space in SPACES.values()
            for seed in (1, 2)
        ]
        first = [optimizer.suggest(history, 3) for history in histories]
        again = [optimizer.suggest(history, 3) for history in reversed(histories)]
        assert again == first[::-1]

    def test_asking_changes_nothing_that_the_caller_can_see(self) -> None:
        history = history_of(started(sweep_config(search_space=SPACES["finite"])))
        before = msgspec.json.encode(history.config), dict(history.runs), dict(history.tried)
        self.new_optimizer().suggest(history, 5)
        assert (msgspec.json.encode(history.config), dict(history.runs), dict(history.tried)) == before

    @pytest.mark.parametrize("sizes", [[1], [3], [50]], ids=["one by one", "by threes", "all at once"])
    @pytest.mark.parametrize("space", FINITE)
    def test_a_finite_space_is_walked_once_and_to_its_end(self, space: str, sizes: list[int]) -> None:
        cardinality = SPACES[space].cardinality
        assert cardinality is not None
        suggestions = suggest(self.new_optimizer(), sweep_config(search_space=SPACES[space]), sizes * cardinality)
        assert len(suggestions) == cardinality
        assert len({SPACES[space].key(suggestion.config) for suggestion in suggestions}) == cardinality

    def test_a_log_holds_suggestions_exactly(self) -> None:
        config = sweep_config(search_space=SPACES["continuous"])
        for suggestion in suggest(self.new_optimizer(), config, [8]):
            assert msgspec.json.decode(msgspec.json.encode(suggestion.config)) == suggestion.config


def started(config: SweepConfig) -> SweepState:
    """A sweep without runs."""
    return _after(EMPTY, [replace(sweep_created(), body=replace(sweep_created().body, config=config))])


def with_runs(state: SweepState, suggestions: Sequence[Suggestion]) -> SweepState:
    """The sweep when these have been tried as well."""
    for suggestion in suggestions:
        state = _after(state, run_events(len(state.runs), config=suggestion.config))
    return state


def _after(state: SweepState, events: Sequence[Event]) -> SweepState:
    return fold(state, [replace(event, seq=seq) for seq, event in enumerate(events, start=state.seq + 1)])


def history_of(state: SweepState) -> History:
    """What an optimizer gets to see of a sweep."""
    return History.of(state)


def suggest(optimizer: Optimizer, config: SweepConfig, sizes: Sequence[int]) -> list[Suggestion]:
    """The suggestions of a sweep in which the optimizer is asked for so many at a time."""
    suggestions: list[Suggestion] = []
    state = started(config)
    for size in sizes:
        batch = optimizer.suggest(history_of(state), size)
        suggestions += batch
        state = with_runs(state, batch)
    return suggestions


def configs(suggestions: Sequence[Suggestion]) -> list[Config]:
    """What is to be tried."""
    return [suggestion.config for suggestion in suggestions]
