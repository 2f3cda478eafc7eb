"""How jobs end: what a failure is put down to, and what makes two failures the same.

Nothing of NumPy, torch or JAX is imported for it: their exceptions are known by the names of their classes and by what
they say.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import re
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec

from metta.sweep.errors import MetricError, TargetError
from metta.sweep.model.run import FailureKind, Outcome
from metta.sweep.session import Ending

_STORE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN)
#: The machine is at its limit of processes or files: says nothing about the job that was to be started.
_CROWDED_ERRORS = (errno.EAGAIN, errno.EMFILE, errno.ENFILE)
#: NumPy and torch don't pass on why a file could not be written to its end.
_SHORT_WRITES = (r"\d requested and \d+ written", "PytorchStreamWriter failed writing file")
_STORE_TEXT = re.compile("|".join([*map(os.strerror, _STORE_ERRORS), *_SHORT_WRITES]))
#: Classes of Python and NumPy, torch and CuPy, TensorFlow.
_MEMORY_CLASSES = {"MemoryError", "OutOfMemoryError", "ResourceExhaustedError"}
_MEMORY_TEXT = re.compile(
    rf"\b(?:{'|'.join(_MEMORY_CLASSES)}|CUBLAS_STATUS_ALLOC_FAILED|std::bad_alloc)\b"
    # JAX says so of the device's memory, gRPC of a message that is too long.
    r"|(?<!StatusCode\.)\bRESOURCE_EXHAUSTED\b"
    r"|(?i:out of memory|(?:cannot|can't) allocate memory|not enough memory)"
)
#: Our own words for a process that was killed, and those of libraries for their workers: subprocess,
#: concurrent.futures, joblib, torch.
_KILLED = re.compile(r"\bSIGKILL\b|exit status 137\b|BrokenProcessPool|TerminatedWorkerError|by signal: Killed")
#: Every report with a NaN says so. It may be one configuration's fault, unlike a report of the wrong type.
_NOT_FINITE = "only finite numbers"
_METRIC_NAME = re.compile(r"metric '(.*?)'")

#: A shell whose child died by a signal exits with this much more than the signal's number.
_SHELL_OFFSET = 128
_FATAL_SIGNALS = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGILL,
        signal.SIGTRAP,
        signal.SIGABRT,
        signal.SIGBUS,
        signal.SIGFPE,
        signal.SIGKILL,
        signal.SIGSEGV,
        signal.SIGPIPE,
        signal.SIGTERM,
        signal.SIGXCPU,
        signal.SIGXFSZ,
        signal.SIGSYS,
    }
)

_OWN_FOLDER = str(Path(__file__).parent.parent)
_STANDARD_LIBRARY = str(Path(os.__file__).parent)
#: A path up to its last name, which holds folders of the run's own.
_FOLDERS = re.compile(r"[^\s'\"=:(]*/")
#: Numbers, and words with digits in them: addresses, ids, hashes.
_VARIABLE = re.compile(r"(?<!\w)[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?(?!\w)|\b\w*\d\w*\b")
#: Exceptions may quote a whole tensor, and all of it is in the run's log.
_LONGEST_REASON = 1000
#: What it says itself; its place has to be told too.
_LONGEST_TOLD = 800
#: As much of it is searched for what it tells about the failure.
_LONGEST_MESSAGE = 100_000


class Verdict(msgspec.Struct, frozen=True):
    """How a job ended, in the terms of `JobExited`."""

    outcome: Outcome
    error: str | None = None
    #: None for a job that succeeded, or ended because it was asked to.
    failure: FailureKind | None = None
    #: Only of failures that would pause a sweep when they come in a row.
    signature: str | None = None


def of_exception(error: BaseException) -> Verdict:
    """What ended the user's function, or kept us from calling it."""
    kind = _kind(error)
    reason = _reason(error)
    if kind is FailureKind.BAD_METRICS:
        return _bad_metrics(reason, "".join(_places(error)))
    signature = _digest(*_places(error)) if kind is FailureKind.USER_ERROR else None
    return Verdict(Outcome.FAILED, one_line(reason), kind, signature)


def of_ending(ending: Ending) -> Verdict:
    """A trial that was told to end, and has. A pause needs no reason: the job says how far it was to come."""
    return Verdict(ending.outcome, None if ending.outcome is Outcome.PAUSED else ending.reason)


def of_report(reason: str) -> Verdict:
    """A report that was no report, from a process that could not hand over the exception."""
    return _bad_metrics(reason, "")


def of_start(error: Exception) -> Verdict:
    """What kept a job from being started."""
    reason = one_line(f"cannot be started: {type(error).__name__}: {_message(error)}")
    if isinstance(error, OSError) and error.errno in _CROWDED_ERRORS:
        return Verdict(Outcome.FAILED, reason, FailureKind.DISPATCHER_ERROR)
    return _of_text(reason, _kind(error))


def of_exit(exit_code: int | None, number: int | None, last_line: str, *, is_command: bool) -> Verdict:
    """A process that ended without having said how it went.

    Args:
        exit_code: Its exit code.
        number: Instead of it, the signal that ended the process.
        last_line: The last line of its log.
        is_command: Whether it is the user's program, which may be a shell.
    """
    if number is not None:
        return _of_signal(number)
    assert exit_code is not None
    reason = one_line(f"exited with code {exit_code}" + (f": {last_line}" if last_line else ""))
    if is_command and exit_code - _SHELL_OFFSET in _FATAL_SIGNALS:
        return _of_signal(exit_code - _SHELL_OFFSET, f"; {reason}")
    return _of_text(reason, _kind_of_text(last_line) or FailureKind.USER_ERROR)


def tells_of_a_kill(verdict: Verdict) -> bool:
    """Whether the process, or one that it needed, was killed: perhaps by the kernel, to get at its memory."""
    is_open = verdict.failure in {FailureKind.KILLED, FailureKind.USER_ERROR}
    return is_open and _KILLED.search(verdict.error or "") is not None


def killed_for_memory(verdict: Verdict) -> Verdict:
    """The same, now that it is known who killed."""
    reason = one_line(f"the kernel was out of memory: {verdict.error}")
    return Verdict(verdict.outcome, reason, FailureKind.OUT_OF_MEMORY)


def one_line(text: str) -> str:
    """A reason as the log keeps it."""
    shown = f"{' '.join(text[:_LONGEST_MESSAGE].split()):.{_LONGEST_REASON}}"
    return shown.encode(errors="backslashreplace").decode()


# --------------------------------------------------------------------------------------------------------- evidence


def oom_kills() -> int:
    """How many processes the kernel killed for want of memory: in our control group (v2), or else on the machine."""
    for counters in (_control_group() / "memory.events", Path("/proc/vmstat")):
        with suppress(OSError):
            for line in counters.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == "oom_kill":
                    return int(count)
    return 0


@functools.cache
def _control_group() -> Path:
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                return Path("/sys/fs/cgroup", line.removeprefix("0::/"))
    return Path("/sys/fs/cgroup")


# ------------------------------------------------------------------------------------------------------------ kinds


def _kind(error: BaseException) -> FailureKind:
    found = {(_own_kind(each), is_cause) for each, is_cause in _chain(error)}
    if not found.isdisjoint({(FailureKind.OUT_OF_MEMORY, True), (FailureKind.OUT_OF_MEMORY, False)}):
        return FailureKind.OUT_OF_MEMORY  # what fails while memory is short, fails for it
    for kind in (FailureKind.STORE_LOST, FailureKind.BAD_METRICS):
        if (kind, True) in found:
            return kind
    return FailureKind.USER_ERROR


def _own_kind(error: BaseException) -> FailureKind | None:
    if isinstance(error, MetricError):
        return FailureKind.BAD_METRICS
    if isinstance(error, OSError) and error.errno is not None:
        if error.errno in _STORE_ERRORS:
            return FailureKind.STORE_LOST
        return FailureKind.OUT_OF_MEMORY if error.errno == errno.ENOMEM else None
    if not _MEMORY_CLASSES.isdisjoint(cls.__name__ for cls in type(error).__mro__):
        return FailureKind.OUT_OF_MEMORY
    return _kind_of_text(_message(error))


def _chain(error: BaseException) -> Iterator[tuple[BaseException, bool]]:
    """The exception and those before it, each with whether it brought about the first.

    One that was merely being handled, far from where the next was raised, did not: a cache that could not be written
    is no reason for the error in what was done without it.
    """
    waiting, seen = [(error, True)], set()
    while waiting:
        current, is_cause = waiting.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current, is_cause
        if isinstance(current, BaseExceptionGroup):
            waiting += [(part, is_cause) for part in current.exceptions]
        if current.__cause__ is not None:
            waiting.append((current.__cause__, is_cause))
        elif current.__context__ is not None and not current.__suppress_context__:
            waiting.append((current.__context__, is_cause and _is_raised_in_handler(current, current.__context__)))


def _is_raised_in_handler(error: BaseException, handled: BaseException) -> bool:
    raising = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(raising) and handled.__traceback__ is not None and handled.__traceback__.tb_frame is raising[-1]


def _of_signal(number: int, details: str = "") -> Verdict:
    name = signal.Signals(number).name if number in set(signal.Signals) else "real-time"
    return Verdict(Outcome.KILLED, f"{name} (signal {number}){details}", FailureKind.KILLED)


def _kind_of_text(text: str) -> FailureKind | None:
    if _MEMORY_TEXT.search(text):
        return FailureKind.OUT_OF_MEMORY
    return FailureKind.STORE_LOST if _STORE_TEXT.search(text) else None


def _bad_metrics(reason: str, place: str) -> Verdict:
    if _NOT_FINITE in reason:
        return Verdict(Outcome.FAILED, one_line(reason), FailureKind.BAD_METRICS)
    named = _METRIC_NAME.search(reason)
    signature = _digest(FailureKind.BAD_METRICS, named[1] if named else "", place)
    return Verdict(Outcome.FAILED, one_line(reason), FailureKind.BAD_METRICS, signature)


# ------------------------------------------------------------------------------------------- reasons and signatures


def _reason(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        code = "" if error.code is None else _said(repr, error.code)
        return f"called sys.exit({code}) before it returned"
    if isinstance(error, MetricError | TargetError):
        return _message(error)
    return f"{type(error).__name__}: {_message(error):.{_LONGEST_TOLD}}{_place(error.__traceback__)}"


def _message(error: BaseException) -> str:
    return _said(str, error)


def _said(say: Callable[[object], str], value: object) -> str:
    """What an object of the user's says of itself: its beginning and its end, if it can tell at all."""
    try:
        text = say(value)
    except BaseException:  # noqa: BLE001 (it comes from the user's class, as the error itself did)
        return ""
    return (
        text
        if len(text) <= _LONGEST_MESSAGE
        else f"{text[: _LONGEST_MESSAGE // 2]} ... {text[-_LONGEST_MESSAGE // 2 :]}"
    )


def _place(trace: TracebackType | None) -> str:
    frames = traceback.extract_tb(trace)
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""


def _of_text(reason: str, kind: FailureKind) -> Verdict:
    signature = None
    if kind is FailureKind.USER_ERROR:
        signature = _digest(_VARIABLE.sub("#", _FOLDERS.sub("", reason)))
    return Verdict(Outcome.FAILED, reason, kind, signature)


def _places(error: BaseException) -> Iterator[str]:
    """Type and place of the exception and of those it came from: not what they say, which holds values."""
    for each, is_cause in _chain(error):
        if is_cause:
            yield type(each).__qualname__
            # Recursion may end at any depth.
            yield from dict.fromkeys(_user_frames(each.__traceback__))


def _user_frames(trace: TracebackType | None) -> list[str]:
    """Where in the user's code, or else in the libraries: the same mistake may fail anywhere in them."""
    codes = [(frame.f_code, line) for frame, line in traceback.walk_tb(trace)]
    foreign = [(code, line) for code, line in codes if not code.co_filename.startswith((_OWN_FOLDER, "<frozen"))]
    of_user = [(code, line) for code, line in foreign if not _is_library(code.co_filename)]
    return [f"{Path(code.co_filename).name} {code.co_name} {line}" for code, line in of_user or foreign]


def _is_library(file: str) -> bool:
    return file.startswith(_STANDARD_LIBRARY) or "/site-packages/" in file or "/dist-packages/" in file


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="replace")).hexdigest()[:16]
