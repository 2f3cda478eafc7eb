"""A span for each job, from the moment in which its start is prepared to its end."""

from __future__ import annotations

from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobDefinition, Outcome
from metta.sweep.observe.tracing.spans import NO_SPAN, Span, Tracing

#: Ends that are errors. That a user, or the search, has had enough of a job is none.
_ERRORS = {Outcome.FAILED, Outcome.KILLED, Outcome.TIMED_OUT}


class JobSpans:
    """The spans of the jobs that run. They are told by whoever gave the job which span they are children of.

    Args:
        tracing: Makes them.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._spans: dict[str, Span] = {}
        self._has_reported: set[str] = set()

    def begin(self, job: JobDefinition) -> str | None:
        """The job is about to be started; returns what its processes need to know to make spans that belong to it."""
        span = self._tracing.begin(
            "job",
            traceparent=job.traceparent,
            run_id=job.run_id,
            job_id=job.job_id,
            kind=job.type,
            attempt=job.attempt,
        )
        if span is not NO_SPAN:
            self._spans[job.job_id] = span
        return span.traceparent or job.traceparent

    def observe(self, event: Event) -> None:
        """Something happened to a job."""
        job_id, body = event.job_id or "", event.body
        span = self._spans.get(job_id)
        if span is None:
            return
        if isinstance(body, ev.JobStarted):
            span.set(pid=body.pid, log=body.log)
            span.note("started")
        elif isinstance(body, ev.MetricsReported) and job_id not in self._has_reported:
            # By it one sees how long the job took to get under way; how it goes on is in the log of the sweep.
            self._has_reported.add(job_id)
            span.note("first metrics", **body.metrics)
        elif isinstance(body, ev.CheckpointSaved):
            span.note("checkpoint", step=body.step)
        elif isinstance(body, ev.JobExited):
            self._exit(job_id, body)

    def _exit(self, job_id: str, exited: ev.JobExited) -> None:
        span = self._spans.pop(job_id)
        self._has_reported.discard(job_id)
        span.set(outcome=exited.outcome)
        if exited.failure is not None:
            span.set(failure=exited.failure)
        if exited.outcome in _ERRORS:
            span.fail(": ".join(filter(None, (exited.failure, exited.error))) or exited.outcome)
        span.end()

    def abandon(self, reason: str) -> None:
        """Of none that is left will an end be seen."""
        for span in self._spans.values():
            span.fail(reason)
            span.end()
        self._spans.clear()
        self._has_reported.clear()
