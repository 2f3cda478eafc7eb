"""What each way to fail is put down to, told by real jobs; and which failures are the same."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from agent.bench import Bench, shell
from metta.sweep.agent import failures
from metta.sweep.errors import MetricError
from metta.sweep.model.events import JobExited
from metta.sweep.model.run import FailureKind, Outcome
from metta.sweep.model.space import Choice, SearchSpace
from metta.sweep.model.sweep import CommandTarget

FAILED, KILLED, SUCCEEDED = Outcome.FAILED, Outcome.KILLED, Outcome.SUCCEEDED


class Case(NamedTuple):
    """A way to end."""

    code: str
    outcome: Outcome
    failure: FailureKind | None
    #: Part of the reason.
    reason: str | None
    #: Whether many such failures in a row would say that the code is wrong for every configuration.
    is_systematic: bool = False


USER_ERROR, BAD_METRICS = FailureKind.USER_ERROR, FailureKind.BAD_METRICS
OUT_OF_MEMORY, STORE_LOST = FailureKind.OUT_OF_MEMORY, FailureKind.STORE_LOST

FUNCTIONS = {
    "numbers": Case("return {'score': 1}", SUCCEEDED, None, None),
    "nothing": Case("return None", SUCCEEDED, None, None),
    "exception": Case("return 1 / 0", FAILED, USER_ERROR, r"^ZeroDivisionError: .* \(target\.py:\d+\)$", True),
    "exit": Case("sys.exit(3)", FAILED, USER_ERROR, r"^called sys\.exit\(3\) before it returned$", True),
    "exit_0": Case("sys.exit()", FAILED, USER_ERROR, r"^called sys\.exit\(\)", True),
    "interrupt": Case("raise KeyboardInterrupt", FAILED, USER_ERROR, r"^KeyboardInterrupt: ", True),
    "hard_exit": Case("os._exit(5)", FAILED, USER_ERROR, "^exited with code 5$", True),
    "hard_exit_0": Case("os._exit(0)", FAILED, USER_ERROR, "^exited with code 0$", True),
    "segmentation_fault": Case("kill(signal.SIGSEGV)", KILLED, FailureKind.KILLED, r"^SIGSEGV \(signal 11\)$"),
    "killed": Case("kill(signal.SIGKILL)", KILLED, FailureKind.KILLED, r"^SIGKILL \(signal 9\)$"),
    "terminated": Case("kill(signal.SIGTERM)", KILLED, FailureKind.KILLED, r"^SIGTERM \(signal 15\)$"),
    "cpu_time": Case("kill(signal.SIGXCPU)", KILLED, FailureKind.KILLED, "^SIGXCPU"),
    "nan": Case("return {'score': float('nan')}", FAILED, BAD_METRICS, "^metric 'score' is nan"),
    "infinity": Case("return {'score': -float('inf')}", FAILED, BAD_METRICS, "^metric 'score' is -inf"),
    "text": Case("return {'score': 'high'}", FAILED, BAD_METRICS, "must be a number, got str: 'high'", True),
    "none": Case("return {'score': None}", FAILED, BAD_METRICS, "must be a number, got NoneType", True),
    "number": Case("return 0.9", FAILED, BAD_METRICS, r"^train\(\) returned float 0\.9", True),
    "swallowed": Case(
        """
        with contextlib.suppress(Exception):
            report_metrics({'score': 'high'})
        """,
        FAILED,
        BAD_METRICS,
        "must be a number",
        True,
    ),
    "memory": Case("bytearray(1 << 60)", FAILED, OUT_OF_MEMORY, "^MemoryError: "),
    "array_memory": Case("numpy.ones(1 << 58)", FAILED, OUT_OF_MEMORY, "Unable to allocate"),
    "gpu_memory": Case("raise OutOfMemoryError('CUDA out of memory.')", FAILED, OUT_OF_MEMORY, "CUDA out of memory"),
    "jax_memory": Case(
        "raise XlaRuntimeError('RESOURCE_EXHAUSTED: Failed to allocate request for 4.0GiB')",
        FAILED,
        OUT_OF_MEMORY,
        "^XlaRuntimeError",
    ),
    "wrapped_memory": Case(
        """
        try:
            bytearray(1 << 60)
        except MemoryError as error:
            raise ValueError('training failed') from error
        """,
        FAILED,
        OUT_OF_MEMORY,
        "^ValueError: training failed",
    ),
    "memory_then_another": Case(
        """
        try:
            bytearray(1 << 60)
        except MemoryError:
            fail()
        """,
        FAILED,
        OUT_OF_MEMORY,
        "^RuntimeError: failed",
    ),
    "memory_of_a_group": Case(
        "raise ExceptionGroup('tasks', [ValueError(), MemoryError()])", FAILED, OUT_OF_MEMORY, "^ExceptionGroup"
    ),
    "no_space": Case("raise OSError(errno.ENOSPC, 'No space left')", FAILED, STORE_LOST, "^OSError"),
    "quota": Case("raise OSError(errno.EDQUOT, 'Quota')", FAILED, STORE_LOST, "^OSError"),
    "stale": Case("raise OSError(errno.ESTALE, 'Stale')", FAILED, STORE_LOST, "^OSError"),
    "full_device": Case("open('/dev/full', 'w').write('x' * 100_000)", FAILED, STORE_LOST, "No space left on device"),
    "wrapped_full_device": Case(
        """
        try:
            open('/dev/full', 'w').write('x' * 100_000)
        except OSError:
            raise RuntimeError('cannot save')
        """,
        FAILED,
        STORE_LOST,
        "^RuntimeError: cannot save",
    ),
    "full_device_got_over": Case(
        """
        try:
            raise OSError(errno.ENOSPC, 'cache')
        except OSError:
            fail()
        """,
        FAILED,
        USER_ERROR,
        "^RuntimeError: failed",
        True,
    ),
    "missing_file": Case("open('no-such-file')", FAILED, USER_ERROR, "^FileNotFoundError", True),
    "unspeakable": Case("raise Unspeakable", FAILED, USER_ERROR, "^Unspeakable: ", True),
}

PREAMBLE = """
import contextlib, errno, numpy, os, signal, sys
from metta.sweep import report_metrics

class OutOfMemoryError(RuntimeError): pass
class XlaRuntimeError(RuntimeError): pass
class Unspeakable(Exception):
    def __str__(self):
        raise ValueError

def kill(number):
    os.kill(os.getpid(), number)

def fail():
    raise RuntimeError('failed')

def train(config):
    return globals()['case_' + config['case']]()
"""

COMMANDS = {
    "fine": Case("""echo '{"score": 1}'""", SUCCEEDED, None, None),
    "exit": Case("echo no; exit 3", FAILED, USER_ERROR, "^exited with code 3: no$", True),
    "child_killed": Case(
        "sh -c 'kill -9 $$'; exit $?", KILLED, FailureKind.KILLED, r"^SIGKILL \(signal 9\); exited with code 137"
    ),
    "child_crashed": Case(
        "sh -c 'kill -SEGV $$'; exit $?", KILLED, FailureKind.KILLED, r"^SIGSEGV \(signal 11\); exited with code 139"
    ),
    "killed": Case("kill -9 $$", KILLED, FailureKind.KILLED, r"^SIGKILL \(signal 9\)$"),
    "high_code": Case("exit 200", FAILED, USER_ERROR, "^exited with code 200$", True),
    "traceback": Case(
        f"{sys.executable} -c 'import json; json.loads(\"x\")'", FAILED, USER_ERROR, "^exited with code 1: json", True
    ),
    "memory": Case(f"{sys.executable} -c 'bytearray(1 << 60)'", FAILED, OUT_OF_MEMORY, "code 1: MemoryError$"),
    "gpu_memory": Case(
        "echo torch.OutOfMemoryError: CUDA out of memory.; exit 1", FAILED, OUT_OF_MEMORY, "OutOfMemoryError"
    ),
    "full_device": Case("bash -c 'echo x > /dev/full'", FAILED, STORE_LOST, "No space left on device"),
    "nan": Case("""echo '{"score": NaN}'""", FAILED, BAD_METRICS, "^metric 'score' is nan"),
    "not_found": Case("exec no-such-program", FAILED, USER_ERROR, "no-such-program: not found", True),
}


def run_all(target: Any, bench: Bench, configs: list[dict[str, Any]]) -> list[JobExited]:
    space = SearchSpace.of({"case": Choice([str(config["case"]) for config in configs])})
    return bench.exits(target, configs, search_space=space)


@pytest.fixture(scope="module")
def functions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, JobExited]]:
    bench = Bench(tmp_path_factory.mktemp("functions"))
    bodies = [
        f"def case_{name}():\n{textwrap.indent(textwrap.dedent(case.code).strip(), '    ')}\n"
        for name, case in FUNCTIONS.items()
    ]
    target = bench.function(PREAMBLE + "\n".join(bodies))
    yield dict(zip(FUNCTIONS, run_all(target, bench, [{"case": name} for name in FUNCTIONS]), strict=True))
    bench.close()


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, JobExited]]:
    bench = Bench(tmp_path_factory.mktemp("commands"))
    target = CommandTarget(argv=["sh", "-c", "{case}"])
    configs = [{"case": case.code} for case in COMMANDS.values()]
    yield dict(zip(COMMANDS, run_all(target, bench, configs), strict=True))
    bench.close()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_s_end_is_put_down_to_its_cause(functions: dict[str, JobExited], name: str) -> None:
    check(functions[name], FUNCTIONS[name])


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_s_end_is_put_down_to_its_cause(commands: dict[str, JobExited], name: str) -> None:
    check(commands[name], COMMANDS[name])


def check(exited: JobExited, case: Case) -> None:
    assert (exited.outcome, exited.failure) == (case.outcome, case.failure), exited
    assert (exited.signature is not None) == case.is_systematic
    if case.reason is None:
        assert exited.error is None
    else:
        assert exited.error is not None
        assert re.search(case.reason, exited.error), exited.error
        assert "\n" not in exited.error


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.close()


class TestSurroundings:
    def test_a_job_that_hangs_is_timed_out(self, bench: Bench) -> None:
        exited = bench.exit(shell("exec sleep 60"), job_timeout_s=0.2)
        assert (exited.outcome, exited.failure) == (Outcome.TIMED_OUT, FailureKind.TIMED_OUT)
        assert exited.error == "ran longer than job_timeout_s = 0.2"
        assert exited.signature is None

    @pytest.mark.parametrize("isolation", ["process", "reuse"])
    def test_a_module_that_cannot_be_imported_is_the_user_s_error(self, bench: Bench, isolation: str) -> None:
        target = bench.function("import no_such_module")
        first, second = bench.exits(target, [{"x": 1}, {"x": 2}], isolation=isolation)
        assert first.failure is FailureKind.USER_ERROR
        assert first.error is not None
        assert first.error.startswith("ModuleNotFoundError: No module named 'no_such_module' (target.py:1)")
        assert first.signature == second.signature is not None

    def test_a_program_that_is_not_there_is_the_user_s_error(self, bench: Bench) -> None:
        exited = bench.exit(CommandTarget(argv=["no-such-program"]))
        assert exited.failure is FailureKind.USER_ERROR
        assert exited.error is not None
        assert exited.error.startswith("cannot be started: FileNotFoundError: ")
        assert "no-such-program" in exited.error
        assert exited.signature is not None

    def test_a_job_that_cannot_be_made_is_the_user_s_error(self, bench: Bench) -> None:
        exited = bench.exit(CommandTarget(argv=["echo", "{nothing_of_that_name}"]))
        assert exited.failure is FailureKind.USER_ERROR
        assert exited.error == "cannot be started: KeyError: 'nothing_of_that_name'"

    def test_a_job_that_was_cancelled_has_not_failed(self, bench: Bench) -> None:
        bench.create(shell("exec sleep 60"))
        job = bench.grant()
        dispatcher = bench.dispatcher()
        dispatcher.dispatch([job])
        dispatcher.cancel([job.job_id], Outcome.CANCELLED, "enough")
        exited = bench.exit_of(job)
        assert (exited.outcome, exited.failure, exited.signature) == (Outcome.CANCELLED, None, None)
        assert exited.error == "enough"

    @pytest.mark.parametrize("isolation", ["process", "reuse"])
    def test_a_log_that_cannot_be_written_for_want_of_space_is_the_store_s_failure(
        self, bench: Bench, isolation: str
    ) -> None:
        files = bench.folder / "files"
        (files / "runs").mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", "nr_inodes=1", "tmpfs", str(files / "runs")]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.fail(
                "a small disk cannot be mounted: this test needs root, and a container that may mount", pytrace=False
            )
        try:
            target = bench.function("def train(config): return {'score': 1}")
            exited = bench.exit(target, isolation=isolation)
            assert (exited.outcome, exited.failure) == (FAILED, STORE_LOST)
            assert exited.error is not None
            assert "No space left on device" in exited.error
        finally:
            subprocess.run(["umount", "--lazy", str(files / "runs")], check=True)

    def test_a_disk_that_fills_up_during_the_job_is_the_store_s_failure(self, bench: Bench) -> None:
        disk = bench.folder / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.fail(
                "a small disk cannot be mounted: this test needs root, and a container that may mount", pytrace=False
            )
        try:
            target = bench.function(
                """
                import numpy
                def train(config):
                    numpy.save('disk/weights.npy', numpy.ones(100_000))
                """
            )
            assert bench.exit(target).failure is STORE_LOST
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)


class TestSameness:
    def test_the_same_mistake_is_the_same_failure_whatever_the_configuration(self, bench: Bench) -> None:
        target = bench.function(
            """
            def train(config):
                if config["x"] < 10:
                    return {"score": config[f"y{config['x']}"]}
                return {"score": config["z"]}
            """
        )
        signatures = [exited.signature for exited in bench.exits(target, [{"x": x} for x in (1, 2, 30, 40)])]
        assert signatures[0] == signatures[1] is not None
        assert signatures[2] == signatures[3] is not None
        assert signatures[0] != signatures[2]

    def test_where_in_a_library_it_ended_does_not_matter(self, bench: Bench) -> None:
        target = bench.function(
            """
            import json
            def train(config):
                json.loads(["", "{", "[1,", "nul"][config["x"]])
            """
        )
        assert len({exited.signature for exited in bench.exits(target, [{"x": x} for x in range(4)])}) == 1

    def test_recursion_without_end_is_the_same_at_any_depth(self, bench: Bench) -> None:
        target = bench.function(
            """
            def deeper(depth):
                return deeper(depth - 1) if depth else loop()
            def loop():
                return loop()
            def train(config):
                return deeper(config["x"])
            """
        )
        first, second = bench.exits(target, [{"x": 3}, {"x": 50}])
        assert first.signature == second.signature is not None

    def test_commands_fail_alike_when_only_numbers_and_folders_differ(self, bench: Bench) -> None:
        script = 'case $2 in 3) echo "no file: $1";; *) echo "$1/w.pt: value 0.$2 at 0x7f$2 is bad";; esac; exit 1'
        target = CommandTarget(argv=["sh", "-c", script, "sh", "{run_directory}", "{x}"])
        first, second, other = (exited.signature for exited in bench.exits(target, [{"x": x} for x in (1, 2, 3)]))
        assert first == second is not None
        assert other not in {first, None}

    def test_reports_of_the_wrong_type_are_told_apart_by_metric_and_place(self, bench: Bench) -> None:
        target = bench.function(
            """
            from metta.sweep import report_metrics
            def train(config):
                if config["x"] < 10:
                    report_metrics({"loss": str(config["x"])})
                return {"score": str(config["x"])}
            """
        )
        signatures = [exited.signature for exited in bench.exits(target, [{"x": x} for x in (1, 2, 30, 40)])]
        assert signatures[0] == signatures[1] is not None
        assert signatures[2] == signatures[3] is not None
        assert signatures[0] != signatures[2]


class TestStarting:
    @pytest.mark.parametrize(
        ("number", "failure"),
        [
            (errno.ENOMEM, OUT_OF_MEMORY),
            (errno.EAGAIN, FailureKind.DISPATCHER_ERROR),
            (errno.EMFILE, FailureKind.DISPATCHER_ERROR),
            (errno.ENOSPC, STORE_LOST),
            (errno.EACCES, USER_ERROR),
        ],
    )
    def test_a_start_that_fails_is_put_down_to_what_was_short(self, number: int, failure: FailureKind) -> None:
        verdict = failures.of_start(OSError(number, os.strerror(number)))
        assert verdict.failure is failure
        assert (verdict.signature is not None) == (failure is USER_ERROR)


class TestKilledForMemory:
    @pytest.mark.parametrize(
        "reason",
        [
            "SIGKILL (signal 9)",
            "SIGKILL (signal 9); exited with code 137",
            "RuntimeError: DataLoader worker (pid 7) is killed by signal: Killed. ",
            "BrokenProcessPool: A process in the process pool was terminated abruptly",
            "CalledProcessError: Command 'train' died with <Signals.SIGKILL: 9>.",
        ],
    )
    def test_a_kill_is_the_kernel_s_when_it_killed_in_that_time(self, reason: str) -> None:
        verdict = failures.Verdict(FAILED, reason, USER_ERROR, "signature")
        assert failures.tells_of_a_kill(verdict)
        blamed = failures.killed_for_memory(verdict)
        assert (blamed.failure, blamed.signature) == (OUT_OF_MEMORY, None)

    @pytest.mark.parametrize(
        "verdict",
        [
            failures.Verdict(FAILED, "ValueError: no", USER_ERROR),
            failures.Verdict(KILLED, "SIGSEGV (signal 11)", FailureKind.KILLED),
            failures.Verdict(Outcome.CANCELLED, "by SIGKILL"),
            failures.of_exception(MetricError("metric 'SIGKILL' is nan; only finite numbers can be compared")),
        ],
    )
    def test_what_was_not_killed_is_not(self, verdict: failures.Verdict) -> None:
        assert not failures.tells_of_a_kill(verdict)
