"""One process a trial: our fork server beside the standard library's, trial after trial, the same imports in both.

Each trial calls a function that does nothing. Ours also opens a log, reports its end over a socket, and is reaped with
its resource usage; the standard library's is started and joined.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy  # noqa: F401 (what a trial's process inherits)


def nothing(config: Any = None) -> None:
    """What each trial does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of 50")
    options = parser.parse_args()
    trials, rounds = (50, 1) if options.quick else (options.trials, options.rounds)
    for _ in range(rounds):
        ours, theirs = _ours(trials), _standard(trials)
        print(f"ours {ours * 1e3:.2f} ms a trial, multiprocessing {theirs * 1e3:.2f} ms, ratio {ours / theirs:.2f}")


def _standard(trials: int) -> float:
    context = multiprocessing.get_context("forkserver")
    # The script is run again in each process; all that it imports is there already, as it is in ours.
    context.set_forkserver_preload(["argparse", "msgspec", "numpy", "socket", "subprocess", "tempfile"])
    begin = 0.0
    for trial in range(trials + 1):
        if trial == 1:
            begin = time.perf_counter()  # the first one starts the server
        process = context.Process(target=nothing)
        process.start()
        process.join()
    return (time.perf_counter() - begin) / trials


def _ours(trials: int) -> float:
    from metta.sweep.agent import messages as msg
    from metta.sweep.model.run import JobType
    from metta.sweep.model.sweep import FunctionTarget
    from metta.sweep.session import RunContext

    target = FunctionTarget(module=str(Path(__file__).resolve()), name="nothing")
    link, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "metta.sweep.agent.forkserver", str(other.fileno())]
    begin = 0.0
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, pass_fds=[other.fileno()]) as server:
        other.close()
        link.send(msgspec.json.encode(msg.Prepare(targets=[target])))
        for trial in range(trials + 1):
            if trial == 1:
                begin = time.perf_counter()
            ours, theirs = socket.socketpair()
            log = f"{folder}/{trial}.log"
            spawn = msg.Spawn(key=str(trial), log=log, cwd=folder, env={})
            socket.send_fds(link, [msgspec.json.encode(spawn)], [theirs.fileno()])
            theirs.close()
            context = RunContext(sweep_id="s", run_id="r", job_id="j", type=JobType.TRAIN, directory=folder)
            ours.sendall(msg.encode_line(msg.Assignment(context=context, target=target, config={}, log=log)))
            while b'"exited"' not in link.recv(1 << 16):
                pass
            ours.close()
        took = (time.perf_counter() - begin) / trials
        link.close()
        server.wait()
    return took


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    main()
