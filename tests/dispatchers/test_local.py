"""The local dispatcher: the contract of all dispatchers, and an agent that hangs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from msgspec.structs import replace

from metta.sweep.agent.location import read_address
from metta.sweep.clock import SystemClock
from metta.sweep.dispatchers import local
from metta.sweep.dispatchers.local import LocalDispatcher
from metta.sweep.errors import DispatchError
from metta.sweep.model.run import JobState, Outcome, Resources
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Standing, Store
from metta.sweep.stores import open_store
from metta.sweep.testing import DispatcherContract, sweep_config
from metta.sweep.testing.dispatchers import grant, the_run
from metta.sweep.testing.sweeps import SWEEP
from processes import kill_all_in, processes_in
from waiting import wait_until


class TestLocalDispatcher(DispatcherContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[Store]:
        with closing(open_store(f"sqlite:///{tmp_path}/sweeps.db", create=True)) as store:
            yield store
        kill_all_in(tmp_path)

    def dispatcher(self, store: Store, config: SweepConfig) -> LocalDispatcher:
        return LocalDispatcher(store, SWEEP, config, SystemClock())

    def test_an_agent_that_serves_nobody_ends(self, store: Store, config: SweepConfig, tmp_path: Path) -> None:
        (tmp_path / "go").touch()
        dispatcher = self.dispatcher(store, config)
        dispatcher.dispatch([grant(store)])
        wait_until(lambda: the_run(store).jobs[-1].state is JobState.EXITED)
        assert processes_in(tmp_path)
        dispatcher.close()
        wait_until(lambda: not processes_in(tmp_path), what="the agent's end")

    def test_the_last_that_an_agent_says_is_that_it_has_no_jobs(
        self, store: Store, config: SweepConfig, tmp_path: Path
    ) -> None:
        (tmp_path / "go").touch()
        dispatcher = self.dispatcher(store, config)
        dispatcher.dispatch([grant(store)])
        wait_until(lambda: the_run(store).jobs[-1].state is JobState.EXITED)
        dispatcher.close()
        wait_until(lambda: not processes_in(tmp_path), what="the agent's end")
        [beat] = store.fetch_heartbeats(SWEEP)
        assert beat.jobs == 0
        assert beat.at >= (the_run(store).jobs[-1].ended_at or 0)

    def test_an_agent_that_hangs_is_replaced_and_nothing_is_concluded_from_its_silence(
        self, store: Store, config: SweepConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "_ANSWER_TIMEOUT_S", 0.3)
        monkeypatch.setattr(local, "_HUNG_AFTER_S", 0.5)
        dispatcher = self.dispatcher(store, config)
        job = grant(store)
        dispatcher.dispatch([job])
        wait_until(lambda: store.fetch_heartbeats(SWEEP), what="a heartbeat")
        address = read_address(config.directory)
        assert address is not None
        psutil.Process(address.pid).suspend()
        seen: list[Standing] = []
        wait_until(lambda: seen.append(dispatcher.standing([job.job_id])[job.job_id]) or seen[-1] is Standing.LOST)
        assert set(seen) == {Standing.UNKNOWN, Standing.LOST}
        # Where the one that hung left events behind, another has come to deliver them; it is not needed any more.
        dispatcher.close()
        wait_until(lambda: not processes_in(tmp_path), what="the end of the agent and its job")

    def test_nothing_is_held_where_the_agent_is_gone_and_nothing_said_where_it_is_silent(
        self, store: Store, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(local, "_ANSWER_TIMEOUT_S", 0.3)
        dispatcher = self.dispatcher(store, config)
        dispatcher.dispatch([grant(store)])
        address = read_address(config.directory)
        assert address is not None
        agent = psutil.Process(address.pid)
        agent.suspend()
        with pytest.raises(DispatchError, match="does not answer: timed out"):
            dispatcher.held()
        with pytest.raises(DispatchError, match="does not answer: timed out"):
            self.dispatcher(store, config).held()
        agent.resume()
        wait_until(lambda: dispatcher.standing([]) == {}, what="an answer")
        agent.kill()
        wait_until(lambda: not agent.is_running() or agent.status() == psutil.STATUS_ZOMBIE, what="the agent's end")
        assert dispatcher.held() == []
        assert self.dispatcher(store, config).held() == []

    def test_an_agent_that_cannot_be_reached_is_not_taken_for_gone(
        self, store: Store, config: SweepConfig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = self.dispatcher(store, config), self.dispatcher(store, config)
        job = grant(store)
        first.dispatch([job])

        def refuse(_path: str) -> None:
            raise BlockingIOError(11, "Resource temporarily unavailable")

        monkeypatch.setattr(local, "_connected", refuse)
        assert second.standing([job.job_id]) == {job.job_id: Standing.UNKNOWN}
        second.cancel([job.job_id], Outcome.CANCELLED, "enough")
        for use in (second.held, lambda: second.dispatch([job])):
            with pytest.raises(DispatchError, match=f"the agent of sweep {SWEEP} cannot be reached: .*unavailable"):
                use()
        first.close()

    def test_an_agent_whose_socket_was_removed_is_not_taken_for_gone(self, store: Store, config: SweepConfig) -> None:
        first, second = self.dispatcher(store, config), self.dispatcher(store, config)
        job = grant(store)
        first.dispatch([job])
        address = read_address(config.directory)
        assert address is not None
        agent = psutil.Process(address.pid)
        agent.suspend()  # it makes itself another one within a moment
        Path(address.socket).unlink()
        assert second.standing([job.job_id]) == {job.job_id: Standing.UNKNOWN}
        agent.resume()
        wait_until(lambda: second.standing([job.job_id]) == {job.job_id: Standing.KNOWN}, what="the new socket")
        first.close()
        second.close()

    def test_an_agent_that_cannot_be_started_is_a_dispatcher_that_fails(
        self, store: Store, config: SweepConfig, tmp_path: Path
    ) -> None:
        nowhere = self.dispatcher(store, replace(config, working_directory=f"{tmp_path}/gone"))
        with pytest.raises(DispatchError, match=r"the agent cannot be started: .*No such file.*gone"):
            nowhere.dispatch([grant(store)])


def test_a_sweep_that_wants_more_gpus_than_there_are_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    config = replace(sweep_config(), resources=Resources(gpus=3))
    with (
        closing(open_store(f"sqlite:///{tmp_path}/sweeps.db", create=True)) as store,
        pytest.raises(DispatchError, match=r"wants 3 GPUs, this machine has 2"),
    ):
        LocalDispatcher(store, SWEEP, config, SystemClock())


def test_the_capacity_is_that_of_the_gpus_where_jobs_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    with closing(open_store(f"sqlite:///{tmp_path}/sweeps.db", create=True)) as store:
        on_gpus = LocalDispatcher(store, SWEEP, replace(sweep_config(), resources=Resources(gpus=2)), SystemClock())
        assert on_gpus.capacity() == 2
        assert LocalDispatcher(store, SWEEP, sweep_config(), SystemClock()).capacity() is None
