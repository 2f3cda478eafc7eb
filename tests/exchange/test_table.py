"""Runs as rows."""

from __future__ import annotations

import csv
from io import StringIO
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from metta.sweep.exchange.table import columns, to_csv, to_parquet
from metta.sweep.model.run import RunInfo
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.stores.memory import MemoryStore
from metta.sweep.testing import random_history
from metta.sweep.testing.sweeps import SWEEP


def runs_of(seed: int) -> list[RunInfo]:
    store = MemoryStore()
    store.append(random_history(seed))
    return sorted(fold(EMPTY, store.read(SWEEP)).runs.values(), key=lambda run: run.index)


def test_a_row_holds_what_the_run_does(tmp_path: Path) -> None:
    runs = runs_of(3)
    rows = list(csv.DictReader(StringIO(to_csv(runs))))
    assert [row["run_id"] for row in rows] == [run.run_id for run in runs]
    assert [float(row["config.lr"]) for row in rows] == [run.config["lr"] for run in runs]
    assert [row["score"] for row in rows] == ["" if run.score is None else str(run.score) for run in runs]
    to_parquet(runs, tmp_path / "runs.parquet")
    assert parquet.read_table(tmp_path / "runs.parquet").to_pydict() == columns(runs)


@given(
    st.lists(
        st.none()
        | st.integers(-9, 9)
        | st.floats(-9, 9)
        | st.booleans()
        | st.text(max_size=5)
        | st.lists(st.integers()),
        min_size=1,
        max_size=6,
    )
)
def test_a_column_is_of_one_type_whatever_the_values_are(values: list[object]) -> None:
    run = runs_of(3)[0]
    runs = [type(run)(**{**{f: getattr(run, f) for f in run.__struct_fields__}, "config": {"x": v}}) for v in values]
    column = columns(runs)["config.x"]
    assert len({type(value) for value in column if value is not None}) <= 1


def test_no_runs_make_headings_alone() -> None:
    assert to_csv([]).startswith("run_id,index,status,score,")
    assert len(to_csv([]).splitlines()) == 1
