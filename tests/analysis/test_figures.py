"""Figures hold what the runs hold, and nothing that a browser could not draw."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest
from plotly import graph_objects as go

from analysis.runs import SPACE, metadata, run, runs_of
from metta.sweep.analysis import figures
from metta.sweep.analysis.comparable import comparable
from metta.sweep.analysis.importance import importance
from metta.sweep.model.fidelity import Fidelity
from metta.sweep.model.run import JobInfo, JobState, JobStatus, JobType, RunInfo
from metta.sweep.model.space import Choice, Config, LogNormal, Normal, Range, SearchSpace, Uniform
from metta.sweep.testing.sweeps import START


def score(config: Config) -> float:
    return -abs(np.log10(config["lr"]) + 3) + config["momentum"] * (config["activation"] == "relu")


RUNS = runs_of(score, 60)
SWEEP = metadata()
FOUND = importance(SPACE, comparable(SWEEP.config, RUNS), maximize=True)
assert FOUND is not None
FIDELITY = metadata(fidelity=Fidelity(maximum=9))
STOPPED = [
    run(0, 0.9, config=RUNS[0].config, rungs=[(1, 0.1), (3, 0.4)]),
    run(1, status=JobStatus.STOPPED, config=RUNS[1].config, rungs=[(1, 0.3)]),
    run(2, status=JobStatus.STOPPED, config=RUNS[2].config, rungs=[(1, 0.2)]),
]


def test_history_has_every_result_and_the_best_so_far() -> None:
    runs, best = figures.history(SWEEP, RUNS).data
    assert list(runs.y) == [each.score for each in RUNS]
    assert list(best.y[:-1]) == sorted(set(np.maximum.accumulate([each.score for each in RUNS])))
    assert best.x[-1] == 60


def test_history_shows_what_runs_that_were_stopped_had_come_to() -> None:
    stopped = run(60, status=JobStatus.STOPPED, partial_score=0.25)
    failed = run(61, status=JobStatus.FAILED, partial_score=0.5)
    early, completed, _ = figures.history(SWEEP, [*RUNS, stopped, failed]).data
    assert (early.name, list(early.x), list(early.y)) == ("stopped early", [61], [0.25])
    assert early.marker.symbol != completed.marker.symbol
    assert len(completed.x) == 60


def test_parallel_coordinates_place_each_value_on_its_axis_and_what_does_not_exist_below() -> None:
    space = SearchSpace.of({"kind": Choice(["a", "b"]), "x": Uniform(0.0, 1.0, when={"kind": "b"})})
    runs = [run(0, 0.1, config={"kind": "a"}), run(1, 0.2, config={"kind": "b", "x": 0.5})]
    [figure] = figures.parallel_coordinates(metadata(search_space=space), runs).data
    kind, x, value = figure.dimensions
    assert (kind["values"], kind["ticktext"]) == ((0.25, 0.75), ("a", "b"))
    assert (x["values"][1], x["ticktext"][0]) == (0.5, "none")
    assert x["values"][0] < 0
    assert value["values"] == (0.1, 0.2)


def test_labels_of_parallel_coordinates_do_not_cover_each_other() -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0)})
    runs = [run(index, 0.1, config={"x": x}) for index, x in enumerate([0.1, 0.11, 0.12, 0.9])]
    [figure] = figures.parallel_coordinates(metadata(search_space=space), runs).data
    assert figure.dimensions[0]["ticktext"] == ("0.1", "0.9")


def test_choices_come_in_their_order_whichever_ran_first() -> None:
    space = SearchSpace.of({"width": Choice([64, 16, 32])})
    runs = [run(index, 0.1, config={"width": width}) for index, width in enumerate([32, 16, 64])]
    figure = figures.slices(metadata(search_space=space), runs)
    assert figure.layout.xaxis.categoryarray == ("64", "16", "32")


def test_slices_come_by_importance_on_axes_of_their_kind() -> None:
    figure = figures.slices(SWEEP, RUNS, FOUND)
    assert FOUND is not None
    order = [share.parameters[0] for share in FOUND.parameters]
    assert [title.text for title in figure.layout.annotations] == order
    kinds = {name: figure.layout[f"xaxis{number}"].type for number, name in zip(["", 2, 3, 4, 5], order, strict=True)}
    assert (kinds["lr"], kinds["momentum"], kinds["activation"]) == ("log", "linear", "category")
    assert [len(trace.x) for trace in figure.data] == [60] * 5


def test_the_contour_is_what_runs_nearby_scored() -> None:
    space = SearchSpace.of({"x": Uniform(0.0, 1.0), "y": Choice(["a", "b"])})
    runs = runs_of(lambda config: config["x"] + 2.0 * (config["y"] == "b"), 300, space)
    surface, points = figures.contour(metadata(search_space=space), runs, "x", "y").data
    assert list(surface.y) == ["a", "b"]
    exact = [[x + 2.0 * (y == "b") for x in surface.x] for y in surface.y]
    # Smoothing pulls the ends towards the middle.
    assert np.array(surface.z)[:, 3:-3] == pytest.approx(np.array(exact)[:, 3:-3], abs=0.08)
    assert len(points.x) == 300


def test_the_contour_of_scores_as_large_as_can_be_has_a_value_everywhere() -> None:
    space = SearchSpace.of({"x": Uniform(0, 1), "y": Uniform(0, 1)})
    runs = [run(k, 1.7e308 * (-1) ** (k // 5), config={"x": k / 10, "y": 0.5}) for k in range(10)]
    surface, _ = figures.contour(metadata(search_space=space), runs, "x", "y").data
    assert np.isfinite(np.array(surface.z, dtype=float)).all()


def test_importances_show_their_intervals() -> None:
    assert FOUND is not None
    [bars] = figures.importances(FOUND).data
    assert bars.x[0] == FOUND.parameters[0].share
    assert bars.x[0] + bars.error_x.array[0] == pytest.approx(FOUND.parameters[0].high)


def job(run_id: str, begin: float, end: float | None) -> JobInfo:
    return JobInfo(
        job_id=f"{run_id}.train.1",
        type=JobType.TRAIN,
        attempt=1,
        granted_at=START,
        started_at=START + begin,
        ended_at=None if end is None else START + end,
        state=JobState.RUNNING if end is None else JobState.EXITED,
    )


def test_jobs_that_overlap_in_time_have_rows_of_their_own() -> None:
    times = [(0, 10), (5, 15), (10, 20), (12, 30), (15, 16), (20, None)]
    runs = [run(index, 0.5, jobs=(job(str(index), *time),)) for index, time in enumerate(times)]
    [bars] = figures.timeline(SWEEP, runs).data
    by_row: dict[int, list[tuple[float, float]]] = {}
    for row, (begin, end) in zip(bars.y, times, strict=True):
        by_row.setdefault(row, []).append((begin, begin if end is None else end))
    assert len(by_row) == 3
    assert all(first[1] <= second[0] for row in by_row.values() for first, second in pairwise(sorted(row)))
    assert bars.x[0] == 10_000


def test_intermediate_values_are_levels_or_reports() -> None:
    by_level = figures.intermediate_values(FIDELITY, STOPPED).data
    assert [(trace.x, trace.y) for trace in by_level] == [((1, 3), (0.1, 0.4)), ((1,), (0.3,)), ((1,), (0.2,))]
    [reported] = figures.intermediate_values(SWEEP, RUNS, {RUNS[3].run_id: [(1.0, 0.5), (2.0, 0.6)]}).data
    assert (reported.name, reported.y) == (RUNS[3].run_id, (0.5, 0.6))


def test_levels_tell_how_many_came_there_and_with_what() -> None:
    boxes = figures.rungs(FIDELITY, STOPPED).data
    assert [(box.name, box.y) for box in boxes] == [
        ("1 (3 runs)", (0.1, 0.3, 0.2)),
        ("3 (1 runs)", (0.4,)),
        ("end (1 runs)", (0.9,)),
    ]


def test_a_comparison_has_a_staircase_for_each_sweep() -> None:
    figure = figures.comparison([(SWEEP, RUNS), (SWEEP, RUNS[:10])], by_cost=True)
    assert [trace.x[-1] for trace in figure.data] == [60, 10]


EVERY_KIND = SearchSpace.of(
    {
        "normal": Normal(0.0, 1.0),
        "log_normal": LogNormal(0.0, 1.0),
        "steps": Range(0.1, 0.5, step=0.1),
        "logs": Range(1, 1000, log=True),
        "odd": Choice([[32], {"a": "</script>"}, None, True]),
        "one": 5,
    }
)


@pytest.mark.parametrize("runs", [[], [run(0, 0.5, config={})], runs_of(lambda c: c["normal"], 30, EVERY_KIND)])
def test_every_figure_can_be_drawn_of_any_sweep(runs: list[RunInfo]) -> None:
    sweep = metadata(search_space=EVERY_KIND)
    found = importance(EVERY_KIND, comparable(sweep.config, runs), maximize=True)
    drawn: list[go.Figure] = [
        figures.history(sweep, runs),
        figures.parallel_coordinates(sweep, runs),
        figures.slices(sweep, runs, found),
        figures.contour(sweep, runs, *(figures.best_pair(sweep, found) or ("normal", "odd"))),
        figures.timeline(sweep, runs),
        figures.intermediate_values(sweep, runs),
        figures.rungs(sweep, runs),
        figures.comparison([(sweep, runs)]),
    ]
    for figure in drawn:
        assert figure.layout.title.text
        json.loads(figure.to_json(), parse_constant=pytest.fail)
