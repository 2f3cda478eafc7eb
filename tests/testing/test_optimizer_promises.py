"""The conformance suite finds what is wrong with an optimizer, and only that."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from msgspec.structs import replace

from metta.sweep.errors import ConfigError, InvalidTransition
from metta.sweep.model.acquisition import Acquisition
from metta.sweep.model.run import JobStatus
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers.random import RandomOptimizer
from metta.sweep.optimizers.sampling import rng
from metta.sweep.protocols import History, Suggestion
from metta.sweep.testing import check_optimizer, sweep_config
from metta.sweep.testing.promises import PROMISES
from metta.sweep.testing.searches import SPACES, amended, bowl, configs, history_of, lived, searched, started


def broken_promises(new_optimizer: Callable[[], RandomOptimizer], **options: object) -> set[str]:
    """The first words of the notes."""
    try:
        check_optimizer(new_optimizer, **options)  # type: ignore[arg-type]
    except ExceptionGroup as group:
        return {error.__notes__[-1].split("; ")[0].removeprefix("promise: ") for error in group.exceptions}
    return set()


def words(*names: str) -> set[str]:
    promised = {promise.keep.__name__ for promise in PROMISES}
    assert promised.issuperset(names)
    return {name.replace("_", " ") for name in names}


class Altered(RandomOptimizer):
    """Random search with one thing wrong."""

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        return [self.alter(history, suggestion) for suggestion in super().suggest(history, n)]

    def alter(self, history: History, suggestion: Suggestion) -> Suggestion:
        raise NotImplementedError


def test_an_optimizer_that_keeps_its_promises_passes() -> None:
    check_optimizer(RandomOptimizer)


def test_values_of_another_type_are_found() -> None:
    class Numpy(Altered):
        def alter(self, history: History, suggestion: Suggestion) -> Suggestion:
            config = {name: str(value) for name, value in suggestion.config.items()}
            return replace(suggestion, config=config)

    assert words("every_suggestion_is_a_configuration_of_the_space_and_has_a_reason") <= broken_promises(Numpy)


def test_parameters_that_do_not_exist_are_found() -> None:
    class Unconditional(Altered):
        def alter(self, history: History, suggestion: Suggestion) -> Suggestion:
            return replace(suggestion, config={"adam.beta": 0.9, **suggestion.config})

    assert words("every_suggestion_is_a_configuration_of_the_space_and_has_a_reason") <= broken_promises(Unconditional)


def test_a_missing_reason_is_found() -> None:
    class Silent(Altered):
        def alter(self, history: History, suggestion: Suggestion) -> Suggestion:
            return replace(suggestion, reasons=())

    assert broken_promises(Silent) == words("every_suggestion_is_a_configuration_of_the_space_and_has_a_reason")


def test_numbers_that_a_log_cannot_hold_are_found() -> None:
    class Unsure(Altered):
        def alter(self, history: History, suggestion: Suggestion) -> Suggestion:
            return replace(suggestion, acquisition=Acquisition(acquisition_value=1.0, predicted_score=math.nan))

    assert words("a_log_holds_suggestions_exactly", "every_run_may_fail") <= broken_promises(Unsure)


def test_state_of_its_own_is_found() -> None:
    class Counting(RandomOptimizer):
        def __init__(self) -> None:
            self.asked = 0

        def suggest(self, history: History, n: int) -> list[Suggestion]:
            self.asked += 1
            config = replace(history.config, seed=history.config.seed + self.asked)
            return super().suggest(replace(history, config=config), n)

    assert broken_promises(Counting) >= words(
        "a_new_optimizer_goes_on_where_another_stopped",
        "what_it_was_asked_before_does_not_matter",
        "runs_may_end_in_any_order",
        "the_space_may_change_in_the_middle",
    )


def test_an_optimizer_that_goes_by_the_order_of_a_mapping_is_found() -> None:
    class Following(Altered):
        def alter(self, history: History, suggestion: Suggestion) -> Suggestion:
            latest = list(history.runs.values())[-1].config if history.runs else suggestion.config
            return suggestion if history.tried else replace(suggestion, config=latest)

    assert words("the_order_in_which_runs_are_mapped_does_not_matter") <= broken_promises(Following)


def test_an_optimizer_that_prefers_high_scores_whatever_the_direction_is_found() -> None:
    class Upwards(RandomOptimizer):
        def suggest(self, history: History, n: int) -> list[Suggestion]:
            best = max(history.observations, key=lambda observation: observation.score, default=None)
            shift = 0 if best is None else round(1000 * history.config.search_space.encode(best.config)[0])
            return super().suggest(replace(history, config=replace(history.config, seed=shift)), n)

    assert words("to_minimize_a_score_is_to_maximize_its_negative") <= broken_promises(Upwards)


def test_the_same_again_is_found() -> None:
    class Stubborn(RandomOptimizer):
        def suggest(self, history: History, n: int) -> list[Suggestion]:
            space = history.config.search_space
            config = space.decode(rng(history.config.seed, 0).random(len(space.dimensions)).tolist())
            return [Suggestion(config=config, reasons=("once more",))] * n

    assert broken_promises(Stubborn) >= words(
        "a_finite_space_is_walked_once_and_to_its_end",
        "configurations_suggested_together_are_all_different",
        "a_configuration_that_was_rolled_back_is_to_be_had_again",
    )


def test_a_model_without_care_for_its_numbers_is_found() -> None:
    class Careless(RandomOptimizer):
        def suggest(self, history: History, n: int) -> list[Suggestion]:
            scores = np.array([observation.score for observation in history.observations])
            standardized = (scores - scores.mean()) / scores.std()
            return super().suggest(history, n) if np.isfinite(standardized).all() else []

    assert broken_promises(Careless) >= words("scores_may_be_all_equal", "scores_may_be_as_large_as_floats")


def test_a_space_that_is_refused_must_be_refused() -> None:
    class NotConditional(RandomOptimizer):
        def check(self, config: SweepConfig) -> None:
            if any(config.search_space.conditions.values()):
                raise ConfigError("strategy: no conditions here")

    conditional = {name for name, space in SPACES.items() if any(space.conditions.values())}
    assert broken_promises(NotConditional, refused=conditional) == set()
    assert broken_promises(NotConditional)
    assert broken_promises(RandomOptimizer, refused=conditional)


def test_each_promise_is_put_to_the_test_somewhere() -> None:
    assert all(promise.spaces for promise in PROMISES)
    assert len({promise.words for promise in PROMISES}) == len(PROMISES)


# -------------------------------------------------------------------------------------------- the sweeps it is tried on


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_optimizers_never_meet_a_score_that_is_no_finite_number(score: float) -> None:
    state = started(sweep_config(search_space=SPACES["continuous"]))
    with pytest.raises(InvalidTransition, match="not a finite number"):
        lived(state, [{"lr": 0.1}], "c", lambda _: score)


def test_a_search_has_runs_of_every_fate() -> None:
    runs = searched(SPACES["continuous"], partial_results=True).runs.values()
    assert {run.status for run in runs} == {
        JobStatus.COMPLETED,
        JobStatus.FAILED,
        JobStatus.IN_TRAINING,
        JobStatus.CANCELLED,
        JobStatus.ROLLED_BACK,
    }
    failed = [run.partial_score is None for run in runs if run.status is JobStatus.FAILED]
    assert set(failed) == {True, False}


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_bowl_is_best_at_three_tenths(direction: str) -> None:
    space = SPACES["continuous"]
    score = bowl(sweep_config(search_space=space, direction=direction))
    best, worse = (score(space.decode([place] * 5)) for place in (0.3, 0.5))
    assert abs(best) < 1e-3 < abs(worse)
    assert (worse > best) == (direction == "minimize")


def test_opposite_searches_have_opposite_scores() -> None:
    low, high = (history_of(searched(SPACES["finite"], direction=direction)) for direction in ("minimize", "maximize"))
    assert [run.score for run in low.observations] == [-run.score for run in high.observations]
    assert low.config.direction != high.config.direction


def test_an_amended_search_has_the_new_space() -> None:
    state = amended(searched(SPACES["finite"]), {"search_space": SPACES["conditional"]})
    assert state.sweep.config.search_space == SPACES["conditional"]
    assert configs(RandomOptimizer().suggest(history_of(state), 1))[0].keys() <= SPACES["conditional"].parameters.keys()
