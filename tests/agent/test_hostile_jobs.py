"""Jobs that do what nobody expects: the agent, and the jobs beside them, have to survive it."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest

from agent.bench import SWEEP, Bench, python, shell
from metta.sweep.agent.location import read_address
from metta.sweep.model import events as ev
from metta.sweep.model.run import Checkpoint, FailureKind, JobState, Outcome
from metta.sweep.protocols import Standing
from waiting import wait_until


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


# ----------------------------------------------------------------------------------------- what they report


def test_a_metric_whose_name_is_no_text_fails_its_job_and_no_other(bench: Bench) -> None:
    bench.create(
        shell("""if [ {x} = 1 ]; then echo '{{"\\ud800": 1}}'; sleep 1; else sleep 2; echo '{{"score": 1}}'; fi""")
    )
    bad, good = bench.grant(0, {"x": 1}), bench.grant(1, {"x": 2})
    bench.dispatcher().dispatch([bad, good])
    pid = bench.agent_pid()
    assert bench.exit_of(bad).failure is FailureKind.BAD_METRICS
    assert bench.exit_of(good).outcome is Outcome.SUCCEEDED
    assert bench.agent_pid() == pid


def test_a_number_that_is_too_large_for_a_metric_fails_its_job(bench: Bench) -> None:
    exited = bench.exit(python("""print('{"score": 1' + '0' * 400 + '}')"""))
    assert exited.failure is FailureKind.BAD_METRICS


def test_reports_of_several_threads_do_not_get_mixed_up_however_long_they_are(bench: Bench) -> None:
    target = bench.function(
        """
        import threading
        from metta.sweep import report_metrics
        def report(number):
            for step in range(3):
                report_metrics({f"metric {number} {index}": step for index in range(4000)})
        def train(config):
            threads = [threading.Thread(target=report, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return {"score": 1}
        """
    )
    assert bench.exit(target).outcome is Outcome.SUCCEEDED
    reported = [event.body.metrics for event in bench.store.read(SWEEP) if isinstance(event.body, ev.MetricsReported)]
    assert [len(metrics) for metrics in reported] == [4000] * 12 + [1]


def test_while_a_long_log_is_read_to_its_end_the_agent_answers(bench: Bench) -> None:
    script = """
        import sys
        for _ in range(300):
            sys.stdout.write('a line that tells nothing\\n' * 40_000)
        print('{"score": 1}')
    """
    bench.create(python(script))
    job = bench.grant()
    dispatcher = bench.dispatcher()
    dispatcher.dispatch([job])
    pid = bench.agent_pid()
    while job.job_id not in bench._exits():
        begin = time.monotonic()
        assert dispatcher.standing([job.job_id]) == {job.job_id: Standing.KNOWN}
        assert time.monotonic() - begin < 3
    assert bench.agent_pid() == pid
    assert bench.exit_of(job).outcome is Outcome.SUCCEEDED


def test_a_job_that_reports_without_a_pause_can_still_be_stopped(bench: Bench) -> None:
    target = bench.function(
        """
        from metta.sweep import report_metrics
        def train(config):
            while True:
                report_metrics({"score": 1})
        """
    )
    exited = bench.exit(target, job_timeout_s=1)
    assert exited.outcome is Outcome.TIMED_OUT
    assert exited.seconds < 5


# ------------------------------------------------------------------------------------------ how they fail

HOSTILE = {
    "surrogates": "raise ValueError('\\ud800')",
    "a message that raises": """
    class Mute(Exception):
        def __str__(self):
            raise KeyboardInterrupt
    raise Mute""",
    "an endless message": "raise ValueError('x' * (100 << 20))",
    "an exit code that cannot be shown": """
    class Mute:
        def __repr__(self):
            raise SystemExit
    raise SystemExit(Mute())""",
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_exceptions_that_cannot_be_told_are_failures_of_the_code(bench: Bench, body: str) -> None:
    exited = bench.exit(bench.function(f"def train(config):\n    {body.strip()}\n"))
    assert exited.outcome is Outcome.FAILED
    assert exited.failure is FailureKind.USER_ERROR
    assert exited.error is not None
    assert "target.py" in exited.error or "sys.exit" in exited.error, exited.error
    assert exited.signature is not None


# ------------------------------------------------------------------------------------- what they wait for


def test_many_jobs_and_long_assignments_do_not_stop_the_agent_while_the_imports_take_their_time(bench: Bench) -> None:
    target = bench.function(
        """
        import pathlib, time
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
        def train(config):
            return {"score": 1}
        """
    )
    bench.create(target)
    saved = [
        Checkpoint(step=n, path=f"checkpoints/{n}", sha256="0" * 64, size_bytes=1, at=1.0, job_id="j")
        for n in range(5000)
    ]
    jobs = [bench.grant(index) for index in range(150)]

    jobs[0] = msgspec.structs.replace(jobs[0], checkpoints=tuple(saved))
    dispatcher = bench.dispatcher()
    dispatcher.dispatch(jobs)
    assert dispatcher.standing([jobs[-1].job_id]) == {jobs[-1].job_id: Standing.KNOWN}
    (bench.folder / "go").touch()
    for job in jobs:
        assert bench.exit_of(job).outcome is Outcome.SUCCEEDED


def test_a_job_can_be_stopped_while_its_imports_hang(bench: Bench) -> None:
    target = bench.function("import time\ntime.sleep(1000)\ndef train(config):\n    pass")
    bench.create(target)
    job = bench.grant()
    dispatcher = bench.dispatcher()
    dispatcher.dispatch([job])
    dispatcher.cancel([job.job_id], Outcome.CANCELLED, "enough")
    assert bench.exit_of(job).outcome is Outcome.CANCELLED
    dispatcher.close()
    wait_until(lambda: not bench.processes(), what="the end of the agent")


@pytest.mark.parametrize("isolation", ["process", "reuse"])
def test_a_time_limit_that_is_over_before_the_process_is_ready_counts_at_once(bench: Bench, isolation: str) -> None:
    target = bench.function("import time\ndef train(config):\n    time.sleep(60)")
    exited = bench.exit(target, job_timeout_s=1e-6, grace_s=60.0, isolation=isolation)
    assert exited.outcome is Outcome.TIMED_OUT
    assert exited.seconds < 10


def test_jobs_wait_for_nobody_when_the_agent_has_no_files_left(bench: Bench) -> None:
    bench.create(bench.function("def train(config):\n    return {'score': 1}"))
    dispatcher = bench.dispatcher()
    first, *others = [bench.grant(index) for index in range(50)]
    dispatcher.dispatch([first])
    bench.exit_of(first)
    resource.prlimit(bench.agent_pid(), resource.RLIMIT_NOFILE, (32, 32))
    dispatcher.dispatch(others)
    for job in others:
        exited = bench.exit_of(job)
        assert exited.failure in {None, FailureKind.DISPATCHER_ERROR}, exited


def test_what_jobs_started_ends_with_the_fork_server(bench: Bench) -> None:
    bench.create(shell("setsid sleep 61 & sleep 62 & exec sleep 63"))
    bench.dispatcher().dispatch([bench.grant()])
    wait_until(lambda: bench.executing("61") and bench.executing("62") and bench.executing("63"))
    wait_until(lambda: bench.the_run().jobs[-1].state is JobState.RUNNING)
    [forkserver] = psutil.Process(bench.agent_pid()).children()
    forkserver.kill()
    wait_until(
        lambda: not bench.executing("62") and not bench.executing("61"), what="the end of the children", timeout_s=20
    )


def test_an_agent_whose_socket_was_removed_is_found_again(bench: Bench) -> None:

    bench.create(shell("exec sleep 60"))
    job = bench.grant()
    bench.dispatcher().dispatch([job])
    assert bench.config is not None
    address = read_address(bench.config.directory)
    assert address is not None
    Path(address.socket).unlink()
    wait_until(lambda: bench.dispatcher().standing([job.job_id]) == {job.job_id: Standing.KNOWN}, timeout_s=20)


# --------------------------------------------------------------------------------------------- what they see


@pytest.mark.parametrize("name", ["METTA_SWEEP_STORE", "PGPASSWORD", "PGPASSFILE"])
def test_jobs_are_not_told_how_to_reach_the_store(bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "sqlite:///secret.db")
    [run] = bench.run(shell("""tr '\\0' '\\n' < /proc/$PPID/environ; env; echo '{"score": 1}'"""))
    assert "secret" not in bench.log(run)


# ----------------------------------------------------------------------------------- what they leave behind


def test_a_worker_used_again_starts_each_job_where_the_first_began(bench: Bench) -> None:
    target = bench.function(
        """
        import os, sys
        def train(config):
            print("job", config["x"], os.getcwd(), os.environ.get("LEFT"))
            os.chdir("/")
            os.environ["LEFT"] = "behind"
            sys.stdout.close()
            return {"score": 1}
        """
    )
    runs = bench.run(target, isolation="reuse", max_parallel=1, max_trials=2)
    assert [bench.log(run) for run in runs] == [f"job {run.config['x']} {bench.folder} None\n" for run in runs]


def test_a_process_that_a_job_left_in_a_used_worker_does_not_report_for_the_next_job(bench: Bench) -> None:
    target = bench.function(
        """
        import os, pathlib, time
        from metta.sweep import report_metrics
        def train(config):
            if config["x"] == 1:
                if os.fork() == 0:
                    while not pathlib.Path("second").exists():
                        time.sleep(0.001)
                    report_metrics({"score": 666})
                    pathlib.Path("reported").touch()
                    os._exit(0)
                return {"score": 1}
            pathlib.Path("second").touch()
            while not pathlib.Path("reported").exists():
                time.sleep(0.001)
        """
    )
    bench.create(target, isolation="reuse")
    dispatcher = bench.dispatcher()
    for index, x in enumerate([1, 2]):
        job = bench.grant(index, {"x": x})
        dispatcher.dispatch([job])
        bench.exit_of(job)
    reported = [event.body.metrics for event in bench.store.read(SWEEP) if isinstance(event.body, ev.MetricsReported)]
    assert reported == [{"score": 1.0}]
