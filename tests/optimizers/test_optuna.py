"""Optuna."""
import pytest
from metta.sweep.optimizers.optuna import OptunaOptimizer
from metta.sweep.testing import OptimizerContract, check_optimizer


class TestOptuna(OptimizerContract):
    def new_optimizer(self) -> OptunaOptimizer:
        return OptunaOptimizer()

@pytest.mark.parametrize("name", ["RandomSampler", "CmaEsSampler", "NSGAIISampler", "QMCSampler", "NSGAIIISampler"])
def test_x(name):
    check_optimizer(lambda: OptunaOptimizer(name))
def test_y():
    check_optimizer(lambda: OptunaOptimizer("TPESampler", multivariate=True, group=True, constant_liar=True))
