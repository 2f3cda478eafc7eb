"""TPE."""
from metta.sweep.optimizers.tpe import TPEOptimizer
from metta.sweep.testing import OptimizerContract


class TestTPE(OptimizerContract):
    def new_optimizer(self) -> TPEOptimizer:
        return TPEOptimizer()
