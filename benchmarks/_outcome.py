"""What came out of a suite of problems: the tables, and the figures that have goals."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from _contestants import BASELINE, MARK, PEERS, Trace, label
from _kept import Cell
from _measure import Report
from _regret import Comparison

#: Goals of the optimizers that are ours.
_MOST_EVALUATIONS_TO_MARK = 70
_MOST_OF_MARKS_TIME = 0.1


@dataclass(frozen=True)
class Outcome:
    """The searches of a suite that all its contestants have done."""

    contestants: list[str]
    #: Asked for, and without a search here.
    absent: list[str]
    comparison: Comparison
    #: Processor seconds of each contestant for 100 evaluations.
    own_seconds: list[float]
    budgets: Sequence[int]

    @classmethod
    def of(
        cls,
        contestants: Sequence[str],
        cells: Sequence[Cell],
        curves: Mapping[Cell, np.ndarray],
        traces: Mapping[Cell, Trace],
        budgets: Sequence[int],
    ) -> Outcome:
        """Those of `cells`, which have one degree of parallelism.

        Where some are missing, as those of a peer that is still being measured, only problems and seeds are compared
        that all contestants have.
        """
        of_contestant = {name: [cell for cell in cells if cell.contestant == name] for name in contestants}
        present = [name for name in contestants if of_contestant[name]]
        sides = [{(cell.problem, cell.seed): curves[cell] for cell in of_contestant[name]} for name in present]
        shared = sorted(set.intersection(*(set(side) for side in sides)))
        stacked = {
            problem: np.array([[side[each] for side in sides] for each in shared if each[0] == problem])
            for problem in dict.fromkeys(problem for problem, _ in shared)
        }
        return cls(
            contestants=present,
            absent=[name for name in contestants if name not in present],
            comparison=Comparison(stacked),
            own_seconds=[_own_seconds([traces[cell] for cell in of_contestant[name]]) for name in present],
            budgets=budgets,
        )

    def show(self, title: str, recorded: set[str]) -> None:
        """Print the tables.

        Args:
            title: Of the suite.
            recorded: Contestants whose searches are from a file.
        """
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        comparison = self.comparison
        if not comparison.cells:
            console.print(f"{title}: there is no search that {', '.join(map(label, self.contestants))} all have done")
            return
        console.print(self._table(f"{title}: {comparison.cells} searches each, of {len(comparison.curves)} problems"))
        for line in self._differences():
            console.print(line, style="dim")
        if recorded:
            console.print(f"from the file: {', '.join(sorted(map(label, recorded)))}", style="dim")
        if self.absent:
            console.print(f"not measured here: {', '.join(map(label, self.absent))}", style="bold red")
        console.print(self._table_by_problem())

    def _table(self, title: str) -> Table:
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("normalised regret [95% interval]")
        for budget in self.budgets:
            table.add_column(f"at {budget}", justify="right", no_wrap=True)
        table.add_column("mean rank at " + ", ".join(map(str, self.budgets)), justify="right")
        table.add_column("own seconds / 100", justify="right")
        mark = self._mark()
        if mark is not None:
            table.add_column(f"reaches {label(MARK)}'s regret at {self.budgets[-1]}", justify="right")
        mean = self.comparison.mean()
        ranks = [self.comparison.ranks(budget) for budget in self.budgets]
        for number, contestant in enumerate(self.contestants):
            regrets = [
                f"{mean[number, budget - 1]:.3f} [{low:.3f}, {high:.3f}]"
                for budget in self.budgets
                for low, high in [self.comparison.interval(budget, number)]
            ]
            mean_ranks = " ".join(f"{rank[number]:.2f}" for rank in ranks)
            seconds = f"{self.own_seconds[number]:.3g}"
            arrival = [] if mark is None else [self._arrival(mark, number)]
            table.add_row(label(contestant), *regrets, mean_ranks, seconds, *arrival)
        return table

    def _mark(self) -> float | None:
        if MARK not in self.contestants:
            return None
        return float(self.comparison.mean()[self.contestants.index(MARK), self.budgets[-1] - 1])

    def _arrival(self, mark: float, number: int) -> str:
        reached = self.comparison.evaluations_to(mark, number)
        return f"after {reached}" if reached is not None else f"not within {self.budgets[-1]}"

    def _differences(self) -> list[str]:
        """How each optimizer of ours compares with the mark on the very same searches."""
        if MARK not in self.contestants:
            return []
        mark = self.contestants.index(MARK)
        lines = []
        for number, contestant in enumerate(self.contestants):
            if contestant not in {*PEERS, BASELINE}:
                mean = self.comparison.mean()[number] - self.comparison.mean()[mark]
                parts = [
                    f"{mean[budget - 1]:+.3f} [{low:+.3f}, {high:+.3f}] at {budget}"
                    for budget in self.budgets
                    for low, high in [self.comparison.interval(budget, number, minus=mark)]
                ]
                lines.append(f"{contestant} minus {label(MARK)}: {', '.join(parts)}")
        return lines

    def _table_by_problem(self) -> Table:
        first, last = self.budgets[0], self.budgets[-1]
        table = Table(title=f"regret at {first} and {last}, by problem", title_justify="left")
        table.add_column("problem")
        for contestant in self.contestants:
            table.add_column(label(contestant), justify="right")
        for problem, curves in self.comparison.curves.items():
            means = curves.mean(axis=0)
            table.add_row(problem, *(f"{mean[first - 1]:.3f} {mean[last - 1]:.3f}" for mean in means))
        return table

    def judge(self, contestant: str, suite: str, report: Report, *, has_goals: bool) -> None:
        """Take down the figures of an optimizer of ours, beside those of the best peer."""
        if contestant not in self.contestants or not self.comparison.cells:
            return
        number = self.contestants.index(contestant)
        peers = [each for each, name in enumerate(self.contestants) if name in PEERS]
        mean = self.comparison.mean()
        for budget in self.budgets if peers else ():
            best = min(peers, key=lambda peer: mean[peer, budget - 1])
            lowest = float(mean[best, budget - 1])
            report.add(
                f"{contestant}: {suite}, regret after {budget}",
                float(mean[number, budget - 1]),
                "",
                at_most=lowest if has_goals else None,
                peer=label(self.contestants[best]),
                peer_value=lowest,
            )
        mark = self._mark()
        if mark is None:
            return
        reached = self.comparison.evaluations_to(mark, number)
        report.add(
            f"{contestant}: {suite}, evaluations to reach {label(MARK)}'s regret after {self.budgets[-1]}",
            float(reached if reached is not None else self.budgets[-1] + 1),
            "",
            at_most=_MOST_EVALUATIONS_TO_MARK if has_goals else None,
            note="" if reached is not None else "not reached",
        )
        seconds = self.own_seconds[self.contestants.index(MARK)]
        report.add(
            f"{contestant}: {suite}, own processor time for 100 evaluations",
            self.own_seconds[number],
            "s",
            at_most=_MOST_OF_MARKS_TIME * seconds if has_goals else None,
            peer=label(MARK),
            peer_value=seconds,
        )


def _own_seconds(traces: Sequence[Trace]) -> float:
    return 100 * sum(trace.own_seconds for trace in traces) / max(1, sum(len(trace.scores) for trace in traces))
