"""Events, and the reasons for them, for people."""

from __future__ import annotations

import logging
import textwrap
from collections.abc import Iterable
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from metta.sweep.display.views import config_text, number, status_text
from metta.sweep.model.acquisition import Acquisition, Alternative
from metta.sweep.model.events import Event
from metta.sweep.model.run import RunInfo
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.observe.explanations import Explanation
from metta.sweep.observe.wording import event_text, level_of, value_text

_STYLES = {logging.DEBUG: "dim", logging.WARNING: "yellow", logging.ERROR: "red"}
#: Where a line goes on below itself: under the type of the event.
_INDENT = " " * 22
#: Alternatives shown of a suggestion.
_SHOWN = 3


def time_text(at: float) -> str:
    """Such as `11-26 05:54:32`, in local time."""
    return f"{datetime.fromtimestamp(at):%m-%d %H:%M:%S}"


def event_line(event: Event) -> str:
    """Its number, its time, and what it says."""
    return f"{event.seq:>6} {time_text(event.at)} {event_text(event)}"


def print_event(event: Event, screen: Console) -> None:
    """A line each; on a terminal in the colour of how much it matters, folded to its width."""
    line = event_line(event)
    if not screen.is_terminal:
        screen.file.write(f"{line}\n")
        return
    folded = textwrap.wrap(line, screen.width, subsequent_indent=_INDENT, break_on_hyphens=False)
    screen.print(Text("\n".join(folded), style=_STYLES.get(level_of(event), "")))


def why_view(run: RunInfo, sweep: SweepMetadata, explanations: Iterable[Explanation]) -> RenderableType:
    """What was decided about a run, one thing after the other, and why."""
    head = Text(f"run {run.run_id}, number {run.index} of sweep {sweep.sweep_id} ({sweep.config.name}): ")
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    said: set[str] = set()
    for each in explanations:
        table.add_row(time_text(each.at), each.decision, "\n".join(_lines(each, sweep, said)))
        said = set(each.because)
    return Group(head.append_text(status_text(run.status)), table)


def _lines(each: Explanation, sweep: SweepMetadata, said: set[str]) -> list[str]:
    """What the explanation says, but for the reasons that were given for the one before it."""
    lines = []
    if each.config is not None:
        lines.append(config_text(each.config))
    if (what := _what(each, sweep)) is not None:
        lines.append(what)
    lines += [value_text(reason) for reason in each.because if reason not in said]
    if each.acquisition is not None:
        lines += _acquisition(each.acquisition, sweep.config.metric)
    if each.type == "noted" and each.details.get("data"):
        lines.append(value_text(each.details["data"]))
    return lines


def _what(each: Explanation, sweep: SweepMetadata) -> str | None:
    """Which job, and how far it is to train."""
    if each.job_id is None:
        return None
    name = each.job_id.partition(".")[2].replace(".", " ")
    until, fidelity = each.details.get("until"), sweep.config.fidelity
    return name if until is None or fidelity is None else f"{name}, until {fidelity.resource} {until:g}"


def _acquisition(acquisition: Acquisition, metric: str) -> list[str]:
    """What a model thought."""
    parts = [f"acquisition {number(acquisition.acquisition_value)}"]
    if acquisition.expected_improvement is not None:
        parts.append(f"expected improvement {number(acquisition.expected_improvement)}")
    if acquisition.predicted_score is not None:
        deviation = acquisition.predicted_deviation
        give_or_take = "" if deviation is None else f" ± {deviation:.2g}"
        parts.append(f"predicted {metric} {number(acquisition.predicted_score)}{give_or_take}")
    return ["; ".join(parts), *(_alternative(each) for each in acquisition.alternatives[:_SHOWN])]


def _alternative(alternative: Alternative) -> str:
    return f"rather than {config_text(alternative.config)} (acquisition {number(alternative.acquisition_value)})"
