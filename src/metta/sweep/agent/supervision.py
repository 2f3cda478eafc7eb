"""One job under the agent's eyes, and the process that works on it."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from metta.sweep.agent.command import MetricsTail
from metta.sweep.agent.messages import Exited, Finished
from metta.sweep.model.events import JobExited
from metta.sweep.model.run import JobDefinition, Outcome

#: How much of a log's end is searched for the last line of a command that failed.
_TAIL_BYTES = 4096


class Job:
    """A job from the moment the agent takes it until its end is in the log."""

    def __init__(self, definition: JobDefinition, log: Path) -> None:
        self.definition = definition
        self.log = log
        self.gpus: tuple[str, ...] = ()
        self.started_at: float | None = None
        #: How it ends because we made it end, and why.
        self.verdict: tuple[Outcome, str] | None = None
        self.finished: Finished | None = None
        self.tail: MetricsTail | None = None
        self.timers: list[asyncio.TimerHandle] = []

    @property
    def job_id(self) -> str:
        """The id in the log."""
        return self.definition.job_id

    def end(self, exited: Exited | None, now: float) -> JobExited:
        """The event that tells how it ended; `exited` is None when its process goes on to other jobs."""
        self.forget()
        outcome, error = self._outcome(exited)
        return JobExited(
            outcome=outcome,
            error=error,
            seconds=max(0.0, now - self.started_at) if self.started_at is not None else 0.0,
            exit_code=exited.exit_code if exited else None,
            signal=exited.signal if exited else None,
            cpu_seconds=exited.cpu_seconds if exited else None,
            memory_peak_bytes=exited.memory_peak_bytes if exited else None,
        )

    def forget(self) -> None:
        """Let no timer of it ring any more."""
        for timer in self.timers:
            timer.cancel()

    def _outcome(self, exited: Exited | None) -> tuple[Outcome, str | None]:
        if self.verdict is not None:
            return self.verdict
        if self.finished is not None:
            # A crash after the result was delivered, in some library's teardown, changes nothing about it.
            return (Outcome.FAILED, self.finished.error) if self.finished.error else (Outcome.SUCCEEDED, None)
        assert exited is not None
        if exited.signal is not None:
            name = signal.Signals(exited.signal).name
            return Outcome.KILLED, f"{name} (signal {exited.signal})"
        if exited.exit_code == 0 and self.tail is not None:
            return Outcome.SUCCEEDED, None
        return Outcome.FAILED, f"exited with code {exited.exit_code}{self._last_line()}"

    def _last_line(self) -> str:
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                lines = stream.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f": {last:.200}" if last else ""


class Worker:
    """A process of the fork server: works on one job, or on many in turn."""

    def __init__(self, key: str, job: Job, link: socket.socket | None) -> None:
        self.key = key
        self.job: Job | None = job
        self.pid: int | None = None
        #: Our end of the socket to it; None for commands.
        self.link = link
        self._received = b""

    def receive(self, handle: Callable[[bytes], None]) -> bool:
        """Hand over all complete lines that have arrived; False when the other end is closed."""
        assert self.link is not None
        while True:
            try:
                chunk = self.link.recv(1 << 16)
            except BlockingIOError:
                return True
            except ConnectionError:
                return False
            if not chunk:
                return False
            *lines, self._received = (self._received + chunk).split(b"\n")
            for line in lines:
                handle(line)
