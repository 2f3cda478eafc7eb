"""What jobs cost is told by a clock that nobody can set."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.bench import SWEEP, Bench, shell
from metta.sweep.agent import messages as msg
from metta.sweep.agent.agent import Agent
from metta.sweep.model.run import JobState
from metta.sweep.stores import open_store
from metta.sweep.stores.spooled import SpooledStore
from metta.sweep.testing.clock import ManualClock
from waiting import wait_until


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("jump_s", [-1e9, 1e9])
def test_a_clock_that_is_set_while_a_job_runs_changes_nothing_about_its_cost(bench: Bench, jump_s: float) -> None:
    bench.create(shell("""while [ ! -e go ]; do sleep 0.01; done; echo '{"score": 1}'"""))
    job = bench.grant()
    clock = ManualClock()
    socket_path = bench.folder / "socket"
    [sweep] = bench.store.fetch_sweeps(SWEEP)

    async def scenario() -> None:
        store = SpooledStore(lambda: open_store(bench.store.url), bench.folder / "spool")
        agent = asyncio.create_task(Agent(store, sweep, socket_path, clock).run(lambda: None))
        await asyncio.to_thread(wait_until, socket_path.exists)
        _, writer = await asyncio.open_unix_connection(socket_path)
        writer.write(msg.encode_line(msg.Dispatch(jobs=[job])))
        await asyncio.to_thread(wait_until, lambda: bench.the_run().jobs[-1].state is JobState.RUNNING)
        clock.advance(5)
        clock.set(clock.now() + jump_s)
        (bench.folder / "go").touch()
        await asyncio.to_thread(bench.exit_of, job)
        writer.write(msg.encode_line(msg.Leave()))
        await agent
        writer.close()
        store.close()

    asyncio.run(scenario())
    assert bench.exit_of(job).seconds == 5
    assert bench.the_run().cost == 5
