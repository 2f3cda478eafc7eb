"""metta.sweep: hyperparameter sweeps that survive kill -9.

    from metta.sweep import LogUniform, report_metrics, sweep

    @sweep(search_space={"lr": LogUniform(1e-4, 1e-1)}, metric="accuracy", max_trials=50)
    def train(config):
        ...
        return {"accuracy": accuracy}

    result = train.run()

Names are loaded on first use, so that importing this package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metta.sweep.api import Sweep, SweepResult, sweep
    from metta.sweep.config_defaults.smart import SmartDefaults
    from metta.sweep.errors import SweepError
    from metta.sweep.model.parameters import (
        Choice,
        Constant,
        LogNormal,
        LogUniform,
        Normal,
        Range,
        Uniform,
    )
    from metta.sweep.session import (
        LoadedCheckpoint,
        TrialStopped,
        current_run,
        load_checkpoint,
        report_metrics,
        run_directory,
        save_checkpoint,
        should_stop,
    )

__all__ = [
    "Choice",
    "Constant",
    "LoadedCheckpoint",
    "LogNormal",
    "LogUniform",
    "Normal",
    "Range",
    "SmartDefaults",
    "Sweep",
    "SweepError",
    "SweepResult",
    "TrialStopped",
    "Uniform",
    "current_run",
    "load_checkpoint",
    "report_metrics",
    "run_directory",
    "save_checkpoint",
    "should_stop",
    "sweep",
]

_HOMES = {
    "metta.sweep.api": ("Sweep", "SweepResult", "sweep"),
    "metta.sweep.config_defaults.smart": ("SmartDefaults",),
    "metta.sweep.errors": ("SweepError",),
    "metta.sweep.model.parameters": ("Choice", "Constant", "LogNormal", "LogUniform", "Normal", "Range", "Uniform"),
    "metta.sweep.session": (
        "LoadedCheckpoint",
        "TrialStopped",
        "current_run",
        "load_checkpoint",
        "report_metrics",
        "run_directory",
        "save_checkpoint",
        "should_stop",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
