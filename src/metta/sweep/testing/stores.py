"""What every store promises, as tests."""
# ruff: noqa: D102 (the names of the tests are the sentences that docstrings would be)

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
from msgspec.structs import replace

from metta.sweep.errors import FencedError, InvalidTransition, LeaseHeldError, NameTakenError, StaleWriteError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobStatus, JobType
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.protocols import GpuLoad, Heartbeat, Store
from metta.sweep.testing.sweeps import START, SWEEP, random_history, run_events, sweep_created


class StoreContract:
    """The guarantees of `protocols.Store`. Subclass it with a `store` fixture and a `reopen` method."""

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        """A new, empty store; closed when the test is over."""
        raise NotImplementedError

    def reopen(self, store: Store) -> Store:
        """The same store as another process sees it: opened once more, sharing nothing in memory with `store`."""
        raise NotImplementedError

    # ------------------------------------------------- 1. `append` writes all events or none; they survive a crash

    def test_what_was_appended_is_there_for_whoever_opens_the_store_later(self, store: Store) -> None:
        appended = store.append([sweep_created(), *run_events(0)])
        with self.reopened(store) as other:
            assert list(other.read(SWEEP)) == appended

    def test_events_come_back_as_they_were_but_numbered(self, store: Store) -> None:
        history = random_history(seed=1)
        appended = store.append(history)
        assert [(event.id, event.at, event.actor, event.body) for event in appended] == [
            (event.id, event.at, event.actor, event.body) for event in history
        ]
        assert list(store.read(SWEEP)) == appended

    @pytest.mark.parametrize("position", [0, 3, 7])
    def test_one_illegal_event_keeps_all_others_of_its_batch_out(self, store: Store, position: int) -> None:
        store.append([sweep_created()])
        before = contents(store)
        batch = run_events(0)
        batch.insert(
            position, new_event(ev.RunFailed(reason="no"), sweep_id=SWEEP, at=START, actor="x", run_id="other")
        )
        with pytest.raises(InvalidTransition):
            store.append(batch)
        assert contents(store) == before

    def test_the_store_works_on_after_it_refused_something(self, store: Store) -> None:
        store.append([sweep_created()])
        with pytest.raises(InvalidTransition):
            store.append([sweep_created()])
        store.append(run_events(0))
        assert projections_equal_fold(store).runs[ids.run_id(SWEEP, 0)].status is JobStatus.COMPLETED

    def test_no_events_are_nothing_to_write(self, store: Store) -> None:
        assert store.append([]) == []

    # -------------------------------------------------- 2. the same event id twice is one event, also across calls

    def test_an_event_twice_in_one_call_is_one_event(self, store: Store) -> None:
        created, run = sweep_created(), run_events(0)[0]
        assert [event.seq for event in store.append([created, run, created, run])] == [1, 2, 1, 2]
        assert [event.id for event in store.read(SWEEP)] == [created.id, run.id]

    def test_a_repeated_call_changes_nothing_and_answers_the_same(self, store: Store) -> None:
        batch = [sweep_created(), *run_events(0)]
        appended = store.append(batch)
        before = contents(store)
        # Most of these events no longer fit the state of their run: as repetitions they don't have to.
        assert store.append(batch) == appended
        assert store.append(batch[2:5]) == appended[2:5]
        assert contents(store) == before

    def test_a_batch_of_which_a_part_is_known_adds_the_rest(self, store: Store) -> None:
        batch = [sweep_created(), *run_events(0)]
        store.append(batch[:5])
        assert [event.seq for event in store.append(batch[2:])] == list(range(3, len(batch) + 1))
        projections_equal_fold(store)

    def test_a_repetition_is_recognised_by_whoever_opens_the_store_later(self, store: Store) -> None:
        batch = [sweep_created(), *run_events(0)]
        appended = store.append(batch)
        with self.reopened(store) as other:
            assert other.append(batch) == appended
            assert list(other.read(SWEEP)) == appended

    # ------------------------------------------- 3. an event that the state does not allow raises; nothing is written

    def test_a_sweep_comes_before_its_runs(self, store: Store) -> None:
        with pytest.raises(InvalidTransition):
            store.append(run_events(0))
        assert store.fetch_sweeps() == []
        assert list(store.read(SWEEP)) == []

    @pytest.mark.parametrize("seed", range(3))
    def test_what_the_fold_refuses_the_store_refuses(self, store: Store, seed: int) -> None:
        history = random_history(seed)
        half = len(history) // 2
        appended = store.append(history[:half])
        before, state = contents(store), fold(EMPTY, appended)
        for event in history[half + 1 :]:
            if not is_legal(event, state):
                with pytest.raises(InvalidTransition):
                    store.append([event])
        assert contents(store) == before

    # --------------------------------------------------------- 4. sequence numbers are 1, 2, 3, ...; `read` is in order

    def test_each_sweep_has_its_own_numbers_without_gaps(self, store: Store) -> None:
        store.append([sweep_created("aaaaa", name="a")])
        store.append([sweep_created("bbbbb", name="b"), *run_events(0, sweep_id="bbbbb")])
        store.append(run_events(0, sweep_id="aaaaa"))
        for sweep_id in ("aaaaa", "bbbbb"):
            assert [event.seq for event in store.read(sweep_id)] == list(range(1, 9))
            assert {event.sweep_id for event in store.read(sweep_id)} == {sweep_id}

    def test_read_starts_after_the_number_it_is_given(self, store: Store) -> None:
        appended = store.append([sweep_created(), *run_events(0)])
        for after in range(len(appended) + 2):
            assert list(store.read(SWEEP, after=after)) == appended[after:]

    def test_read_tells_the_story_of_one_run(self, store: Store) -> None:
        appended = store.append([sweep_created(), *run_events(0), *run_events(1)])
        run_id = ids.run_id(SWEEP, 1)
        assert list(store.read(SWEEP, run_id=run_id)) == appended[8:]
        assert list(store.read(SWEEP, after=10, run_id=run_id)) == appended[10:]
        assert list(store.read(SWEEP, run_id="other")) == []

    def test_of_an_unknown_sweep_there_is_nothing_to_read(self, store: Store) -> None:
        assert list(store.read("other")) == []

    # ------------------------------------------------- 5. after any append the projections equal the fold of the events

    @pytest.mark.parametrize("seed", range(5))
    def test_projections_equal_the_fold_after_each_append(self, store: Store, seed: int) -> None:
        history = random_history(seed, length=80)
        size = 2 * seed + 1
        for start in range(0, len(history), size):
            store.append(history[start : start + size])
            projections_equal_fold(store)

    def test_another_process_sees_the_same_projections(self, store: Store) -> None:
        store.append(random_history(seed=2))
        with self.reopened(store) as other:
            assert contents(other) == contents(store)

    @pytest.mark.parametrize("seed", range(3))
    def test_rebuilding_projections_that_are_right_changes_nothing(self, store: Store, seed: int) -> None:
        store.append(random_history(seed))
        store.append([sweep_created("other", name="other"), *run_events(0, sweep_id="other")])
        store.acquire_lease(SWEEP, "first", now=100.0, ttl_s=30.0)
        before, lease = contents(store), store.fetch_lease(SWEEP)
        assert store.projection_differences(SWEEP) == []
        store.rebuild(SWEEP)
        assert (contents(store), store.fetch_lease(SWEEP)) == (before, lease)
        assert store.projection_differences(SWEEP) == store.projection_differences("other") == []

    def test_a_rebuilt_sweep_takes_events_as_before(self, store: Store) -> None:
        store.append([sweep_created(), *run_events(0)[:4]])
        store.rebuild(SWEEP)
        store.append([*run_events(0)[4:], *run_events(1)])
        projections_equal_fold(store)

    def test_an_unknown_sweep_has_nothing_to_rebuild(self, store: Store) -> None:
        store.rebuild("other")
        assert store.projection_differences("other") == []
        assert store.fetch_sweeps() == []

    # --------------------------------------------- 6. any thread may call; several processes may use one store

    def test_threads_and_other_connections_write_without_losing_anything(self, store: Store) -> None:
        runs, reports = 4, 15
        store.append([sweep_created(), *(event for index in range(runs) for event in run_events(index)[:4])])
        with self.reopened(store) as other:
            with ThreadPoolExecutor(runs) as pool:
                writers = [pool.submit(report, (store, other)[index % 2], index, reports) for index in range(runs)]
                while not all(writer.done() for writer in writers):
                    assert [run.index for run in store.fetch_runs(SWEEP)] == list(range(runs))
            for writer in writers:
                writer.result()
        state = projections_equal_fold(store)
        assert [state.runs[ids.run_id(SWEEP, index)].reports for index in range(runs)] == [reports] * runs

    # ------------------------------------------------------------------------- deciding on what was seen, and no later

    def test_who_has_seen_all_events_may_write(self, store: Store) -> None:
        store.append([sweep_created()], expected_seq=0)
        store.append(run_events(0), expected_seq=1)
        projections_equal_fold(store)

    @pytest.mark.parametrize("seen", [0, 1, 7, 9])
    def test_who_has_seen_other_events_writes_nothing(self, store: Store, seen: int) -> None:
        store.append([sweep_created(), *run_events(0)])
        before = contents(store)
        with pytest.raises(StaleWriteError, match=rf"has 8 events, the writer had seen {seen};"):
            store.append(run_events(1), expected_seq=seen)
        assert contents(store) == before

    def test_what_is_written_already_may_be_handed_in_again_however_much_came_after(self, store: Store) -> None:
        appended = store.append([sweep_created(), *run_events(0)], expected_seq=0)
        store.append(run_events(1))
        assert store.append(appended, expected_seq=0) == appended
        with pytest.raises(StaleWriteError):
            store.append([*appended, *run_events(2)], expected_seq=0)

    def test_of_writers_that_have_seen_the_same_one_alone_writes(self, store: Store) -> None:
        writers = 4
        store.append([sweep_created()])

        def write(number: int) -> bool:
            started = ev.ControllerStarted(host=f"host{number}", pid=1, fence=1, version="0")
            try:
                store.append([new_event(started, sweep_id=SWEEP, at=START, actor="test")], expected_seq=1)
            except StaleWriteError:
                return False
            return True

        with ThreadPoolExecutor(writers) as pool:
            assert sum(pool.map(write, range(writers))) == 1
        assert [event.seq for event in store.read(SWEEP)] == [1, 2]

    # -------------------------------------------------------------------------------------------- waiting for a change

    def test_there_is_no_waiting_for_what_is_there_already(self, store: Store) -> None:
        store.append([sweep_created(), *run_events(0)])
        assert store.wait_for_change(SWEEP, after=7, timeout_s=0.0)

    def test_waiting_ends_with_the_timeout_when_nothing_happens(self, store: Store) -> None:
        store.append([sweep_created()])
        before = time.monotonic()
        assert not store.wait_for_change(SWEEP, after=1, timeout_s=0.1)
        assert time.monotonic() - before >= 0.1

    def test_a_change_of_another_sweep_is_none(self, store: Store) -> None:
        store.append([sweep_created()])
        writer = threading.Thread(target=store.append, args=([sweep_created("other", name="other")],))
        writer.start()
        assert not store.wait_for_change(SWEEP, after=1, timeout_s=0.1)
        writer.join()

    @pytest.mark.parametrize("elsewhere", [False, True], ids=["of this connection", "of another one"])
    def test_waiting_ends_with_a_write(self, store: Store, elsewhere: bool) -> None:
        store.append([sweep_created()])
        with self.reopened(store) as other:
            writer = threading.Thread(target=(other if elsewhere else store).append, args=(run_events(0),))
            writer.start()
            assert store.wait_for_change(SWEEP, after=1, timeout_s=60)
            writer.join()
        assert next(iter(store.read(SWEEP, after=1))).seq == 2

    # ---------------------------------------------------------------------------------------------------- projections

    def test_sweeps_come_oldest_first_or_by_id(self, store: Store) -> None:
        for sweep_id, age in [("young", 1), ("older", 3), ("midst", 2)]:
            store.append([sweep_created(sweep_id, name=sweep_id, at=START - age)])
        assert [sweep.sweep_id for sweep in store.fetch_sweeps()] == ["older", "midst", "young"]
        assert [sweep.sweep_id for sweep in store.fetch_sweeps("midst")] == ["midst"]
        assert store.fetch_sweeps("other") == []

    def test_runs_come_in_order_of_index(self, store: Store) -> None:
        store.append([sweep_created(), *(event for index in range(20) for event in run_events(index)[:1])])
        assert [run.index for run in store.fetch_runs(SWEEP)] == list(range(20))
        assert [run.index for run in store.fetch_runs(SWEEP, limit=3)] == [0, 1, 2]
        assert store.fetch_runs(SWEEP, limit=0) == []
        assert store.fetch_runs("other") == []

    @pytest.mark.parametrize(("direction", "order"), [("maximize", [2, 0, 4, 1]), ("minimize", [1, 0, 4, 2])])
    def test_the_best_runs_come_first_and_equals_in_order_of_index(
        self, store: Store, direction: str, order: list[int]
    ) -> None:
        scores = [0.0, -1.5, 7.0, None, 0.0]
        runs = [event for index, score in enumerate(scores) for event in run_events(index, score=score)]
        store.append([sweep_created(direction=direction), *runs])
        assert [run.index for run in store.fetch_runs(SWEEP, best_first=True)] == order
        assert [run.index for run in store.fetch_runs(SWEEP, best_first=True, limit=2)] == order[:2]

    def test_an_unknown_sweep_has_no_best_runs(self, store: Store) -> None:
        assert store.fetch_runs("other", best_first=True) == []

    def test_runs_are_filtered_by_id_and_status_and_all_filters_together(self, store: Store) -> None:
        stages = [7, 4, 1, 7, 4]
        runs = [event for index, stage in enumerate(stages) for event in run_events(index)[:stage]]
        store.append([sweep_created(), *runs])
        by_index = [ids.run_id(SWEEP, index) for index in range(5)]

        def indices(**filters: object) -> list[int]:
            return [run.index for run in store.fetch_runs(SWEEP, **filters)]  # type: ignore[arg-type]

        assert indices(run_ids=[by_index[4], by_index[2], "other"]) == [2, 4]
        assert indices(run_ids=iter(by_index[:2])) == [0, 1]
        assert indices(run_ids=[]) == []
        assert indices(statuses=[JobStatus.COMPLETED]) == [0, 3]
        assert indices(statuses={JobStatus.IN_TRAINING, JobStatus.PENDING}) == [1, 2, 4]
        assert indices(statuses=[]) == []
        assert indices(id_prefix=by_index[1]) == [1]
        assert indices(id_prefix="") == [0, 1, 2, 3, 4]
        assert indices(run_ids=by_index[:3], statuses=[JobStatus.COMPLETED], id_prefix=by_index[0][:3]) == [0]

    @pytest.mark.parametrize("prefix", ["%", "_", "%%", "_____", "\\", "/", "'", "[a-z]", "*"])
    def test_a_prefix_means_what_it_says(self, store: Store, prefix: str) -> None:
        store.append([sweep_created(), *run_events(0)])
        assert store.fetch_runs(SWEEP, id_prefix=prefix) == []

    def test_runs_of_all_sweeps_are_found_together(self, store: Store) -> None:
        for sweep_id in ("aaaaa", "bbbbb"):
            store.append([sweep_created(sweep_id, name=sweep_id), *run_events(0, sweep_id=sweep_id)])
        run_id = ids.run_id("bbbbb", 0)
        assert [run.sweep_id for run in store.fetch_runs()] == ["aaaaa", "bbbbb"]
        assert [run.sweep_id for run in store.fetch_runs(id_prefix=run_id)] == ["bbbbb"]

    def test_no_two_sweeps_have_the_same_name(self, store: Store) -> None:
        store.append([sweep_created("first", name="demo")])
        with pytest.raises(NameTakenError, match=r"first.*demo"):
            store.append([sweep_created("other", name="demo")])
        assert [sweep.sweep_id for sweep in store.fetch_sweeps()] == ["first"]
        assert list(store.read("other")) == []

    # ---------------------------------------------------------------------------------------------------------- leases

    def test_a_lease_that_was_never_taken_is_none(self, store: Store) -> None:
        assert store.fetch_lease(SWEEP) is None

    def test_a_held_lease_is_refused_to_others_until_it_expires(self, store: Store) -> None:
        lease = store.acquire_lease(SWEEP, "first", now=100.0, ttl_s=30.0)
        assert (lease.holder, lease.fence, lease.expires_at) == ("first", 1, 130.0)
        with pytest.raises(LeaseHeldError, match="first"):
            store.acquire_lease(SWEEP, "other", now=129.9, ttl_s=30.0)
        assert store.fetch_lease(SWEEP) == lease
        taken = store.acquire_lease(SWEEP, "other", now=130.0, ttl_s=30.0)
        assert (taken.holder, taken.fence, taken.expires_at) == ("other", 2, 160.0)
        assert store.fetch_lease(SWEEP) == taken

    def test_a_holder_renews_its_lease_under_the_same_fence(self, store: Store) -> None:
        lease = store.acquire_lease(SWEEP, "first", now=100.0, ttl_s=30.0)
        renewed = store.acquire_lease(SWEEP, "first", now=120.0, ttl_s=30.0)
        assert (renewed.fence, renewed.expires_at) == (lease.fence, 150.0)
        # Late, but nobody came in between.
        assert store.acquire_lease(SWEEP, "first", now=999.0, ttl_s=30.0).fence == lease.fence

    def test_whoever_comes_back_to_a_lease_taken_over_meanwhile_has_lost_it(self, store: Store) -> None:
        store.acquire_lease(SWEEP, "first", now=100.0, ttl_s=30.0)
        store.acquire_lease(SWEEP, "other", now=200.0, ttl_s=30.0)
        with pytest.raises(LeaseHeldError, match="other"):
            store.acquire_lease(SWEEP, "first", now=201.0, ttl_s=30.0)

    def test_a_dead_holders_lease_is_taken_over_by_one_alone(self, store: Store) -> None:
        dead = store.acquire_lease(SWEEP, "dead", now=100.0, ttl_s=30.0)
        taken = store.acquire_lease(SWEEP, "second", now=101.0, ttl_s=30.0, steal=dead)
        assert taken.fence == dead.fence + 1
        # It saw the same dead holder, but somebody was faster.
        with pytest.raises(LeaseHeldError, match="second"):
            store.acquire_lease(SWEEP, "third", now=101.0, ttl_s=30.0, steal=dead)

    def test_the_fence_grows_with_each_change_of_holder_also_over_a_release(self, store: Store) -> None:
        fences = []
        for holder in ["a", "b", "a", "c"]:
            lease = store.acquire_lease(SWEEP, holder, now=100.0, ttl_s=30.0)
            fences.append(lease.fence)
            store.release_lease(lease)
            assert store.fetch_lease(SWEEP) is None
        assert fences == [1, 2, 3, 4]

    def test_releasing_a_lease_that_was_taken_over_does_nothing(self, store: Store) -> None:
        old = store.acquire_lease(SWEEP, "first", now=100.0, ttl_s=30.0)
        current = store.acquire_lease(SWEEP, "other", now=200.0, ttl_s=30.0)
        store.release_lease(old)
        assert store.fetch_lease(SWEEP) == current

    def test_each_sweep_has_a_lease_of_its_own(self, store: Store) -> None:
        store.acquire_lease("aaaaa", "first", now=100.0, ttl_s=30.0)
        assert store.acquire_lease("bbbbb", "other", now=100.0, ttl_s=30.0).fence == 1

    def test_a_stale_fence_writes_nothing(self, store: Store) -> None:
        store.append([sweep_created()])
        old = store.acquire_lease(SWEEP, "first", now=100.0, ttl_s=30.0)
        store.append(run_events(0)[:3], fence=old.fence)
        current = store.acquire_lease(SWEEP, "other", now=200.0, ttl_s=30.0)
        before = contents(store)
        with pytest.raises(FencedError):
            store.append(run_events(1), fence=old.fence)
        assert contents(store) == before
        store.append(run_events(1), fence=current.fence)
        # Agents hold no lease; what they saw is true whoever is in control.
        store.append(run_events(2))

    def test_a_fence_is_worth_nothing_where_no_lease_was_taken(self, store: Store) -> None:
        with pytest.raises(FencedError):
            store.append([sweep_created()], fence=1)
        assert store.fetch_sweeps() == []

    # ------------------------------------------------------------------------------------------------------ heartbeats

    def test_a_heartbeat_replaces_the_one_before_of_its_host_and_sweep(self, store: Store) -> None:
        busy = GpuLoad(index=0, utilization=0.93, memory=60 << 30, memory_whole=80 << 30)

        def heartbeat(
            host: str, at: float, sweep_id: str = SWEEP, jobs: int = 0, gpus: tuple[GpuLoad, ...] = ()
        ) -> Heartbeat:
            return Heartbeat(sweep_id=sweep_id, host=host, pid=4321, at=at, jobs=jobs, gpus=gpus)

        assert store.fetch_heartbeats(SWEEP) == []
        for beat in [
            heartbeat("a", 1.0),
            heartbeat("b", 2.0, gpus=(busy,)),
            heartbeat("b", 2.5),
            heartbeat("a", 3.0, jobs=2, gpus=(busy, busy)),
            heartbeat("a", 4.0, "other"),
        ]:
            store.beat(beat)
        assert store.fetch_heartbeats(SWEEP) == [heartbeat("a", 3.0, jobs=2, gpus=(busy, busy)), heartbeat("b", 2.5)]
        assert store.fetch_heartbeats("other") == [heartbeat("a", 4.0, "other")]

    # --------------------------------------------------------------------------------------------------------- helpers

    @contextmanager
    def reopened(self, store: Store) -> Iterator[Store]:
        """`reopen`, closed at the end."""
        with closing(self.reopen(store)) as other:
            yield other


def contents(store: Store) -> object:
    """Everything in the store that events make."""
    sweeps = store.fetch_sweeps()
    return sweeps, store.fetch_runs(), [list(store.read(sweep.sweep_id)) for sweep in sweeps]


def projections_equal_fold(store: Store, sweep_id: str = SWEEP) -> SweepState:
    """Check that the numbers have no gaps and that the projections say what the events say; returns their fold."""
    events = list(store.read(sweep_id))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    state = fold(EMPTY, events)
    assert store.fetch_sweeps(sweep_id) == [state.sweep]
    assert store.fetch_runs(sweep_id) == sorted(state.runs.values(), key=lambda run: run.index)
    return state


def is_legal(event: Event, state: SweepState) -> bool:
    """Whether the event may come next."""
    try:
        fold(state, [replace(event, seq=state.seq + 1)])
    except InvalidTransition:
        return False
    return True


def report(store: Store, index: int, times: int) -> None:
    """Append as many reports to a run that is in training, one by one, and see each as soon as it is written."""
    run_id = ids.run_id(SWEEP, index)
    job_id = ids.job_id(run_id, JobType.TRAIN, 1)
    for step in range(times):
        body = ev.MetricsReported(metrics={"reward": float(step)})
        store.append([new_event(body, sweep_id=SWEEP, at=START, actor="test", run_id=run_id, job_id=job_id)])
        assert [run.reports for run in store.fetch_runs(SWEEP, run_ids=[run_id])] == [step + 1]
