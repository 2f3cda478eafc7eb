"""What is exported, and under which names."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from metta.sweep.model import ids
from metta.sweep.model.run import FailureKind, JobStatus
from metta.sweep.model.sweep import SweepStatus
from metta.sweep.observe.prometheus.families import Sight
from metta.sweep.testing.sweeps import START, SWEEP
from observe.prometheus.sights import exposed, sight
from prometheus_server import promtool

PAGE = Path(__file__).parents[3] / "docs" / "prometheus.md"


def samples(*sights: Sight) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """By name and labels; each must be there once."""
    found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
    for family in text_string_to_metric_families(exposed(*sights)):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


def value(name: str, *sights: Sight, **labels: str) -> float:
    return samples(*sights)[name, frozenset({"sweep": SWEEP, **labels}.items())]


def test_names_and_types_follow_the_conventions() -> None:
    assert promtool("check", "metrics", text=exposed(sight())) == ""


def test_a_sweep_is_told_by_its_numbers() -> None:
    seen = sight()
    assert value("metta_sweep_runs", seen, status="COMPLETED") == 1
    assert value("metta_sweep_runs", seen, status="PENDING") == 0
    assert value("metta_sweep_runs_ended_total", seen, status="FAILED") == 1
    assert value("metta_sweep_status", seen, status="RUNNING") == 1
    assert value("metta_sweep_status", seen, status="PAUSED") == 0
    assert value("metta_sweep_best_score", seen) == 0.5
    assert value("metta_sweep_max_trials", seen) == 9
    assert value("metta_sweep_max_parallel", seen, job_type="train") == seen.sweep.config.max_parallel
    assert value("metta_sweep_compute_seconds_total", seen) == 7200.0
    assert value("metta_sweep_budget_used_ratio", seen) == 0.5
    assert value("metta_sweep_controller_up", seen) == 1
    assert value("metta_sweep_last_event_timestamp_seconds", seen) == START + 3600
    assert value("metta_sweep_run_duration_seconds_bucket", seen, status="COMPLETED", le="1800.0") == 0
    assert value("metta_sweep_run_duration_seconds_bucket", seen, status="COMPLETED", le="3600.0") == 1
    assert value("metta_sweep_run_duration_seconds_bucket", seen, status="COMPLETED", le="+Inf") == 1
    assert value("metta_sweep_job_queue_seconds_count", seen, job_type="train") == 2
    assert value("metta_sweep_agent_jobs", seen, host="node") == 2
    assert value("metta_sweep_gpu_utilization_ratio", seen, host="node", gpu="0") == 0.75
    assert value("metta_sweep_gpu_memory_used_bytes", seen, host="node", gpu="0") == 3 << 30
    assert value("metta_sweep_gpu_memory_size_bytes", seen, host="node", gpu="0") == 8 << 30


def test_labels_have_the_values_of_their_enums_before_anything_has_happened() -> None:
    """A series that begins at 1 is no rise for Prometheus."""
    found = samples(sight())
    by_name: dict[str, set[str]] = {}
    for name, labels in found:
        named = dict(labels)
        by_name.setdefault(name, set()).add(named.get("kind") or named.get("status") or "")
    assert by_name["metta_sweep_runs"] == set(JobStatus)
    assert by_name["metta_sweep_status"] == set(SweepStatus)
    assert by_name["metta_sweep_job_failures_total"] > set(FailureKind)


def test_what_an_agent_that_is_silent_said_of_its_gpus_no_longer_holds() -> None:
    late = sight(now=START + 3600 + 31)
    assert "metta_sweep_gpu_utilization_ratio{" not in exposed(late)
    assert value("metta_sweep_agent_last_seen_timestamp_seconds", late, host="node") == START + 3600


def test_runs_and_jobs_are_no_labels() -> None:
    text = exposed(sight())
    for index in range(2):
        assert ids.run_id(SWEEP, index) not in text
    names = {name for _, labels in samples(sight()) for name, _ in labels}
    assert names.isdisjoint({"run", "run_id", "job", "job_id", "instance"})


def test_two_sweeps_are_told_apart_and_neither_changes_the_other() -> None:
    alone, both = samples(sight()), samples(sight(), sight("other"))
    of_both = {key for key in both if not key[1] or ("sweep", SWEEP) in key[1]}
    assert of_both == alone.keys()
    assert all(both[key] == alone[key] for key in alone)
    # There are no sums over sweeps that somebody could add to them.
    assert {name for name, labels in both if "sweep" not in dict(labels)} == {
        "metta_sweep_store_up",
        "metta_sweep_scrape_duration_seconds",
    }


def test_a_name_may_hold_anything() -> None:
    odd = sight('quo"te\\and\nline')
    assert {dict(labels).get("sweep") for _, labels in samples(odd)} == {None, 'quo"te\\and\nline'}


def test_the_page_lists_what_is_exported() -> None:
    exported = set(re.findall(r"^# TYPE (metta_\w+) ", exposed(sight()), re.MULTILINE))
    listed = set(re.findall(r"^\| `(metta_\w+)` ", PAGE.read_text(), re.MULTILINE))
    assert listed == exported
