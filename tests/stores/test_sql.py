"""SQL stores beyond the contract, in SQLite and in PostgreSQL: several processes, many rows."""

from __future__ import annotations

import pytest

from metta.sweep.model import ids
from metta.sweep.protocols import Store
from metta.sweep.stores import reader as reading
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.stores import projections_equal_fold
from metta.sweep.testing.sweeps import SWEEP
from stores.writing import acknowledged, appender, go, reports

# ---------------------------------------------------------------------------------------------------- several processes


def test_processes_that_append_at_one_time_lose_nothing_and_leave_no_gaps(any_store: Store) -> None:
    any_store.append([event for index in range(2) for event in run_events(index)[:4]])
    first = len(list(any_store.read(SWEEP))) + 1
    with appender(any_store.url, "reports", 0, 100) as one, appender(any_store.url, "reports", 1, 100) as other:
        go(one, other)
        outputs = [process.communicate()[0] for process in (one, other)]
    mine, theirs = map(acknowledged, outputs)
    assert sorted([*mine, *theirs]) == list(range(first, first + 200))
    assert {event.seq: event.id for event in any_store.read(SWEEP, after=first - 1)} == mine | theirs
    assert [run.reports for run in projections_equal_fold(any_store).runs.values()] == [100, 100]


def test_waiting_ends_when_another_process_writes(any_store: Store) -> None:
    any_store.append(run_events(0)[:4])
    with appender(any_store.url, "reports", 0, 1) as process:
        assert not any_store.wait_for_change(SWEEP, after=5, timeout_s=0.01)
        go(process)
        assert any_store.wait_for_change(SWEEP, after=5, timeout_s=60)
    assert [event.seq for event in any_store.read(SWEEP, after=5)] == [6]


# ------------------------------------------------------------------------------------------------------------ many rows


def test_a_log_is_read_whole_however_many_pages_it_has(any_store: Store) -> None:
    pages = 2 * reading.PAGE
    before = any_store.append(run_events(0)[:4])[-1].seq
    any_store.append(reports(0, pages))
    assert [event.seq for event in any_store.read(SWEEP)] == list(range(1, before + pages + 1))
    assert [event.seq for event in any_store.read(SWEEP, after=before)] == list(range(before + 1, before + pages + 1))
    assert len(list(any_store.read(SWEEP, run_id=ids.run_id(SWEEP, 0)))) == 4 + pages


def test_a_reader_may_take_its_time(any_store: Store) -> None:
    any_store.append(run_events(0)[:4])
    reader = iter(any_store.read(SWEEP))
    assert next(reader).seq == 1
    any_store.append(reports(0, reading.PAGE))
    assert [event.seq for event in reader] == list(range(2, 6))


def test_best_first_needs_to_know_the_sweep(any_store: Store) -> None:
    with pytest.raises(ValueError, match="only scores of one sweep compare"):
        any_store.fetch_runs(best_first=True)


def test_a_batch_is_about_one_sweep(any_store: Store) -> None:
    with pytest.raises(ValueError, match="one sweep at a time"):
        any_store.append([*run_events(0), sweep_created("other")])
    assert len(list(any_store.read(SWEEP))) == 1
