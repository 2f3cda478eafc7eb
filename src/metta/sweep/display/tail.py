"""A run as it goes on, for people: its log, its metrics between the lines, and what becomes of it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from datetime import datetime

from rich.console import Console
from rich.text import Text

from metta.sweep.display.canvas import Canvas, can_draw
from metta.sweep.display.runs import against_best, metric_of, reached, time_of
from metta.sweep.display.views import duration, number, printable, status_text
from metta.sweep.model import events as ev
from metta.sweep.model.events import Event
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.tailing import Glance
from metta.sweep.observe.wording import event_text, fields_text, one_line, value_text

_STYLES: dict[type[ev.Body], str] = {
    ev.MetricsReported: "dim",
    ev.CheckpointSaved: "dim",
    ev.RunCompleted: "bold green",
    ev.RunStopped: "blue",
    ev.RunFailed: "bold red",
    ev.RunRetryScheduled: "yellow",
    ev.JobLost: "yellow",
}
#: What goes on inside, and is told otherwise.
_UNSAID = (ev.JobGranted, ev.JobDispatched, ev.ResourcesMeasured, ev.CheckpointDeleted, ev.CheckpointCopied)
#: What would steer a terminal; the escapes of colours, in the first group, may stay. Whatever begins with an escape is
#: taken out whole, so that what is left cannot come together to another.
_STEERING = re.compile(
    r"(\x1b\[[\d;:]*m|\t)|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_].*?(?:\a|\x1b\\|\Z)|\x1b[ -/]*[0-~]|[\0-\x1f\x7f-\x9f]"
)


def show_tail(glances: Iterable[Glance], screen: Console) -> None:
    """Show a run until it has ended. On a terminal the last line says where it stands."""
    if not can_draw(screen):
        for line in _lines(glances):
            screen.file.write(f"{line.plain}\n")
            screen.file.flush()
        return
    with Canvas(screen) as canvas:
        for glance in glances:
            if lines := list(_lines([glance])):
                canvas.clear()
                screen.print(*lines, sep="\n", soft_wrap=True)
            canvas.draw(_standing(glance, screen.width - 4))
        canvas.clear()


def _lines(glances: Iterable[Glance]) -> Iterator[Text]:
    is_away = False
    for glance in glances:
        if (glance.away is not None) != is_away:
            is_away = not is_away
            yield Text(f"-- the store is away, waiting for it: {glance.away}" if is_away else "-- the store is back")
        for each in glance.news:
            if isinstance(each, str):
                yield Text.from_ansi(_STEERING.sub(r"\1", each))
            elif not isinstance(each.body, _UNSAID):
                yield _event_line(each, glance.sweep)


def _event_line(event: Event, sweep: SweepMetadata) -> Text:
    at = f"{datetime.fromtimestamp(event.at):%H:%M:%S}"
    return Text(one_line(f"-- {at} {_words(event, sweep)}"), style=_STYLES.get(type(event.body), "cyan"))


def _words(event: Event, sweep: SweepMetadata) -> str:
    metric = sweep.config.metric
    match event.body:
        case ev.MetricsReported(metrics=metrics):
            said = fields_text(metrics)
        case ev.RunCreated(config=config):
            said = f"created: {fields_text(config)}"
        case ev.JobStarted(host=host, pid=pid):
            said = f"started {event.job_id} on {host}, pid {pid}"
        case ev.JobExited(outcome=outcome, seconds=seconds, error=error):
            said = f"{outcome} after {duration(seconds)}" + ("" if error is None else f": {value_text(error)}")
        case ev.CheckpointSaved(step=step, path=path):
            said = f"checkpoint of step {step}: {path}"
        case ev.RunCompleted(score=score):
            said = f"COMPLETED {metric}={number(score)}"
        case ev.RunRetryScheduled(retry_at=at, reason=reason):
            said = f"RETRYING at {datetime.fromtimestamp(at):%H:%M:%S}: {value_text(reason)}"
        case ev.RunStopped(partial_score=score, reason=reason) | ev.RunFailed(partial_score=score, reason=reason):
            status = "STOPPED" if isinstance(event.body, ev.RunStopped) else "FAILED"
            said = status + ("" if score is None else f" {metric}={number(score)}") + f": {value_text(reason)}"
        case _:
            said = event_text(event)
    return said


def _standing(glance: Glance, width: int) -> Text:
    sweep, run = glance.sweep, glance.run
    line = Text.assemble((f"{run.run_id} ", "bold"), status_text(run.status), f" {duration(time_of(run, time.time()))}")
    if at := reached(run, sweep):
        line.append(f"  {'step' if sweep.config.fidelity is None else sweep.config.fidelity.resource} {at}")
    if (value := metric_of(run, sweep)) is not None:
        line.append(f"  {sweep.config.metric} ").append(number(value), style="bold")
        if (difference := against_best(run, sweep)).plain not in {"", "best"}:
            line.append(" (").append_text(difference).append(f" against the best, {number(sweep.best_score)})")
    printable(line).truncate(max(20, width), overflow="ellipsis")
    line.no_wrap = True
    return line
