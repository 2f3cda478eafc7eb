"""What `metta sweep doctor` looks at: the facts that `StateValidator` judges, and those that it cannot see."""

from __future__ import annotations

import shutil
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from enum import StrEnum
from pathlib import Path

import msgspec

from metta.sweep import checkpoints
from metta.sweep.agent import client
from metta.sweep.agent import messages as msg
from metta.sweep.agent.location import AgentAddress, has_spooled, read_address
from metta.sweep.controller.consistency import IssueKind
from metta.sweep.controller.decide import Decision, open_jobs
from metta.sweep.controller.lease import holder_text, is_controlled, is_dead
from metta.sweep.controller.validator import Issue, StateValidator, clocks_set_back
from metta.sweep.display.views import duration, go_on_command
from metta.sweep.errors import (
    CheckpointError,
    DamagedStoreError,
    DispatchError,
    InvalidTransition,
    NotFoundError,
    StoreError,
)
from metta.sweep.model.events import CheckpointDeleted, Event, JobDispatched
from metta.sweep.model.run import Checkpoint, JobState, RunInfo
from metta.sweep.model.state import EMPTY, SweepState, fold
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Heartbeat, Reader

#: Less room than this under a sweep's folder is too little.
SCARCE_BYTES = 1 << 30
#: An agent answers in milliseconds; one that does not in this time is a finding.
_ANSWER_TIMEOUT_S = 3.0
#: Events folded at a time: as a batch it is faster, one by one the event that doesn't fit is found.
_BATCH = 1_000


class Area(StrEnum):
    """A part of what is looked at: a line of the report."""

    LOG = "log"
    TABLES = "tables"
    RUNS = "runs"
    CONTROLLER = "controller"
    AGENTS = "agents"
    CHECKPOINTS = "checkpoints"
    DISK = "disk"


_AREAS = {
    IssueKind.LOG: Area.LOG,
    IssueKind.PROJECTIONS: Area.TABLES,
    IssueKind.LEASE: Area.CONTROLLER,
    IssueKind.AGENT: Area.AGENTS,
    IssueKind.SILENT_AGENT: Area.AGENTS,
    IssueKind.STRAY_JOB: Area.AGENTS,
    IssueKind.CHECKPOINT_FILE: Area.CHECKPOINTS,
    IssueKind.DISK: Area.DISK,
}


def area_of(issue: Issue) -> Area:
    """Where an issue belongs; all that is said of runs and their sums is about the runs."""
    return _AREAS.get(issue.kind, Area.RUNS)


class Examination(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of one sweep."""

    sweep_id: str
    #: Empty where the log cannot be read.
    name: str = ""
    #: Last event seen: what is mended is mended only if nothing has happened since.
    seq: int = 0
    directory: str | None = None
    #: What was looked at, in a few words, or why it was not.
    facts: dict[Area, str]
    issues: tuple[Issue, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing serious was found."""
        return not any(issue.is_serious for issue in self.issues)


def examine(reader: Reader, sweep_id: str, *, now: float, thorough: bool = False) -> Examination:
    """Look at everything that is kept of a sweep; nothing is changed."""
    held_before = _ask_first(reader, sweep_id)
    log = _read_log(reader, sweep_id)
    state = log.state
    facts = {Area.LOG: f"{state.seq:,} events"}
    issues = list(log.issues)
    tables = _projections(reader, sweep_id)
    if log.is_broken:
        facts[Area.TABLES] = "differ from the log" if tables else "not compared, for the log is broken"
        return Examination(sweep_id=sweep_id, facts=facts, issues=(*log.issues, *tables))
    facts[Area.TABLES] = "differ from the log" if tables else "as the log says"
    issues += tables
    if state.metadata is None:
        raise NotFoundError(f"store holds no sweep {sweep_id!r}")
    heartbeats = reader.fetch_heartbeats(sweep_id)
    # What the last agent could not deliver may be the results of jobs that seem lost: nothing is concluded before that.
    signs = None if has_spooled(state.sweep.config.directory) else heartbeats
    controlled = is_controlled(reader, sweep_id, now)
    agent = _agent(state, log, held_before)
    issues += StateValidator().check(state, now=now, heartbeats=signs, held=agent.held, controlled=controlled)
    facts[Area.RUNS] = f"{len(state.runs):,} runs, {len(state.unfinished):,} of them unfinished"
    facts[Area.CONTROLLER] = _controller(reader, state.sweep, controlled=controlled, now=now)
    facts[Area.AGENTS] = _signs_of_life(heartbeats, agent, now)
    issues += agent.issues
    for area, (fact, found) in _files(state, thorough=thorough).items():
        facts[area] = fact
        issues += found
    return Examination(
        sweep_id=sweep_id,
        name=state.sweep.config.name,
        seq=state.seq,
        directory=state.sweep.config.directory,
        facts=facts,
        issues=tuple(issues),
    )


# ------------------------------------------------------------------------------------------------- store, log, tables


def store_issues(path: Path, *, thorough: bool) -> list[Issue]:
    """What SQLite finds wrong with the file; `thorough` compares its indices with its tables, too."""
    pragma = "integrity_check" if thorough else "quick_check"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            verdicts = [str(verdict) for (verdict,) in connection.execute(f"PRAGMA {pragma}(10)")]
    except sqlite3.DatabaseError as error:
        verdicts = [str(error)]
    return [damaged_store(verdict, path) for verdict in verdicts if verdict != "ok"]


def damaged_store(problem: str, path: Path | None) -> Issue:
    """A store that is not as it was written."""
    remedy = "restore a backup" if path is None else f"metta sweep doctor --recover {path}, or restore a backup"
    return Issue(kind=IssueKind.STORE, problem=problem, remedy=remedy)


class _Log(msgspec.Struct, frozen=True, kw_only=True):
    state: SweepState
    issues: tuple[Issue, ...]
    #: Whether it could not be read or folded to its end.
    is_broken: bool
    #: Who took each job, by its id.
    dispatchers: dict[str, str]


def _read_log(reader: Reader, sweep_id: str) -> _Log:
    state, issues = EMPTY, list[Issue]()
    times, dispatchers = list[tuple[str, int, float]](), dict[str, str]()
    is_broken = False
    try:
        for batch in _batches(reader.read(sweep_id)):
            state, refusal = _folded(state, batch)
            if refusal is not None:
                issues.append(refusal)
                is_broken = True
                break
            for event in batch:
                times.append((event.actor, event.seq, event.at))
                if isinstance(event.body, JobDispatched) and event.job_id is not None:
                    dispatchers[event.job_id] = event.body.dispatcher
    except StoreError as error:
        is_broken = True
        issues.append(
            Issue(
                kind=IssueKind.LOG,
                problem=f"the log cannot be read beyond event {state.seq}: {error}",
                remedy="nothing in it is changed; restore a backup, or metta sweep doctor --recover FILE",
            )
        )
    issues += clocks_set_back(times, StateValidator().clock_tolerance_s)
    return _Log(state=state, issues=tuple(issues), is_broken=is_broken, dispatchers=dispatchers)


def _batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    batch: list[Event] = []
    for event in events:
        batch.append(event)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch


def _folded(state: SweepState, batch: list[Event]) -> tuple[SweepState, Issue | None]:
    try:
        return fold(state, batch), None
    except InvalidTransition:
        for event in batch:
            try:
                state = fold(state, [event])
            except InvalidTransition as error:
                return state, _unfit(event, error)
        raise


def _unfit(event: Event, error: InvalidTransition) -> Issue:
    return Issue(
        kind=IssueKind.LOG,
        problem=f"event {event.seq} ({event.type}, by {event.actor}) does not fit what is before it: {error}; "
        "no controller can take the sweep up, and what comes after it was not looked at",
        remedy="a newer version may read it: upgrade metta-sweep; otherwise metta sweep doctor --recover FILE makes a "
        "store without it",
        run_id=event.run_id,
        job_id=event.job_id,
    )


def _projections(reader: Reader, sweep_id: str) -> list[Issue]:
    """Also where the log seems damaged: readers check it by the tables, so the damage may be theirs alone."""
    try:
        lines = reader.projection_differences(sweep_id)
    except (StoreError, InvalidTransition):
        return []  # that of the log says it all
    remedy = "the tables are written anew from the log"
    return [Issue(kind=IssueKind.PROJECTIONS, problem=line, remedy=remedy) for line in lines]


# ------------------------------------------------------------------------------------------------- controller, agents


def _controller(reader: Reader, sweep: SweepMetadata, *, controlled: bool, now: float) -> str:
    lease = reader.fetch_lease(sweep.sweep_id)
    if controlled and lease is not None:
        return f"{holder_text(lease.holder)} is at work"
    go_on = "" if sweep.status.ended else f"; go on with: {go_on_command(sweep)}"
    if lease is not None and lease.expires_at > now and is_dead(lease.holder):
        return f"{holder_text(lease.holder)} died; the next one takes its place at once{go_on}"
    return f"none is at work, the sweep is {sweep.status}{go_on}"


class _Agent(msgspec.Struct, frozen=True, kw_only=True):
    """What the agent on this machine says; as of `StateValidator.check`, None where it is not the one to ask."""

    fact: str
    held: tuple[str, ...] | None = None
    issues: tuple[Issue, ...] = ()


def _ask_first(reader: Reader, sweep_id: str) -> list[str] | None:
    """The jobs that the agent runs before the log is read: what ends in between is no stray."""
    try:
        directories = [sweep.config.directory for sweep in reader.fetch_sweeps(sweep_id)]
        reply = ask_agent(directories[0], msg.AskHeld()) if directories else None
    except (DispatchError, DamagedStoreError):
        return None
    return [] if reply is None else reply.known


def _agent(state: SweepState, log: _Log, held_before: list[str] | None) -> _Agent:
    directory = state.sweep.config.directory
    if not Path(directory).is_dir():
        return _Agent(fact=f"not asked, for {directory} is not on this machine")
    address = read_address(directory)
    here, elsewhere = socket.gethostname(), _open_elsewhere(state, log)
    if elsewhere:
        return _Agent(fact=f"{len(elsewhere)} jobs are not this machine's: nobody on {here} can answer for them")
    try:
        held = ask_agent(directory, msg.AskHeld())
        known = ask_agent(directory, msg.AskStanding(job_ids=open_jobs(state)))
    except DispatchError as error:
        return _Agent(fact="asked in vain", issues=(_mute(address, error),))
    if held is None or known is None:
        return _Agent(fact=f"none runs on {here}", held=())
    running = set(held.known) & set(held.known if held_before is None else held_before)
    pid = f", pid {address.pid}," if address is not None else ""
    return _Agent(fact=f"that on {here}{pid} answers and runs {len(held.known)} jobs", held=(*running, *known.known))


def _open_elsewhere(state: SweepState, log: _Log) -> list[str]:
    """Open jobs that were not given to the agent of this machine."""
    jobs = [job for run_id in state.unfinished if (job := state.runs[run_id].open_job) is not None]
    here = socket.gethostname()
    return [
        job.job_id
        for job in jobs
        if job.state is not JobState.GRANTED
        and (job.host not in {None, here} or log.dispatchers.get(job.job_id, "local") != "local")
    ]


def _mute(address: AgentAddress | None, error: DispatchError) -> Issue:
    who = f"the agent with pid {address.pid}" if address is not None else "the agent"
    return Issue(
        kind=IssueKind.AGENT,
        problem=f"{who} takes connections but does not answer: {error}",
        remedy="a controller kills and replaces it once it was silent for half a minute; see agent.log in the folder",
    )


def ask_agent(directory: str, request: msg.Request) -> msg.Reply | None:
    """The answer of the sweep's agent on this machine; None when none runs.

    Raises:
        DispatchError: it runs, but doesn't answer.
    """
    address = read_address(directory)
    try:
        return None if address is None else client.ask_agent(address.socket, request, _ANSWER_TIMEOUT_S)
    except DispatchError as error:
        if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
            return None  # nobody listens there
        raise


def _signs_of_life(heartbeats: Sequence[Heartbeat], agent: _Agent, now: float) -> str:
    seen = [f"{beat.host} was heard of {duration(max(0.0, now - beat.at))} ago" for beat in heartbeats]
    return "; ".join([agent.fact, *seen])


# --------------------------------------------------------------------------------------------------------------- files


def _files(state: SweepState, *, thorough: bool) -> dict[Area, tuple[str, list[Issue]]]:
    directory = Path(state.sweep.config.directory)
    if not directory.is_dir():
        absent = f"not looked at, for {directory} is not on this machine"
        return {Area.CHECKPOINTS: (absent, []), Area.DISK: (absent, [])}
    count = sum(len(run.checkpoints) for run in state.runs.values())
    runs = sorted(state.runs.values(), key=lambda run: run.index)
    damaged = [
        issue
        for run in runs
        for each in run.checkpoints
        if (issue := _checkpoint(directory, run, each, thorough=thorough))
    ]
    compared = "hashes compared" if thorough else "sizes compared; --thorough compares hashes"
    free = shutil.disk_usage(directory).free
    return {
        Area.CHECKPOINTS: (f"{count:,} files, {compared}" if count else "none", damaged),
        Area.DISK: (f"{free / 2**30:,.1f} GiB free", scarce(directory, free, is_over=state.sweep.status.ended)),
    }


def scarce(directory: Path, free_bytes: int, *, is_over: bool) -> list[Issue]:
    """Too little room is an issue; a sweep that has ended does not need any."""
    if free_bytes >= SCARCE_BYTES:
        return []
    problem = f"{free_bytes / 2**20:,.0f} MiB are free for {directory}"
    remedy = "free some space: logs, checkpoints and the store grow"
    return [Issue(kind=IssueKind.DISK, problem=problem, remedy=remedy, is_serious=not is_over)]


def _checkpoint(directory: Path, run: RunInfo, checkpoint: Checkpoint, *, thorough: bool) -> Issue | None:
    path = directory / "runs" / run.run_id / checkpoint.path
    reason = _damage(path, checkpoint, thorough=thorough)
    if reason is None:
        return None
    body = CheckpointDeleted(step=checkpoint.step, reason=reason)
    return Issue(
        kind=IssueKind.CHECKPOINT_FILE,
        problem=f"checkpoint of step {checkpoint.step}: {reason}",
        remedy="it is taken off the list, so that nothing goes on from it; the file stays where it is",
        run_id=run.run_id,
        repairs=(Decision(body=body, run_id=run.run_id),),
    )


def _damage(path: Path, checkpoint: Checkpoint, *, thorough: bool) -> str | None:
    try:
        if thorough:
            sha256, size_bytes = checkpoints.digest(path)
        else:
            sha256, size_bytes = checkpoint.sha256, _size_of(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"missing: there is no {path}"
    except (OSError, CheckpointError) as error:
        return f"cannot be read: {error}"
    if size_bytes != checkpoint.size_bytes:
        return f"damaged: {path} has {size_bytes:,} bytes, {checkpoint.size_bytes:,} were saved"
    if sha256 != checkpoint.sha256:
        return f"damaged: {path} was saved with SHA-256 {checkpoint.sha256:.12}..., now it has {sha256:.12}..."
    return None


def _size_of(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size
