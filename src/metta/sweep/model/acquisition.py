"""What an optimizer thought of a configuration when it chose it."""

from __future__ import annotations

import msgspec

from metta.sweep.model.space import Config


class Alternative(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A configuration that was considered and not chosen."""

    config: Config
    acquisition_value: float
    expected_improvement: float | None = None


class Acquisition(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a model-based optimizer chose what it chose."""

    #: Of the function that was maximised; comparable within one suggestion only.
    acquisition_value: float
    #: By how much the configuration is expected to beat the best so far, in units of the metric.
    expected_improvement: float | None = None
    #: What the model predicts for the metric, and the standard deviation of that prediction.
    predicted_score: float | None = None
    predicted_deviation: float | None = None
    #: The next best that were considered, best first.
    alternatives: tuple[Alternative, ...] = ()
