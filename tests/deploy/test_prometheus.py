"""A real Prometheus watches a real sweep: it says what `metta sweep status` says, and that the controller is dead."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cli.command_line import CommandLine, Running
from deploy.expressions import dashboard_expressions, expression_of, rules
from metta.sweep.model.run import JobStatus
from prometheus_server import PrometheusServer
from waiting import wait_until

#: Six runs, of which the first four end at once, two of them by an error; the others wait while there is a file `hold`.
TARGET = """
    import time
    from pathlib import Path
    from metta.sweep import LogUniform, sweep

    def is_first(number):
        try:
            Path(f"number {number}").mkdir()
        except FileExistsError:
            return False
        return True

    @sweep(
        search_space={"lr": LogUniform(1e-4, 1e-1)}, metric="score", max_trials=6, max_parallel=2, seed=7,
        budget_hours=1.0, same_error_limit=0,
    )
    def train(config):
        number = next(filter(is_first, range(6)))
        while number >= 4 and Path("hold").exists():
            time.sleep(0.01)
        if number in (1, 3):
            raise ValueError("not these")
        return {"score": config["lr"]}
"""


@pytest.fixture
def metta(tmp_path: Path) -> Iterator[CommandLine]:
    folder = tmp_path / "sweep"
    folder.mkdir()
    command_line = CommandLine(folder)
    command_line.write("train.py", TARGET)
    (folder / "hold").touch()
    yield command_line
    command_line.close()


@pytest.fixture
def controller(metta: CommandLine) -> Running:
    running = metta.start("run", "train.py")

    def are_waiting() -> bool:
        assert running.process.poll() is None, running.err
        if not (metta.folder / "sweeps.db").exists() or not metta.store.fetch_sweeps():
            return False
        counts = metta.latest().counts
        return counts.get(JobStatus.IN_TRAINING) == 2 and metta.latest().ended_count == 4

    wait_until(are_waiting, what="two runs that wait")
    return running


@pytest.fixture
def prometheus(metta: CommandLine, controller: Running, tmp_path: Path) -> Iterator[PrometheusServer]:
    exporters = [metta.start("serve-metrics", "--port", "0") for _ in range(2)]
    wait_until(lambda: all(each.out.endswith("/metrics\n") for each in exporters), what="the addresses")
    folder = tmp_path / "prometheus"
    folder.mkdir()
    server = PrometheusServer(folder, [urlsplit(each.out.strip()).netloc for each in exporters])
    yield server
    server.stop()
    for exporter in exporters:
        exporter.process.send_signal(signal.SIGTERM)
        assert exporter.wait().code == 0


def told(metta: CommandLine) -> dict[str, object]:
    """What the command line says."""
    status = metta("status", "--json").json
    return {
        "counts": status["counts"],
        "status": status["status"],
        "controlled": status["controlled"],
        "best": status["best"]["score"],
        "max_trials": status["max_trials"],
        "cost": pytest.approx(status["cost"]),
    }


def seen(prometheus: PrometheusServer, sweep_id: str) -> dict[str, object]:
    """What Prometheus says of the same."""

    def of(expression: str) -> float | None:
        values = list(prometheus.query(expression).values())
        return values[0] if len(values) == 1 else None

    def by_status(name: str) -> dict[str, int]:
        found = prometheus.query(f'{name}{{sweep="{sweep_id}"}} > 0')
        return {dict(labels)["status"]: int(value) for labels, value in found.items()}

    return {
        "counts": by_status("metta_sweep_runs"),
        "status": next(iter(by_status("metta_sweep_status")), None),
        "controlled": of("metta_sweep_controller_up") == 1,
        "best": of("metta_sweep_best_score"),
        "max_trials": of("metta_sweep_max_trials"),
        "cost": of("metta_sweep_compute_seconds_total"),
    }


@pytest.mark.slow
def test_prometheus_says_what_status_says_and_when_the_controller_is_dead(
    metta: CommandLine, controller: Running, prometheus: PrometheusServer
) -> None:
    sweep_id = metta.latest().sweep_id
    wait_until(lambda: prometheus.query("metta_sweep_store_up"), what="the first scrape")
    expected = told(metta)
    assert expected["counts"] == {"COMPLETED": 2, "FAILED": 2, "IN_TRAINING": 2}
    wait_until(lambda: seen(prometheus, sweep_id) == expected, what="the same numbers")
    failures = prometheus.query("metta_sweep_job_failures_total > 0")
    assert failures == {frozenset({"sweep": sweep_id, "job_type": "train", "kind": "user_error"}.items()): 2.0}
    assert prometheus.query("metta_sweep_running_jobs") == {
        frozenset({"sweep": sweep_id, "job_type": "train"}.items()): 2.0
    }
    assert prometheus.query("metta_sweep_info * 1").keys() == {
        frozenset(
            {
                "sweep": sweep_id,
                "name": "train",
                "optimizer": "random",
                "scheduler": "fifo",
                "metric": "score",
                "direction": "maximize",
            }.items()
        )
    }
    wait_until(lambda: prometheus.firing() == {}, what="no alert")

    os.kill(controller.process.pid, signal.SIGKILL)
    controller.process.wait()
    wait_until(lambda: "MettaSweepControllerDown" in prometheus.firing(), what="the alert")
    assert sweep_id in prometheus.firing()["MettaSweepControllerDown"]["summary"]

    (metta.folder / "hold").unlink()
    again = metta("run", "train.py", "--json")
    assert again.code == 0
    expected = told(metta)
    assert expected["counts"] == {"COMPLETED": 4, "FAILED": 2}
    wait_until(lambda: seen(prometheus, sweep_id) == expected, what="the numbers of the end")
    wait_until(lambda: prometheus.firing() == {}, what="the end of the alert")
    assert prometheus.query("metta_sweep_runs_created_total") == {frozenset({("sweep", sweep_id)}): 6.0}

    # The dashboard takes the two exporters for one, once both have seen the end.
    ended = {frozenset({("status", "COMPLETED")}): 4.0, frozenset({("status", "FAILED")}): 2.0}
    wait_until(lambda: prometheus.query(expression_of("Runs by status")) == ended, what="runs by status")
    progress = {frozenset({"sweep": sweep_id, "name": "train"}.items()): 1.0}
    assert prometheus.query(expression_of("Progress")) == progress
    # Nothing has failed since the first scrape, and here are no GPUs, or nobody uses them.
    silent = [each for each in dashboard_expressions() if not prometheus.query(each)]
    assert all("_gpu_" in each or "_job_failures_" in each for each in silent)
    assert [rule["alert"] for rule in rules() if prometheus.query(rule["expr"])] == []
