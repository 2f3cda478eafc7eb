"""Sweeps with known answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from metta.sweep.model import ids
from metta.sweep.model.run import JobStatus, Rung, RunInfo
from metta.sweep.model.space import Choice, Config, LogUniform, Range, SearchSpace, Uniform
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.testing.sweeps import START, SWEEP, sweep_config

SPACE = SearchSpace.of(
    {
        "lr": LogUniform(1e-5, 1e-1),
        "momentum": Uniform(0.0, 1.0),
        "batch": Range(16, 512),
        "layers": Range(1, 8),
        "activation": Choice(["relu", "tanh", "gelu"]),
    }
)


def metadata(**fields: Any) -> SweepMetadata:
    return SweepMetadata(
        sweep_id=SWEEP, config=sweep_config(**{"search_space": SPACE, **fields}), created_at=START, seq=1
    )


def run(
    index: int,
    score: float | None = None,
    *,
    status: JobStatus = JobStatus.COMPLETED,
    config: Config | None = None,
    rungs: Sequence[tuple[float, float]] = (),
    **fields: Any,
) -> RunInfo:
    """A run that ended an hour after it began, one begun each minute."""
    return RunInfo(
        **{
            "sweep_id": SWEEP,
            "run_id": ids.run_id(SWEEP, index),
            "index": index,
            "config": config or {},
            "created_at": START + 60 * index,
            "ended_at": START + 60 * index + 3600,
            "cost": 3600.0,
            "status": status,
            "score": score,
            "rungs": tuple(Rung(level=level, value=value, seq=1) for level, value in rungs),
            **fields,
        }
    )


def runs_of(
    function: Callable[[Config], float], count: int, space: SearchSpace = SPACE, seed: int = 0
) -> list[RunInfo]:
    """So many runs at random."""
    generator = np.random.default_rng(seed)
    configs = [space.decode(generator.random(len(space.dimensions)).tolist()) for _ in range(count)]
    return [run(index, function(config), config=config) for index, config in enumerate(configs)]
