"""What a tree of processes has used, whatever of it comes and goes between two looks."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metta.sweep.agent.counters import ProcessTree, Reading, Totals
from metta.sweep.agent.messages import Exited
from metta.sweep.agent.processes import Process

TICK = 1 / os.sysconf("SC_CLK_TCK")
SERVER, LEADER = 1, 100


def reading(pid: int, parent: int, ticks: int, io: tuple[int, int] | None = (0, 0), *, started: int = 0) -> Reading:
    process = Process(pid=pid, parent=parent, session=LEADER, state="R", started=started, ticks=ticks, resident=4096)
    return Reading(process=process, io=io, memory_peak=4096, swapped=0, ran=ticks, waited=1)


def test_what_a_child_used_is_not_counted_again_when_it_has_passed_on_to_its_parent() -> None:
    tree = ProcessTree(LEADER)
    tree.update([reading(LEADER, SERVER, 10), reading(101, LEADER, 50, (7, 9))])
    assert tree.totals.cpu_seconds == pytest.approx(60 * TICK)
    tree.update([reading(LEADER, SERVER, 65, (7, 10))])
    assert tree.totals.cpu_seconds == pytest.approx(65 * TICK)
    assert (tree.totals.read_bytes, tree.totals.written_bytes) == (7, 10)


def test_what_an_orphan_used_is_kept_when_it_ends() -> None:
    tree = ProcessTree(LEADER)
    tree.update([reading(LEADER, SERVER, 10), reading(101, SERVER, 50)])
    tree.update([reading(LEADER, SERVER, 12)])
    assert tree.totals.cpu_seconds == pytest.approx(62 * TICK)
    tree.finish(Exited(key="w1", cpu_seconds=20 * TICK, memory_peak_bytes=1))
    assert tree.totals.cpu_seconds == pytest.approx(70 * TICK)


def test_a_process_that_has_the_id_of_another_is_another() -> None:
    tree = ProcessTree(LEADER)
    tree.update([reading(LEADER, SERVER, 0), reading(101, SERVER, 50, started=1)])
    tree.update([reading(LEADER, SERVER, 0), reading(101, SERVER, 5, started=2)])
    assert tree.totals.cpu_seconds == pytest.approx(55 * TICK)
    assert tree.totals.ran == 55


def test_a_process_that_is_ending_and_does_not_tell_any_more_had_what_it_had() -> None:
    tree = ProcessTree(LEADER)
    tree.update([reading(LEADER, SERVER, 1, (5, 6))])
    tree.update([reading(LEADER, SERVER, 2, None)])
    assert tree.totals.written_bytes == 6
    assert tree.has_io


def test_where_the_kernel_does_not_tell_that_is_known() -> None:
    tree = ProcessTree(LEADER)
    tree.update([reading(LEADER, SERVER, 1, None)])
    assert not tree.has_io


class Family:
    """Processes that work, start children, end, and are waited for by parents that live; the server adopts the rest."""

    def __init__(self) -> None:
        self.parents = {LEADER: SERVER}
        self.ticks = {LEADER: 0}
        self.truth = 0
        self._next = LEADER + 1

    def work(self, pid: int, ticks: int) -> None:
        self.ticks[pid] += ticks
        self.truth += ticks

    def fork(self, parent: int) -> None:
        self.parents[self._next], self.ticks[self._next] = parent, 0
        self._next += 1

    def end(self, pid: int) -> None:
        parent = self.parents.pop(pid)
        ticks = self.ticks.pop(pid)
        if parent in self.ticks:
            self.ticks[parent] += ticks
        for child, its_parent in self.parents.items():
            if its_parent == pid:
                self.parents[child] = SERVER

    def readings(self) -> list[Reading]:
        return [reading(pid, parent, self.ticks[pid]) for pid, parent in self.parents.items()]


@given(steps=st.lists(st.tuples(st.sampled_from(["work", "fork", "end"]), st.integers(0, 99), st.integers(1, 9))))
def test_looked_at_after_every_step_nothing_is_lost_and_nothing_counted_twice(
    steps: list[tuple[str, int, int]],
) -> None:
    family, tree = Family(), ProcessTree(LEADER)
    for what, which, ticks in steps:
        pids = sorted(family.parents)
        pid = pids[which % len(pids)]
        if what == "work":
            family.work(pid, ticks)
        elif what == "fork":
            family.fork(pid)
        elif pid != LEADER:
            family.end(pid)
        tree.update(family.readings())
        assert tree.totals.cpu_seconds == pytest.approx(family.truth * TICK)


@given(
    steps=st.lists(st.tuples(st.sampled_from(["work", "fork", "end", "look"]), st.integers(0, 99), st.integers(1, 9)))
)
def test_looked_at_now_and_then_it_is_never_more_than_what_was_used_and_never_falls(
    steps: list[tuple[str, int, int]],
) -> None:
    family, tree = Family(), ProcessTree(LEADER)
    before = Totals()
    for what, which, ticks in steps:
        pids = sorted(family.parents)
        pid = pids[which % len(pids)]
        if what == "work":
            family.work(pid, ticks)
        elif what == "fork":
            family.fork(pid)
        elif what == "end" and pid != LEADER:
            family.end(pid)
        elif what == "look":
            tree.update(family.readings())
            assert before.cpu_seconds <= tree.totals.cpu_seconds <= family.truth * TICK + 1e-9
            before = tree.totals
