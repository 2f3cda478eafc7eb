"""The figure of the multi-fidelity benchmark: regret against the share of the time."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from _multifidelity_outcome import STEPS, Outcome

#: Intervals of more lines than these would hide one another.
_MOST_BANDS = 3
#: A regret of 0 has no place on a logarithmic scale.
_LOWEST = 1e-4


def draw(outcome: Outcome, ours: Collection[str], best: str, file: Path) -> None:
    """Write the figure, in the format that the file's name ends with.

    Args:
        outcome: With at least one instance.
        ours: Contestants that are drawn with whole lines; those of peers are dashed.
        best: The one that is drawn above all others, with its interval.
        file: What to write.

    Raises:
        ValueError: There is no format of that name.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    shares = np.arange(1, STEPS + 1) / STEPS
    # Whole lines and dashed ones have the same ten colours.
    palette = pyplot.get_cmap("tab10")
    colours = {is_ours: iter(palette.colors * len(outcome.curves)) for is_ours in (True, False)}
    # In the legend as the lines lie at the end.
    contestants = sorted(outcome.curves, key=lambda name: -outcome.mean(name)[-1])
    for contestant in contestants:
        mean = np.maximum(outcome.mean(contestant), _LOWEST)
        is_best = contestant == best
        (line,) = axes.plot(
            shares,
            mean,
            label=contestant,
            color="black" if is_best else next(colours[contestant in ours]),
            linestyle="-" if contestant in ours else "--",
            linewidth=2.5 if is_best else 1.3,
            zorder=3 if is_best else 2,
        )
        if is_best or len(contestants) <= _MOST_BANDS:
            low, high = np.maximum(outcome.band(contestant), _LOWEST).T
            axes.fill_between(shares, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="y", which="minor", labelsize="x-small")
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(mpl.ticker.PercentFormatter(xmax=1))
    axes.set_xlabel("simulated time")
    axes.set_ylabel(f"mean regret (instances of LCBench: {len(outcome.instances)})")
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize="small")
    figure.savefig(file)
    pyplot.close(figure)
