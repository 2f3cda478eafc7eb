"""Hill climbing: each configuration is a step away from the best one so far."""

import numpy as np

from metta.sweep.errors import ConfigError
from metta.sweep.optimizers.columns import ColumnsCache
from metta.sweep.optimizers.sampling import suggest_distinct


class HillClimbing:
    """A metta.sweep optimizer; `step` is the typical length of a step, as a share of each parameter's range."""

    def __init__(self, step=0.1):
        if not isinstance(step, (int, float)) or not 0 < step <= 1:
            raise ConfigError(f"strategy: hill_climbing needs step to be above 0 and at most 1, got {step!r}")
        self.step = step
        self.columns = ColumnsCache()

    def check(self, config):
        """Every space can be climbed in."""

    def suggest(self, history, n):
        """Up to `n` configurations to try next."""
        columns = self.columns.of(history)
        scored = np.flatnonzero(~np.isnan(columns.scores))  # those of failed runs are NaN
        best = columns.units[scored[columns.scores[scored].argmin()]] if len(scored) else None  # less is better

        def draw(index, generator):
            if best is None:
                return generator.random(len(history.config.search_space.dimensions))
            return np.clip(best + self.step * generator.standard_normal(len(best)), 0.0, 1.0)

        return suggest_distinct(history, n, draw, "a step from the best so far, number")
