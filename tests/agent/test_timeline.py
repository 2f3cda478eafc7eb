"""Curves keep a bounded number of points, and what they say."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.agent.timeline import MOST_POINTS, Moment, Timeline


def moments(cpus: list[int]) -> list[Moment]:
    return [Moment(cpus=value, memory=value, disk=2.0 * value, gpu=value / 100) for value in cpus]


@given(values=st.lists(st.integers(0, 100), min_size=1, max_size=1000))
def test_however_long_it_goes_on_points_are_bounded_and_true(values: list[int]) -> None:
    timeline = Timeline()
    for moment in moments(values):
        timeline.add(moment)
    points, looks = timeline.points, timeline.looks_a_point
    assert len(points) == -(-len(values) // looks) <= MOST_POINTS + 1
    for number, point in enumerate(points):
        seen = values[number * looks : (number + 1) * looks]
        assert point.cpus == pytest.approx(sum(seen) / len(seen), abs=1e-6)
        assert point.memory == max(seen)
        assert point.disk == pytest.approx(2 * point.cpus)
        assert point.gpu == pytest.approx(point.cpus / 100)


def test_few_looks_are_kept_as_they_are() -> None:
    timeline = Timeline()
    for moment in moments([1, 5, 3]):
        timeline.add(moment)
    assert [point.cpus for point in timeline.points] == [1, 5, 3]
    assert timeline.looks_a_point == 1


def test_without_gpus_there_is_nothing_of_them() -> None:
    timeline = Timeline()
    timeline.add(Moment(cpus=1, memory=1, disk=0, gpu=None))
    assert timeline.points[0].gpu is None
