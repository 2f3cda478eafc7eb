"""A sweep that is exported whole comes back as the same sweep."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metta.sweep.errors import ConfigError, NameTakenError
from metta.sweep.exchange import complete
from metta.sweep.exchange.complete import from_file, to_lines
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.stores import open_store
from metta.sweep.stores.memory import MemoryStore
from metta.sweep.testing import random_history, run_events, sweep_created
from metta.sweep.testing.sweeps import SWEEP


def stored(seed: int, length: int = 60) -> MemoryStore:
    store = MemoryStore()
    store.append(random_history(seed, length))
    return store


def exported(store: MemoryStore, path: Path) -> Path:
    path.write_bytes(b"".join(to_lines(SWEEP, store.read(SWEEP))))
    return path


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_events_and_state_are_the_same(seed: int) -> None:
    with TemporaryDirectory() as folder:
        before = stored(seed)
        after = MemoryStore()
        assert complete.write(after, from_file(exported(before, Path(folder) / "sweep.json")))
        assert list(after.read(SWEEP)) == list(before.read(SWEEP))
        assert fold(EMPTY, after.read(SWEEP)) == fold(EMPTY, before.read(SWEEP))
        assert after.fetch_runs(SWEEP) == before.fetch_runs(SWEEP)


def test_into_a_database_too(tmp_path: Path) -> None:
    before = stored(3)
    after = open_store(str(tmp_path / "sweeps.db"), create=True)
    complete.write(after, from_file(exported(before, tmp_path / "sweep.json")))
    assert list(after.read(SWEEP)) == list(before.read(SWEEP))
    assert after.projection_differences(SWEEP) == []
    after.close()


def test_an_import_that_was_cut_off_goes_on_and_one_that_was_done_does_nothing(tmp_path: Path) -> None:
    before, after = stored(3), MemoryStore()
    events = from_file(exported(before, tmp_path / "sweep.json"))
    after.append(events[:20])
    assert complete.write(after, events)
    assert list(after.read(SWEEP)) == events
    assert not complete.write(after, events)


def test_another_history_under_the_same_id_is_refused(tmp_path: Path) -> None:
    after = MemoryStore()
    after.append([sweep_created(), *run_events(0)])
    events = from_file(exported(stored(3), tmp_path / "sweep.json"))
    with pytest.raises(ConfigError, match="has a sweep of this id with another history"):
        complete.write(after, events)
    assert len(list(after.read(SWEEP))) == 1 + len(run_events(0))


def test_what_went_on_since_the_export_is_kept(tmp_path: Path) -> None:
    store = MemoryStore()
    store.append([sweep_created(), *run_events(0)])
    events = from_file(exported(store, tmp_path / "sweep.json"))
    store.append(run_events(1))
    assert not complete.write(store, events)
    assert len(store.fetch_runs(SWEEP)) == 2


def test_a_name_that_is_taken_can_be_changed(tmp_path: Path) -> None:
    events = from_file(exported(stored(3), tmp_path / "sweep.json"))
    after = MemoryStore()
    after.append([sweep_created("0ther")])
    with pytest.raises(NameTakenError):
        complete.write(after, events)
    complete.write(after, events, name="copy")
    assert [sweep.config.name for sweep in after.fetch_sweeps()] == ["demo", "copy"]
    assert list(after.read(SWEEP))[1:] == events[1:]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[:-40], "is no complete export"),
        (lambda text: text.replace('"version":1', '"version":2'), "is of version 2"),
        (lambda text: text.replace("metta.sweep", "other"), "is no complete export"),
        (lambda text: '{"format":"metta.sweep","version":1,"sweep_id":"x","events":[]}', "does not begin"),
        (lambda text: "".join(line for number, line in enumerate(text.splitlines()) if number != 7), "makes no sense"),
        (lambda text: "\ud800", "is no complete export"),
    ],
)
def test_a_file_that_is_none_is_refused(change, problem: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = exported(stored(3), tmp_path / "sweep.json")
    path.write_bytes(change(path.read_text()).encode(errors="surrogatepass"))
    with pytest.raises(ConfigError, match=problem):
        from_file(path)
