"""For the authors of plugins, and for this package's own tests: contract suites, sample sweeps, a manual clock.

A contract is a class of tests, one or more for each guarantee that a protocol gives. Subclass it, say what is to be
tested, and pytest (which has to be installed) runs it all:

    class TestMyStore(StoreContract):
        @pytest.fixture
        def store(self, tmp_path):
            with closing(MyStore(tmp_path)) as store:
                yield store

        def reopen(self, store):
            return MyStore(store.path)

Optimizers may also be held to theirs in one call: `check_optimizer(MyOptimizer)`.
"""

from __future__ import annotations

import pytest

# Before the contracts are imported: their asserts then say what was compared, as those in test files do.
pytest.register_assert_rewrite(
    "metta.sweep.testing.dispatchers", "metta.sweep.testing.promises", "metta.sweep.testing.stores"
)

from metta.sweep.testing.clock import ManualClock  # noqa: E402
from metta.sweep.testing.dispatchers import DispatcherContract  # noqa: E402
from metta.sweep.testing.optimizers import OptimizerContract, check_optimizer  # noqa: E402
from metta.sweep.testing.stores import StoreContract  # noqa: E402
from metta.sweep.testing.sweeps import random_history, run_events, sweep_config, sweep_created  # noqa: E402

__all__ = [
    "DispatcherContract",
    "ManualClock",
    "OptimizerContract",
    "StoreContract",
    "check_optimizer",
    "random_history",
    "run_events",
    "sweep_config",
    "sweep_created",
]
