"""Jobs sent where rules say: the contract of all dispatchers, and who gets a job."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dispatchers.jobs import job
from metta.sweep.clock import SystemClock
from metta.sweep.dispatchers.local import LocalDispatcher
from metta.sweep.dispatchers.routing import RoutingDispatcher
from metta.sweep.errors import DispatchError
from metta.sweep.model.dispatching import Condition
from metta.sweep.model.run import JobType, Outcome, Resources
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Placement, Standing, Store
from metta.sweep.stores import open_store
from metta.sweep.testing import DispatcherContract
from metta.sweep.testing.fake_dispatcher import FakeDispatcher
from metta.sweep.testing.sweeps import SWEEP
from processes import kill_all_in

EVALS = Condition(type=JobType.EVAL)
ON_GPUS = Condition(min_gpus=1)
REST = Condition()

TRAIN, EVAL, GPU = job(0), job(1, JobType.EVAL), job(2, resources=Resources(gpus=2))


class TestRoutingDispatcher(DispatcherContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with closing(open_store(f"sqlite:///{tmp_path}/sweeps.db", create=True)) as store:
            yield store
        kill_all_in(tmp_path)

    def dispatcher(self, store: Store, config: SweepConfig) -> RoutingDispatcher:
        local = LocalDispatcher(store, SWEEP, config, SystemClock())
        return RoutingDispatcher([(EVALS, FakeDispatcher("slurm")), (ON_GPUS, FakeDispatcher("cloud")), (REST, local)])


class Routes:
    """Evals go to a small machine, jobs that need GPUs to a cluster, the rest to the small machine too."""

    def __init__(self) -> None:
        self.small, self.cluster = FakeDispatcher("local"), FakeDispatcher("slurm")
        self.start()

    def start(self) -> None:
        """A new process."""
        self.router = RoutingDispatcher([(EVALS, self.small), (ON_GPUS, self.cluster), (REST, self.small)])


@pytest.fixture
def routes() -> Routes:
    return Routes()


def test_the_first_rule_that_takes_a_job_holds_and_the_placement_names_it(routes: Routes) -> None:
    both = job(3, JobType.EVAL, Resources(gpus=1))
    assert routes.router.dispatch([TRAIN, EVAL, GPU, both]) == {
        TRAIN.job_id: Placement(dispatcher="local", reasons=("rule 3 sends every job to local",)),
        EVAL.job_id: Placement(dispatcher="local", reasons=("rule 1 sends type eval to local",)),
        GPU.job_id: Placement(dispatcher="slurm", reasons=("rule 2 sends gpus >= 1 to slurm",)),
        both.job_id: Placement(dispatcher="local", reasons=("rule 1 sends type eval to local",)),
    }


@pytest.mark.parametrize(
    ("condition", "resources", "takes"),
    [
        (Condition(min_memory_gb=16), Resources(memory_gb=16), True),
        (Condition(min_memory_gb=16), Resources(memory_gb=8), False),
        (Condition(min_memory_gb=16), Resources(), False),
        (Condition(min_cpus=4), Resources(cpus=4), True),
        (Condition(min_cpus=4, min_gpus=1), Resources(cpus=4), False),
        (Condition(min_cpus=4, min_gpus=1), Resources(cpus=8, gpus=1), True),
        (Condition(type=JobType.TRAIN, min_cpus=4), Resources(cpus=4), True),
        (Condition(type=JobType.EVAL, min_cpus=4), Resources(cpus=4), False),
        (Condition(), Resources(), True),
    ],
)
def test_a_condition_takes_jobs_that_meet_all_that_it_says(
    condition: Condition, resources: Resources, takes: bool
) -> None:
    assert condition.takes(JobType.TRAIN, resources) is takes


def test_a_job_that_no_rule_takes_is_refused_with_what_it_needs_and_what_there_is() -> None:
    router = RoutingDispatcher([(EVALS, FakeDispatcher()), (Condition(min_gpus=4, min_cpus=2), FakeDispatcher())])
    with pytest.raises(
        DispatchError,
        match=rf"no rule takes job {GPU.job_id} \(type train, cpus 1, gpus 2, no memory limit\); "
        r"there are rules for: type eval; cpus >= 2 and gpus >= 4; a last rule without a condition takes what is left",
    ):
        router.dispatch([GPU])


def test_jobs_that_some_rule_takes_do_not_suffer_from_one_that_none_takes(routes: Routes) -> None:
    router = RoutingDispatcher([(EVALS, routes.small)])
    assert router.dispatch([TRAIN, EVAL]).keys() == {EVAL.job_id}


def test_jobs_for_which_their_member_has_no_room_are_left_out_though_others_have_some(routes: Routes) -> None:
    more = job(4, resources=Resources(gpus=1))
    routes.cluster.compute.capacity = 1
    assert routes.router.dispatch([GPU, more, TRAIN]).keys() == {GPU.job_id, TRAIN.job_id}
    assert more.job_id not in routes.cluster.compute.offered
    routes.cluster.compute.finish(GPU.job_id)
    assert routes.router.dispatch([more]).keys() == {more.job_id}


def test_jobs_taken_before_are_named_again_even_where_there_is_no_room(routes: Routes) -> None:
    running, ended = GPU, job(4, resources=Resources(gpus=1))
    routes.cluster.compute.capacity = 2
    routes.router.dispatch([running, ended])
    routes.cluster.compute.finish(ended.job_id)
    routes.cluster.compute.capacity = 1
    routes.start()
    assert routes.router.dispatch([running, ended]).keys() == {running.job_id, ended.job_id}
    assert set(routes.cluster.compute.starts.values()) == {1}


def test_a_member_that_fails_does_not_keep_the_others_from_their_jobs(routes: Routes) -> None:
    routes.cluster.compute.refusal = "invalid account"
    assert routes.router.dispatch([GPU, TRAIN]).keys() == {TRAIN.job_id}
    with pytest.raises(DispatchError, match=r"^slurm: invalid account$"):
        routes.router.dispatch([GPU])


def test_a_job_is_lost_when_its_member_says_so_and_after_a_restart_when_all_do(routes: Routes) -> None:
    routes.router.dispatch([TRAIN])
    routes.small.compute.lose(TRAIN.job_id)
    routes.cluster.compute.is_silent = True
    assert routes.router.standing([TRAIN.job_id]) == {TRAIN.job_id: Standing.LOST}
    routes.start()
    assert routes.router.standing([TRAIN.job_id]) == {TRAIN.job_id: Standing.UNKNOWN}
    routes.cluster.compute.is_silent = False
    assert routes.router.standing([TRAIN.job_id]) == {TRAIN.job_id: Standing.LOST}


def test_jobs_are_cancelled_wherever_an_earlier_process_sent_them(routes: Routes) -> None:
    routes.router.dispatch([TRAIN, GPU])
    routes.start()
    routes.small.compute.is_silent = True
    routes.router.cancel([TRAIN.job_id, GPU.job_id], Outcome.INTERRUPTED, "enough")
    assert routes.cluster.compute.cancelled == {GPU.job_id: Outcome.INTERRUPTED}


def test_a_member_of_two_rules_counts_once(routes: Routes) -> None:
    routes.small.compute.capacity, routes.cluster.compute.capacity = 2, 3
    assert routes.router.capacity() == 5
    inside = RoutingDispatcher([(EVALS, routes.router), (REST, routes.small)])
    assert inside.capacity() == 5
    routes.cluster.compute.capacity = None
    assert routes.router.capacity() is None


def test_all_members_are_closed_and_the_name_tells_them(routes: Routes) -> None:
    routes.router.close()
    assert (routes.small.is_closed, routes.cluster.is_closed) == (True, True)
    assert routes.router.name == "route(local, slurm)"
