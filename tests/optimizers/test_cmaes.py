"""CMA-ES."""
from metta.sweep.optimizers.cmaes import CMAESOptimizer
from metta.sweep.testing import OptimizerContract


class TestCMAES(OptimizerContract):
    def new_optimizer(self) -> CMAESOptimizer:
        return CMAESOptimizer()
