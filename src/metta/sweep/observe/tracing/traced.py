"""An optimizer and a dispatcher that say how long they take. What they answer is what those inside them answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from metta.sweep.model.run import JobDefinition, Outcome
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.model.trail import Trail
from metta.sweep.observe.tracing.spans import Span, Tracing
from metta.sweep.protocols import Dispatcher, History, Optimizer, Placement, Standing, Suggestion


class TracedOptimizer:
    """See `protocols.Optimizer`: a span `suggest` for each time that it is asked."""

    def __init__(self, optimizer: Optimizer, tracing: Tracing) -> None:
        self._optimizer = optimizer
        self._tracing = tracing
        self._scored = _ScoredRuns()

    def check(self, config: SweepConfig) -> None:
        """See `Optimizer.check`."""
        self._optimizer.check(config)

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        with self._tracing.span("suggest", optimizer=history.config.strategy.optimizer, k=history.count, n=n) as span:
            suggestions = self._optimizer.suggest(history, n)
            span.set(observations=self._scored.count(history), suggestions=len(suggestions))
        return suggestions


class _ScoredRuns:
    """How many observations a history has, without looking at more than what has changed."""

    def __init__(self) -> None:
        self._seen: Trail | None = None
        self._ids: set[str] = set()

    def count(self, history: History) -> int:
        changed = None if history.trail is None else history.trail.since(self._seen)
        if changed is None:  # another history than before, or the first
            self._ids.clear()
            changed = [] if history.trail is None else history.trail.since(None) or []
        self._seen = history.trail
        self._ids.difference_update(changed)
        runs = (history.runs.get(run_id) for run_id in changed)
        self._ids |= {run.run_id for run in runs if run is not None and history.score_of(run) is not None}
        return len(self._ids)


class TracedDispatcher:
    """See `protocols.Dispatcher`: a span `dispatch` for each job, from its first offer until somebody has taken it.

    The job gets to know it, so that its own span, made by the agent, is a child of it.
    """

    def __init__(self, dispatcher: Dispatcher, tracing: Tracing) -> None:
        self.name = dispatcher.name
        self._dispatcher = dispatcher
        self._tracing = tracing
        self._offered: dict[str, Span] = {}

    def capacity(self) -> int | None:
        """See `Dispatcher.capacity`."""
        return self._dispatcher.capacity()

    def dispatch(self, jobs: Sequence[JobDefinition]) -> Mapping[str, Placement]:
        """See `Dispatcher.dispatch`."""
        for job in jobs:
            if job.job_id not in self._offered:
                self._offered[job.job_id] = self._tracing.begin(
                    "dispatch", run_id=job.run_id, job_id=job.job_id, dispatcher=self.name
                )
        known = [replace(job, traceparent=self._offered[job.job_id].traceparent) for job in jobs]
        try:
            placements = self._dispatcher.dispatch(known)
        except BaseException as error:
            for job in jobs:
                self._end(job.job_id, failure=str(error))
            raise
        for job_id, placement in placements.items():
            self._offered[job_id].set(dispatcher=placement.dispatcher)
            self._end(job_id)
        return placements

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        """See `Dispatcher.standing`."""
        with self._tracing.span("standing", jobs=len(job_ids)):
            return self._dispatcher.standing(job_ids)

    def held(self) -> list[str]:
        """See `Dispatcher.held`."""
        with self._tracing.span("held"):
            return self._dispatcher.held()

    def cancel(self, job_ids: Sequence[str], outcome: Outcome, reason: str) -> None:
        """See `Dispatcher.cancel`."""
        for job_id in job_ids:
            self._end(job_id, failure=reason)
        with self._tracing.span("cancel", jobs=len(job_ids), outcome=outcome, reason=reason):
            self._dispatcher.cancel(job_ids, outcome, reason)

    def close(self) -> None:
        """See `Dispatcher.close`."""
        for job_id in list(self._offered):
            self._end(job_id, failure="nobody had taken the job when its controller ended")
        self._dispatcher.close()

    def _end(self, job_id: str, *, failure: str | None = None) -> None:
        span = self._offered.pop(job_id, None)
        if span is not None:
            if failure is not None:
                span.fail(failure)
            span.end()
