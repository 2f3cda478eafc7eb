"""What an agent does while its store is away: it goes on, and nothing of it is lost."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import psutil
import pytest

from metta.sweep.agent.agent import Agent
from metta.sweep.agent.location import AgentAddress, address_file, read_address
from metta.sweep.agent.recorder import Recorder
from metta.sweep.clock import SystemClock
from metta.sweep.dispatchers.local import LocalDispatcher
from metta.sweep.errors import StoreAwayError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobDefinition, JobType, Outcome
from metta.sweep.model.space import Range, SearchSpace
from metta.sweep.model.sweep import CommandTarget, SweepConfig
from metta.sweep.protocols import Clock, Heartbeat, Store
from metta.sweep.stores import open_store
from metta.sweep.stores.spooled import SpooledStore
from metta.sweep.testing import ManualClock
from processes import kill_all_in
from waiting import wait_until

SWEEP = "abcde"
ACTOR = "agent@here"


class World:
    """A sweep in a folder of its own, and a switch for its store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(f"sqlite:///{folder}/sweeps.db", create=True)
        self.config = SweepConfig(
            name="away",
            target=CommandTarget(argv=["bash", "-c", "touch started; until [ -e go ]; do sleep 0.02; done; " + REPORT]),
            search_space=SearchSpace.of({"x": Range(1, 1_000_000)}),
            metric="score",
            seed=1,
            max_parallel=2,
            directory=str(folder / "files"),
            working_directory=str(folder),
        )
        Path(self.config.directory).mkdir()
        created = ev.SweepCreated(config=self.config)
        self.store.append([new_event(created, sweep_id=SWEEP, at=time.time(), actor="user")])
        self.spool = Path(self.config.directory) / "agent.spool"
        self.away = False
        #: While it is not set, the store takes what it gets and does not answer.
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Event()
        self.refused: list[Event] = []

    def reach(self) -> Store:
        return self  # type: ignore[return-value]

    def append(self, events: Sequence[Event]) -> list[Event]:
        self.asked.set()
        assert self.answers.wait(60)
        if self.away:
            raise StoreAwayError("the server is down")
        return self.store.append(events)

    def beat(self, heartbeat: Heartbeat) -> None:
        if self.away:
            raise StoreAwayError("the server is down")
        self.store.beat(heartbeat)

    def close(self) -> None:
        pass

    def spooled(self) -> SpooledStore:
        return SpooledStore(self.reach, self.spool)

    def grant(self, index: int) -> JobDefinition:
        run_id = ids.run_id(SWEEP, index)
        job_id = ids.job_id(run_id, JobType.TRAIN, 1)
        config = {"x": index + 1}
        bodies: list[tuple[ev.Body, str | None]] = [
            (ev.RunCreated(index=index, config=config), None),
            (ev.JobGranted(job_type=JobType.TRAIN, attempt=1), job_id),
        ]
        self.store.append(
            [
                new_event(body, sweep_id=SWEEP, at=time.time(), actor="test", run_id=run_id, job_id=job)
                for body, job in bodies
            ]
        )
        return JobDefinition(job_id=job_id, run_id=run_id, sweep_id=SWEEP, type=JobType.TRAIN, attempt=1, config=config)

    def told(self, job_id: str) -> list[Event]:
        """What agents wrote about a job, in the log's order."""
        return [event for event in self.store.read(SWEEP) if event.job_id == job_id and event.actor.startswith("agent")]

    def dispatcher(self) -> LocalDispatcher:
        return LocalDispatcher(self.store, SWEEP, self.config, SystemClock())


#: Ends with three reports, one after the other.
REPORT = """for step in 1 2 3; do echo '{"score": '$step'}'; done"""


def is_whole_life(events: Sequence[Event]) -> bool:
    types = [event.type for event in events]
    return types == ["job_started", *["metrics_reported"] * 3, "job_exited"]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.answers.set()
    made.store.close()
    kill_all_in(tmp_path)


# ------------------------------------------------------------------------------------------------------------- recorder


def record(world: World, story: Callable[[Recorder], Iterator[Callable[[], object]]]) -> None:
    """Run a recorder through a story, which yields the conditions that it waits for."""

    async def tell() -> None:
        with closing(world.spooled()) as store:
            recorder = Recorder(store, SWEEP, ACTOR, SystemClock(), world.refused.append)
            running = asyncio.create_task(recorder.run())
            for condition in story(recorder):
                async with asyncio.timeout(60):
                    while not condition():
                        await asyncio.sleep(0)
            running.cancel()
            await recorder.finish()

    asyncio.run(tell())


def add(recorder: Recorder, job: JobDefinition, *bodies: ev.Body) -> None:
    for body in bodies:
        recorder.add(body, run_id=job.run_id, job_id=job.job_id)


STARTED = ev.JobStarted(host="here", pid=1, log="log")
EXITED = ev.JobExited(outcome=Outcome.SUCCEEDED)


def reports(number: int) -> list[ev.Body]:
    return [ev.MetricsReported(metrics={"score": float(step)}) for step in range(number)]


def test_events_arrive_in_order_and_the_spool_stays_empty(world: World) -> None:
    job = world.grant(0)
    bodies = [STARTED, *reports(1500), EXITED]

    def story(recorder: Recorder) -> Iterator[Callable[[], object]]:
        add(recorder, job, *bodies)
        assert recorder.busy
        yield lambda: not recorder.busy

    record(world, story)
    assert world.refused == []
    assert [event.body for event in world.told(job.job_id)] == bodies
    assert world.spool.stat().st_size == 0


def test_while_the_store_is_away_events_go_to_the_disk_and_afterwards_to_the_store(world: World) -> None:
    job = world.grant(0)

    def story(recorder: Recorder) -> Iterator[Callable[[], object]]:
        add(recorder, job, STARTED)
        yield lambda: not recorder.busy
        world.away = True
        add(recorder, job, *reports(2))
        yield lambda: not recorder.unsaved
        assert len(world.spool.read_bytes().splitlines()) == 2
        add(recorder, job, EXITED)
        yield lambda: not recorder.unsaved
        assert recorder.busy
        world.away = False
        yield lambda: not recorder.busy

    record(world, story)
    assert world.refused == []
    assert [event.body for event in world.told(job.job_id)] == [STARTED, *reports(2), EXITED]
    assert world.spool.stat().st_size == 0


def test_events_are_safe_soon_even_while_the_store_does_not_answer(world: World) -> None:
    job = world.grant(0)

    def story(recorder: Recorder) -> Iterator[Callable[[], object]]:
        world.answers.clear()
        add(recorder, job, STARTED)
        yield world.asked.is_set
        add(recorder, job, EXITED)
        yield lambda: not recorder.unsaved
        assert world.told(job.job_id) == []
        world.answers.set()
        yield lambda: not recorder.busy

    record(world, story)
    assert [event.body for event in world.told(job.job_id)] == [STARTED, EXITED]


def test_an_event_that_does_not_fit_is_reported_and_its_neighbours_are_written(world: World) -> None:
    job = world.grant(0)
    stranger = msgspec.structs.replace(job, job_id="no-such-job")

    def story(recorder: Recorder) -> Iterator[Callable[[], object]]:
        add(recorder, job, STARTED)
        add(recorder, stranger, EXITED)
        add(recorder, job, *reports(1))
        yield lambda: not recorder.busy and world.refused

    record(world, story)
    assert [event.body for event in world.refused] == [EXITED]
    assert [event.body for event in world.told(job.job_id)] == [STARTED, *reports(1)]


def test_what_is_left_at_the_end_stays_for_the_next(world: World) -> None:
    job = world.grant(0)
    world.away = True

    def leave(recorder: Recorder) -> Iterator[Callable[[], object]]:
        add(recorder, job, STARTED, EXITED)
        yield lambda: True

    def look(recorder: Recorder) -> Iterator[Callable[[], object]]:
        assert recorder.busy
        assert not recorder.unsaved
        yield lambda: not recorder.busy

    record(world, leave)
    assert world.told(job.job_id) == []
    world.away = False
    record(world, look)
    assert [event.body for event in world.told(job.job_id)] == [STARTED, EXITED]


# ---------------------------------------------------------------------------------------------------------------- agent


@contextmanager
def agent_of(world: World, clock: Clock) -> Iterator[Future[None]]:
    """An agent in a thread of this process, where dispatchers find it; at the end its store is there, and it leaves."""
    ready = threading.Event()
    [sweep] = world.store.fetch_sweeps(SWEEP)
    socket_path = world.folder / "agent.sock"
    address = AgentAddress(pid=0, socket=str(socket_path))
    address_file(world.config.directory).write_bytes(msgspec.json.encode(address))
    with closing(world.spooled()) as store, ThreadPoolExecutor(1) as pool:
        agent = Agent(store, sweep, socket_path, clock)
        running = pool.submit(lambda: asyncio.run(agent.run(ready.set)))
        assert ready.wait(60)
        try:
            yield running
        finally:
            world.away = False
            (world.folder / "go").touch()
            dispatcher = world.dispatcher()
            dispatcher.standing([])  # connects
            dispatcher.close()


def test_an_agent_outlives_its_store_and_leaves_when_everything_is_delivered(world: World) -> None:
    jobs = [world.grant(index) for index in range(3)]
    with agent_of(world, SystemClock()) as running:
        dispatcher = world.dispatcher()
        dispatcher.dispatch(jobs[:2])
        wait_until(lambda: all(world.told(job.job_id) for job in jobs[:2]), what="the start of two jobs")
        world.away = True
        dispatcher.dispatch(jobs[2:])  # taken while the store is away
        (world.folder / "go").touch()
        dispatcher.close()
        wait_until(lambda: world.spool.read_bytes().count(b"job_exited") == 3, what="the end of all jobs")
        assert not running.done()
        assert not any(event.type == "job_exited" for job in jobs for event in world.told(job.job_id))
        world.away = False
        running.result(timeout=60)
    assert all(is_whole_life(world.told(job.job_id)) for job in jobs)
    assert world.spool.stat().st_size == 0


def test_an_agent_whose_store_stays_away_leaves_its_events_on_the_disk(world: World) -> None:
    job = world.grant(0)
    clock = ManualClock()
    (world.folder / "go").touch()
    with agent_of(world, clock) as running:
        world.away = True
        dispatcher = world.dispatcher()
        dispatcher.dispatch([job])
        wait_until(lambda: b"job_exited" in world.spool.read_bytes(), what="the end of the job")
        clock.advance(7200)
        with pytest.raises(TimeoutError):  # a controller may yet need it
            running.result(timeout=0.5)
        left_alone = clock.monotonic()
        dispatcher.close()
        wait_until(lambda: clock.advance(20) and running.done(), what="the end of the agent")
        assert clock.monotonic() - left_alone > 3600
    running.result()
    assert not any(event.type == "job_exited" for event in world.told(job.job_id))
    with closing(world.spooled()) as store:
        while store.pending:
            store.deliver()
    assert is_whole_life(world.told(job.job_id))


def _locked(url: str) -> sqlite3.Connection:
    """A store that nobody can write to until the connection is closed."""
    connection = sqlite3.connect(url.removeprefix("sqlite://"), isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


def test_what_a_killed_agent_could_not_deliver_its_successor_delivers_before_it_answers(world: World) -> None:
    job = world.grant(0)
    dispatcher = world.dispatcher()
    dispatcher.dispatch([job])
    wait_until((world.folder / "started").exists, what="the start of the job")
    wait_until(lambda: world.told(job.job_id), what="the start of the job in the log")
    with closing(_locked(world.store.url)):
        (world.folder / "go").touch()
        wait_until(lambda: b"job_exited" in world.spool.read_bytes(), what="the end of the job in the spool")
        agent = read_address(world.config.directory)
        assert agent is not None
        process = psutil.Process(agent.pid)
        process.kill()
        process.wait(60)
        assert not is_whole_life(world.told(job.job_id))
    dispatcher.close()
    with closing(world.dispatcher()) as successor:
        successor._start_agent()
    assert is_whole_life(world.told(job.job_id))
    assert world.spool.stat().st_size == 0
