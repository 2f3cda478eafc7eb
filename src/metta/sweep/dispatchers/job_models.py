"""What simulated jobs do: the terms of it, and something made up for want of a better model."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np

from metta.sweep.errors import SearchSpaceError
from metta.sweep.model.fidelity import SECONDS
from metta.sweep.model.run import FailureKind, JobDefinition, JobType, Outcome
from metta.sweep.model.sweep import SweepConfig


class Report(msgspec.Struct, frozen=True):
    """What a job measures on its way."""

    #: Since it began.
    seconds: float
    metrics: dict[str, float]


class Course(msgspec.Struct, frozen=True, kw_only=True):
    """What a job does if nobody stops it."""

    #: In the order of their times.
    reports: Sequence[Report] = ()
    #: Of its end, since it began.
    seconds: float
    outcome: Outcome = Outcome.SUCCEEDED
    failure: FailureKind | None = None
    error: str | None = None
    #: As of `JobExited`: equal for failures that are one and the same fault.
    signature: str | None = None


class JobModel(Protocol):
    """Says what a job would do: a function of the job alone, such as one over the table of a benchmark.

    A job goes on from `resumed_from(job)`; up to where it is to train (`job.until`), the dispatcher sees to.
    """

    def __call__(self, job: JobDefinition) -> Course:
        """Its whole course, to the end of the training."""
        ...


def resumed_from(job: JobDefinition) -> int:
    """The step, in terms of the sweep's resource, from which a job goes on; 0 from the beginning."""
    if job.type is not JobType.TRAIN:
        return 0
    inherited = () if job.inheritance is None else job.inheritance.checkpoints
    return (job.checkpoints or inherited)[-1].step if job.checkpoints or inherited else 0


def generator_of(seed: int, *names: str) -> np.random.Generator:
    """Chance that depends on the seed and these names alone."""
    key = tuple(zlib.crc32(name.encode()) for name in names)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


class MadeUpJobs:
    """A `JobModel` for want of a better one: everything about it is made up, and says nothing about the real jobs.

    A configuration is the better the nearer it is to a point of the space that the sweep's seed decides, give or take
    a little noise; its curve approaches that from a chance result, and it takes from half to twice `seconds`.

    Args:
        config: Of the sweep.
        seconds: What a whole training takes about; an evaluation takes a tenth.
        reports: In a whole training.
    """

    def __init__(self, config: SweepConfig, seconds: float = 600.0, reports: int = 10) -> None:
        self._config = config
        self._seconds = seconds
        fidelity = config.fidelity
        self._maximum = float(reports) if fidelity is None else fidelity.maximum
        even = [self._maximum * (step + 1) / reports for step in range(reports)]
        self._levels = sorted({*even, *(() if fidelity is None else fidelity.levels)})
        self._best = generator_of(config.seed, "best").random(len(config.search_space.dimensions))

    def __call__(self, job: JobDefinition) -> Course:
        """See `JobModel`."""
        config = self._config
        rng = generator_of(config.seed, repr(sorted(job.config.items())))
        quality = self._quality(job) + 0.02 * float(rng.standard_normal())
        whole_s = self._seconds * 2 ** float(rng.uniform(-1, 1))
        if job.type is JobType.EVAL:
            return Course(reports=[Report(whole_s / 10, {config.metric: self._value(quality)})], seconds=whole_s / 10)
        begun = float(resumed_from(job))
        resource = None if config.fidelity is None else config.fidelity.resource
        if resource == SECONDS:
            whole_s = self._maximum
        reports: list[Report] = []
        for level in self._levels:
            if level > begun or level == self._maximum:
                share = level / self._maximum
                metrics = {config.metric: self._value(quality * (1 - float(np.exp(-4 * share))))}
                if resource not in {None, SECONDS}:
                    metrics[str(resource)] = level
                reports.append(Report(max(0.0, level - begun) / self._maximum * whole_s, metrics))
        return Course(reports=reports, seconds=reports[-1].seconds)

    def _quality(self, job: JobDefinition) -> float:
        try:
            point = np.array(self._config.search_space.encode(job.config))
        except SearchSpaceError:  # the space was amended since
            return 0.5
        return float(np.exp(-2 * np.sum((point - self._best) ** 2)))

    def _value(self, quality: float) -> float:
        return quality if self._config.direction == "maximize" else 1.0 - quality
