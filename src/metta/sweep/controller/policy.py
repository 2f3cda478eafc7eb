"""From the names in a sweep's configuration to the parts that decide."""

from __future__ import annotations

from metta.sweep import registry
from metta.sweep.controller.decide import Policy
from metta.sweep.guards.limits import BudgetLimit, TimeLimit, TrialLimit
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.observe.tracing.spans import NO_TRACING, Tracing


def policy_of(config: SweepConfig, tracing: Tracing = NO_TRACING) -> Policy:
    """The deciding parts that a configuration names; raises a UsageError when they do not fit it."""
    optimizer = registry.optimizer(config.strategy.optimizer, config.strategy.optimizer_options)
    optimizer.check(config)
    scheduler = registry.scheduler(config.strategy.scheduler, config.strategy.scheduler_options)
    scheduler.check(config)
    return Policy(
        optimizer=tracing.optimizer(optimizer),
        scheduler=scheduler,
        guards=(TrialLimit(), BudgetLimit(), TimeLimit()),
    )
