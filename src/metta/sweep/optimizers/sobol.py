"""A scrambled Sobol sequence: random search whose points keep their distance."""

from __future__ import annotations

import warnings

import numpy as np
from scipy.stats import qmc

from metta.sweep.errors import ConfigError
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers.sampling import suggest_distinct
from metta.sweep.protocols import History, Suggestion


class SobolOptimizer:
    """Covers the space more evenly than independent draws.

    Point k of the sequence (Owen-scrambled: Sobol' 1967, Owen 1998) is suggestion k. The sequence is kept between calls
    only to save walking it from the start again.
    """

    def __init__(self) -> None:
        self._sequence: qmc.Sobol | None = None
        self._sequence_of: tuple[int, int] | None = None

    def check(self, config: SweepConfig) -> None:
        """Refuse more dimensions than direction numbers are known for."""
        dimensions = len(config.search_space.dimensions)
        if dimensions > qmc.Sobol.MAXDIM:
            raise ConfigError(
                f"strategy: sobol covers at most {qmc.Sobol.MAXDIM} parameters, got {dimensions}; use random"
            )

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        return suggest_distinct(history, n, lambda index, _: self._point(history.config, index), "Sobol point")

    def _point(self, config: SweepConfig, index: int) -> list[float]:
        dimensions = len(config.search_space.dimensions)
        if not dimensions:
            return []
        sequence = self._sequence
        if sequence is None or self._sequence_of != (config.seed, dimensions) or sequence.num_generated > index:
            scramble = np.random.default_rng(np.random.SeedSequence(config.seed))
            self._sequence = sequence = qmc.Sobol(dimensions, scramble=True, rng=scramble)
            self._sequence_of = (config.seed, dimensions)
        if index > sequence.num_generated:
            sequence.fast_forward(index - sequence.num_generated)
        with warnings.catch_warnings():
            # SciPy warns that balance needs powers of two; points here come one at a time, wherever the sweep ends.
            warnings.simplefilter("ignore", UserWarning)
            return [float(coordinate) for coordinate in sequence.random(1)[0]]
