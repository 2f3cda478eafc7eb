"""Figures of a sweep, as Plotly figures: pure functions of its runs, for reports, web pages and notebooks alike.

Each takes a sweep's metadata and runs and returns a `plotly.graph_objects.Figure`; all raise MissingExtraError where
Plotly is not installed. Only what compares is drawn together: see `analysis.comparable`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from metta.sweep.analysis.comparable import Comparable, best_first, comparable, in_order_of_end
from metta.sweep.analysis.curve import curve_of
from metta.sweep.analysis.fanova import Floats
from metta.sweep.analysis.importance import Importance
from metta.sweep.errors import MissingExtraError
from metta.sweep.model.parameters import LogNormal, LogUniform, Normal, Parameter, Range
from metta.sweep.model.run import JobInfo, JobStatus, RunInfo
from metta.sweep.model.sweep import SweepMetadata

try:
    from plotly import graph_objects as go
    from plotly.subplots import make_subplots
except ImportError as _error:
    raise MissingExtraError('figures: need Plotly; install it with: pip install "metta-sweep[analysis]"') from _error

if TYPE_CHECKING:
    Figure: TypeAlias = go.Figure

#: By run id, what it reported on its way: how far it was (or the number of the report) and the value.
Reports: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]

#: Markers and bars drawn at most: browsers become slow beyond, and nothing can be told apart.
_MOST_POINTS = 2_000
_MOST_LINES = 200
_MOST_SLICES = 30
#: Places on each axis of a contour, and how far around each, in the unit cube, runs count.
_GRID, _BANDWIDTH = 25, 0.07
#: What a label takes of the length of an axis.
_LABEL = 0.05
#: From the first runs to the last; the first can be seen on white, too.
_AGES = ((0.0, "#9ecae1"), (1.0, "#08306b"))
_BLUE, _ORANGE, _GREY = "#1f77b4", "#ff7f0e", "#b0b0b0"
_COLOURS = {
    JobStatus.COMPLETED: "#2ca02c",
    JobStatus.STOPPED: _BLUE,
    JobStatus.FAILED: "#d62728",
    JobStatus.CANCELLED: _ORANGE,
}


def history(sweep: SweepMetadata, runs: Sequence[RunInfo]) -> Figure:
    """Scores in the order in which runs ended, and the best so far; hollow is what those stopped early had come to."""
    ended = list(enumerate(in_order_of_end(runs), 1))
    scored = [(number, run, run.score) for number, run in ended if run.status is JobStatus.COMPLETED]
    stopped = [(number, run, run.partial_score) for number, run in ended if run.status is JobStatus.STOPPED]
    curve = curve_of(sweep.config, runs)
    figure = go.Figure()
    for name, symbol, rows in (("stopped early", "circle-open", stopped), ("completed", "circle", scored)):
        shown = _thinned([row for row in rows if row[2] is not None], _MOST_POINTS)
        if shown:
            figure.add_scatter(
                x=[number for number, *_ in shown],
                y=[score for *_, score in shown],
                mode="markers",
                name=name,
                marker={"color": _BLUE, "size": 6, "opacity": 0.7, "symbol": symbol},
                text=[_describe(run) for _, run, _ in shown],
            )
    steps = [*((each.runs, each.score) for each in curve.improvements), (curve.runs, curve.best)]
    figure.add_scatter(
        x=[number for number, _ in steps],
        y=[score for _, score in steps],
        mode="lines",
        name="best so far",
        line={"shape": "hv", "color": _ORANGE},
    )
    return _titled(figure, "History", "runs that have ended", sweep.config.metric)


def parallel_coordinates(sweep: SweepMetadata, runs: Sequence[RunInfo]) -> Figure:
    """A line for each run through its parameters and its score; what does not exist in a run is at the foot."""
    compared = comparable(sweep.config, runs)
    rows = _thinned(list(zip(compared.runs, compared.values, strict=True)), _MOST_POINTS)
    values = [value for _, value in rows]
    axes = [
        _parallel_axis(name, sweep.config.search_space.parameters[name], [run.config.get(name) for run, _ in rows])
        for name in sweep.config.search_space.dimensions
    ]
    axes.append({"label": sweep.config.metric, "values": values})
    line = {"color": values, "colorscale": "Viridis", "reversescale": sweep.config.direction == "minimize"}
    figure = go.Figure(go.Parcoords(line=line, dimensions=axes, labelangle=-20, labelside="bottom"))
    return _titled(figure, f"Parallel coordinates{_level_text(compared, sweep)}").update_layout(
        margin={"l": 90, "r": 90, "b": 110}, height=500
    )


def _parallel_axis(name: str, parameter: Parameter, values: Sequence[Any]) -> dict[str, Any]:
    places = [_unit(parameter, value) for value in values]
    shown = {place: value for place, value in zip(places, values, strict=True) if place >= 0}
    ticks = _apart(_spread(sorted(shown), 6))
    labels = [_short(shown[place]) for place in ticks]
    missing = [-0.1] if any(place < 0 for place in places) else []
    return {
        "label": name,
        "values": places,
        "range": [-0.1 if missing else 0.0, 1.0],
        "tickvals": [*missing, *ticks],
        "ticktext": [*("none" for _ in missing), *labels],
    }


def _apart(places: Sequence[float]) -> list[float]:
    """Those whose labels do not cover that of the one before."""
    kept: list[float] = []
    for place in places:
        if not kept or place - kept[-1] >= _LABEL:
            kept.append(place)
    return kept


def slices(sweep: SweepMetadata, runs: Sequence[RunInfo], found: Importance | None = None) -> Figure:
    """The score against each parameter, the most important first where that is known."""
    compared = comparable(sweep.config, runs)
    rows = _thinned(list(zip(compared.runs, compared.values, strict=True)), _MOST_POINTS)
    names = _by_importance(sweep, found)[:_MOST_SLICES]
    columns = min(3, len(names)) or 1
    figure = make_subplots(
        rows=-(-len(names) // columns) or 1, cols=columns, shared_yaxes=True, subplot_titles=names, vertical_spacing=0.1
    )
    for position, name in enumerate(names):
        place = {"row": position // columns + 1, "col": position % columns + 1}
        parameter = sweep.config.search_space.parameters[name]
        having = [(run, value) for run, value in rows if name in run.config]
        figure.add_scatter(
            x=[_axis_value(parameter, run.config[name]) for run, _ in having],
            y=[value for _, value in having],
            mode="markers",
            marker={"size": 5, "opacity": 0.6, "color": [run.index for run, _ in having], "colorscale": _AGES},
            text=[_describe(run) for run, _ in having],
            showlegend=False,
            **place,
        )
        figure.update_xaxes(**_axis(parameter), **place)
    figure.update_yaxes(title=sweep.config.metric, col=1)
    figure.update_layout(height=280 * (-(-len(names) // columns) or 1))
    return _titled(figure, f"Slices{_level_text(compared, sweep)}; later runs are darker")


def contour(sweep: SweepMetadata, runs: Sequence[RunInfo], first: str, second: str) -> Figure:
    """What runs near each place of two parameters scored on average, with the runs."""
    compared = comparable(sweep.config, runs)
    having = [
        (run, value)
        for run, value in zip(compared.runs, compared.values, strict=True)
        if first in run.config and second in run.config
    ]
    rows = _thinned(having, _MOST_POINTS)
    across, up = (sweep.config.search_space.parameters[name] for name in (first, second))
    columns, lines = _grid(across), _grid(up)
    x = [_unit(across, run.config[first]) for run, _ in rows]
    y = [_unit(up, run.config[second]) for run, _ in rows]
    figure = go.Figure()
    figure.add_contour(
        x=[_axis_value(across, across.decode(place)) for place in columns],
        y=[_axis_value(up, up.decode(place)) for place in lines],
        z=_smoothed(np.array([x, y]), np.array([value for _, value in rows]), columns, lines),
        colorscale="Viridis",
        reversescale=sweep.config.direction == "minimize",
        colorbar={"title": sweep.config.metric},
    )
    figure.add_scatter(
        x=[_axis_value(across, run.config[first]) for run, _ in rows],
        y=[_axis_value(up, run.config[second]) for run, _ in rows],
        mode="markers",
        marker={"size": 4, "color": "black"},
        text=[_describe(run) for run, _ in rows],
    )
    figure.update_xaxes(**_axis(across))
    figure.update_yaxes(**_axis(up))
    return _titled(figure, f"{first} and {second}{_level_text(compared, sweep)}", first, second)


def _grid(parameter: Parameter) -> list[float]:
    """Places on a parameter's axis: of each of its values, or so many at equal distances."""
    count = parameter.cardinality
    if count is not None and count <= _GRID:
        return [parameter.encode(parameter.value_at(number)) for number in range(count)]
    if isinstance(parameter, Normal | LogNormal):  # whose ends are nowhere
        return [(number + 0.5) / _GRID for number in range(_GRID)]
    return [number / (_GRID - 1) for number in range(_GRID)]


def _smoothed(points: Floats, values: Floats, columns: Sequence[float], lines: Sequence[float]) -> list[list[float]]:
    """The mean of the values (n,) at points (2, n), weighted by their distance, at each place of a grid."""
    if not len(values):
        return []
    to_column, to_line = (
        (np.asarray(places)[:, None] - axis[None, :]) ** 2
        for places, axis in zip((columns, lines), points, strict=True)
    )
    distances = (to_line[:, None, :] + to_column[None, :, :]) / (2 * _BANDWIDTH**2)
    # The nearest always counts, however far it is.
    weights = np.exp(distances.min(axis=2, keepdims=True) - distances)
    # Shares first: sums of large values have no place among floats.
    means: list[list[float]] = (weights / weights.sum(axis=2, keepdims=True) @ values).tolist()
    return means


def importances(found: Importance) -> Figure:
    """What part of the variance each parameter accounts for, alone and with others, with intervals."""
    shares = [*found.parameters, *found.interactions[:5]]
    figure = go.Figure()
    figure.add_bar(
        x=[share.share for share in shares],
        y=[" with ".join(share.parameters) for share in shares],
        orientation="h",
        marker={"color": [_BLUE if len(share.parameters) == 1 else _GREY for share in shares]},
        error_x={
            "symmetric": False,
            "array": [max(0.0, share.high - share.share) for share in shares],
            "arrayminus": [max(0.0, share.share - share.low) for share in shares],
        },
    )
    figure.update_yaxes(autorange="reversed", ticksuffix=" ")
    figure.update_layout(height=120 + 26 * len(shares))
    return _titled(figure, "Importance (fANOVA)", "part of the variance of the score")


def timeline(sweep: SweepMetadata, runs: Sequence[RunInfo]) -> Figure:
    """When each job ran, a bar each, by host; colours tell how the run stands."""
    jobs = [(run, job) for run in runs for job in run.jobs if job.started_at is not None]
    shown = _thinned(jobs, _MOST_POINTS)
    figure = go.Figure()
    rows = _rows_of([job for _, job in shown], sweep)
    for status in JobStatus:
        group = [(run, job, row) for (run, job), row in zip(shown, rows, strict=True) if run.status is status]
        if not group:
            continue
        figure.add_bar(
            base=[_moment(job.started_at) for _, job, _ in group],
            x=[1e3 * _length(job, sweep) for _, job, _ in group],
            y=[row for *_, row in group],
            orientation="h",
            name=status.value,
            marker={"color": _COLOURS.get(status, _GREY)},
            text=[job.job_id for _, job, _ in group],
            textposition="none",
            hovertext=[f"{job.job_id}<br>{_describe(run)}" for run, job, _ in group],
        )
    slots = max(rows, default=0) + 1
    figure.update_layout(barmode="overlay", height=max(300, 100 + 18 * slots))
    figure.update_yaxes(dtick=-(-slots // 20))
    figure.update_xaxes(type="date")
    return _titled(figure, "Jobs", "time (UTC)", "slot")


def intermediate_values(sweep: SweepMetadata, runs: Sequence[RunInfo], reports: Reports | None = None) -> Figure:
    """The metric on the way of each run: as reported where reports are given, else at the levels of the fidelity."""
    figure = go.Figure()
    fidelity = sweep.config.fidelity
    for run in _spread([run for run in runs if run.rungs or (reports and run.run_id in reports)], _MOST_LINES):
        points = (reports or {}).get(run.run_id) or [(rung.level, rung.value) for rung in run.rungs]
        figure.add_scatter(
            x=[place for place, _ in points],
            y=[value for _, value in points],
            mode="lines+markers",
            name=run.run_id,
            line={"color": _ORANGE if run.run_id == sweep.best_run_id else _COLOURS.get(run.status, _GREY), "width": 1},
            marker={"size": 3},
            text=_describe(run),
            showlegend=False,
        )
    if fidelity is not None and fidelity.interval is None and not reports:
        figure.update_xaxes(type="log", tickvals=fidelity.levels)  # each so many times as far as the one before
    resource = fidelity.resource if fidelity is not None else "report"
    return _titled(figure, "Intermediate values", resource, sweep.config.metric)


def rungs(sweep: SweepMetadata, runs: Sequence[RunInfo]) -> Figure:
    """How many runs came to each level, and the values that they had there."""
    levels = sweep.config.fidelity.levels if sweep.config.fidelity is not None else ()
    there = {level: [rung.value for run in runs for rung in run.rungs if rung.level == level] for level in levels}
    whole = [run.score for run in runs if run.status is JobStatus.COMPLETED and run.score is not None]
    figure = go.Figure()
    for name, values in [*((f"{level:g}", values) for level, values in there.items()), ("end", whole)]:
        label = f"{name} ({len(values)} runs)"
        figure.add_box(
            y=_spread(values, _MOST_POINTS), name=label, boxpoints="outliers", marker={"color": _BLUE}, showlegend=False
        )
    return _titled(
        figure, "Levels", sweep.config.fidelity.resource if sweep.config.fidelity else "", sweep.config.metric
    )


def comparison(sweeps: Sequence[tuple[SweepMetadata, Sequence[RunInfo]]], *, by_cost: bool = False) -> Figure:
    """The best so far of several sweeps, over the runs that have ended or over compute hours."""
    figure = go.Figure()
    for sweep, runs in sweeps:
        curve = curve_of(sweep.config, runs)
        steps = [
            *((each.cost if by_cost else each.runs, each.score) for each in curve.improvements),
            (curve.cost if by_cost else curve.runs, curve.best),
        ]
        figure.add_scatter(
            x=[place / 3600 if by_cost else place for place, _ in steps],
            y=[score for _, score in steps],
            mode="lines",
            line={"shape": "hv"},
            name=f"{sweep.config.name} ({sweep.sweep_id})",
        )
    metric = sweeps[0][0].config.metric if sweeps else ""
    return _titled(figure, "Best so far", "compute hours" if by_cost else "runs that have ended", metric)


# ------------------------------------------------------------------------------------------------------- the rest


def _titled(figure: Figure, title: str, x: str = "", y: str = "") -> Figure:
    figure.update_layout(title=title, template="plotly_white", margin={"l": 60, "r": 30, "t": 60, "b": 50})
    if x:
        figure.update_xaxes(title=x)
    if y:
        figure.update_yaxes(title=y)
    return figure


def _thinned(rows: Sequence[Any], most: int) -> Sequence[Any]:
    """So many of the rows at most, at equal distances."""
    return rows if len(rows) <= most else [rows[number * len(rows) // most] for number in range(most)]


def _spread(values: Sequence[Any], most: int) -> Sequence[Any]:
    """The same, with the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[number * (len(values) - 1) // (most - 1)] for number in range(most)]


def _by_importance(sweep: SweepMetadata, found: Importance | None) -> list[str]:
    names = sweep.config.search_space.dimensions
    return list(names) if found is None else [share.parameters[0] for share in found.parameters]


def _axis_value(parameter: Parameter, value: Any) -> Any:
    """Numbers of a parameter with an order stay numbers; whatever a choice holds is a name."""
    return value if _axis_type(parameter) != "category" else _short(value)


def _axis(parameter: Parameter) -> dict[str, Any]:
    """Its type, and marks that one can read: powers of ten only, or the values in their order."""
    kind = _axis_type(parameter)
    if kind == "log":
        return {"type": kind, "dtick": 1, "exponentformat": "e"}
    if kind == "category":
        values = [_short(parameter.value_at(number)) for number in range(parameter.cardinality or 0)]
        return {"type": kind, "categoryorder": "array", "categoryarray": values}
    return {"type": kind}


def _axis_type(parameter: Parameter) -> str:
    is_log = isinstance(parameter, LogUniform | LogNormal) or (isinstance(parameter, Range) and parameter.log)
    if is_log:
        return "log"
    return "linear" if parameter.cardinality is None or isinstance(parameter, Range) else "category"


def _unit(parameter: Parameter, value: Any) -> float:
    """The place of a value on its axis; below it for what does not exist."""
    return parameter.encode(value) if parameter.contains(value) else -0.1


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 24 else f"{text[:21]}..."


def _describe(run: RunInfo) -> str:
    lines = [f"{name}={_short(value)}" for name, value in run.config.items()]
    return "<br>".join([f"{run.run_id} {run.status.value}", *lines])


def _level_text(compared: Comparable, sweep: SweepMetadata) -> str:
    fidelity = sweep.config.fidelity
    return "" if compared.level is None or fidelity is None else f", at {fidelity.resource} {compared.level:g}"


def _moment(at: float | None) -> str:
    return datetime.fromtimestamp(at or 0.0, UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")


def _length(job: JobInfo, sweep: SweepMetadata) -> float:
    """Seconds; of a job that is not known to have ended, up to the end of the sweep."""
    begin = job.started_at or 0.0
    return max(0.0, (job.ended_at or sweep.ended_at or begin) - begin)


def _rows_of(jobs: Iterable[JobInfo], sweep: SweepMetadata) -> list[int]:
    """Rows in which no two jobs overlap, as few as need be: the first that is free when a job begins."""
    jobs = list(jobs)
    free_at: list[float] = []
    rows = [0] * len(jobs)
    for number in sorted(range(len(jobs)), key=lambda number: jobs[number].started_at or 0.0):
        begin = jobs[number].started_at or 0.0
        row = next((row for row, at in enumerate(free_at) if at <= begin), len(free_at))
        if row == len(free_at):
            free_at.append(0.0)
        free_at[row] = begin + _length(jobs[number], sweep)
        rows[number] = row
    return rows


def best_pair(sweep: SweepMetadata, found: Importance | None) -> tuple[str, str] | None:
    """The two parameters whose contour says most: those that matter most together, each on its own included."""
    if found is None or len(found.parameters) < 2:
        names = sweep.config.search_space.dimensions
        return (names[0], names[1]) if len(names) > 1 else None
    alone = {share.parameters[0]: share.share for share in found.parameters}
    top = max(found.interactions, key=lambda share: share.share + sum(alone[name] for name in share.parameters))
    first, second = top.parameters
    return first, second


def best_runs(sweep: SweepMetadata, runs: Sequence[RunInfo], most: int = 50) -> list[RunInfo]:
    """Those whose way is worth a line: the best."""
    return best_first(sweep.config, runs)[:most]
