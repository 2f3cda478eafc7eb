"""What came out of sweeps in virtual time: regret by the share of the time, and how soon one is where another ends."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from _kept import Cell
from _measure import Report
from _problems import Reference
from _regret import Comparison

#: How finely the time is followed, and the shares of it at which the table tells the regret.
STEPS = 200
_SHARES = (0.1, 0.25, 0.5, 1.0)
#: Regrets this small no longer tell contestants apart.
_SMALL = 1e-4
#: Times the time of a sweep that a regret counts for which is not reached within it.
_PENALTY = 2.0
#: At most this share of the time for the final regret of a peer.
_GOAL = 0.5


class Sweep(msgspec.Struct, frozen=True):
    """One sweep in virtual time."""

    #: When better and better accuracies were reported: seconds and accuracies, both ascending.
    improvements: list[tuple[float, float]]
    budget_s: float
    #: Processor time of all of it, the simulation included.
    own_seconds: float


def regrets(sweep: Sweep, reference: Reference) -> np.ndarray:
    """Normalised regret at each of `STEPS` steps of the time; 1 until an accuracy above the median is reported."""
    times = np.linspace(0, sweep.budget_s, STEPS + 1)[1:]
    at = np.array([seconds for seconds, _ in sweep.improvements])
    found = reference.regret(-np.array([accuracy for _, accuracy in sweep.improvements]))
    return np.minimum(np.array([1.0, *found])[np.searchsorted(at, times, side="right")], 1.0)


def references(known: Mapping[str, Reference], sweeps: Mapping[Cell, Sweep]) -> dict[str, Reference]:
    """The references, with the best improved to what was found in these sweeps, after whatever epoch."""
    better = dict(known)
    for cell, sweep in sweeps.items():
        if sweep.improvements:
            reference = better[cell.problem]
            better[cell.problem] = msgspec.structs.replace(
                reference, best=min(reference.best, -sweep.improvements[-1][1])
            )
    return better


@dataclass(frozen=True)
class Outcome:
    """The sweeps of all contestants on the instances that each of them has at least one of."""

    #: Of each contestant alone, seeds x 1 x steps on each instance: a slow one may have fewer seeds.
    curves: dict[str, Comparison]
    own_seconds: dict[str, float]
    #: Asked for, and without a sweep here.
    absent: list[str]

    @classmethod
    def of(cls, contestants: Sequence[str], curves: Mapping[Cell, np.ndarray], sweeps: Mapping[Cell, Sweep]) -> Outcome:
        """Those of these contestants, in this order."""
        cells = {name: [cell for cell in curves if cell.contestant == name] for name in contestants}
        present = [name for name in contestants if cells[name]]
        instances = [{cell.problem for cell in cells[name]} for name in present]
        shared = sorted(set.intersection(*instances)) if instances else []
        compared = {
            name: Comparison(
                {
                    instance: np.array([[curves[cell]] for cell in cells[name] if cell.problem == instance])
                    for instance in shared
                }
            )
            for name in present
        }
        return cls(
            curves=compared,
            own_seconds={name: float(np.mean([sweeps[cell].own_seconds for cell in cells[name]])) for name in present},
            absent=[name for name in contestants if name not in present],
        )

    @property
    def instances(self) -> list[str]:
        """Those that all contestants have; empty when there is none."""
        return list(next(iter(self.curves.values())).curves) if self.curves else []

    def mean(self, contestant: str) -> np.ndarray:
        """Regret at each step: the mean over instances of the mean over seeds."""
        return self.curves[contestant].mean()[0]

    def band(self, contestant: str) -> np.ndarray:
        """The ends of the 95% bootstrap interval of the mean, over instances and over seeds within each: steps x 2."""
        return np.array([self.curves[contestant].interval(step, 0) for step in range(1, STEPS + 1)])

    def show(self, recorded: Collection[str]) -> None:
        """Print the tables.

        Args:
            recorded: Contestants with sweeps that are from a file.
        """
        console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
        if self.absent:
            console.print(f"not measured here: {', '.join(self.absent)}", style="bold red")
        if not self.instances:
            console.print("there is no instance that all contestants have")
            return
        console.print(self._table())
        if recorded:
            console.print(f"from the file: {', '.join(sorted(recorded))}", style="dim")
        console.print(self._table_by_instance())

    def _table(self) -> Table:
        title = f"mean regret [95% interval] by the share of the time, {len(self.instances)} instances"
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("contestant")
        for share in _SHARES:
            table.add_column(f"{share:.0%}", justify="right", no_wrap=True)
        table.add_column("sweeps", justify="right")
        table.add_column("own seconds a sweep", justify="right")
        for contestant, comparison in self.curves.items():
            mean = self.mean(contestant)
            steps = [round(share * STEPS) for share in _SHARES]
            figures = [
                f"{mean[step - 1]:.3f} [{low:.3f}, {high:.3f}]"
                for step in steps
                for low, high in [comparison.interval(step, 0)]
            ]
            table.add_row(contestant, *figures, str(comparison.cells), f"{self.own_seconds[contestant]:.1f}")
        return table

    def _table_by_instance(self) -> Table:
        table = Table(title="final regret, mean over seeds, by instance", title_justify="left")
        table.add_column("contestant")
        for instance in self.instances:
            table.add_column(instance.removeprefix("lcbench-"), justify="right")
        for contestant, comparison in self.curves.items():
            table.add_row(contestant, *(f"{each.mean(axis=0)[0, -1]:.3f}" for each in comparison.curves.values()))
        return table

    def shares(self, ours: str, other: str) -> np.ndarray:
        """By instance, the share of its time after which ours has the final regret of another; infinite where never.

        Curves of an instance are means over seeds.
        """
        shares = []
        for instance in self.instances:
            curve, final = (self.curves[name].curves[instance].mean(axis=0)[0] for name in (ours, other))
            reached = np.flatnonzero(curve <= max(final[-1], _SMALL))
            shares.append((reached[0] + 1) / STEPS if len(reached) else np.inf)
        return np.array(shares)

    def judge(self, ours: str, goals: Collection[str], report: Report) -> None:
        """Take down how much of their time ours needs to get where each of the others ends, on average over instances.

        Where ours does not get there, nobody knows how long it would take. Such an instance counts as twice the time
        of a sweep, as in the penalised average runtime PAR2 by which SAT competitions rank solvers: leaving it out, or
        taking it for the whole time, would make a contestant that never arrives look good.

        Args:
            ours: The contestant to judge.
            goals: Contestants that it has to outdo.
            report: Takes the figures.
        """
        if ours not in self.curves or not self.instances:
            return
        for contestant in self.curves:
            if contestant == ours:
                continue
            shares = self.shares(ours, contestant)
            never = int(np.isinf(shares).sum())
            report.add(
                f"{ours}: share of the time to the final regret of {contestant}",
                float(np.minimum(shares, _PENALTY).mean()),
                "",
                at_most=_GOAL if contestant in goals else None,
                note=f"not reached on {never} of {len(shares)} instances" if never else "",
            )
