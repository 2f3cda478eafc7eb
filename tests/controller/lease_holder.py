"""A process that takes a sweep's lease and holds it until it is killed: `lease_holder.py URL SWEEP`."""

from __future__ import annotations

import sys
import time

from metta.sweep.controller import lease
from metta.sweep.errors import LeaseHeldError
from metta.sweep.stores import open_store

if __name__ == "__main__":
    store = open_store(sys.argv[1])
    try:
        print(lease.acquire(store, sys.argv[2], time.time()).holder, flush=True)
    except LeaseHeldError:
        print("held", flush=True)
    sys.stdin.read()
