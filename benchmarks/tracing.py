"""What OpenTelemetry spans cost: processor time of a traced sweep's controller, agent and jobs together.

Sweeps of trivial trials, of two sizes, untraced and traced in turn: what a longer one takes more is what a trial costs,
and the rest is what a sweep costs. The collector is this process, which takes the spans and forgets them. Needs the
extra `tracing`.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median

#: Of processor time, added to a trial that itself may take hours.
_MOST_MS = 1.0


def main() -> None:
    from _measure import Report, measured_apart, parse_arguments, scratch_folder

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--apart", type=int, metavar="TRIALS", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help="repeat all, and show the median (5; 2 with --quick)")
    options = parse_arguments(parser)
    if options.apart:
        print(json.dumps(_sweep(options.folder, options.apart)))
        return
    few, many = (20, 120) if options.quick else (50, 350)
    rounds = options.rounds or (2 if options.quick else 5)
    report = Report(f"Tracing: processor time of sweeps of {few} and {many} trivial trials, median of {rounds}")
    taken: dict[tuple[bool, int], list[float]] = defaultdict(list)
    with scratch_folder(options.folder) as folder, _Collector() as collector:
        for _ in range(rounds):
            for trials in (few, many):
                for is_traced in (False, True):
                    _ask(collector.url if is_traced else None)
                    measured = measured_apart(__file__, "--apart", str(trials), "--folder", str(folder))
                    taken[is_traced, trials].append(measured["cpu_seconds"])
    bytes_a_trial = collector.bytes_taken / (rounds * (few + many))

    trial, sweep = {}, {}
    for is_traced in (False, True):
        shorter, longer = (median(taken[is_traced, trials]) for trials in (few, many))
        trial[is_traced] = (longer - shorter) / (many - few)
        sweep[is_traced] = shorter - few * trial[is_traced]
    more = trial[True] - trial[False]
    report.add("a trial, untraced", trial[False] * 1e3, "ms")
    report.add("a trial, traced: more", more * 1e3, "ms", at_most=_MOST_MS)
    report.add("  of the same untraced", 100 * more / trial[False], "%")
    report.add("a sweep, traced: more", (sweep[True] - sweep[False]) * 1e3, "ms", note="two processes import it")
    report.add("sent to the collector, a trial", bytes_a_trial / 1024, "KiB", note="uncompressed")
    report.finish(options.json, options.folder)


def _ask(url: str | None) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        del os.environ[name]
    if url is not None:
        os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = url


def _sweep(folder: Path, trials: int) -> dict[str, float]:
    """One sweep from a process of its own, with the processor time of all that it started."""
    from metta.sweep import Uniform, sweep
    from metta.sweep.agent.descendants import adopt_orphans
    from overhead import trivial

    adopt_orphans()  # so that the agent is ours to wait for, which tells what it took
    decorate = sweep(
        search_space={"x": Uniform(0.0, 1.0), "y": Uniform(0.0, 1.0)}, metric="value", max_parallel=8, max_trials=trials
    )
    url = f"sqlite:///{folder / f'sweeps-{time.monotonic_ns()}.db'}"
    result = decorate(trivial).run(store=url, progress=False)
    if len(result.runs) != trials or result.best is None:
        raise SystemExit(f"{len(result.runs)} of {trials} trials: {result.reason}")
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    used = os.times()
    return {"cpu_seconds": used.user + used.system + used.children_user + used.children_system}


class _Collector:
    """Takes spans and forgets them."""

    def __init__(self) -> None:
        self.bytes_taken = 0
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                collector.bytes_taken += len(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def __enter__(self) -> _Collector:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"


if __name__ == "__main__":
    main()
