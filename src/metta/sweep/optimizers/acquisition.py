"""What a configuration is worth: the logarithm of the improvement that can be expected of it.

Acquisition value = log EI + log P(it does not fail) - log of its predicted cost; the last two where they are wanted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import erfcx, log_ndtr

from metta.sweep.optimizers.encoding import Floats
from metta.sweep.optimizers.expected_improvement import log_expected_improvement
from metta.sweep.optimizers.surrogate import Posterior

#: Of the labels of a regression of success, beside the uncertainty of the regression itself.
_LABEL_VARIANCE = 0.01


@dataclass
class LogImprovement:
    """The function that suggestions maximise, with its slopes."""

    posterior: Posterior
    #: The target to beat: the least mean that the model has for a run, so that a lucky measurement is not believed.
    best: float
    #: What deviations are multiplied by: above 1 where more is to be explored.
    widening: float = 1.0
    #: Regression of +1 for runs that ended well and -1 for those that failed.
    success: Posterior | None = None
    #: Regression of the logarithm of the cost, in units of `cost_size`.
    cost: Posterior | None = None
    cost_size: float = 1.0

    def __call__(self, features: Floats) -> Floats:
        """Values (q,) at features (q, f)."""
        mean, deviation = self.posterior.predict(features)
        values = log_expected_improvement(mean, self.widening * deviation, self.best)[0]
        if self.success is not None:
            mean, deviation = self.success.predict(features)
            values += log_ndtr(mean / np.sqrt(_LABEL_VARIANCE + deviation**2))
        if self.cost is not None:
            values -= self.cost_size * self.cost.predict(features)[0]
        return values

    def with_slopes(self, features: Floats) -> tuple[Floats, Floats]:
        """Values (q,), and their derivatives by the features (q, f)."""
        mean, deviation, of_mean, of_deviation = self.posterior.predict_with_slopes(features)
        values, by_mean, by_deviation = log_expected_improvement(mean, self.widening * deviation, self.best)
        slopes = by_mean[:, None] * of_mean + self.widening * by_deviation[:, None] * of_deviation
        if self.success is not None:
            mean, deviation, of_mean, of_deviation = self.success.predict_with_slopes(features)
            spread = np.sqrt(_LABEL_VARIANCE + deviation**2)
            z = mean / spread
            values += log_ndtr(z)
            # d log Phi / dz = phi / Phi, without cancellation.
            ratio = math.sqrt(2.0 / math.pi) / erfcx(-z * math.sqrt(0.5)) / spread
            slopes += ratio[:, None] * (of_mean - (z * deviation / spread)[:, None] * of_deviation)
        if self.cost is not None:
            mean, _, of_mean, _ = self.cost.predict_with_slopes(features)
            values -= self.cost_size * mean
            slopes -= self.cost_size * of_mean
        return values, slopes
