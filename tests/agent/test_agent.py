"""The agent and its fork server, driven by a real controller through the local dispatcher."""

from __future__ import annotations

import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from metta.sweep.agent.location import read_address
from metta.sweep.clock import SystemClock
from metta.sweep.controller.controller import SweepController
from metta.sweep.dispatchers.local import LocalDispatcher
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import new_event
from metta.sweep.model.run import JobDefinition, JobState, JobStatus, JobType, Outcome, Resources, RunInfo
from metta.sweep.model.space import Range, SearchSpace
from metta.sweep.model.sweep import CommandTarget, FunctionTarget, SweepConfig
from metta.sweep.protocols import Standing, Store
from metta.sweep.stores import STORE_VARIABLE, open_store
from processes import kill_all_in, processes_in
from waiting import wait_until

SWEEP = "abcde"


class Bench:
    """A store with one sweep in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store: Store = open_store(f"sqlite:///{folder}/sweeps.db", create=True)
        self.config: SweepConfig | None = None
        self.dispatchers: list[LocalDispatcher] = []

    def function(self, body: str) -> FunctionTarget:
        path = self.folder / "target.py"
        path.write_text(textwrap.dedent(body))
        return FunctionTarget(module=str(path), name="train")

    def create(self, target: Any, **settings: Any) -> SweepConfig:
        defaults = {
            "name": "bench",
            "target": target,
            "search_space": SearchSpace.of({"x": Range(1, 1_000_000)}),
            "metric": "score",
            "seed": 1,
            "max_parallel": 2,
            "max_trials": 1,
            "grace_s": 0.2,
            "directory": str(self.folder / "files"),
            "working_directory": str(self.folder),
        }
        self.config = SweepConfig(**{**defaults, **settings})
        Path(self.config.directory).mkdir()
        created = ev.SweepCreated(config=self.config)
        self.store.append([new_event(created, sweep_id=SWEEP, at=time.time(), actor="user")])
        return self.config

    def dispatcher(self) -> LocalDispatcher:
        assert self.config is not None
        self.dispatchers.append(LocalDispatcher(self.store, SWEEP, self.config, SystemClock()))
        return self.dispatchers[-1]

    def run(self, target: Any, **settings: Any) -> list[RunInfo]:
        self.create(target, **settings)
        state = SweepController(self.store, SWEEP, self.dispatcher(), SystemClock()).run()
        return sorted(state.runs.values(), key=lambda run: run.index)

    def grant(self) -> JobDefinition:
        run_id = ids.run_id(SWEEP, 0)
        job_id = ids.job_id(run_id, JobType.TRAIN, 1)
        bodies: list[tuple[ev.Body, str | None]] = [
            (ev.RunCreated(index=0, config={"x": 1}), None),
            (ev.JobGranted(job_type=JobType.TRAIN, attempt=1), job_id),
        ]
        self.store.append(
            [
                new_event(body, sweep_id=SWEEP, at=time.time(), actor="test", run_id=run_id, job_id=job)
                for body, job in bodies
            ]
        )
        return JobDefinition(
            job_id=job_id, run_id=run_id, sweep_id=SWEEP, type=JobType.TRAIN, attempt=1, config={"x": 1}
        )

    def the_run(self) -> RunInfo:
        return self.store.fetch_runs(SWEEP)[0]

    def log(self, run: RunInfo) -> str:
        assert run.jobs[-1].log is not None
        return Path(run.jobs[-1].log).read_text(errors="replace")

    def agent_pid(self) -> int:
        assert self.config is not None
        address = read_address(self.config.directory)
        assert address is not None
        return address.pid

    def processes(self) -> list[psutil.Process]:
        return processes_in(self.folder)

    def close(self) -> None:
        for dispatcher in self.dispatchers:
            dispatcher.close()
        self.store.close()
        kill_all_in(self.folder)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def shell(script: str) -> CommandTarget:
    return CommandTarget(argv=["bash", "-c", script])


def python(script: str) -> CommandTarget:
    return CommandTarget(argv=[sys.executable, "-c", textwrap.dedent(script)])


def test_everything_a_job_prints_is_in_its_log(bench: Bench) -> None:
    [run] = bench.run(shell("""echo out; echo err >&2; echo '{"score": 1}'"""))
    assert run.status is JobStatus.COMPLETED
    assert bench.log(run).split() == ["out", "err", '{"score":', "1}"]


def test_a_job_that_runs_too_long_is_stopped(bench: Bench) -> None:
    [run] = bench.run(shell("exec sleep 60"), job_timeout_s=0.2)
    assert run.status is JobStatus.FAILED
    assert run.jobs[-1].outcome is Outcome.TIMED_OUT
    assert "job_timeout_s = 0.2" in run.failure_reasons[-1]
    assert run.cost < 10


def test_a_job_gets_the_chance_to_clean_up_before_it_is_killed(bench: Bench) -> None:
    script = "trap 'touch cleaned; exit 0' TERM; touch ready; while true; do sleep 0.01; done"
    bench.run(shell(script), job_timeout_s=0.5, grace_s=30.0)
    assert (bench.folder / "cleaned").exists()


def test_a_job_that_ignores_the_polite_signal_is_killed_with_all_its_children(bench: Bench) -> None:
    [run] = bench.run(shell("trap '' TERM; sleep 61 & sleep 62"), job_timeout_s=0.2)
    assert run.jobs[-1].outcome is Outcome.TIMED_OUT
    wait_until(lambda: not bench.processes(), what="the end of all processes")


def test_children_that_a_job_leaves_behind_end_with_it(bench: Bench) -> None:
    [run] = bench.run(shell("""sleep 60 & echo '{"score": 1}'"""))
    assert run.status is JobStatus.COMPLETED
    wait_until(lambda: not bench.processes(), what="the end of all processes")


def test_numerical_libraries_are_limited_to_the_cpus_of_the_job(bench: Bench) -> None:
    script = """echo '{"score": '$OMP_NUM_THREADS', "blas": '$OPENBLAS_NUM_THREADS'}'"""
    [run] = bench.run(shell(script), resources=Resources(cpus=3))
    assert run.metrics == {"score": 3.0, "blas": 3.0}


def test_a_job_knows_its_run_but_not_the_store(bench: Bench) -> None:
    script = f"""printenv METTA_SWEEP_RUN_ID; printenv {STORE_VARIABLE} || echo unset; echo '{{"score": 1}}'"""
    [run] = bench.run(shell(script))
    assert bench.log(run).split()[:2] == [run.run_id, "unset"]


def test_gpus_are_given_out_one_by_one_and_never_twice_at_a_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    script = """
        import json, os, time
        gpu = os.environ["CUDA_VISIBLE_DEVICES"]
        os.mkdir("gpu-" + gpu)  # fails when another job has it
        time.sleep(0.05)
        os.rmdir("gpu-" + gpu)
        print(json.dumps({"score": int(gpu)}))
    """
    runs = bench.run(python(script), resources=Resources(gpus=1), max_parallel=4, max_trials=8)
    assert {run.status for run in runs} == {JobStatus.COMPLETED}
    assert {run.score for run in runs} == {3.0, 5.0}


def test_a_command_that_does_not_exist_is_a_failure_with_its_name(bench: Bench) -> None:
    [run] = bench.run(CommandTarget(argv=["no-such-program"]))
    assert run.status is JobStatus.FAILED
    assert "no-such-program" in run.failure_reasons[-1]


def test_a_job_that_cannot_even_be_started_fails_rather_than_hangs(bench: Bench) -> None:
    [run] = bench.run(CommandTarget(argv=["echo", "{nothing_of_that_name}"]))
    assert run.status is JobStatus.FAILED
    assert "cannot be started" in run.failure_reasons[-1]


def test_a_segmentation_fault_is_told_as_one_and_harms_nobody_else(bench: Bench) -> None:
    target = bench.function(
        """
        import ctypes
        def train(config):
            if config["x"] % 2:
                ctypes.string_at(0)
            return {"score": 1}
        """
    )
    runs = bench.run(target, max_trials=10)
    crashed = [run for run in runs if run.config["x"] % 2]
    assert crashed
    for run in runs:
        expected = JobStatus.FAILED if run in crashed else JobStatus.COMPLETED
        assert run.status is expected
    assert all("SIGSEGV" in run.failure_reasons[-1] for run in crashed)


def test_every_report_of_a_fast_job_arrives_in_order(bench: Bench) -> None:
    target = bench.function(
        """
        from metta.sweep import report_metrics
        def train(config):
            for step in range(200):
                report_metrics({"score": step})
        """
    )
    runs = bench.run(target, max_trials=6, max_parallel=3)
    assert [run.reports for run in runs] == [200] * 6
    assert [run.score for run in runs] == [199.0] * 6


@pytest.mark.parametrize("isolation", ["process", "reuse"])
def test_a_worker_serves_one_job_or_many(bench: Bench, isolation: str) -> None:
    target = bench.function(
        """
        import os
        def train(config):
            print("hello from", config["x"])
            return {"score": os.getpid()}
        """
    )
    runs = bench.run(target, max_trials=12, max_parallel=2, isolation=isolation)
    assert {run.status for run in runs} == {JobStatus.COMPLETED}
    workers = {run.score for run in runs}
    assert len(workers) == 12 if isolation == "process" else len(workers) <= 2
    for run in runs:
        assert bench.log(run) == f"hello from {run.config['x']}\n"


def test_a_worker_that_dies_takes_only_its_own_job_with_it(bench: Bench) -> None:
    target = bench.function(
        """
        import os, signal
        def train(config):
            if config["x"] % 3 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return {"score": 1}
        """
    )
    runs = bench.run(target, max_trials=12, isolation="reuse")
    for run in runs:
        assert run.status is (JobStatus.FAILED if run.config["x"] % 3 == 0 else JobStatus.COMPLETED)


def test_jobs_lost_with_the_fork_server_are_tried_again(bench: Bench) -> None:
    target = bench.function(
        """
        import os, pathlib, signal
        def train(config):
            marker = pathlib.Path("killed")
            if not marker.exists():
                marker.touch()
                os.kill(os.getppid(), signal.SIGKILL)
            return {"score": 1}
        """
    )
    runs = bench.run(target, max_trials=3, max_parallel=1)
    assert {run.status for run in runs} == {JobStatus.COMPLETED}
    assert [job.state for job in runs[0].jobs] == [JobState.LOST, JobState.EXITED]


def test_processes_that_outlived_agent_and_fork_server_are_killed_by_the_next_agent(bench: Bench) -> None:
    bench.create(shell("setsid sleep 61 & sleep 62 & exec sleep 63"))
    job = bench.grant()
    dispatcher = bench.dispatcher()
    dispatcher.dispatch([job])
    wait_until(lambda: bench.the_run().jobs[-1].state is JobState.RUNNING)
    agent = psutil.Process(bench.agent_pid())
    [forkserver] = agent.children()
    for process in (agent, forkserver):
        process.suspend()
    for process in (forkserver, agent):
        process.send_signal(signal.SIGKILL)
    dispatcher.close()
    wait_until(lambda: bench.dispatcher().standing([job.job_id])[job.job_id] is Standing.LOST)
    bench.dispatcher()._start_agent()
    wait_until(lambda: not _sleeping(bench, "62"), what="the end of the job's child")


def _sleeping(bench: Bench, argument: str) -> list[psutil.Process]:
    found = []
    for process in bench.processes():
        try:
            if process.cmdline()[-1:] == [argument]:
                found.append(process)
        except psutil.Error:
            continue
    return found
