"""What counts as a report of metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from metta.sweep.errors import MetricError


def checked(metrics: Any) -> dict[str, float]:
    """Metrics as plain floats; NumPy and torch scalars are converted.

    Raises:
        MetricError: not a mapping, a name that is no string, or a value that is no finite number.
    """
    if not isinstance(metrics, Mapping):
        raise MetricError(f"metrics must be a dict of names to numbers, got {type(metrics).__name__}: {metrics!r:.80}")
    return {_checked_name(name): _checked_value(name, value) for name, value in metrics.items()}


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise MetricError(f"metric names must be non-empty strings, got {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError:
        raise MetricError(f"metric names must be text that can be written as UTF-8, got {name!r}") from None
    return name


def _checked_value(name: str, value: Any) -> float:
    if not isinstance(value, int | float) and hasattr(value, "item"):
        try:
            value = value.item()
        except (ValueError, RuntimeError):
            raise MetricError(f"metric {name!r} must be one number, got {type(value).__name__} of several") from None
    if not isinstance(value, int | float):
        raise MetricError(f"metric {name!r} must be a number, got {type(value).__name__}: {value!r:.80}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond the largest float
        number = math.inf
    if not math.isfinite(number):
        raise MetricError(f"metric {name!r} is {number}; only finite numbers can be compared")
    return number
