"""The optimizer keeps the promises of all optimizers."""

from __future__ import annotations

from metta.sweep.optimizers.gaussian_process import GaussianProcessOptimizer
from metta.sweep.testing import OptimizerContract


class TestGaussianProcess(OptimizerContract):
    def new_optimizer(self) -> GaussianProcessOptimizer:
        return GaussianProcessOptimizer()
