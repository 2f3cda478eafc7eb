"""Dispatchers that step in for each other: the contract of all dispatchers, and who gets a job in which case."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from dispatchers.jobs import job
from metta.sweep.clock import SystemClock
from metta.sweep.dispatchers.fallback import FallbackDispatcher
from metta.sweep.dispatchers.local import LocalDispatcher
from metta.sweep.dispatchers.unavailable import UnavailableDispatcher
from metta.sweep.errors import DispatchError
from metta.sweep.model.run import JobDefinition, Outcome
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Dispatcher, Placement, Standing, Store
from metta.sweep.stores import open_store
from metta.sweep.testing import DispatcherContract, ManualClock
from metta.sweep.testing.fake_dispatcher import FakeCompute, FakeDispatcher
from metta.sweep.testing.sweeps import SWEEP
from processes import kill_all_in


class FallbackContract(DispatcherContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with closing(open_store(f"sqlite:///{tmp_path}/sweeps.db", create=True)) as store:
            yield store
        kill_all_in(tmp_path)


class TestFallbackToThisMachine(FallbackContract):
    """The cluster refuses everything."""

    def dispatcher(self, store: Store, config: SweepConfig) -> FallbackDispatcher:
        cluster = FakeDispatcher("slurm")
        cluster.compute.refusal = "invalid account"
        local = LocalDispatcher(store, SWEEP, config, SystemClock())
        return FallbackDispatcher([cluster, local], SystemClock(), config.directory)


class TestFallbackFromThisMachine(FallbackContract):
    """Local agents cannot be started for want of the working folder; then a second one does the work."""

    def dispatcher(self, store: Store, config: SweepConfig) -> FallbackDispatcher:
        nowhere = replace(config, working_directory=f"{config.working_directory}/gone", directory="/proc/no/folder")
        members = [LocalDispatcher(store, SWEEP, each, SystemClock()) for each in (nowhere, config)]
        return FallbackDispatcher(members, SystemClock(), config.directory)


class World:
    """Two or three computes, and the fallback dispatchers of one process after another."""

    def __init__(self, directory: Path) -> None:
        self.clock = ManualClock()
        self.directory = str(directory)
        self.slurm, self.local = FakeCompute(), FakeCompute()
        self.start()

    def start(self) -> None:
        """A new process."""
        members = [FakeDispatcher("slurm", self.slurm), FakeDispatcher("local", self.local)]
        self.fallback = FallbackDispatcher(members, self.clock, self.directory)

    def dispatch(self, *jobs: JobDefinition) -> dict[str, Placement]:
        return dict(self.fallback.dispatch(jobs))

    def break_after(self, taken: int) -> None:
        """Slurm takes so many jobs of the next dispatch, and falls silent without an answer."""
        left = [taken]

        def on_taken(_job: JobDefinition) -> None:
            left[0] -= 1
            if left[0] == 0:
                self.slurm.is_silent = True
                self.slurm.on_taken = None
                raise DispatchError("broken pipe")

        self.slurm.on_taken = on_taken

    def wait(self) -> None:
        """Until every circuit lets a probe through."""
        self.clock.advance(3600)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


A, B, C = (job(index) for index in range(3))


def held(compute: FakeCompute) -> set[str]:
    return set(compute.running)


# ------------------------------------------------------------------------------------------------------- who gets a job


def test_the_first_member_gets_the_jobs_and_no_reasons_are_needed(world: World) -> None:
    assert world.dispatch(A, B) == dict.fromkeys((A.job_id, B.job_id), Placement(dispatcher="slurm"))
    assert not world.local.offered


def test_where_the_first_fails_the_next_gets_the_jobs_and_the_reason_is_told(world: World) -> None:
    world.slurm.refusal = "invalid account"
    assert world.dispatch(A)[A.job_id] == Placement(dispatcher="local", reasons=("slurm: invalid account",))


def test_a_member_that_does_not_answer_is_offered_nothing(world: World) -> None:
    world.slurm.is_silent = True
    assert world.dispatch(A)[A.job_id] == Placement(dispatcher="local", reasons=("slurm: does not answer",))
    assert not world.slurm.offered


def test_jobs_for_which_the_first_has_no_room_go_to_the_next(world: World) -> None:
    world.slurm.room = 1
    placements = world.dispatch(A, B)
    assert placements[A.job_id] == Placement(dispatcher="slurm")
    assert placements[B.job_id] == Placement(dispatcher="local", reasons=("slurm: no room",))


def test_a_member_that_would_queue_jobs_is_not_offered_more_than_it_runs(world: World) -> None:
    world.slurm.capacity = 1
    world.dispatch(A, B)
    assert (held(world.slurm), held(world.local)) == ({A.job_id}, {B.job_id})


def test_jobs_for_which_there_is_no_room_anywhere_are_left_out_and_placed_later(world: World) -> None:
    world.slurm.capacity = world.local.capacity = 1
    assert world.dispatch(A, B, C).keys() == {A.job_id, B.job_id}
    assert world.dispatch(C) == {}
    world.local.finish(B.job_id)
    assert world.dispatch(C)[C.job_id].dispatcher == "local"


def test_when_all_fail_each_reason_is_told(world: World) -> None:
    world.slurm.refusal, world.local.is_silent = "invalid account", True
    with pytest.raises(DispatchError, match=r"^slurm: invalid account; local: does not answer$"):
        world.dispatch(A)


def test_no_room_at_one_and_a_failure_at_the_other_is_no_failure_of_all(world: World) -> None:
    world.slurm.capacity, world.local.refusal = 0, "disk full"
    assert world.dispatch(A) == {}


def test_one_that_cannot_be_had_here_is_passed_over_with_the_reason(world: World) -> None:
    members: Sequence[Dispatcher] = [UnavailableDispatcher("slurm", "there is no sbatch"), FakeDispatcher("local")]
    fallback = FallbackDispatcher(members, world.clock, world.directory)
    reasons = ("slurm: there is no sbatch",)
    assert fallback.dispatch([A]) == {A.job_id: Placement(dispatcher="local", reasons=reasons)}
    assert fallback.standing([A.job_id]) == {A.job_id: Standing.KNOWN}
    assert fallback.held() == [A.job_id]


# ------------------------------------------------------------------------------------------------ nothing is done twice


def test_a_job_taken_before_is_found_and_named_again(world: World) -> None:
    world.slurm.capacity = 0
    world.dispatch(A)
    world.slurm.capacity = None
    for _ in range(2):
        again = world.dispatch(A)
        assert again == {A.job_id: Placement(dispatcher="local", reasons=("it was there already",))}
        world.start()
    assert not held(world.slurm)


def test_a_job_that_a_silent_member_may_have_taken_waits_for_its_answer(world: World) -> None:
    world.break_after(taken=1)
    with pytest.raises(DispatchError, match=rf"slurm: broken pipe; slurm may have {A.job_id} or not; nobody else"):
        world.dispatch(A)
    assert world.dispatch(A) == {}
    world.start()
    with pytest.raises(DispatchError, match=f"slurm may have {A.job_id} or not"):
        world.dispatch(A)
    assert world.dispatch(A, B).keys() == {B.job_id}
    assert not world.local.knows(A.job_id)
    world.slurm.is_silent = False
    world.wait()
    assert world.dispatch(A)[A.job_id].dispatcher == "slurm"
    assert world.slurm.starts == {A.job_id: 1}


def test_that_a_job_may_be_somewhere_is_told_once_and_not_instead_of_placements(world: World) -> None:
    world.slurm.capacity = 1
    world.break_after(taken=1)
    assert world.dispatch(A, B).keys() == {B.job_id}
    with pytest.raises(DispatchError, match=f"^slurm may have {A.job_id} or not"):
        world.dispatch(A)
    assert world.dispatch(A) == {}


def test_jobs_that_were_taken_before_a_failure_stay_and_the_others_go_on_to_the_next(world: World) -> None:
    def refuse_the_rest(_job: JobDefinition) -> None:
        world.slurm.on_taken = None
        raise DispatchError("quota reached")

    world.slurm.on_taken = refuse_the_rest
    placements = world.dispatch(A, B)
    assert placements[A.job_id].dispatcher == "slurm"
    assert placements[A.job_id].reasons == ("it is there, though slurm said: quota reached",)
    assert placements[B.job_id] == Placement(dispatcher="local", reasons=("slurm: quota reached",))


def test_a_job_that_a_member_says_it_did_not_get_goes_to_the_next(world: World) -> None:
    world.break_after(taken=1)
    with pytest.raises(DispatchError):
        world.dispatch(A)
    world.slurm.lose(A.job_id)
    world.slurm.is_silent = False
    world.slurm.capacity = 0
    assert world.dispatch(A)[A.job_id].dispatcher == "local"


def test_a_job_that_waited_for_room_does_not_wait_for_the_one_that_had_none_to_answer(world: World) -> None:
    world.slurm.room = world.local.room = 0
    assert world.dispatch(A) == {}
    world.slurm.is_silent, world.local.room = True, None
    assert world.dispatch(A)[A.job_id].dispatcher == "local"


def test_a_process_that_died_while_it_offered_a_job_is_remembered(world: World) -> None:
    def die(_job: JobDefinition) -> None:
        world.slurm.on_taken = None
        raise KeyboardInterrupt

    world.slurm.on_taken = die
    with pytest.raises(KeyboardInterrupt):
        world.dispatch(A)
    world.slurm.is_silent = True
    world.start()
    assert world.dispatch(A, B).keys() == {B.job_id}
    assert not world.local.knows(A.job_id)


def test_a_job_found_where_it_was_never_seen_to_be_offered_stays_there(world: World) -> None:
    world.slurm.take(A)
    assert world.dispatch(A)[A.job_id].dispatcher == "slurm"


def test_an_offer_that_cannot_be_written_down_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "offers.jsonl").mkdir()
    world = World(tmp_path)
    with pytest.raises(DispatchError, match=r"offers\.jsonl cannot be read: Is a directory"):
        world.dispatch(A)
    world.directory = "/proc/no/folder"
    world.start()
    with pytest.raises(DispatchError, match=r"jobs are not offered to slurm, because that cannot be written down"):
        world.dispatch(A)
    assert not world.slurm.offered


def test_an_offer_cut_short_by_a_crash_does_not_spoil_the_next(world: World, tmp_path: Path) -> None:
    offers = tmp_path / "offers.jsonl"
    offers.write_bytes(b'{"job_id":"x.train.1","to":"sl')
    world.break_after(taken=1)
    with pytest.raises(DispatchError):
        world.dispatch(A)
    world.start()
    assert world.dispatch(A, B).keys() == {B.job_id}


def test_waiting_for_room_does_not_make_the_record_of_offers_grow(world: World, tmp_path: Path) -> None:
    world.slurm.room = world.local.room = 0
    sizes = set()
    for _ in range(5):
        assert world.dispatch(A) == {}
        sizes.add((tmp_path / "offers.jsonl").stat().st_size)
    assert len(sizes) == 1


# ---------------------------------------------------------------------------------------------------------- the circuit


def test_one_that_keeps_failing_is_left_alone_for_a_while(world: World) -> None:
    world.slurm.refusal = "invalid account"
    for index in range(3):
        world.dispatch(job(index))
    placement = world.dispatch(job(3))[job(3).job_id]
    assert placement.reasons == ("slurm: invalid account; circuit open for 5 s",)
    assert job(3).job_id not in world.slurm.offered
    world.slurm.refusal = None
    world.clock.advance(5)
    assert world.dispatch(job(4))[job(4).job_id].dispatcher == "slurm"


def test_the_job_that_probes_a_member_goes_to_the_next_when_that_one_still_refuses(world: World) -> None:
    world.slurm.refusal = "invalid account"
    for index in range(6):
        assert world.dispatch(job(index))[job(index).job_id].dispatcher == "local"
        world.clock.advance(3)


def test_one_that_is_silent_is_not_asked_each_time(world: World) -> None:
    world.dispatch(A)
    world.slurm.is_silent = True
    for _ in range(3):
        assert world.fallback.standing([A.job_id]) == {A.job_id: Standing.UNKNOWN}
    world.slurm.is_silent = False
    assert world.fallback.standing([A.job_id]) == {A.job_id: Standing.UNKNOWN}
    world.wait()
    assert world.fallback.standing([A.job_id]) == {A.job_id: Standing.KNOWN}


def test_silences_with_answers_between_them_open_no_circuit(world: World) -> None:
    world.dispatch(A)
    for is_silent in [True, True, False] * 3:
        world.slurm.is_silent = is_silent
        expected = Standing.UNKNOWN if is_silent else Standing.KNOWN
        assert world.fallback.standing([A.job_id]) == {A.job_id: expected}


# ------------------------------------------------------------------------------------------------------- as one of many


def test_a_job_is_lost_when_everybody_who_may_have_it_says_so(world: World) -> None:
    world.dispatch(A)
    world.slurm.lose(A.job_id)
    world.local.is_silent = True
    assert world.fallback.standing([A.job_id]) == {A.job_id: Standing.LOST}
    assert world.fallback.standing(["x.train.1"]) == {"x.train.1": Standing.UNKNOWN}
    world.local.is_silent = False
    assert world.fallback.standing(["x.train.1"]) == {"x.train.1": Standing.LOST}


def test_jobs_are_cancelled_where_they_are_even_if_somebody_else_does_not_answer(world: World) -> None:
    world.slurm.capacity = 1
    world.dispatch(A, B)
    world.slurm.is_silent = True
    world.fallback.cancel([A.job_id, B.job_id], Outcome.CANCELLED, "enough")
    assert world.local.cancelled == {B.job_id: Outcome.CANCELLED}
    world.slurm.is_silent = False
    world.fallback.cancel([A.job_id], Outcome.CANCELLED, "enough")
    assert world.slurm.cancelled == {A.job_id: Outcome.CANCELLED}


def test_what_is_held_is_held_by_any_of_them(world: World) -> None:
    world.slurm.capacity = 1
    world.dispatch(A, B)
    assert set(world.fallback.held()) == {A.job_id, B.job_id}
    world.slurm.is_silent = True
    assert world.fallback.held() == [B.job_id]


def test_the_capacity_is_the_sum_unless_one_has_no_limit(world: World) -> None:
    assert world.fallback.capacity() is None
    world.slurm.capacity, world.local.capacity = 3, 2
    assert world.fallback.capacity() == 5


def test_all_members_are_closed_and_the_name_tells_them(world: World) -> None:
    members = [FakeDispatcher("slurm"), FakeDispatcher("local")]
    fallback = FallbackDispatcher(members, world.clock, world.directory)
    fallback.close()
    assert [member.is_closed for member in members] == [True, True]
    assert fallback.name == "fallback(slurm, local)"
