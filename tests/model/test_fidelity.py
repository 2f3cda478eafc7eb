"""Where runs are looked at on their way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.config import parse_settings
from metta.sweep.errors import ConfigError
from metta.sweep.model.fidelity import Fidelity


def test_with_an_interval_the_levels_stand_at_equal_distances() -> None:
    assert Fidelity(maximum=50, grace_period=10, interval=10).levels == (10, 20, 30, 40)
    assert Fidelity(maximum=50, interval=20).levels == (1, 21, 41)
    assert Fidelity(maximum=1, grace_period=0.1, interval=0.3).levels == pytest.approx((0.1, 0.4, 0.7))
    assert Fidelity(maximum=10, grace_period=10, interval=1).levels == ()


def test_the_last_level_is_below_the_maximum_whatever_rounding_makes_of_it() -> None:
    assert Fidelity(maximum=0.3, grace_period=0.1, interval=0.1).levels == pytest.approx((0.1, 0.2))


@given(maximum=st.floats(1, 1e6), grace=st.floats(0.01, 1e6), interval=st.floats(0.01, 1e6))
def test_levels_ascend_from_the_grace_period_and_stay_below_the_maximum(
    maximum: float, grace: float, interval: float
) -> None:
    if (maximum - grace) / interval > 200:
        with pytest.raises(ConfigError, match="at most 200 can be kept"):
            Fidelity(maximum=maximum, grace_period=grace, interval=interval)
        return
    levels = Fidelity(maximum=maximum, grace_period=grace, interval=interval).levels
    assert list(levels) == sorted(set(levels))
    assert len(levels) <= 200
    assert all(grace <= level < maximum for level in levels)


def test_too_many_levels_are_refused_with_what_would_do() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_settings({"search_space": {}, "metric": "m", "fidelity": {"maximum": 1000, "interval": 1}})
    assert str(caught.value) == (
        "fidelity.interval: 1 makes 999 levels below the maximum of 1000; at most 200 can be kept, "
        "so make it at least 4.995"
    )
    assert len(Fidelity(maximum=1000, interval=4.995).levels) == 200
    with pytest.raises(ConfigError, match="interval"):
        parse_settings({"search_space": {}, "metric": "m", "fidelity": {"maximum": 10, "interval": 0}})


@pytest.mark.parametrize(
    ("fidelity", "levels"),
    [
        (Fidelity(maximum=1.0, grace_period=0.1, interval=0.1), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)),
        (Fidelity(maximum=1.0, grace_period=0.1, reduction_factor=3.0), (0.1, 0.3, 0.9)),
    ],
)
def test_levels_are_the_numbers_that_a_trial_would_write(fidelity: Fidelity, levels: tuple[float, ...]) -> None:
    """Or a trial that reports 0.3 would not have come to the level of 0.1 + 2 * 0.1."""
    assert fidelity.levels == levels
