"""The agent and its fork server, driven by a real controller through the local dispatcher."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from agent.bench import SWEEP, Bench, python, shell
from metta.sweep.agent.agent import HEARTBEAT_EVERY_S
from metta.sweep.model.run import JobState, JobStatus, Outcome, Resources
from metta.sweep.model.sweep import CommandTarget
from metta.sweep.protocols import Standing
from metta.sweep.stores import STORE_VARIABLE
from waiting import wait_until


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


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
    wait_until(lambda: not bench.executing("62"), what="the end of the job's child")


def test_an_agents_first_sign_of_life_with_jobs_does_not_wait_for_its_turn(bench: Bench) -> None:
    gate = bench.folder / "gate"
    bench.create(shell(f"while [ ! -e {gate} ]; do sleep 0.05; done"))
    dispatcher = bench.dispatcher()
    dispatcher.dispatch([])
    wait_until(lambda: bench.store.fetch_heartbeats(SWEEP), what="a sign of life")
    [idle] = bench.store.fetch_heartbeats(SWEEP)
    dispatcher.dispatch([job := bench.grant()])
    wait_until(lambda: bench.store.fetch_heartbeats(SWEEP)[0].jobs == 1, what="one with a job")
    [busy] = bench.store.fetch_heartbeats(SWEEP)
    gate.touch()
    bench.exit_of(job)
    assert idle.jobs == 0
    assert busy.at - idle.at < HEARTBEAT_EVERY_S - 0.5
