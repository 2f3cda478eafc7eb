"""What a job's process is told: which environment it finds, and what to call or to execute."""

from __future__ import annotations

from pathlib import Path

from metta.sweep.agent import messages as msg
from metta.sweep.agent.checkpoints import Shelf
from metta.sweep.agent.command import CHECKPOINT_PLACEHOLDER, MetricsTail, arguments_for
from metta.sweep.agent.job import Job
from metta.sweep.model.run import JobDefinition, JobType
from metta.sweep.model.sweep import CommandTarget, FunctionTarget, PickledTarget, SweepConfig, Target
from metta.sweep.observe.tracing.spans import TRACEPARENT_VARIABLE
from metta.sweep.session import Progress, RunContext


class Orders:
    """Draws up what the processes of a sweep's jobs are told.

    Args:
        config: The sweep, for its targets and folders.
        socket_path: Where the agent listens.
        shelf: The checkpoints, for what a command goes on from.
    """

    def __init__(self, config: SweepConfig, socket_path: Path, shelf: Shelf) -> None:
        self._config = config
        self._runs = Path(config.directory) / "runs"
        self._socket_path = socket_path
        self._shelf = shelf

    def target(self, definition: JobDefinition) -> Target:
        """What the job runs."""
        target = self._config.target if definition.type is JobType.TRAIN else self._config.evaluate
        assert target is not None
        return target

    def run_directory(self, definition: JobDefinition) -> Path:
        """The folder of the job's run."""
        return self._runs / definition.run_id

    def progress(self, definition: JobDefinition) -> Progress:
        """How far the job is to train, and by which resource that is measured."""
        fidelity = self._config.fidelity
        if fidelity is None or definition.type is not JobType.TRAIN:
            return Progress(None, None)
        return Progress(fidelity.resource, definition.until, fidelity.maximum)

    def environment(self, job: Job) -> dict[str, str]:
        """What the job's processes find in theirs, beyond what all jobs of the sweep do."""
        definition = job.definition
        environment = {
            msg.SOCKET_VARIABLE: str(self._socket_path),
            msg.JOB_VARIABLE: definition.job_id,
            msg.RUN_VARIABLE: definition.run_id,
            msg.RUN_DIRECTORY_VARIABLE: str(job.directory),
            **self._shelf.of(definition.job_id).environment,
        }
        if job.progress.resource is not None:
            until = job.progress.until
            # Always: a sweep that a job of another sweep runs finds the other's in its environment.
            environment[msg.UNTIL_VARIABLE] = "" if until is None else f"{until:.15g}"
        if job.traceparent is not None:
            environment[TRACEPARENT_VARIABLE] = job.traceparent
        if self._config.resources.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(job.gpus)
        return environment

    def assignment(self, job: Job, target: FunctionTarget | PickledTarget) -> msg.Assignment:
        """For a process that calls functions."""
        definition = job.definition
        return msg.Assignment(
            context=RunContext(
                sweep_id=definition.sweep_id,
                run_id=definition.run_id,
                job_id=definition.job_id,
                type=definition.type,
                directory=str(job.directory),
                checkpoints=self._shelf.of(job.job_id).listed,
                resource=job.progress.resource,
                until=job.progress.until,
                maximum=job.progress.maximum,
            ),
            target=target,
            config=definition.config,
            log=str(job.log),
            env=self.environment(job),
        )

    def command(self, job: Job, target: CommandTarget) -> tuple[list[str], MetricsTail]:
        """A command line, and what follows the metrics of the program that is about to be started by it."""
        definition = job.definition
        values = {"run_id": definition.run_id, "run_directory": str(job.directory)}
        if (checkpoint := self._shelf.of(job.job_id).resumed_path) is not None:
            values[CHECKPOINT_PLACEHOLDER] = str(checkpoint)
        argv = arguments_for(target.argv, definition.config, values, self._config.search_space.parameters)
        directory = Path(self._config.working_directory)
        return argv, MetricsTail(target.metrics, job.log, directory, {**definition.config, **values})
