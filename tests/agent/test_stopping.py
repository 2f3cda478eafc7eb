"""Trials that come to the level up to which they are to train, or are stopped on the way, in a real agent."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from agent.bench import SWEEP, Bench, python, shell
from metta.sweep.agent import messages as msg
from metta.sweep.agent.client import ask_agent
from metta.sweep.agent.command import MetricsTail
from metta.sweep.agent.job import Job
from metta.sweep.agent.location import read_address
from metta.sweep.agent.trial import _Inbox
from metta.sweep.errors import DispatchError
from metta.sweep.model import events as ev
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import FailureKind, JobDefinition, JobState, JobStatus, JobType, Outcome, Resources
from metta.sweep.model.sweep import FunctionTarget, MetricsSource, Strategy
from metta.sweep.session import Ending, Progress, RunContext
from waiting import wait_until

EPOCHS = Fidelity(resource="epoch", maximum=9)
SECONDS = Fidelity(resource="seconds", maximum=90)
REASON = "others are better"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


def start(bench: Bench, target: Any, *, until: float | None = None, **settings: Any) -> JobDefinition:
    bench.create(target, **{"fidelity": EPOCHS, "grace_s": 30.0, **settings})
    job = bench.grant(until=until)
    bench.dispatcher().dispatch([job])
    return job


def stop(bench: Bench, job: JobDefinition) -> None:
    bench.dispatcher().cancel([job.job_id], Outcome.STOPPED, REASON)


def reported(bench: Bench, name: str = "epoch") -> list[float]:
    bodies = [event.body for event in bench.store.read(SWEEP)]
    return [body.metrics[name] for body in bodies if isinstance(body, ev.MetricsReported) and name in body.metrics]


def stop_once_it_reports(bench: Bench, job: JobDefinition) -> None:
    wait_until(lambda: reported(bench, "score"), what="its first report")
    stop(bench, job)


# ------------------------------------------------------------------------------------------------------ functions

#: Trains for ever if nothing stops it; says when its cleaning up was reached.
ENDLESS = """
    import itertools, pathlib
    from metta.sweep import report_metrics
    def train(config):
        try:
            for epoch in itertools.count(1):
                try:
                    report_metrics({"score": epoch, "epoch": epoch})
                except Exception:
                    pass
        finally:
            pathlib.Path("cleaned").touch()
"""


def test_a_function_ends_at_its_level_and_its_run_is_paused(bench: Bench) -> None:
    job = start(bench, bench.function(ENDLESS), until=3)
    exited = bench.exit_of(job)
    assert (exited.outcome, exited.error, exited.failure) == (Outcome.PAUSED, None, None)
    assert reported(bench) == [1, 2, 3]
    run = bench.the_run()
    assert (run.status, run.progress) == (JobStatus.PAUSED, 3)
    assert [(rung.level, rung.value) for rung in run.rungs] == [(1, 1), (3, 3)]
    assert (bench.folder / "cleaned").exists()
    assert "Traceback" not in bench.log(run)


def test_a_function_that_is_asked_to_stop_ends_with_its_next_report(bench: Bench) -> None:
    job = start(bench, bench.function(ENDLESS))
    stop_once_it_reports(bench, job)
    exited = bench.exit_of(job)
    assert (exited.outcome, exited.error, exited.failure, exited.signal) == (Outcome.STOPPED, REASON, None, None)
    assert (bench.folder / "cleaned").exists()
    run = bench.the_run()
    assert (run.status, run.failure_reasons) == (JobStatus.PAUSED, ())
    assert run.progress == reported(bench)[-1]


#: Does not care how far it is to train, as some code does not.
HEEDLESS = """
    from metta.sweep import report_metrics
    def train(config):
        for epoch in {epochs}:
            report_metrics({{"score": epoch, "epoch": epoch}}, raise_on_stop=False)
        return {result}
"""


@pytest.mark.parametrize(
    ("epochs", "result"),
    [
        ("range(1, 10)", "None"),
        ("[9]", "None"),
        ("[]", '{"score": 1, "epoch": 9}'),
        ("range(1, 3)", "None"),
        ("[]", '{"score": 1}'),
    ],
)
def test_a_function_that_has_trained_to_its_end_has_succeeded_though_it_was_to_pause(
    bench: Bench, epochs: str, result: str
) -> None:
    job = start(bench, bench.function(HEEDLESS.format(epochs=epochs, result=result)), until=3)
    assert bench.exit_of(job).outcome is Outcome.SUCCEEDED
    assert bench.the_run().status is JobStatus.TRAINING_DONE_NO_EVAL


def test_trials_that_never_pause_are_trained_once_each_though_all_were_to_wait_for_a_promotion(bench: Bench) -> None:
    strategy = Strategy(scheduler="asha", scheduler_options={"mode": "promote"})
    target = bench.function(HEEDLESS.format(epochs="range(1, 10)", result="None"))
    runs = bench.run(target, fidelity=EPOCHS, strategy=strategy, max_trials=4)
    assert [run.status for run in runs] == [JobStatus.COMPLETED] * 4
    assert [len(run.jobs) for run in runs] == [1] * 4


def test_a_function_that_goes_beyond_its_level_and_not_to_its_end_is_paused_where_it_is(bench: Bench) -> None:
    job = start(bench, bench.function(HEEDLESS.format(epochs="range(1, 6)", result="None")), until=3)
    assert bench.exit_of(job).outcome is Outcome.PAUSED
    assert bench.the_run().progress == 5


def test_a_function_is_not_cut_short_by_the_report_of_its_last_step(bench: Bench) -> None:
    target = bench.function(
        """
        from metta.sweep import report_metrics, save_checkpoint
        def train(config):
            report_metrics({"score": 1, "epoch": 9})
            save_checkpoint({"weights": 1}, step=9)
        """
    )
    job = start(bench, target, until=3)
    assert bench.exit_of(job).outcome is Outcome.SUCCEEDED
    assert [checkpoint.step for checkpoint in bench.the_run().checkpoints] == [9]


def test_a_function_may_ask_whether_it_is_to_stop_and_save_before_it_returns(bench: Bench) -> None:
    target = bench.function(
        """
        import threading
        from metta.sweep import report_metrics, save_checkpoint, should_stop
        def train(config):
            report_metrics({"score": 1, "epoch": 1}, raise_on_stop=False)
            while not should_stop():
                threading.Event().wait(0.001)
            save_checkpoint({"weights": 1}, step=1)
            return {"score": 2, "epoch": 1}
        """
    )
    job = start(bench, target)
    stop_once_it_reports(bench, job)
    assert bench.exit_of(job).outcome is Outcome.STOPPED
    run = bench.the_run()
    assert [checkpoint.step for checkpoint in run.checkpoints] == [1]
    assert run.metrics == {"score": 2, "epoch": 1}


def test_a_function_that_finishes_without_having_heard_of_the_stop_has_succeeded(bench: Bench) -> None:
    target = bench.function(
        """
        import pathlib, threading
        from metta.sweep import report_metrics
        def train(config):
            report_metrics({"score": 1, "epoch": 1})
            while not pathlib.Path("go").exists():
                threading.Event().wait(0.001)
            return {"score": 2}
        """
    )
    job = start(bench, target)
    stop_once_it_reports(bench, job)
    (bench.folder / "go").touch()
    assert bench.exit_of(job).outcome is Outcome.SUCCEEDED
    assert bench.the_run().metrics["score"] == 2


def test_a_function_that_returns_what_comes_to_its_level_is_paused(bench: Bench) -> None:
    target = bench.function(
        """
        from metta.sweep import current_run
        def train(config):
            run = current_run()
            return {"score": 1, run.resource: run.until}
        """
    )
    assert bench.exit_of(start(bench, target, until=3)).outcome is Outcome.PAUSED
    assert bench.the_run().progress == 3


def test_tasks_that_are_stopped_end_the_trial_as_anything_else_does(bench: Bench) -> None:
    target = bench.function(
        """
        import asyncio
        from metta.sweep import report_metrics
        async def work():
            report_metrics({"score": 1, "epoch": 5})
        async def both():
            async with asyncio.TaskGroup() as group:
                group.create_task(work())
        def train(config):
            asyncio.run(both())
        """
    )
    assert bench.exit_of(start(bench, target, until=3)).outcome is Outcome.PAUSED


def test_a_function_that_fails_after_it_was_stopped_has_failed(bench: Bench) -> None:
    target = bench.function(
        """
        from metta.sweep import report_metrics
        def train(config):
            try:
                report_metrics({"score": 1, "epoch": 3})
            finally:
                raise OSError("the weights cannot be written")
        """
    )
    exited = bench.exit_of(start(bench, target, until=3))
    assert exited.outcome is Outcome.FAILED
    assert "the weights cannot be written" in str(exited.error)


@pytest.mark.parametrize("isolation", ["process", "reuse"])
def test_a_function_that_does_not_listen_is_terminated_after_the_grace(bench: Bench, isolation: str) -> None:
    target = bench.function(
        """
        import threading
        from metta.sweep import report_metrics
        def train(config):
            report_metrics({"score": 1, "epoch": 1})
            threading.Event().wait(600)
        """
    )
    job = start(bench, target, grace_s=0.2, isolation=isolation)
    stop_once_it_reports(bench, job)
    exited = bench.exit_of(job)
    assert (exited.outcome, exited.error) == (Outcome.STOPPED, REASON)
    assert exited.signal == 15


def test_a_function_that_does_not_heed_signals_either_is_killed_after_another(bench: Bench) -> None:
    target = bench.function(
        """
        import signal, threading
        from metta.sweep import report_metrics
        def train(config):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                try:
                    report_metrics({"score": 1}, raise_on_stop=False)
                    threading.Event().wait(0.01)
                except BaseException:
                    pass
        """
    )
    job = start(bench, target, grace_s=0.2)
    stop_once_it_reports(bench, job)
    exited = bench.exit_of(job)
    assert (exited.outcome, exited.signal) == (Outcome.STOPPED, 9)
    assert exited.seconds >= 0.4


def test_cancelling_a_job_that_was_asked_to_stop_does_not_wait_for_the_grace(bench: Bench) -> None:
    target = bench.function(
        """
        import threading
        from metta.sweep import report_metrics
        def train(config):
            report_metrics({"score": 1, "epoch": 1})
            threading.Event().wait(600)
        """
    )
    job = start(bench, target, grace_s=300.0)
    stop_once_it_reports(bench, job)
    bench.dispatcher().cancel([job.job_id], Outcome.CANCELLED, "the sweep was stopped")
    exited = bench.exit_of(job)
    assert (exited.outcome, exited.error) == (Outcome.CANCELLED, "the sweep was stopped")


def test_a_job_that_waits_for_its_turn_is_stopped_at_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    running = start(bench, bench.function(ENDLESS), resources=Resources(gpus=1))
    waiting = bench.grant(1)
    bench.dispatcher().dispatch([waiting])
    stop(bench, waiting)
    exited = bench.exit_of(waiting)
    assert (exited.outcome, exited.error, exited.seconds) == (Outcome.STOPPED, REASON, 0)
    stop_once_it_reports(bench, running)
    assert bench.exit_of(running).outcome is Outcome.STOPPED


def test_a_stop_that_comes_right_behind_the_job_is_heard(bench: Bench) -> None:
    job = start(bench, bench.function(ENDLESS))
    stop(bench, job)
    assert bench.exit_of(job).outcome is Outcome.STOPPED


@pytest.mark.parametrize("isolation", ["process", "reuse"])
def test_a_repeated_step_fails_the_run_and_says_so(bench: Bench, isolation: str) -> None:
    target = bench.function(
        """
        from metta.sweep import report_metrics
        def train(config):
            for batch in range(3):
                report_metrics({"score": 1, "epoch": 1})
        """
    )
    exited = bench.exit_of(start(bench, target, isolation=isolation))
    assert (exited.outcome, exited.failure) == (Outcome.FAILED, FailureKind.BAD_METRICS)
    assert exited.error == (
        "metric 'epoch' is 1 after 1, and it tells how far the training is; report each step once, in ascending order"
    )
    assert reported(bench) == [1]


def test_a_sweep_without_a_fidelity_takes_steps_in_any_order(bench: Bench) -> None:
    target = bench.function(
        """
        from metta.sweep import report_metrics, should_stop
        def train(config):
            for batch in range(3):
                report_metrics({"score": 1, "epoch": 1})
            assert not should_stop()
        """
    )
    assert bench.exit_of(start(bench, target, fidelity=None)).outcome is Outcome.SUCCEEDED


def test_an_evaluation_is_not_held_to_the_level_of_the_training(bench: Bench) -> None:
    target = bench.function(
        """
        from metta.sweep import report_metrics
        def train(config):
            report_metrics({"epoch": 1})
        def evaluate(config):
            for step in (3, 2, 1):
                report_metrics({"score": 1, "epoch": step})
        """
    )
    [run] = bench.run(target, evaluate=FunctionTarget(module=target.module, name="evaluate"), fidelity=EPOCHS)
    assert [job.outcome for job in run.jobs] == [Outcome.SUCCEEDED] * 2


def test_a_level_in_seconds_ends_a_function_by_the_clock(bench: Bench) -> None:
    target = bench.function(
        """
        import threading
        from metta.sweep import report_metrics
        def train(config):
            while True:
                report_metrics({"score": 1})
                threading.Event().wait(0.001)
        """
    )
    exited = bench.exit_of(start(bench, target, until=0.3, fidelity=SECONDS))
    assert exited.outcome is Outcome.PAUSED
    assert exited.seconds >= 0.25


def test_a_worker_that_was_stopped_goes_on_to_the_next_job(bench: Bench) -> None:
    target = bench.function(
        """
        import os, pathlib, threading
        from metta.sweep import report_metrics, should_stop
        def train(config):
            report_metrics({"score": os.getpid(), "epoch": 1})
            while config["x"] == 1 and not should_stop():
                threading.Event().wait(0.001)
            for epoch in range(2, 10):
                report_metrics({"epoch": epoch}, raise_on_stop=config["x"] != 1)
        """
    )
    bench.create(target, fidelity=EPOCHS, grace_s=30.0, isolation="reuse")
    dispatcher = bench.dispatcher()
    stopped = bench.grant(0, {"x": 1})
    dispatcher.dispatch([stopped])
    stop_once_it_reports(bench, stopped)
    assert bench.exit_of(stopped).outcome is Outcome.STOPPED
    paused, whole = bench.grant(1, {"x": 2}, until=4), bench.grant(2, {"x": 3})
    dispatcher.dispatch([paused])
    assert bench.exit_of(paused).outcome is Outcome.PAUSED
    dispatcher.dispatch([whole])
    assert bench.exit_of(whole).outcome is Outcome.SUCCEEDED
    runs = bench.store.fetch_runs(SWEEP)
    assert [run.progress for run in runs] == [9, 4, 9]
    assert len({run.metrics["score"] for run in runs}) == 1


def test_a_stop_that_comes_too_late_does_not_reach_the_next_job_of_the_worker(bench: Bench) -> None:
    target = bench.function(
        """
        import os, pathlib, threading
        from metta.sweep import report_metrics
        def train(config):
            report_metrics({"score": os.getpid(), "epoch": 1})
            while not pathlib.Path("go").exists():
                threading.Event().wait(0.001)
            if config["x"] == 2:
                report_metrics({"epoch": 2})
        """
    )
    bench.create(target, fidelity=EPOCHS, grace_s=30.0, isolation="reuse")
    dispatcher = bench.dispatcher()
    first = bench.grant(0, {"x": 1})
    dispatcher.dispatch([first])
    stop_once_it_reports(bench, first)
    (bench.folder / "go").touch()
    assert bench.exit_of(first).outcome is Outcome.SUCCEEDED
    second = bench.grant(1, {"x": 2})
    dispatcher.dispatch([second])
    assert bench.exit_of(second).outcome is Outcome.SUCCEEDED
    assert len({run.metrics["score"] for run in bench.store.fetch_runs(SWEEP)}) == 1


# -------------------------------------------------------------------------------------------------------- the link


def assignment(job_id: str) -> msg.Assignment:
    context = RunContext(sweep_id="s", run_id="r", job_id=job_id, type=JobType.TRAIN, directory="/")
    return msg.Assignment(context=context, target=FunctionTarget(module="m", name="n"), config={}, log="")


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, _Inbox]]:
    ours, theirs = socket.socketpair()
    with closing(ours), closing(_Inbox(theirs.detach())) as inbox:
        yield ours, inbox


ENDING = Ending(Outcome.STOPPED, REASON)


def test_a_stop_in_pieces_counts_when_it_is_whole(ends: tuple[socket.socket, _Inbox]) -> None:
    agent, inbox = ends
    line = msg.encode_line(msg.Stop(job_id="one", ending=ENDING))
    # What is sent at once with the assignment is read with it.
    agent.sendall(msg.encode_line(assignment("one")) + line[:10])
    assert inbox.next_assignment() == assignment("one")
    for byte in line[10:]:
        assert inbox.ending_of("one") is None
        agent.sendall(bytes([byte]))
    assert inbox.ending_of("one") == inbox.ending_of("one") == ENDING


def test_what_is_meant_for_another_job_is_left_for_it(ends: tuple[socket.socket, _Inbox]) -> None:
    agent, inbox = ends
    agent.sendall(msg.encode_line(assignment("one")))
    assert inbox.next_assignment() == assignment("one")
    for message in (msg.Stop(job_id="one", ending=ENDING), assignment("two"), msg.Stop(job_id="two", ending=ENDING)):
        agent.sendall(msg.encode_line(message))
    for _ in range(2):  # by whatever the first job left behind
        assert inbox.ending_of("one") == ENDING
    assert inbox.next_assignment() == assignment("two")
    assert inbox.ending_of("one") is None
    assert inbox.ending_of("two") == ENDING


def test_an_agent_that_is_gone_asks_for_nothing(ends: tuple[socket.socket, _Inbox]) -> None:
    agent, inbox = ends
    agent.close()
    assert inbox.ending_of("one") is None
    assert inbox.next_assignment() is None


def test_time_outs_that_the_user_sets_for_all_sockets_are_not_for_this_one() -> None:
    ours, theirs = socket.socketpair()
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(0.001)
    try:
        inbox = _Inbox(theirs.detach())
    finally:
        socket.setdefaulttimeout(before)
    with ours, closing(inbox):
        assert inbox._link.gettimeout() is None
        assert os.get_blocking(inbox._link.fileno())


# -------------------------------------------------------------------------------------------------------- commands

#: Reports one epoch after the other, and then waits; says so when it is terminated.
COMMAND = """
    import json, pathlib, signal, sys, threading
    def terminated(*_):
        pathlib.Path("cleaned").touch()
        sys.exit(0)
    signal.signal(signal.SIGTERM, terminated)
    for epoch in (1, 2, 3):
        print(json.dumps({"score": epoch, "epoch": epoch}))
    threading.Event().wait(600)
"""


def test_a_command_is_terminated_at_its_level_and_its_run_is_paused(bench: Bench) -> None:
    exited = bench.exit_of(start(bench, python(COMMAND), until=3))
    assert (exited.outcome, exited.error, exited.failure) == (Outcome.PAUSED, None, None)
    assert (bench.folder / "cleaned").exists()
    run = bench.the_run()
    assert (run.status, run.progress) == (JobStatus.PAUSED, 3)
    assert [rung.level for rung in run.rungs] == [1, 3]


def test_a_command_that_is_to_be_stopped_is_terminated_at_once(bench: Bench) -> None:
    job = start(bench, python(COMMAND), grace_s=300.0)
    stop_once_it_reports(bench, job)
    exited = bench.exit_of(job)
    assert (exited.outcome, exited.error) == (Outcome.STOPPED, REASON)
    assert (bench.folder / "cleaned").exists()


@pytest.mark.parametrize("until", [3, None])
def test_a_command_that_does_not_heed_that_is_killed_after_the_grace(bench: Bench, until: float | None) -> None:
    script = """trap '' TERM; echo '{"score": 1, "epoch": 3}'; while true; do sleep 0.01; done"""
    job = start(bench, shell(script), until=until, grace_s=0.2)
    if until is None:
        stop_once_it_reports(bench, job)
    exited = bench.exit_of(job)
    assert exited.outcome is (Outcome.STOPPED if until is None else Outcome.PAUSED)
    assert exited.signal == 9


def test_a_command_knows_its_level_and_is_paused_when_it_ends_there_by_itself(bench: Bench) -> None:
    script = """echo '{"score": 1, "epoch": '$METTA_SWEEP_UNTIL'}'"""
    assert bench.exit_of(start(bench, shell(script), until=3)).outcome is Outcome.PAUSED
    assert reported(bench) == [3]


@pytest.mark.parametrize("epochs", ["9", "1 2"])
def test_a_command_that_ends_by_itself_has_succeeded_though_it_was_to_pause(bench: Bench, epochs: str) -> None:
    script = f"""for epoch in {epochs}; do echo '{{"score": 1, "epoch": '$epoch'}}'; done; sleep 0.5; touch saved"""
    assert bench.exit_of(start(bench, shell(script), until=3)).outcome is Outcome.SUCCEEDED
    assert (bench.folder / "saved").exists()


def test_a_command_that_goes_on_to_its_end_when_it_is_told_to_pause_has_succeeded(bench: Bench) -> None:
    script = """
        say() { echo '{"score": 1, "epoch": '$1'}'; }
        trap 'say 9; exit 0' TERM
        say 3
        sleep 61 & wait
    """
    assert bench.exit_of(start(bench, shell(script), until=3)).outcome is Outcome.SUCCEEDED


def test_a_whole_training_by_a_command_has_no_level(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METTA_SWEEP_UNTIL", "3")  # this sweep is run by a job of another
    script = """echo '{"score": 1, "epoch": '${METTA_SWEEP_UNTIL:-9}'}'"""
    assert bench.exit_of(start(bench, shell(script))).outcome is Outcome.SUCCEEDED
    assert reported(bench) == [9]


@pytest.mark.parametrize(("exit_code", "outcome"), [(0, Outcome.PAUSED), (3, Outcome.FAILED)])
def test_a_command_that_ends_at_its_level_before_anybody_looked_may_also_have_failed(
    bench: Bench, exit_code: int, outcome: Outcome
) -> None:
    bench.create(shell(""), fidelity=EPOCHS)
    job = Job(bench.grant(until=3), bench.folder, Progress("epoch", 3))
    job.tail = MetricsTail(MetricsSource(), job.log, bench.folder, {})
    job.progress.advance({"epoch": 3})
    exited = msg.Exited(key="w1", exit_code=exit_code, signal=None, cpu_seconds=0, memory_peak_bytes=0)
    assert job.end(exited, 0).outcome is outcome


@pytest.mark.parametrize("ending", ["exit 0", "exec sleep 61"])
def test_a_step_back_in_what_a_command_prints_fails_its_job(bench: Bench, ending: str) -> None:
    script = """for epoch in 1 2 1; do echo '{"score": 1, "epoch": '$epoch'}'; done; """ + ending
    exited = bench.exit_of(start(bench, shell(script)))
    assert (exited.outcome, exited.failure) == (Outcome.FAILED, FailureKind.BAD_METRICS)
    assert str(exited.error).startswith("metric 'epoch' is 1 after 2, and it tells how far the training is; report")
    assert reported(bench) == [1, 2]


def report(bench: Bench, job: JobDefinition, **metrics: float) -> None:
    """As `metta sweep report` does it."""
    wait_until(lambda: bench.the_run().jobs[-1].state is JobState.RUNNING, what="its start")
    assert bench.config is not None
    address = read_address(bench.config.directory)
    assert address is not None
    ask_agent(address.socket, msg.Report(job_id=job.job_id, metrics=metrics))


def test_what_a_process_of_a_command_reports_counts_too(bench: Bench) -> None:
    job = start(bench, shell("exec sleep 61"), until=3)
    for epoch in (1, 2, 3):
        report(bench, job, epoch=epoch, score=epoch)
    assert bench.exit_of(job).outcome is Outcome.PAUSED
    assert bench.the_run().progress == 3


def test_a_step_that_a_process_of_a_command_reports_again_fails_its_job(bench: Bench) -> None:
    job = start(bench, shell("exec sleep 61"))
    report(bench, job, epoch=1)
    with pytest.raises(DispatchError, match="metric 'epoch' is 1 after 1, "):
        report(bench, job, epoch=1)
    exited = bench.exit_of(job)
    assert exited.failure is FailureKind.BAD_METRICS
    assert str(exited.error).startswith("metric 'epoch' is 1 after 1, ")


@pytest.mark.parametrize("again", ["epoch=1", "epoch=nan"])
def test_who_reports_what_is_no_report_is_told_though_the_job_is_ended_by_it(bench: Bench, again: str) -> None:
    report = f"{sys.executable} -m metta.sweep.cli sweep report score=1"
    # The shell outlives the signal that ends its job; what it starts does not inherit that.
    script = f"trap : TERM; {report} epoch=2; {report} {again} 2> said; echo $? > code"
    exited = bench.exit_of(start(bench, shell(script)))
    assert exited.failure is FailureKind.BAD_METRICS
    assert (bench.folder / "said").read_text() == f"error: {exited.error}\n"
    assert (bench.folder / "code").read_text() == "1\n"


def test_a_process_beside_a_function_brings_it_to_its_level(bench: Bench) -> None:
    target = bench.function(
        """
        import threading
        from metta.sweep import should_stop
        def train(config):
            while not should_stop():
                threading.Event().wait(0.001)
        """
    )
    job = start(bench, target, until=3)
    report(bench, job, epoch=3, score=1)
    assert bench.exit_of(job).outcome is Outcome.PAUSED


def test_a_level_in_seconds_ends_a_command_by_the_clock(bench: Bench) -> None:
    exited = bench.exit_of(start(bench, shell("exec sleep 61"), until=0.3, fidelity=SECONDS))
    assert (exited.outcome, exited.signal) == (Outcome.PAUSED, 15)
    assert exited.seconds >= 0.3
