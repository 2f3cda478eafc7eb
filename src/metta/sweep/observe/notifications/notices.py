"""What there is to tell of a sweep: from its events and where it stands to one message. Pure.

However much happens, there is one message to write: failures are counted, improvements come as the last of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from enum import StrEnum

import msgspec
from msgspec.structs import replace

from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.notify import NoticeKind, Notify, Told
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.sweep import SweepMetadata, SweepStatus
from metta.sweep.observe.wording import fields_text, value_text

#: Share of a budget at which people are told: late enough to mean something, early enough to step in.
_BUDGET_SHARE = 0.8
#: A new best is worth telling once so many runs have completed, or a quarter of `max_trials` where that is less: among
#: the first few every other run is one.
_RUNS_BEFORE_BEST = 10
#: Longer reasons are cut, and of paths as of tracebacks the end says most; `metta sweep why` has it all.
_LONGEST_REASON = 300
#: What happens without the search getting on.
_NO_PROGRESS = (ev.ControllerStarted, ev.ControllerStopped, ev.DispatchFailed, ev.Noted, ev.Notified)


class Severity(StrEnum):
    """How bad it is, in the words of Apprise."""

    INFO = "info"
    SUCCESS = "success"
    WARNING = "warning"
    FAILURE = "failure"


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """One thing to tell."""

    kind: NoticeKind
    #: A few words, for the title.
    title: str
    #: Lines of the body.
    lines: tuple[str, ...] = ()
    severity: Severity = Severity.INFO
    #: Whether it is told at once, however short a time ago something else was.
    urgent: bool = False
    #: What is told once only goes by this name.
    once: str | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What a channel is sent."""

    title: str
    body: str
    severity: Severity = Severity.INFO


class News(msgspec.Struct, frozen=True, kw_only=True):
    """What has happened since a channel was told something; its size does not depend on how much that is."""

    #: Number of the last event that is in it.
    through: int
    #: The best score that the channel knows of, and the best so far by these events.
    known_score: float | None = None
    best_score: float | None = None
    improvements: int = 0
    #: Runs that failed for good, by what it is put down to; the last of them, and why.
    failures: Mapping[str, int] = {}
    last_failure: tuple[str, str] | None = None
    #: Why the controller paused the sweep.
    paused: str | None = None
    ended: ev.SweepEnded | None = None

    @classmethod
    def since(cls, told: Told) -> News:
        """None yet."""
        return cls(through=told.through, known_score=told.best_score, best_score=told.best_score)

    def after(self, event: Event, direction: str, runs: Mapping[str, RunInfo]) -> News:
        """With another event.

        Args:
            event: What happened next.
            direction: Of the sweep.
            runs: Those that failed.
        """
        news = replace(self, through=event.seq)
        body = event.body
        if isinstance(body, ev.RunFailed):
            kind = _kind(runs.get(event.run_id or ""))
            failures = {**self.failures, kind: self.failures.get(kind, 0) + 1}
            return replace(news, failures=failures, last_failure=(event.run_id or "", body.reason))
        if isinstance(body, ev.RunCompleted) and _is_better(body.score, self.best_score, direction):
            return replace(news, best_score=body.score, improvements=self.improvements + 1)
        if isinstance(body, ev.RunRolledBack | ev.SweepAmended):
            # What was best may count no more: from then on it is what the event says.
            return replace(news, known_score=body.best_score, best_score=body.best_score, improvements=0)
        if isinstance(body, ev.SweepPaused) and event.actor.startswith("controller"):
            return replace(news, paused=body.reason)
        return replace(news, ended=body) if isinstance(body, ev.SweepEnded) else news

    def told(self, told: Told) -> News:
        """When the channel has taken a message; improvements that were not in it are still news."""
        news = News.since(told)
        if told.best_score != self.known_score:
            return news
        return replace(news, best_score=self.best_score, improvements=self.improvements)


def _kind(run: RunInfo | None) -> str:
    failure = run.jobs[-1].failure if run is not None and run.jobs else None
    return "NO RESULT" if failure is None else failure.name


def _is_better(score: float, than: float | None, direction: str) -> bool:
    if than is None:
        return True
    return score > than if direction == "maximize" else score < than


# ------------------------------------------------------------------------------------------------ where a sweep stands


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What no event says: the time, and what was found beside the log then."""

    #: Seconds since the epoch.
    now: float
    #: Compute seconds, with those of the jobs that run.
    compute_s: float = 0.0
    #: The last event with which the search got on.
    progress: Event | None = None
    #: Since when no controller is at work; None where one is.
    uncontrolled_since: float | None = None
    #: Of such a sweep the last event by which a controller came or went, where it has to be known.
    last_word: Event | None = None
    #: Whether an agent that lives has jobs.
    has_jobs: bool = False
    #: Until when it is known to wait: for a retry, or for a dispatcher.
    waits_until: float = -math.inf
    #: The best run, where it was looked up.
    best: RunInfo | None = None


def is_progress(event: Event) -> bool:
    """Whether the search got on with it; not so where dispatchers refuse and controllers die again and again."""
    return not isinstance(event.body, _NO_PROGRESS)


def stall(sweep: SweepMetadata, around: Surroundings, stalled_s: float) -> str | None:
    """Why a sweep that should go on does not, once that has been so for `stalled_s` seconds.

    A job that reports nothing is no stall while its agent lives: many report at their end only, and
    `job_timeout_s` is there for those that hang.
    """
    if sweep.status is not SweepStatus.RUNNING or around.progress is None or _is_interrupted(around.last_word):
        return None
    silent_s = around.now - around.progress.at
    if around.uncontrolled_since is not None:
        silent_s = around.now - around.uncontrolled_since
        return None if silent_s < stalled_s else f"no controller has been at work on it for {_minutes(silent_s)}"
    if silent_s < stalled_s or around.has_jobs or around.waits_until > around.now:
        return None
    return f"nothing has happened for {_minutes(silent_s)}, though a controller is at work on it"


def _is_interrupted(word: Event | None) -> bool:
    """Whether the last controller ended because its user wanted so."""
    return word is not None and isinstance(word.body, ev.ControllerStopped) and word.body.reason == ev.WOUND_DOWN


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


# -------------------------------------------------------------------------------------------------------- what to tell


def notices(news: News, sweep: SweepMetadata, told: Told, around: Surroundings, notify: Notify) -> list[Notice]:
    """What a channel is to be told, the most important first.

    Args:
        news: What has happened since it was told something.
        sweep: Where the sweep stands.
        told: What it has been told.
        around: What no event says.
        notify: What is wanted.
    """
    found = [
        *_ended(news, sweep, around),
        *_paused(news, sweep),
        *_stalled(sweep, around, notify),
        *_failed(news),
        *_budgets(sweep, around),
        *_improved(news, sweep, around, notify),
    ]
    return [notice for notice in found if notice.kind in notify.on and notice.once not in told.once]


def _ended(news: News, sweep: SweepMetadata, around: Surroundings) -> Iterable[Notice]:
    if news.ended is None:
        return
    is_well = news.ended.status is SweepStatus.COMPLETED and sweep.best_run_id is not None
    again = () if sweep.status.ended else ("it was resumed since",)
    yield Notice(
        kind=NoticeKind.SWEEP_ENDED,
        title=f"{news.ended.status}{_best_title(sweep)}",
        lines=(f"{news.ended.status}: {news.ended.reason}", *_best_lines(sweep, around), _totals(sweep), *again),
        severity=Severity.SUCCESS if is_well else Severity.WARNING,
        urgent=True,
    )


def _paused(news: News, sweep: SweepMetadata) -> Iterable[Notice]:
    if news.paused is None:
        return
    is_paused = sweep.status is SweepStatus.PAUSED
    go_on = f"go on with: metta sweep resume {sweep.sweep_id}" if is_paused else "it was resumed since"
    yield Notice(
        kind=NoticeKind.SWEEP_PAUSED,
        title="paused by errors",
        lines=(f"paused: {_cut(news.paused)}", go_on),
        severity=Severity.FAILURE,
        urgent=True,
    )


def _stalled(sweep: SweepMetadata, around: Surroundings, notify: Notify) -> Iterable[Notice]:
    why = stall(sweep, around, notify.stalled_minutes * 60)
    if why is None or around.progress is None:
        return
    # Told again only when it got on in between; jobs may do so for a while without a controller.
    command, once = f"doctor {sweep.sweep_id}", f"stalled after event {around.progress.seq}"
    if (since := around.uncontrolled_since) is not None:
        command, once = f"run --resume {sweep.sweep_id}", f"without controller since {since:.0f}"
    yield Notice(
        kind=NoticeKind.STALLED,
        title="stalled",
        lines=(f"stalled: {why}", f"next: metta sweep {command}"),
        severity=Severity.FAILURE,
        urgent=True,
        once=once,
    )


def _failed(news: News) -> Iterable[Notice]:
    if news.last_failure is None:
        return
    run_id, reason = news.last_failure
    count = sum(news.failures.values())
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(news.failures.items(), key=lambda kind: -kind[1]))
    runs = "1 run" if count == 1 else f"{count} runs"
    which = f"run {run_id}" if count == 1 else f"the last one, run {run_id}"
    yield Notice(
        kind=NoticeKind.RUN_FAILED,
        title=f"{runs} failed",
        lines=(
            f"{runs} failed for good: {kinds}",
            f"{which}: {_cut(reason)}",
            f"look into it: metta sweep why {run_id}",
        ),
        severity=Severity.FAILURE,
    )


def _budgets(sweep: SweepMetadata, around: Surroundings) -> Iterable[Notice]:
    if sweep.status.ended:
        return
    spent = {"budget_hours": around.compute_s, "max_hours": around.now - sweep.created_at}
    for name, seconds in spent.items():
        limit = getattr(sweep.config, name)
        if limit is not None and seconds / 3600 >= _BUDGET_SHARE * limit:
            share = f"{100 * seconds / 3600 / limit:.0f} % of {name}"
            yield Notice(
                kind=NoticeKind.BUDGET,
                title=f"{share} spent",
                lines=(f"{share} are spent: {seconds / 3600:.3g} of {limit:g} hours", _totals(sweep)),
                severity=Severity.WARNING,
                once=f"{name}={limit:g}",  # a limit that was raised is another
            )


def _improved(news: News, sweep: SweepMetadata, around: Surroundings, notify: Notify) -> Iterable[Notice]:
    score, trials = sweep.best_score, sweep.config.max_trials
    if score is None or not _is_better(score, news.known_score, sweep.config.direction):
        return
    if news.ended is not None and NoticeKind.SWEEP_ENDED in notify.on:
        return  # which tells of the best, too
    least = _RUNS_BEFORE_BEST if trials is None else min(_RUNS_BEFORE_BEST, -(-trials // 4))
    if sweep.counts.get(JobStatus.COMPLETED, 0) < least and not sweep.status.ended:
        return
    steps = f" (after {news.improvements} improvements)" if news.improvements > 1 else ""
    before = "" if news.known_score is None else f"; it was {value_text(news.known_score)}"
    yield Notice(
        kind=NoticeKind.NEW_BEST,
        title=f"new best {value_text(score)}",
        lines=(
            f"new best {sweep.config.metric}={value_text(score)}{steps}{before}: run {sweep.best_run_id}",
            *_config_lines(sweep, around),
            f"look at it: metta sweep best {sweep.sweep_id}",
        ),
    )


# ------------------------------------------------------------------------------------------------------------ messages


def message(sweep: SweepMetadata, told: Iterable[Notice]) -> Message:
    """One message of all notices, in plain text."""
    all_of_them = list(told)
    worst = max((notice.severity for notice in all_of_them), key=list(Severity).index, default=Severity.INFO)
    body = "\n".join(line for notice in all_of_them for line in notice.lines if line)
    return Message(
        title=f"{sweep.config.name}: {', '.join(notice.title for notice in all_of_them)}",
        body=f"{body}\n\nsweep {sweep.config.name} ({sweep.sweep_id}); metta sweep status {sweep.sweep_id}",
        severity=worst,
    )


def _best_title(sweep: SweepMetadata) -> str:
    return "" if sweep.best_score is None else f", best {sweep.config.metric} {value_text(sweep.best_score)}"


def _best_lines(sweep: SweepMetadata, around: Surroundings) -> tuple[str, ...]:
    if sweep.best_score is None:
        return ("no run has a result",)
    line = f"best {sweep.config.metric}={value_text(sweep.best_score)}: run {sweep.best_run_id}"
    return (line, *_config_lines(sweep, around))


def _config_lines(sweep: SweepMetadata, around: Surroundings) -> tuple[str, ...]:
    if around.best is None or around.best.run_id != sweep.best_run_id:
        return ()
    return (_cut(fields_text(around.best.config)),)


def _totals(sweep: SweepMetadata) -> str:
    limit = "" if sweep.config.max_trials is None else f" of {sweep.config.max_trials}"
    counts = ", ".join(f"{count} {status}" for status, count in sweep.counts.items() if status.ended)
    return f"{sweep.ended_count}{limit} runs ended ({counts}), {sweep.cost / 3600:.3g} compute hours"


def _cut(reason: str) -> str:
    text = value_text(reason)
    return text if len(text) <= _LONGEST_REASON else f"... {text[-_LONGEST_REASON:]}"
