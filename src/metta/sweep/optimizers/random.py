"""Independent random configurations: the baseline that every other optimizer has to beat."""

from __future__ import annotations

from metta.sweep.model.sweep import SweepConfig
from metta.sweep.optimizers.sampling import suggest_distinct
from metta.sweep.protocols import History, Suggestion


class RandomOptimizer:
    """Draws each parameter from its own distribution (Bergstra & Bengio 2012, "Random Search")."""

    def check(self, config: SweepConfig) -> None:
        """Every space can be searched at random."""

    def suggest(self, history: History, n: int) -> list[Suggestion]:
        """See `Optimizer.suggest`."""
        dimensions = len(history.config.search_space.dimensions)
        return suggest_distinct(history, n, lambda _, generator: generator.random(dimensions).tolist(), "random draw")
