"""The median stopping rule: a run that has never been as good as the median of the others on the average is stopped.

Golovin et al. (2017), "Google Vizier: A Service for Black-Box Optimization", section 3.2.1.
"""

from __future__ import annotations

from bisect import insort
from statistics import fmean, median

from metta.sweep.errors import ConfigError
from metta.sweep.model.state import SweepState
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Wish
from metta.sweep.schedulers.standings import Arrival, Standings
from metta.sweep.schedulers.stopping import Stopping, check_levels


class MedianScheduler:
    """Keeps every slot busy, and at each level stops the runs whose best value so far is below the median.

    The median is that of the others' values averaged up to the level; the sweep's `Fidelity` says where levels are.

    Args:
        min_runs: So many others have to have come to a level before anybody is stopped there.

    Raises:
        ConfigError: an option is not valid.
    """

    def __init__(self, *, min_runs: int = 5) -> None:
        if not isinstance(min_runs, int) or isinstance(min_runs, bool) or min_runs < 1:
            raise ConfigError(f"strategy: min_runs is a whole number from 1, got {min_runs!r}")
        self._min_runs = min_runs
        #: Of each level the averages of the runs that have come there, ascending.
        self._averages: dict[int, list[float]] = {}
        self._stopping = Stopping(Standings(lambda _: 0), self._against, self._averages.clear)

    def check(self, config: SweepConfig) -> None:
        """See `Scheduler.check`."""
        check_levels(config)

    def schedule(self, state: SweepState, capacity: int | None) -> list[Wish]:
        """See `Scheduler.schedule`."""
        return self._stopping.schedule(state, capacity)

    def _against(self, arrival: Arrival, config: SweepConfig) -> str | None:
        values = [rung.value for rung in arrival.run.rungs[: arrival.number + 1]]
        others = self._averages.setdefault(arrival.number, [])
        middle = median(others) if len(others) >= self._min_runs else None
        insort(others, fmean(values))
        best = max(values) if config.direction == "maximize" else min(values)
        if middle is None or (best >= middle if config.direction == "maximize" else best <= middle):
            return None
        assert config.fidelity is not None
        return (
            f"at {config.fidelity.resource} {arrival.rung.level:g} its best {config.metric} {best:.6g} was worse than "
            f"{middle:.6g}, the median of the averages of {len(others) - 1} others"
        )
