"""What agent, controller, fork server and jobs say to each other over local sockets, one JSON object a message."""

from __future__ import annotations

import os
from typing import TypeAlias

import msgspec

from metta.sweep.agent.failures import Verdict
from metta.sweep.model.events import CheckpointSaved
from metta.sweep.model.run import Damaged, JobDefinition, Outcome
from metta.sweep.model.sweep import Target
from metta.sweep.session import Ending, RunContext

#: Environment of a job's processes, for `metta sweep report`.
SOCKET_VARIABLE = "METTA_SWEEP_SOCKET"
JOB_VARIABLE = "METTA_SWEEP_JOB_ID"
RUN_VARIABLE = "METTA_SWEEP_RUN_ID"
RUN_DIRECTORY_VARIABLE = "METTA_SWEEP_RUN_DIRECTORY"
#: Until which value of the sweep's resource a train job is to train; empty for a whole training.
UNTIL_VARIABLE = "METTA_SWEEP_UNTIL"


class _Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    pass


# ------------------------------------------------------------------------- controller (or a job's child) -> agent


class Dispatch(_Message, frozen=True, kw_only=True, tag="dispatch"):
    """Start these jobs, unless they are known."""

    jobs: list[JobDefinition]


class AskStanding(_Message, frozen=True, kw_only=True, tag="ask_standing"):
    """Which of these jobs are known?"""

    job_ids: list[str]


class AskHeld(_Message, frozen=True, kw_only=True, tag="ask_held"):
    """Which jobs run or wait?"""


class Cancel(_Message, frozen=True, kw_only=True, tag="cancel"):
    """End these jobs: SIGTERM, the sweep's grace, SIGKILL. A function that is to be STOPPED is asked before that."""

    job_ids: list[str]
    outcome: Outcome
    reason: str


class Report(_Message, frozen=True, kw_only=True, tag="report"):
    """Metrics of a job, from `metta sweep report` in one of its processes."""

    job_id: str
    metrics: dict[str, float] = {}
    #: Instead of metrics: why the report was no report; the job fails by it.
    error: str | None = None


class KeepCheckpoint(_Message, frozen=True, kw_only=True, tag="keep_checkpoint"):
    """A job's checkpoint, from `metta sweep checkpoint` in one of its processes; it is in the run's folder."""

    job_id: str
    saved: CheckpointSaved


class Leave(_Message, frozen=True, kw_only=True, tag="leave"):
    """The controller needs the agent no more: end as soon as nothing runs."""


Request: TypeAlias = Dispatch | AskStanding | AskHeld | Cancel | Report | KeepCheckpoint | Leave


class Reply(_Message, frozen=True, kw_only=True):
    """The agent's answer to any request."""

    #: To AskStanding: the jobs that are known. To AskHeld: those that have not ended.
    known: list[str] = []
    #: Why the request was refused.
    error: str | None = None


# ------------------------------------------------------------------------------------------- agent <-> fork server


class Prepare(_Message, frozen=True, kw_only=True, tag="prepare"):
    """First message: import these, so that every job starts with them loaded."""

    targets: list[Target]


class Spawn(_Message, frozen=True, kw_only=True, tag="spawn"):
    """Start a process; the socket that comes with the message is its link to the agent (functions only)."""

    key: str
    log: str
    cwd: str
    #: A function's process finds it in its assignment.
    env: dict[str, str] = {}
    #: The program to execute; None to run functions.
    argv: list[str] | None = None
    #: Serve many assignments rather than one.
    reuse: bool = False


class Signal(_Message, frozen=True, kw_only=True, tag="signal"):
    """Send a signal to all processes of a job."""

    key: str
    signal: int


ForkRequest: TypeAlias = Prepare | Spawn | Signal


class Prepared(_Message, frozen=True, kw_only=True, tag="prepared"):
    """The imports are done, as far as they go: processes can be started at once."""


class Spawned(_Message, frozen=True, kw_only=True, tag="spawned"):
    """The process exists."""

    key: str
    pid: int


class Exited(_Message, frozen=True, kw_only=True, tag="exited"):
    """The process and all others of its group are gone."""

    key: str
    exit_code: int | None = None
    signal: int | None = None
    #: Its own, and that of all children that it had waited for.
    cpu_seconds: float
    memory_peak_bytes: int
    #: From and to disks.
    read_bytes: int = 0
    written_bytes: int = 0


class SpawnFailed(_Message, frozen=True, kw_only=True, tag="spawn_failed"):
    """There is no process: out of process ids or memory."""

    key: str
    verdict: Verdict


class SetupFailed(_Message, frozen=True, kw_only=True, tag="setup_failed"):
    """The process cannot do its work: no such program, or its log cannot be written. Comes before its Exited."""

    key: str
    verdict: Verdict


JobReply: TypeAlias = Spawned | Exited | SpawnFailed | SetupFailed
ForkReply: TypeAlias = Prepared | JobReply


# ------------------------------------------------------------------------------------------------ agent <-> a job


class Assignment(_Message, frozen=True, kw_only=True, tag="assignment"):
    """What the process has to do."""

    context: RunContext
    target: Target
    config: dict[str, object]
    log: str
    #: Set in the process before the function is called.
    env: dict[str, str] = {}


class Stop(_Message, frozen=True, kw_only=True, tag="stop"):
    """Come to an end, if this is what the process works on: it may have finished meanwhile."""

    job_id: str
    ending: Ending


ToJob: TypeAlias = Assignment | Stop


class Measured(_Message, frozen=True, kw_only=True, tag="measured"):
    """The user's code reported metrics."""

    metrics: dict[str, float]


class Finished(_Message, frozen=True, kw_only=True, tag="finished"):
    """The function returned, or failed."""

    verdict: Verdict


#: CheckpointSaved is an event as it will be in the log: by the time it is sent, the checkpoint is on the disk.
JobNews: TypeAlias = Measured | CheckpointSaved | Damaged
JobMessage: TypeAlias = JobNews | Finished


class FromJob(_Message, frozen=True, kw_only=True):
    """What a job says, and which: a process may outlive its job in a worker that has gone on to the next one."""

    job_id: str
    message: JobMessage


def send_line(link: int, message: msgspec.Struct) -> None:
    """Send a message as one line over a blocking socket."""
    unsent = encode_line(message)
    while unsent:
        unsent = unsent[os.write(link, unsent) :]


def encode_line(message: msgspec.Struct) -> bytes:
    """A message as one line."""
    return msgspec.json.encode(message) + b"\n"
