"""What an analysis found, and sweeps side by side, for people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from metta.sweep.analysis.bottlenecks import SweepBottleneck
from metta.sweep.analysis.comparison import FEWEST_RUNS, PARTS, Comparison, Contest
from metta.sweep.analysis.importance import Importance, Share
from metta.sweep.analysis.summary import Analysis, Convergence, Cost, FailureClass
from metta.sweep.display.views import counts_text, duration, facts, number, runs_table, strategy_text
from metta.sweep.model.sweep import SweepMetadata

#: Lines of what there may be very many of.
_SHOWN = 10
_PAIRS = 5
#: Below, an interaction is not worth a line.
_LEAST_SHARE = 0.005
_BAR = 20
#: Below this R² the forest has learned next to nothing.
_TRUSTED = 0.3


def analysis_view(sweep: SweepMetadata, found: Analysis, screen: Console) -> RenderableType:
    """All of an analysis, section by section."""
    parts: list[RenderableType] = [Text(headline(sweep), style="bold"), counts_text(sweep)]
    sections: list[tuple[str, RenderableType]] = [
        ("best", runs_table(found.best, sweep, screen) if found.best else Text("no completed run yet")),
        ("importance", _importance(found, sweep)),
        ("convergence", facts(convergence_rows(found.convergence, sweep))),
        ("failures", _failures(found.failures)),
        ("bottlenecks", _bottlenecks(found.bottlenecks)),
        ("cost", facts(cost_rows(found.cost))),
    ]
    for title, body in sections:
        parts += [Text(), Text(title, style="bold"), body]
    return Group(*parts)


def headline(sweep: SweepMetadata) -> str:
    """A sweep in one line."""
    config = sweep.config
    return (
        f"{config.name} ({sweep.sweep_id}), {config.direction} {config.metric}, {strategy_text(config.strategy)}, "
        f"{sweep.status}"
    )


def _importance(found: Analysis, sweep: SweepMetadata) -> RenderableType:
    if found.importance is None:
        return Text(found.importance_note or "")
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column("parameters", overflow="fold")
    for heading in ("share", "interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("bar", no_wrap=True)
    shares = found.importance.parameters[:_SHOWN]
    for share in [*shares, *interactions(found.importance)]:
        bar = "█" * round(share.share * _BAR)
        table.add_row(" with ".join(share.parameters), percent(share.share), interval(share), Text(bar, style="cyan"))
    return Group(table, Text(importance_note(found.importance, sweep), style="dim"))


def interactions(found: Importance) -> list[Share]:
    """Those that are worth a line."""
    return [share for share in found.interactions if share.share >= _LEAST_SHARE][:_PAIRS]


def importance_note(found: Importance, sweep: SweepMetadata) -> str:
    """What the shares rest on."""
    fidelity = sweep.config.fidelity
    at = f" at {fidelity.resource} {found.level:g}" if fidelity is not None and found.level is not None else ""
    rest = len(found.parameters) - _SHOWN
    more = f"{rest} more parameters are in --json; " if rest > 0 else ""
    trust = "" if found.explained >= _TRUSTED else ": too little to trust these shares"
    return (
        f"{more}share of the variance of {sweep.config.metric}{at}, in brackets what 8 of 10 trees say; "
        f"from {found.runs} runs, of whose variance the model explains {percent(max(0.0, found.explained))}{trust}"
    )


def convergence_rows(found: Convergence, sweep: SweepMetadata) -> list[tuple[str, str]]:
    """Names and values."""
    curve = found.curve
    if not curve.improvements:
        return [("best", f"none of {curve.runs} ended runs has a result")]
    last = curve.improvements[-1]
    rows = [
        (
            "best found",
            f"by run {last.runs} of {curve.runs}, after {duration(last.cost)} of {duration(curve.cost)} compute",
        )
    ]
    if found.last_gain is not None and found.last_runs:
        gain = f"improved it by {number(found.last_gain)}" if found.last_gain else "did not improve it"
        rows.append((f"last {found.last_runs} runs", gain))
    steps = [f"{number(each.score)} (run {each.runs})" for each in curve.improvements[-_PAIRS:]]
    rows.append((sweep.config.metric, " → ".join(steps)))
    return rows


def _failures(failures: Sequence[FailureClass]) -> RenderableType:
    if not failures:
        return Text("none")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("attempts", "runs", "failed", "lost"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what", overflow="fold")
    for each in failures[:_SHOWN]:
        counts = (str(each.attempts), str(each.runs), str(each.failed_runs), duration(each.seconds))
        table.add_row(*counts, failure_text(each))
    rest = len(failures) - _SHOWN
    return Group(table, Text(f"{rest} more kinds are in --json", style="dim")) if rest > 0 else table


def failure_text(each: FailureClass) -> str:
    """Its kind, where it happened, and what one of the runs said."""
    kind = each.kind or "found after the job"
    said = each.reason or each.signature or ""
    return f"{kind}: {said} (run {each.example})"


def _bottlenecks(bottlenecks: Sequence[SweepBottleneck]) -> RenderableType:
    if not bottlenecks:
        return Text("none")
    rows = [(percent(each.share), Text(str(each), style="yellow")) for each in bottlenecks[:_SHOWN]]
    return Group(facts(rows), Text("share of the time of the runs that were measured", style="dim"))


def cost_rows(found: Cost) -> list[tuple[str, str]]:
    """Names and values."""
    rows = [("compute", f"{duration(found.total)} in {duration(found.elapsed)}")]
    if found.used is not None:
        rows.append(("slots in use", percent(found.used)))
    if found.median_run is not None:
        rows.append(("a completed run", f"{duration(found.median_run)} (median)"))
    rows += [(status, duration(seconds)) for status, seconds in found.by_status.items()]
    return rows


def percent(share: float) -> str:
    """Such as 12.3%."""
    return f"{100 * share:.1f}%"


def interval(share: Share) -> str:
    """Such as [10.1, 14.0]."""
    return f"[{100 * share.low:.1f}, {100 * share.high:.1f}]"


# ---------------------------------------------------------------------------------------------------- comparisons


def comparison_view(
    sweeps: Sequence[SweepMetadata], found: Comparison, differing: Iterable[tuple[str, Sequence[str]]]
) -> RenderableType:
    """Sweeps side by side; `differing` has what is not as in the first, by name of the sweep."""
    overview = Table(box=None, pad_edge=False, header_style="bold")
    overview.add_column("sweep", overflow="fold")
    overview.add_column("goal", overflow="fold")
    for heading in ("runs", "compute", "best"):
        overview.add_column(heading, justify="right", no_wrap=True)
    for sweep, side in zip(sweeps, found.sides, strict=True):
        best = "-" if side.curve.best is None else number(side.curve.best)
        goal = f"{sweep.config.direction} {sweep.config.metric}"
        overview.add_row(_title(side.name, side.sweep_id), goal, str(side.curve.runs), duration(side.curve.cost), best)
    parts: list[RenderableType] = [overview]
    if found.note is not None:
        parts += [Text(), Text(found.note, style="yellow")]
    else:
        runs = list(map(str, found.runs))
        parts += [Text(), Text("best after so many runs", style="bold")]
        parts.append(_at_budget(found, runs, [side.at_runs for side in found.sides]))
        parts += [Text(), Text("best after so much compute", style="bold")]
        parts.append(_at_budget(found, list(map(duration, found.cost)), [side.at_cost for side in found.sides]))
        parts += [Text(), Text(f"against {found.sides[0].name}", style="bold")]
        parts += [Text(f"{side.name}: {contest_text(side.contest)}") for side in found.sides[1:]]
    for name, lines in differing:
        parts += [Text(), Text(f"what differs in {name}", style="bold")]
        parts += [Text(line) for line in lines] or [Text("nothing")]
    return Group(*parts)


def contest_text(contest: Contest | None) -> str:
    """A contest in words."""
    if contest is None:
        return f"too few results to tell it from chance, which takes {FEWEST_RUNS} of each; the scores above are all"
    verdict = "clear" if contest.is_clear else "may be chance"
    return (
        f"best of {contest.drawn} runs differs by {contest.difference:+.4g}, 95% of resamples within "
        f"[{contest.low:+.4g}, {contest.high:+.4g}]; better in {percent(contest.wins)} of them: {verdict}"
    )


def _at_budget(found: Comparison, headings: Sequence[str], rows: Sequence[Sequence[float | None]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("sweep", overflow="fold")
    for heading, part in zip(headings, PARTS, strict=True):
        table.add_column(f"{heading} ({part:.0%})", justify="right")
    for side, scores in zip(found.sides, rows, strict=True):
        table.add_row(_title(side.name, side.sweep_id), *("-" if score is None else number(score) for score in scores))
    return table


def _title(name: str, sweep_id: str) -> str:
    return f"{name} ({sweep_id})"
