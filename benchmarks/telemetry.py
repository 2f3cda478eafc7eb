"""What measuring jobs costs: the agent's telemetry, with its looks once a second, over processes that sleep.

All of it runs in this process: the looks in a thread, as in an agent, and the books in the event loop. Its processor
time is taken over some seconds, so that whatever it does in them counts. On top of it comes what begins and ends a job.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import psutil

from _measure import Report, parse_arguments, scratch_folder
from metta.sweep.agent.job import Job
from metta.sweep.agent.telemetry import EVERY_S, Telemetry
from metta.sweep.agent.workers import Worker
from metta.sweep.clock import SystemClock
from metta.sweep.model.run import JobDefinition, JobType
from metta.sweep.model.usage import JobUsage
from metta.sweep.session import Progress

#: Of one core, for each job.
_MOST = 1.0


def main() -> None:
    options = parse_arguments(argparse.ArgumentParser(description=__doc__))
    seconds = 5.0 if options.quick else 20.0
    report = Report(f"telemetry: a look every {EVERY_S:g} s")
    note = f"{len(psutil.pids())} processes on the machine"
    with scratch_folder(options.folder) as folder:
        for jobs, processes in ((1, 1), (1, 8), (16, 1), (64, 1), (16, 8)):
            busy, _ = asyncio.run(_measure(folder, jobs, processes, seconds))
            name = f"{jobs} jobs, {processes} processes each"
            report.add(f"{name}: of a core, each", 100 * busy / seconds / jobs, "%", at_most=_MOST, note=note)
        begin_end = asyncio.run(_begin_and_end(folder, 200 if options.quick else 2000))
        report.add("a job's begin and end", begin_end * 1e6, "µs")
        _, usage = asyncio.run(_measure(folder, 1, 1, seconds))
        size = len(msgspec.json.encode(usage))
        report.add(f"in the log, of a job of {seconds:g} s", size, "bytes", note="grows to sixty points a curve")
        report.finish(options.json, folder)


def _job(number: int, folder: Path) -> Job:
    run_id = f"run{number}"
    definition = JobDefinition(
        job_id=f"{run_id}.train.1", run_id=run_id, sweep_id="sweep", type=JobType.TRAIN, attempt=1, config={}
    )
    job = Job(definition, folder, Progress(None, None))
    job.begin(time.monotonic(), 0)
    return job


def _spawn(processes: int) -> int:
    """The leader of a session of so many processes that sleep."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        for _ in range(processes - 1):
            if os.fork() == 0:
                break
        time.sleep(3600)
    return pid


async def _measure(folder: Path, jobs: int, processes: int, seconds: float) -> tuple[float, JobUsage | None]:
    """Seconds of a processor that it takes to look at such jobs for so long, and what is known of one of them."""
    workers: dict[str, Any] = {}
    telemetry = Telemetry(workers, None, lambda *_: None, SystemClock())
    books = []
    try:
        for number in range(jobs):
            job = _job(number, folder)
            worker = workers[f"w{number}"] = Worker(f"w{number}", job, None)
            worker.pid = _spawn(processes)
            telemetry.begin(job, worker)
            books.append(job)
        watching = asyncio.create_task(telemetry.run())
        await asyncio.sleep(2 * EVERY_S)  # the first look finds out which processes are nobody's
        begin = time.process_time()
        await asyncio.sleep(seconds)
        busy = time.process_time() - begin
        watching.cancel()
        return busy, telemetry.end(books[0], None, time.monotonic())
    finally:
        for worker in workers.values():
            os.killpg(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)


async def _begin_and_end(folder: Path, rounds: int) -> float:
    """Seconds of a processor for each job that a worker takes after another."""
    workers: dict[str, Any] = {}
    telemetry = Telemetry(workers, None, lambda *_: None, SystemClock())
    job = _job(0, folder)
    worker = workers["w"] = Worker("w", job, None)
    worker.pid = _spawn(1)
    try:
        begin = time.thread_time()
        for _ in range(rounds):
            telemetry.begin(job, worker)
            telemetry.end(job, None, time.monotonic())
        return (time.thread_time() - begin) / rounds
    finally:
        os.killpg(worker.pid, signal.SIGKILL)
        os.waitpid(worker.pid, 0)


if __name__ == "__main__":
    main()
