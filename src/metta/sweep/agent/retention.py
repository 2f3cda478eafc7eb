"""Which checkpoints of a run are kept, and which may go."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from metta.sweep.model.run import Checkpoint
from metta.sweep.model.sweep import Direction, Retention


def superseded(
    checkpoints: Iterable[Checkpoint], policy: Retention, direction: Direction, keep: Collection[int] = ()
) -> list[Checkpoint]:
    """Those that no rule keeps, by step.

    Without a rule all are kept. With any, the one of the last step is kept as well, and the one that was saved last:
    these differ when a job has gone back. So are those of the steps in `keep`, which other runs may need.
    """
    by_step = sorted(checkpoints, key=lambda each: each.step)
    if not by_step or policy == Retention():
        return []
    kept = {by_step[-1].step, max(by_step, key=lambda each: (each.at, each.step)).step, *keep}
    kept |= {each.step for each in by_step[-policy.last :]} if policy.last else set()
    kept |= {each.step for each in _best_first(by_step, direction)[: policy.best]} if policy.best else set()
    return [each for each in by_step if each.step not in kept and not (policy.every and each.step % policy.every == 0)]


def _best_first(by_step: Iterable[Checkpoint], direction: Direction) -> list[Checkpoint]:
    """Those with a score; of equal ones the earlier is the better, as it is among runs."""
    sign = -1 if direction == "maximize" else 1
    scored = [(each.score, each) for each in by_step if each.score is not None]
    return [each for _, each in sorted(scored, key=lambda pair: sign * pair[0])]
