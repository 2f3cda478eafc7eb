"""What every optimizer promises: functions that raise AssertionError where one does not keep to it in some space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import msgspec
from msgspec.structs import replace

from metta.sweep.errors import SearchSpaceError
from metta.sweep.model.space import Range, SearchSpace
from metta.sweep.model.state import SweepState
from metta.sweep.protocols import History, Optimizer, Suggestion
from metta.sweep.testing.searches import (
    FATES,
    FINITE,
    SPACES,
    amended,
    bowl,
    configs,
    history_of,
    lived,
    random_configs,
    searched,
    started,
    suggest,
)
from metta.sweep.testing.sweeps import sweep_config

NewOptimizer: TypeAlias = Callable[[], Optimizer]
_Keep: TypeAlias = Callable[[NewOptimizer, SearchSpace], None]

#: Spaces that between them have everything: most promises are put to the test in these alone, to be quick.
_TYPICAL = ("continuous", "conditional", "finite")
_INFINITE = ("continuous", "conditional")
#: Beyond any finite space here.
_HUGE = 1_000
#: Runs that a large cluster has on their way.
_LARGE_BATCH = 64
#: Scores as a log may hold them, finite all, with sums, squares and differences that are not.
_EXTREME = (1.7e308, -1.7e308, 1e200, -1e200, 0.0, 5e-324, -5e-324, 1.0)


@dataclass(frozen=True)
class Promise:
    """One thing that every optimizer keeps to, in each of some of the SPACES."""

    keep: _Keep
    spaces: tuple[str, ...]

    @property
    def words(self) -> str:
        """The promise as a sentence."""
        return self.keep.__name__.replace("_", " ")


PROMISES: list[Promise] = []


def _promised(*spaces: str) -> Callable[[_Keep], _Keep]:
    def add(keep: _Keep) -> _Keep:
        PROMISES.append(Promise(keep, spaces))
        return keep

    return add


# ------------------------------------------------------------------------------------------------------ what it says


@_promised(*SPACES)
def every_suggestion_is_a_configuration_of_the_space_and_has_a_reason(new: NewOptimizer, space: SearchSpace) -> None:
    """Within the bounds, of the right types, with just the parameters that exist, in the order of the space."""
    for suggestion in suggest(new(), sweep_config(search_space=space), [4, 4, 3, 2, 1]):
        _assert_valid(space, suggestion)
        assert any(suggestion.reasons)


@_promised(*SPACES)
def it_goes_on_from_wherever_a_sweep_stands(new: NewOptimizer, space: SearchSpace) -> None:
    """Whatever became of the runs: completed, failed, on their way, cancelled, rolled back."""
    for partial_results in (False, True):
        history = history_of(searched(space, partial_results=partial_results))
        for suggestion in new().suggest(history, 2):
            _assert_valid(space, suggestion)


@_promised(*SPACES)
def a_log_holds_suggestions_exactly(new: NewOptimizer, space: SearchSpace) -> None:
    """With what the optimizer says about them; so none of its numbers is NaN or infinite, which JSON cannot hold."""
    for state in (started(sweep_config(search_space=space)), searched(space)):
        suggestions = new().suggest(history_of(state), 2)
        assert msgspec.json.decode(msgspec.json.encode(suggestions), type=list[Suggestion]) == suggestions


@_promised(*_INFINITE)
def configurations_suggested_together_are_all_different(new: NewOptimizer, space: SearchSpace) -> None:
    """Also when more are asked for than an optimizer would ever compare."""
    for state in (started(sweep_config(search_space=space)), searched(space)):
        suggestions = new().suggest(history_of(state), _LARGE_BATCH)
        # A grid has only so many points, also where the space has more.
        assert 2 <= len(suggestions) <= _LARGE_BATCH
        assert len({space.key(suggestion.config) for suggestion in suggestions}) == len(suggestions)


# ----------------------------------------------------------------------------------- that it has no state of its own


@_promised(*SPACES)
def a_new_optimizer_goes_on_where_another_stopped(new: NewOptimizer, space: SearchSpace) -> None:
    """As after a restart: what the first one remembers makes no difference."""
    config = sweep_config(search_space=space)
    optimizer, score, state = new(), bowl(config), started(config)
    for fates in ("ccc", "cp", "fccb", "rxc", "c"):
        suggestions = optimizer.suggest(history_of(state), len(fates))
        assert new().suggest(history_of(state), len(fates)) == suggestions
        state = lived(state, configs(suggestions), fates, score, range(len(suggestions))[::-1])


@_promised(*_TYPICAL)
def what_it_was_asked_before_does_not_matter(new: NewOptimizer, space: SearchSpace) -> None:
    """One optimizer may serve several sweeps, go back in time, and be asked the same again."""
    wider = SearchSpace.of({**space.parameters, "another": Range(1, 3)})
    sweeps = [searched(each, "cfcp", seed=seed) for each in (space, wider) for seed in (1, 2)]
    longer = lived(sweeps[0], random_configs(space, 2, seed=3), "cc", bowl(sweeps[0].sweep.config))
    histories = [history_of(state) for state in (*sweeps, longer)]
    optimizer = new()
    first = [optimizer.suggest(history, 2) for history in histories]
    again = [optimizer.suggest(history, 2) for history in reversed(histories)]
    assert again == first[::-1]


@_promised(*_TYPICAL)
def asking_changes_nothing_that_the_caller_can_see(new: NewOptimizer, space: SearchSpace) -> None:
    """Histories are shared."""
    history = history_of(searched(space))
    before = msgspec.json.encode(history.config), dict(history.runs), dict(history.tried)
    new().suggest(history, 2)
    assert (msgspec.json.encode(history.config), dict(history.runs), dict(history.tried)) == before


@_promised(*_TYPICAL)
def the_order_in_which_runs_are_mapped_does_not_matter(new: NewOptimizer, space: SearchSpace) -> None:
    """A history's runs are a mapping, not a list."""
    history = history_of(searched(space))
    by_index = sorted(history.runs.items(), key=lambda item: item[1].index)
    answers = [new().suggest(replace(history, runs=dict(runs)), 2) for runs in (by_index, by_index[::-1])]
    assert answers[0] == answers[1]


# ---------------------------------------------------------------------------------------------------- what it is told


@_promised(*SPACES)
def it_needs_no_observations(new: NewOptimizer, space: SearchSpace) -> None:
    """None, and a single run of each fate."""
    assert len(new().suggest(history_of(started(sweep_config(search_space=space))), 1)) == 1
    for fate in FATES:
        for suggestion in new().suggest(history_of(searched(space, fate)), 1):
            _assert_valid(space, suggestion)


@_promised(*_TYPICAL)
def runs_may_end_in_any_order(new: NewOptimizer, space: SearchSpace) -> None:
    """Asked in between, or once at the end: what counts is how the sweep stands."""
    config = sweep_config(search_space=space)
    tried, score, optimizer = random_configs(space, 6), bowl(config), new()
    for order in ((0, 1, 2, 3, 4, 5), (5, 3, 1, 0, 2, 4)):
        state = lived(started(config), tried[:2], "cc", score)
        state = lived(state, tried[2:], "cfcc", score, [at - 2 for at in order if at >= 2])
        suggestions = optimizer.suggest(history_of(state), 2)
        assert suggestions == new().suggest(history_of(state), 2)
        for suggestion in suggestions:
            _assert_valid(space, suggestion)


@_promised(*_TYPICAL)
def scores_may_be_all_equal(new: NewOptimizer, space: SearchSpace) -> None:
    """Nothing is better than anything else."""
    state = started(sweep_config(search_space=space))
    _assert_goes_on(new, lived(state, random_configs(space, 14), "c" * 14, lambda _: 0.5))


@_promised(*_TYPICAL)
def every_run_may_fail(new: NewOptimizer, space: SearchSpace) -> None:
    """Or be cancelled, or rolled back, or be on its way."""
    for fate in "fpxb":
        _assert_goes_on(new, searched(space, fate * 14))


@_promised(*_TYPICAL)
def scores_may_be_as_large_as_floats(new: NewOptimizer, space: SearchSpace) -> None:
    """The log refuses NaN and infinities, and nothing else."""
    state = started(sweep_config(search_space=space, direction="minimize"))
    scores = iter(_EXTREME * 2)
    _assert_goes_on(new, lived(state, random_configs(space, 14), "c" * 14, lambda _: next(scores)))


@_promised(*_INFINITE)
def one_configuration_may_be_tried_again_and_again(new: NewOptimizer, space: SearchSpace) -> None:
    """With a score that varies: training is noisy."""
    scores = iter([0.5, 0.7, 0.1, 0.5] * 4)
    state = started(sweep_config(search_space=space))
    _assert_goes_on(new, lived(state, random_configs(space, 1) * 14, "c" * 14, lambda _: next(scores)))


@_promised(*_TYPICAL)
def to_minimize_a_score_is_to_maximize_its_negative(new: NewOptimizer, space: SearchSpace) -> None:
    """The same configurations come of it."""
    low, high = (history_of(searched(space, direction=direction)) for direction in ("minimize", "maximize"))
    assert configs(new().suggest(low, 3)) == configs(new().suggest(high, 3))


@_promised(*_TYPICAL)
def the_space_may_change_in_the_middle(new: NewOptimizer, space: SearchSpace) -> None:
    """Runs of before may then be no configurations any more."""
    wider = SearchSpace.of({**space.parameters, "another": Range(1, 3)})
    optimizer, state = new(), searched(space)
    optimizer.suggest(history_of(state), 1)
    state = amended(state, {"search_space": wider})
    suggestions = optimizer.suggest(history_of(state), 2)
    assert suggestions == new().suggest(history_of(state), 2)
    for suggestion in suggestions:
        _assert_valid(wider, suggestion)


@_promised(*_TYPICAL)
def it_may_be_told_to_explore_more_or_less(new: NewOptimizer, space: SearchSpace) -> None:
    """From nothing but the best known to nothing but the unknown."""
    for exploration in (0.0, 0.2, 0.8, 1.0):
        history = History.of(searched(space), exploration)
        for suggestion in new().suggest(history, 2):
            _assert_valid(space, suggestion)


# ------------------------------------------------------------------------------------------------------ finite spaces


@_promised(*FINITE)
def a_finite_space_is_walked_once_and_to_its_end(new: NewOptimizer, space: SearchSpace) -> None:
    """One by one, by threes, and all at once."""
    assert space.cardinality is not None
    for size in (1, 3, _HUGE):
        suggestions = suggest(new(), sweep_config(search_space=space), [size] * (space.cardinality // size + 1))
        assert len(suggestions) == space.cardinality
        assert len({space.key(suggestion.config) for suggestion in suggestions}) == space.cardinality


@_promised(*FINITE)
def a_configuration_that_was_rolled_back_is_to_be_had_again(new: NewOptimizer, space: SearchSpace) -> None:
    """It is the only one left."""
    assert space.cardinality is not None
    config = sweep_config(search_space=space)
    every = configs(suggest(new(), config, [_HUGE]))
    state = lived(started(config), every, "b" + "c" * (len(every) - 1), bowl(config))
    assert configs(new().suggest(history_of(state), 2)) == every[:1]


def _assert_valid(space: SearchSpace, suggestion: Suggestion) -> None:
    try:
        space.check(suggestion.config)
    except SearchSpaceError as error:
        raise AssertionError(f"{suggestion.config} is no configuration of the space: {error}") from error
    assert list(suggestion.config) == [name for name in space.parameters if name in suggestion.config]


def _assert_goes_on(new: NewOptimizer, state: SweepState) -> None:
    space = state.sweep.config.search_space
    suggestions = new().suggest(history_of(state), 2)
    assert len(suggestions) == 2
    for suggestion in suggestions:
        _assert_valid(space, suggestion)
    assert msgspec.json.decode(msgspec.json.encode(suggestions), type=list[Suggestion]) == suggestions
