"""Age-regularised evolution."""
from metta.sweep.optimizers.evolution import EvolutionOptimizer
from metta.sweep.testing import OptimizerContract


class TestEvolution(OptimizerContract):
    def new_optimizer(self) -> EvolutionOptimizer:
        return EvolutionOptimizer(population=6, sample=3)
class TestEvolutionDef(OptimizerContract):
    def new_optimizer(self) -> EvolutionOptimizer:
        return EvolutionOptimizer()
