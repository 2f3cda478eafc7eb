"""One job under the agent's eyes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from metta.sweep.agent import failures
from metta.sweep.agent.command import MetricsTail
from metta.sweep.agent.failures import Verdict, oom_kills
from metta.sweep.agent.messages import Exited, Finished
from metta.sweep.model.events import JobExited
from metta.sweep.model.run import JobDefinition, Outcome
from metta.sweep.model.usage import JobUsage
from metta.sweep.session import Progress

#: How much of a log's end is searched for the last line of a command that failed.
_TAIL_BYTES = 4096


class Job:
    """A job from the moment the agent takes it until its end is in the log."""

    def __init__(self, definition: JobDefinition, directory: Path, progress: Progress) -> None:
        self.definition = definition
        #: By what is not reported through the session of a function, which sees to that itself.
        self.progress = progress
        #: That of its run.
        self.directory = directory
        self.log = directory / f"{definition.type}-{definition.attempt}.log"
        self.gpus: tuple[str, ...] = ()
        #: For spans that its processes make; None where nobody traces.
        self.traceparent: str | None = None
        #: When its process began, by the monotonic clock: a clock that is set would falsify what it costs.
        self.began: float | None = None
        #: How it ends because we made it end, and why.
        self.verdict: Verdict | None = None
        self.finished: Finished | None = None
        #: Whether its function was asked to come to an end.
        self.is_asked_to_stop = False
        #: When its process ended; what it wrote may still have to be read.
        self.ended: float | None = None
        self.tail: MetricsTail | None = None
        self.timers: list[asyncio.TimerHandle] = []
        #: The most that all its processes were seen to use together, where that is watched.
        self.memory_peak = 0
        self._oom_kills = 0

    @property
    def job_id(self) -> str:
        """The id in the log."""
        return self.definition.job_id

    @property
    def memory_limit(self) -> int | None:
        """Bytes that its processes may use together."""
        limit = self.definition.resources.memory_gb
        return None if limit is None else int(limit * (1 << 30))

    @property
    def has_exited(self) -> bool:
        """Whether its process is gone, or done with it."""
        return self.ended is not None

    @property
    def is_settled(self) -> bool:
        """Whether nothing can be changed any more about how it ends."""
        return self.verdict is not None or self.finished is not None or self.has_exited

    def begin(self, now: float, oom_kills_before: int) -> None:
        """Its process exists; the kernel had killed so many processes for want of memory a moment before."""
        self.began = now
        self._oom_kills = oom_kills_before

    def end(self, exited: Exited | None, now: float, usage: JobUsage | None = None) -> JobExited:
        """The event that tells how it ended; `exited` is None when its process goes on to other jobs."""
        self.forget()
        verdict = self._verdict(exited)
        return JobExited(
            outcome=verdict.outcome,
            error=verdict.error,
            failure=verdict.failure,
            signature=verdict.signature,
            seconds=now - self.began if self.began is not None else 0.0,
            exit_code=exited.exit_code if exited else None,
            signal=exited.signal if exited else None,
            cpu_seconds=exited.cpu_seconds if exited else None,
            memory_peak_bytes=max(self.memory_peak, exited.memory_peak_bytes if exited else 0) or None,
            usage=usage,
        )

    def forget(self) -> None:
        """Let no timer of it ring any more."""
        for timer in self.timers:
            timer.cancel()

    def _verdict(self, exited: Exited | None) -> Verdict:
        if self.verdict is not None:
            return Verdict(Outcome.SUCCEEDED) if self._has_trained_on(exited) else self.verdict
        verdict = self._own_verdict(exited)
        if failures.tells_of_a_kill(verdict) and oom_kills() > self._oom_kills:
            return failures.killed_for_memory(verdict)
        return verdict

    def _has_trained_on(self, exited: Exited | None) -> bool:
        """Whether a command that was told to pause went on to its end instead."""
        is_told = self.verdict is not None and self.verdict.outcome is Outcome.PAUSED
        return is_told and self.progress.is_whole and exited is not None and exited.exit_code == 0

    def _own_verdict(self, exited: Exited | None) -> Verdict:
        verdict = self._plain_verdict(exited)
        has_paused = verdict.outcome is Outcome.SUCCEEDED and self.progress.reached
        return Verdict(Outcome.PAUSED) if has_paused else verdict

    def _plain_verdict(self, exited: Exited | None) -> Verdict:
        if self.finished is not None:
            # A crash after the result was delivered, in some library's teardown, changes nothing about it.
            return self.finished.verdict
        assert exited is not None
        if exited.exit_code == 0 and self.tail is not None:
            return Verdict(Outcome.SUCCEEDED)
        is_command = self.tail is not None
        return failures.of_exit(exited.exit_code, exited.signal, self._last_line(), is_command=is_command)

    def _last_line(self) -> str:
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                lines = stream.read().decode(errors="replace").split("\n")
        except OSError:
            return ""
        return next((f"{line.strip():.200}" for line in reversed(lines) if line.strip()), "")
