"""`metta sweep serve-metrics`."""

from __future__ import annotations

import math
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from metta.sweep.cli.options import StoreOption
from metta.sweep.errors import ConfigError, MissingExtraError, StoreAwayError
from metta.sweep.stores import display_url, open_reader, store_url

if TYPE_CHECKING:
    from metta.sweep.observe.prometheus.exporter import StoreCollector

#: Fixed, since Prometheus tells targets apart by it; outside of 9100 to 9999, which other exporters have shared out
#: among themselves, and below the ports that the kernel gives to connections.
DEFAULT_PORT = 17_933


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: metta sweep serve-metrics --host 0.0.0.0 --store sqlite:///sweeps.db")(serve_metrics)


def serve_metrics(
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where to listen; 0.0.0.0 for all networks of this machine.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Where to listen; 0 takes a free one.")] = DEFAULT_PORT,
    once: Annotated[bool, typer.Option("--once", help="Print the metrics and exit instead of serving them.")] = False,
    ended_hours: Annotated[
        float, typer.Option(min=0, metavar="HOURS", help="Show sweeps for so long after their end.")
    ] = 1.0,
    store: StoreOption = None,
) -> None:
    """Serve all sweeps of the store as metrics for Prometheus, until Ctrl-C or SIGTERM.

    Reads the store and nothing else: sweeps neither need it nor notice it.
    """
    try:
        from metta.sweep.observe.prometheus.exporter import StoreCollector, exposition
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("prometheus_client"):
            raise
        raise MissingExtraError(
            "serve-metrics: needs the client library of Prometheus; install it with: "
            'pip install "metta-sweep[prometheus]"'
        ) from error
    from metta.sweep.clock import SystemClock

    if math.isnan(ended_hours):
        raise ConfigError("--ended-hours: expected a number of hours, got nan")
    url = store_url(store)
    with suppress(StoreAwayError):  # that is told as a metric, and it may come back
        open_reader(url).close()
    collector = StoreCollector(lambda: open_reader(url), SystemClock(), shown_after_end_s=ended_hours * 3600)
    if once:
        sys.stdout.write(exposition(collector))
        return
    _serve(collector, host, port, display_url(url))


def _serve(collector: StoreCollector, host: str, port: int, store: str) -> None:
    """Until Ctrl-C or SIGTERM."""
    from metta.sweep.observe.prometheus.exporter import serve

    server = serve(collector, host, port)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        # What is long to be read is read before anybody waits for it.
        for _ in collector.collect():
            pass
        address = f"[{host}]" if ":" in host else host
        sys.stdout.write(f"http://{address}:{server.server_port}/metrics\n")
        sys.stderr.write(f"serves the sweeps of {store}; Ctrl-C ends it\n")
        sys.stdout.flush()
        while True:
            signal.pause()
    except KeyboardInterrupt:
        server.shutdown()
