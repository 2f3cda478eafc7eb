"""analyze, compare and the forms of best, as people and scripts meet them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
import yaml

from cli.command_line import CommandLine
from metta.sweep.model import ids
from metta.sweep.stores import open_store
from metta.sweep.testing import run_events, sweep_created

FIRST, SECOND, OTHER = "46g3f", "46h00", "7zzzz"


@pytest.fixture(scope="module")
def metta(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    folder = tmp_path_factory.mktemp("analysis")
    store = open_store(str(folder / "sweeps.db"), create=True)
    for sweep_id, name, sign in ((FIRST, "first", 1), (SECOND, "second", 3)):
        store.append([sweep_created(sweep_id, name=name, seed=sign)])
        for index in range(30):
            lr = 10 ** (-5 + index * 4 / 29)
            store.append(run_events(index, sweep_id=sweep_id, score=sign * lr + sign, config={"lr": lr}))
    store.append([sweep_created(OTHER, name="other", metric="loss", direction="minimize")])
    store.append(run_events(0, sweep_id=OTHER, score=None))
    store.close()
    command_line = CommandLine(folder)
    yield command_line
    command_line.close()


def test_analyze_is_one_object(metta: CommandLine) -> None:
    result = metta("analyze", "first", "--top", "2", "--json")
    assert (result.code, result.err) == (0, "")
    found = result.json
    assert [run["run_id"] for run in found["best"]] == [ids.run_id(FIRST, 29), ids.run_id(FIRST, 28)]
    [share] = found["importance"]["parameters"]
    assert (share["parameters"], round(share["share"], 6)) == (["lr"], 1.0)
    assert found["importance"]["explained"] > 0.7
    assert found["convergence"]["curve"]["improvements"][-1]["run_id"] == ids.run_id(FIRST, 29)
    assert (found["failures"], found["cost"]["total"]) == ([], 30 * 3600.0)


def test_analyze_for_people_has_a_section_for_each_question(metta: CommandLine) -> None:
    lines = metta("analyze", FIRST).out.splitlines()
    titles = [
        line.strip() for line in lines if line.strip() in {"best", "importance", "convergence", "failures", "cost"}
    ]
    assert titles == ["best", "importance", "convergence", "failures", "cost"]
    assert lines[0].strip() == f"first ({FIRST}), maximize reward, random, RUNNING"
    other = metta("analyze", OTHER).out
    assert "no completed run yet" in other
    assert "reward was not reported" in other


def test_reports_are_written_where_asked(metta: CommandLine) -> None:
    result = metta("analyze", "first", "--html", "report.html", "--markdown", "report.md")
    assert (result.code, result.out) == (0, "")
    assert result.err.splitlines() == ["wrote report.html", "wrote report.md"]
    assert "Plotly.newPlot(" in (metta.folder / "report.html").read_text()
    assert "## Importance" in (metta.folder / "report.md").read_text()
    assert metta("analyze", "first", "--html", "no/where.html").error == (
        "--html: no/where.html cannot be written: No such file or directory; name another file"
    )


def test_compare_tells_who_is_better_and_what_differs(metta: CommandLine) -> None:
    found = metta("compare", "first", SECOND, "--json").json
    first, second = found["sides"]
    assert (first["contest"], first["best"], found["note"]) == (None, 1.1, None)
    assert second["contest"]["wins"] == 1.0
    assert second["differences"] == ["seed: 1 -> 3"]
    text = metta("compare", "first", SECOND).out
    assert "better in 100.0% of them: clear" in text
    assert "seed: 1 -> 3" in text
    text = metta("compare", "first", "second", "other").out
    assert "their scores do not compare: maximize reward, minimize loss" in text
    assert "metric: reward -> loss" in text


@pytest.mark.parametrize("addresses", [["first"], ["first", FIRST]])
def test_compare_takes_different_sweeps(addresses: list[str], metta: CommandLine) -> None:
    assert metta("compare", *addresses).error.startswith("compare: give two sweeps or more, all different")


def test_best_in_every_form(metta: CommandLine) -> None:
    best, second = (ids.run_id(FIRST, index) for index in (29, 28))
    assert metta("best", "first", "--format", "json").json == metta("best", "first", "--json").json
    entries = yaml.safe_load(metta("best", "first", "--top", "2", "--format", "yaml").out)
    assert [entry["run_id"] for entry in entries] == [best, second]
    assert entries[0] == {"run_id": best, "score": 1.1, "config": {"lr": 0.1}}
    assert metta("best", "first", "--top", "2", "--format", "cli").out.splitlines() == ["cd /code && train"] * 2
    assert json.loads(metta("best", "other", "--format", "json").out) == []
    assert "has no completed run yet" in metta("best", "other", "--format", "cli").error
