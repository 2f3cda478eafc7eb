"""What the agent does about checkpoints: writes down what jobs save, and removes what the retention rules give up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from metta.sweep import checkpoints
from metta.sweep.agent.recorder import Recorder
from metta.sweep.agent.retention import superseded
from metta.sweep.errors import CheckpointError
from metta.sweep.model.events import Body, CheckpointCopied, CheckpointDeleted, CheckpointSaved
from metta.sweep.model.run import Checkpoint, Damaged, JobDefinition
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Clock

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

#: Environment of a command's processes: what to go on from. Both are empty where there is nothing.
CHECKPOINT_VARIABLE = "METTA_SWEEP_CHECKPOINT"
CHECKPOINT_STEP_VARIABLE = "METTA_SWEEP_CHECKPOINT_STEP"


class JobCheckpoints:
    """Those that a job may use: what it was given, and what it has saved since."""

    def __init__(self, definition: JobDefinition, directory: Path) -> None:
        self.definition = definition
        self.directory = directory
        self.by_step = {checkpoint.step: checkpoint for checkpoint in definition.checkpoints}
        #: The last value of the sweep's metric that the job reported.
        self.score: float | None = None
        #: What a command goes on from.
        self.resumed: Checkpoint | None = None
        #: Files of steps that were saved again.
        self.replaced: list[Path] = []

    @property
    def listed(self) -> tuple[Checkpoint, ...]:
        """All of them, oldest first."""
        return tuple(self.by_step[step] for step in sorted(self.by_step))

    @property
    def resumed_path(self) -> Path | None:
        """The file or folder of `resumed`."""
        return None if self.resumed is None else self.directory / self.resumed.path

    @property
    def environment(self) -> dict[str, str]:
        """What a command's processes are told. Empty rather than unset: the agent may itself run in such a process."""
        if self.resumed is None:
            return {CHECKPOINT_VARIABLE: "", CHECKPOINT_STEP_VARIABLE: ""}
        return {CHECKPOINT_VARIABLE: str(self.resumed_path), CHECKPOINT_STEP_VARIABLE: str(self.resumed.step)}


class Shelf:
    """The checkpoints of all jobs of an agent.

    Args:
        config: The sweep, for its metric and retention rules.
        recorder: The way to the log.
        clock: The time.
    """

    def __init__(self, config: SweepConfig, recorder: Recorder, clock: Clock) -> None:
        self._config = config
        self._recorder = recorder
        self._clock = clock
        self._jobs: dict[str, JobCheckpoints] = {}
        #: Jobs that have saved since the rules were last applied to them.
        self._saved: dict[str, JobCheckpoints] = {}
        self._wanted = asyncio.Event()
        self._tidying = False
        # Not the event loop's own: reading checkpoints may take minutes, and the way to the store must not wait for it.
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="checkpoints")

    @property
    def busy(self) -> bool:
        """Whether files are still to be removed."""
        return self._tidying or bool(self._saved)

    def take(self, definition: JobDefinition, directory: Path) -> None:
        """A job is about to start in the folder of its run."""
        if definition.attempt > 1:
            _clear(directory)
        self._jobs[definition.job_id] = JobCheckpoints(definition, directory)

    def end(self, job_id: str) -> None:
        """The job's processes are gone."""
        _clear(self._jobs.pop(job_id).directory)

    def of(self, job_id: str) -> JobCheckpoints:
        """Those of a job that was taken and has not ended."""
        return self._jobs[job_id]

    # ------------------------------------------------------------------------------------------ what jobs tell us

    def measured(self, job_id: str, metrics: Mapping[str, float]) -> None:
        """The job reported metrics."""
        job = self._jobs[job_id]
        job.score = metrics.get(self._config.metric, job.score)

    def saved(self, job_id: str, saved: CheckpointSaved) -> None:
        """The job saved a checkpoint; it is on the disk."""
        job = self._jobs[job_id]
        self._record(job, saved)
        if saved.step in job.by_step:
            job.replaced.append(job.directory / job.by_step[saved.step].path)
        job.by_step[saved.step] = Checkpoint(
            **msgspec.structs.asdict(saved), at=self._clock.now(), job_id=job_id, score=job.score
        )
        self._saved[job_id] = job
        self._wanted.set()

    def damaged(self, job_id: str, damaged: Damaged) -> None:
        """A checkpoint of the job cannot be used."""
        job = self._jobs[job_id]
        listed = job.by_step.get(damaged.step)
        if listed is not None and listed.path == damaged.path:
            del job.by_step[damaged.step]
            self._record(job, CheckpointDeleted(step=damaged.step, reason=damaged.reason))

    def refused(self, job_id: str) -> None:
        """The log has moved on without this job: its run's checkpoints are others' now."""
        self._saved.pop(job_id, None)

    async def resume(self, job_id: str, log: Path) -> None:
        """Find what a command can go on from; reading all of it, to be sure, may take its time."""
        job = self._jobs[job_id]
        listed = list(job.by_step.values())
        found, damaged = await self._in_thread(partial(checkpoints.newest_sound, job.directory, listed))
        job.resumed = found
        for each in damaged:
            self._record(job, CheckpointDeleted(step=each.step, reason=each.reason))
            job.by_step.pop(each.step, None)
        _warn(log, damaged, found)

    async def inherit(self, job_id: str, log: Path) -> None:
        """Copy what a job goes on from, of another run, into the folder of its own.

        Raises:
            CheckpointError: none of the other's checkpoints can be used; beginning at nothing would not be the same.
            OSError: it cannot be read or written just now.
        """
        job = self._jobs[job_id]
        inheritance = job.definition.inheritance
        assert inheritance is not None
        parent, source = inheritance.run_id, job.directory.parent / inheritance.run_id
        found, damaged = await self._in_thread(partial(checkpoints.newest_sound, source, inheritance.checkpoints))
        for each in damaged:
            self._recorder.add(CheckpointDeleted(step=each.step, reason=each.reason), run_id=parent, job_id=job_id)
        if found is None:
            told = "; ".join(f"that of step {each.step} is {each.reason}" for each in damaged) or "it lists none"
            raise CheckpointError(f"run {parent} has no checkpoint that this one could go on from: {told}")
        _warn(log, damaged, found)
        copied = await self._in_thread(partial(checkpoints.copy, job.directory, source, found))
        fields = msgspec.structs.asdict(copied)
        self._record(job, CheckpointCopied(**fields, source=parent, score=found.score))
        job.by_step[copied.step] = Checkpoint(**fields, at=self._clock.now(), job_id=job_id, score=found.score)

    def _record(self, job: JobCheckpoints, body: Body) -> None:
        self._recorder.add(body, run_id=job.definition.run_id, job_id=job.definition.job_id)

    # -------------------------------------------------------------------------------------------------- retention

    async def run(self) -> None:
        """Remove what the rules give up, for ever.

        What takes its place is in the log before anything goes, and that it goes is in the log before it does: at any
        instant a checkpoint that is listed is there.
        """
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._tidying = True
            await self._recorder.settle()
            await self._tidy()
            self._tidying = False

    async def _tidy(self) -> None:
        saved, self._saved = self._saved, {}
        gone: list[Path] = []
        for job in saved.values():
            gone += job.replaced
            job.replaced.clear()
            rules, direction = self._config.checkpoints, self._config.direction
            for checkpoint in superseded(job.by_step.values(), rules, direction, job.definition.keep):
                del job.by_step[checkpoint.step]
                self._record(job, CheckpointDeleted(step=checkpoint.step, reason=f"retention: {self._rules}"))
                gone.append(job.directory / checkpoint.path)
        await self._recorder.settle()
        for path in gone:
            try:
                await self._in_thread(partial(checkpoints.discard, path))
            except OSError as error:
                logger.warning("checkpoint %s is no longer listed and cannot be removed: %s", path, error)

    async def _in_thread(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    @property
    def _rules(self) -> str:
        rules = msgspec.to_builtins(self._config.checkpoints)
        return "kept are " + ", ".join(f"{name}={number}" for name, number in rules.items())


def _warn(log: Path, damaged: Iterable[Damaged], instead: Checkpoint | None) -> None:
    if lines := [checkpoints.warning_of(each, instead) for each in damaged]:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            stream.writelines(lines)


def _clear(directory: Path) -> None:
    try:
        checkpoints.discard_unfinished(directory)
    except OSError as error:
        logger.warning("what was left half saved in %s cannot be removed: %s", directory, error)
