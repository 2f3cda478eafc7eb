"""export and import, from one store to another."""

from __future__ import annotations

import csv
from io import StringIO

import optuna
import pytest
from pyarrow import parquet

from cli.command_line import TARGET, CommandLine
from metta.sweep.errors import StoreError
from metta.sweep.exchange.complete import to_lines
from metta.sweep.stores import open_reader
from metta.sweep.stores.memory import MemoryStore
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import SWEEP
from waiting import wait_until

FILE = """\
name: tiny
command: [python, -c, "print('{{\\"score\\": {x}}}')"]
metric: score
strategy: grid
max_trials: 3
max_parallel: 1
search_space:
  x: {choice: [1, 2, 3]}
"""


@pytest.fixture
def sweep_id(metta: CommandLine) -> str:
    (metta.folder / "tiny.yaml").write_text(FILE)
    assert metta("run", "tiny.yaml").code == 0
    return metta.latest().sweep_id


def test_a_sweep_goes_to_another_store_with_its_history(metta: CommandLine, sweep_id: str) -> None:
    assert metta("export", "--format", "json", "-o", "all.json").err == "wrote all.json\n"
    result = metta("import", "all.json", "--store", "other.db")
    assert (result.code, result.out) == (0, f"{sweep_id}\n")
    assert f"metta sweep analyze {sweep_id}" in result.err
    again = metta("export", "tiny", "--format", "json", "--store", "other.db").out
    assert again == (metta.folder / "all.json").read_text()
    assert metta("status", "--json", "--store", "other.db").json == metta("status", "--json").json
    assert "was there before" in metta("import", "all.json", "--store", "other.db").err


def test_an_import_that_is_killed_goes_on(metta: CommandLine) -> None:
    store = MemoryStore()
    store.append([sweep_created()])
    for index in range(3_000):
        store.append(run_events(index))
    total = store.fetch_sweeps()[0].seq
    (metta.folder / "all.json").write_bytes(b"".join(to_lines(SWEEP, store.read(SWEEP))))

    def imported() -> int:
        try:
            reader = open_reader(str(metta.folder / "sweeps.db"))
        except StoreError:  # not there yet
            return 0
        try:
            return sum(sweep.seq for sweep in reader.fetch_sweeps())
        finally:
            reader.close()

    running = metta.start("import", "all.json")
    wait_until(lambda: imported() > 0, what="the first events")
    running.process.kill()
    running.process.wait()
    assert 0 < imported() < total
    assert metta("import", "all.json").code == 0
    assert list(metta.store.read(SWEEP)) == list(store.read(SWEEP))
    assert metta.store.projection_differences(SWEEP) == []


def test_a_configuration_comes_back_as_a_sweep_that_is_ready(metta: CommandLine, sweep_id: str) -> None:
    (metta.folder / "copy.yaml").write_text(metta("export", sweep_id).out)
    assert f"sweep {sweep_id} is named 'tiny'" in metta("import", "copy.yaml").error
    result = metta("import", "copy.yaml", "--name", "again", "--json")
    assert result.json == {"sweep_id": metta.latest().sweep_id}
    assert metta.runs() == []
    assert "is there already" in metta("import", "copy.yaml", "--name", "again").err
    assert metta("run", "--resume", "again").code == 0
    first, again = (metta("list", name, "--json").json for name in ("tiny", "again"))
    assert [run["config"] for run in again] == [run["config"] for run in first]


def test_tables_have_a_row_for_each_run(metta: CommandLine, sweep_id: str) -> None:
    rows = list(csv.DictReader(StringIO(metta("export", "--format", "csv").out)))
    assert [row["config.x"] for row in rows] == [row["score"].removesuffix(".0") for row in rows]
    assert len(rows) == 3
    assert metta("export", "--format", "parquet").err == f"wrote {sweep_id}.parquet\n"
    assert parquet.read_table(metta.folder / f"{sweep_id}.parquet").num_rows == 3


def test_a_study_goes_out_and_comes_in(metta: CommandLine, sweep_id: str) -> None:
    assert metta("export", "--format", "optuna", "-o", "study.db").err == "wrote study.db\n"
    study = optuna.load_study(study_name="tiny", storage=f"sqlite:///{metta.folder / 'study.db'}")
    assert (study.best_value, study.best_params) == (3.0, {"x": 3})
    result = metta("import", "study.db", "--name", "from-optuna")
    assert (result.code, result.out) == (0, f"{metta.latest().sweep_id}\n")
    assert metta("best", "--json").json[0]["score"] == 3.0
    assert metta.latest().config.name == "from-optuna"


def test_nothing_is_overwritten_and_what_is_no_sweep_is_refused(metta: CommandLine, sweep_id: str) -> None:
    before = metta.files()
    assert (
        metta("export", "-o", "tiny.yaml").error == "--output: tiny.yaml exists; name another file, or remove it first"
    )
    assert metta("export", "-o", "no/where").error.startswith("--output: no/where cannot be written: No such file")
    assert metta("import", "gone.json").error == "gone.json: there is no such file"
    assert "no studies; a store is looked at with --store" in metta("import", "sweeps.db").error
    assert (
        metta("import", "tiny.yaml", "--study", "x").error == "--study: tiny.yaml is no study of Optuna; leave it out"
    )
    assert metta.files() == before


def test_what_is_not_installed_is_named_with_its_extra(metta: CommandLine, sweep_id: str) -> None:
    for module in ("plotly", "pyarrow", "optuna"):
        (metta.folder / "without" / module).mkdir(parents=True)
        (metta.folder / "without" / module / "__init__.py").write_text("raise ImportError('not here')")
    missing = str(metta.folder / "without")
    for extra, command in {
        "analysis": ["analyze", "--html", "report.html"],
        "parquet": ["export", "--format", "parquet"],
        "optuna": ["export", "--format", "optuna"],
    }.items():
        assert f'pip install "metta-sweep[{extra}]"' in metta(*command, PYTHONPATH=missing).error
    assert metta("best", "--format", "cli", PYTHONPATH=missing).code == 0


def test_a_decorated_function_is_exported_by_its_file(metta: CommandLine) -> None:
    metta.write("train.py", TARGET)
    assert metta("run", "train.py").code == 0
    (metta.folder / "copy.yaml").write_text(metta("export").out)
    assert metta("run", "copy.yaml", "--name", "copy").code == 0
    first, again = (metta("list", name, "--json").json for name in ("train", "copy"))
    assert [run["config"] for run in again] == [run["config"] for run in first]
    line = metta("best", "--format", "cli").out
    assert "train.py" in line
