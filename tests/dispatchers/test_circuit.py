"""The circuit breaker, in virtual time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.dispatchers.circuit import CircuitBreaker, CircuitState
from metta.sweep.testing import ManualClock

OPEN_S, LONGEST_S = 5.0, 60.0


def breaker(clock: ManualClock, threshold: int = 3) -> CircuitBreaker:
    return CircuitBreaker(clock, threshold=threshold, open_s=OPEN_S, longest_open_s=LONGEST_S)


def fail_probes(circuit: CircuitBreaker, clock: ManualClock, count: int) -> None:
    for _ in range(count):
        clock.advance(circuit.remaining_s)
        assert circuit.permits()
        circuit.fail()


def test_it_opens_after_as_many_failures_in_a_row_as_it_is_told() -> None:
    circuit = breaker(ManualClock())
    circuit.fail()
    circuit.fail()
    assert circuit.permits()
    circuit.fail()
    assert circuit.state is CircuitState.OPEN
    assert not circuit.permits()
    assert circuit.remaining_s == OPEN_S


def test_a_success_in_between_starts_the_count_again() -> None:
    circuit = breaker(ManualClock())
    for _ in range(5):
        circuit.fail()
        circuit.fail()
        circuit.succeed()
    assert circuit.state is CircuitState.CLOSED


def test_half_open_it_lets_one_probe_through() -> None:
    clock = ManualClock()
    circuit = breaker(clock, threshold=1)
    circuit.fail()
    clock.advance(OPEN_S)
    assert circuit.state is CircuitState.HALF_OPEN
    assert [circuit.permits() for _ in range(3)] == [True, False, False]
    circuit.succeed()
    assert circuit.state is CircuitState.CLOSED
    assert circuit.permits()


def test_a_probe_of_which_nothing_comes_is_followed_by_another() -> None:
    clock = ManualClock()
    circuit = breaker(clock, threshold=1)
    circuit.fail()
    clock.advance(OPEN_S)
    assert circuit.permits()
    clock.advance(OPEN_S)
    assert circuit.permits()


@pytest.mark.parametrize(("probes", "open_s"), [(0, 5), (1, 10), (2, 20), (3, 40), (4, 60), (2000, 60)])
def test_each_probe_that_fails_doubles_the_time_up_to_the_longest(probes: int, open_s: float) -> None:
    clock = ManualClock()
    circuit = breaker(clock, threshold=1)
    circuit.fail()
    fail_probes(circuit, clock, probes)
    assert circuit.remaining_s == open_s


def test_after_a_success_it_opens_for_the_first_time_anew() -> None:
    clock = ManualClock()
    circuit = breaker(clock, threshold=1)
    circuit.fail()
    fail_probes(circuit, clock, 5)
    circuit.succeed()
    circuit.fail()
    assert circuit.remaining_s == OPEN_S


def test_setting_the_clock_of_the_machine_changes_nothing() -> None:
    clock = ManualClock()
    circuit = breaker(clock, threshold=1)
    circuit.fail()
    clock.set(clock.now() + 1e6)
    assert circuit.state is CircuitState.OPEN


Steps = st.lists(st.sampled_from(["call", "fail", "succeed"]) | st.floats(0, 100), max_size=60)


@given(steps=Steps, threshold=st.integers(1, 4))
def test_whatever_happens_it_opens_again_in_time_and_is_closed_by_a_success(
    steps: list[str | float], threshold: int
) -> None:
    clock = ManualClock()
    circuit = breaker(clock, threshold)
    failures = 0
    for step in steps:
        if isinstance(step, float):
            clock.advance(step)
        elif step == "call":
            before = circuit.state
            assert circuit.permits() is (before is not CircuitState.OPEN)
            assert circuit.permits() is (before is CircuitState.CLOSED)
        elif step == "fail":
            circuit.fail()
            failures += 1
        else:
            circuit.succeed()
            failures = 0
        assert (circuit.state is CircuitState.CLOSED) is (failures < threshold)
        assert 0 <= circuit.remaining_s <= LONGEST_S
        assert (circuit.remaining_s > 0) is (circuit.state is CircuitState.OPEN)
    clock.advance(LONGEST_S)
    assert circuit.permits()
