"""`metta sweep serve-metrics`: served until it is told to end, printed once, and what stands in the way."""

from __future__ import annotations

import signal
import socket
from urllib.request import Request, urlopen

import pytest

from cli.command_line import CommandLine, Running
from metta.sweep.stores import open_store
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.sweeps import SWEEP
from waiting import wait_until

RUNS = f'metta_sweep_runs_created_total{{sweep="{SWEEP}"}}'


@pytest.fixture(autouse=True)
def _sweep(metta: CommandLine) -> None:
    store = open_store(str(metta.folder / "sweeps.db"), create=True)
    store.append([sweep_created(), *run_events(0)])
    store.close()


def served(metta: CommandLine, *options: str) -> tuple[Running, str]:
    """The command, and the address that it prints."""
    running = metta.start("serve-metrics", "--port", "0", *options)

    def is_ready() -> bool:
        assert running.process.poll() is None, running.err
        return running.out.endswith("\n")

    wait_until(is_ready, what="the address")
    return running, running.out.strip()


def get(address: str, accept: str = "text/plain") -> str:
    with urlopen(Request(address, headers={"Accept": accept})) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_end(metta: CommandLine, number: signal.Signals) -> None:
    running, address = served(metta)
    assert f"{RUNS} 1.0" in get(address)
    metta.store.append(run_events(1))
    assert f"{RUNS} 2.0" in get(address)
    assert get(address, "application/openmetrics-text").endswith("# EOF\n")
    one = get(f"{address}?name[]=metta_sweep_runs_created_total")
    assert [line for line in one.splitlines() if not line.startswith("#")] == [f"{RUNS} 2.0"]
    running.process.send_signal(number)
    result = running.wait()
    assert (result.code, result.out) == (0, f"{address}\n")
    assert "Traceback" not in result.err


def test_once_prints_what_is_served(metta: CommandLine) -> None:
    printed = metta("serve-metrics", "--once")
    assert (printed.code, printed.err) == (0, "")
    _, address = served(metta)

    def lines(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("metta_sweep_scrape_duration_seconds")]

    assert lines(printed.out) == lines(get(address))


def test_the_time_for_which_ended_sweeps_are_shown_can_be_chosen(metta: CommandLine) -> None:
    assert metta("stop", SWEEP).code == 0
    assert RUNS in metta("serve-metrics", "--once").out
    assert RUNS not in metta("serve-metrics", "--once", "--ended-hours", "0").out
    assert metta("serve-metrics", "--once", "--ended-hours", "nan").error.startswith("--ended-hours: ")


def test_a_port_that_is_taken_is_named(metta: CommandLine) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        error = metta("serve-metrics", "--port", port).error
    assert error.startswith(f"port: {port} on 127.0.0.1 is taken")
    assert "--port" in error


def test_without_the_client_library_the_way_out_is_named(metta: CommandLine) -> None:
    metta.write("prometheus_client.py", "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n")
    for options in ([], ["--once"]):
        assert metta("serve-metrics", *options).error.endswith('pip install "metta-sweep[prometheus]"')


def test_a_store_that_is_not_there_is_an_error_and_one_that_is_away_a_metric(metta: CommandLine) -> None:
    assert "other.db" in metta("serve-metrics", "--once", "--store", "other.db").error
    away = metta("serve-metrics", "--once", "--store", "postgresql://nobody@127.0.0.1:1/none")
    assert (away.code, away.err) == (0, "")
    assert "metta_sweep_store_up 0.0" in away.out.splitlines()


def test_a_store_that_is_removed_while_it_is_served_is_a_metric(metta: CommandLine) -> None:
    _, address = served(metta)
    assert "metta_sweep_store_up 1.0" in get(address)
    (metta.folder / "sweeps.db").unlink()
    assert "metta_sweep_store_up 0.0" in get(address)
