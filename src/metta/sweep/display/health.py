"""What the doctor found, and what it did, for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from metta.sweep.controller.validator import Issue
from metta.sweep.stores.recovery import RecoveryReport

#: Issues of one kind shown in full before the rest is summed up.
_SHOWN = 5


def health_view(title: str, areas: Mapping[str, tuple[str, Sequence[Issue]]]) -> RenderableType:
    """A line for each area that was looked at, with what was found there below it."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for area, (fact, issues) in areas.items():
        table.add_row(area, _verdict(issues), fact)
        for line in _lines(issues):
            table.add_row("", "", line)
    return Group(Text(title, style="bold"), table)


def _verdict(issues: Sequence[Issue]) -> Text:
    serious = sum(issue.is_serious for issue in issues)
    if serious:
        return Text(f"{serious} issue{'s' * (serious > 1)}", style="red")
    return Text("note", style="yellow") if issues else Text("ok", style="green")


def _lines(issues: Sequence[Issue]) -> Iterable[Text]:
    by_kind: dict[str, list[Issue]] = {}
    for issue in issues:
        by_kind.setdefault(issue.kind, []).append(issue)
    for kind, alike in by_kind.items():
        for issue in alike[:_SHOWN]:
            subject = issue.job_id or issue.run_id
            yield Text(f"{f'{subject}: ' if subject else ''}{issue.problem}", style="" if issue.is_serious else "dim")
            yield Text(f"-> {issue.remedy}", style="dim")
        if len(alike) > _SHOWN:
            yield Text(f"... and {len(alike) - _SHOWN} more of this kind ({kind}); --json lists all", style="dim")


def recovery_table(report: RecoveryReport) -> Table:
    """Recovered sweeps, a line each."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("sweep", "name", "events read", "written", "runs complete", "rebuilt", "partial", "lost"):
        table.add_column(heading, justify="left" if heading in {"sweep", "name"} else "right", overflow="fold")
    for sweep in report.sweeps:
        runs = (sweep.complete, sweep.rebuilt, sweep.partial, sweep.lost)
        events = f"{sweep.events_read:,} of {sweep.events_expected:,}", f"{sweep.events_written:,}"
        table.add_row(sweep.sweep_id, sweep.name, *events, *(f"{len(run_ids):,}" for run_ids in runs))
    return table
