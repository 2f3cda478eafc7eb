"""Bars and curves of one line."""

from __future__ import annotations

from rich.text import Text

from metta.sweep.analysis.curve import Curve

_FULL, _EMPTY = "█", "░"
_LEVELS = "▁▂▃▄▅▆▇█"


def bar(share: float, width: int, style: str) -> Text:
    """So much of a whole; what is not nothing is seen, and what is not whole is not full."""
    filled = round(share * width)
    if 0 < share < 1 and width > 1:
        filled = min(max(filled, 1), width - 1)
    filled = min(max(filled, 0), width)
    return Text.assemble((_FULL * filled, style), (_EMPTY * (width - filled), "dim"))


def sparkline(curve: Curve, width: int) -> str:
    """How the best score came about, from the first run that ended to the last; blank where there was none yet.

    What was held only in the first tenth of the way does not count for the scale: a search often begins with a value
    beside which all that follows looks alike.
    """
    places = range(1, width + 1) if curve.runs >= width else range(1, curve.runs + 1)
    total = max(1, len(places))
    values = [curve.after_runs(round(place * curve.runs / total)) for place in places]
    settled = [value for value in values[len(values) // 10 :] if value is not None]
    if not settled:
        return ""
    low, high = min(settled), max(settled)
    line = ""
    for value in values:
        if value is None:
            line += " "
        elif high == low:
            line += _LEVELS[len(_LEVELS) // 2]
        else:
            height = min(1.0, max(0.0, (value - low) / (high - low)))
            line += _LEVELS[round(height * (len(_LEVELS) - 1))]
    return line
