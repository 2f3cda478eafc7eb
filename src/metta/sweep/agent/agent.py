"""The agent: takes jobs from controllers, runs them through the fork server, writes what happens to the store.

It is a session of its own, so it outlives the controller that started it; the next controller finds it by the file that
it keeps in the sweep's folder. It ends when nothing runs and nobody needs it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from metta.sweep.agent import failures
from metta.sweep.agent import messages as msg
from metta.sweep.agent.checkpoints import Shelf
from metta.sweep.agent.command import CHECKPOINT_PLACEHOLDER, MetricsTail, arguments_for
from metta.sweep.agent.failures import Verdict
from metta.sweep.agent.forkserver_process import ForkServerProcess
from metta.sweep.agent.gpus import visible_gpus
from metta.sweep.agent.memory import MemoryLimits
from metta.sweep.agent.recorder import Recorder
from metta.sweep.agent.supervision import Job, Worker
from metta.sweep.checkpoints import Damaged
from metta.sweep.errors import MetricError, StoreError
from metta.sweep.model import events as ev
from metta.sweep.model.run import FailureKind, JobDefinition, JobType, Outcome
from metta.sweep.model.sweep import CommandTarget, SweepMetadata, Target
from metta.sweep.protocols import Clock, Heartbeat
from metta.sweep.session import RunContext
from metta.sweep.stores.spooled import SpooledStore

logger = logging.getLogger(__name__)

HEARTBEAT_EVERY_S = 5.0
#: Without jobs and without a controller, wait this long for one before ending.
_IDLE_EXIT_S = 15.0
#: The same with events that the store does not take: the next agent finds them on the disk and delivers them.
_UNDELIVERED_EXIT_S = 3600.0
#: How often the files of commands are searched for new metrics.
_TAIL_EVERY_S = 0.2
#: A request names all jobs of a step, each with its checkpoints.
_LONGEST_REQUEST = 1 << 28
#: Ids of ended jobs kept, so that a job offered twice around its end is not run twice.
_REMEMBERED = 4096
#: A fork server that keeps dying (its imports exhaust memory, say) is not started more often than this in one agent's
#: life.
_MOST_RESTARTS = 5

_decode_request = msgspec.json.Decoder(msg.Request).decode
_decode_job_message = msgspec.json.Decoder(msg.JobMessage).decode


class Agent:
    """Runs jobs of one sweep on this machine.

    Args:
        store: Where events go; it may be away for as long as it likes.
        sweep: The sweep, for its targets and limits.
        socket_path: Where it listens for controllers.
        clock: The time.
    """

    def __init__(self, store: SpooledStore, sweep: SweepMetadata, socket_path: Path, clock: Clock) -> None:
        self._store = store
        self._sweep_id = sweep.sweep_id
        self._config = sweep.config
        self._socket_path = socket_path
        self._clock = clock
        self._host = socket.gethostname()
        self._jobs: dict[str, Job] = {}
        self._workers: dict[str, Worker] = {}
        self._idle_workers: deque[Worker] = deque()
        self._memory = MemoryLimits(self._workers)
        self._waiting: deque[Job] = deque()
        self._ended: deque[str] = deque(maxlen=_REMEMBERED)
        self._free_gpus = deque(visible_gpus() if self._config.resources.gpus else [])
        self._spawned = 0
        self._restarts = 0
        self._controllers = 0
        self._leaving = False
        self._idle_since = clock.monotonic()
        self._recorder = Recorder(store, sweep.sweep_id, f"agent@{self._host}", clock, self._on_refused)
        self._shelf = Shelf(sweep.config, self._recorder, clock)
        self._preparing: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------------------------------ lifetime

    async def run(self, on_ready: Callable[[], object]) -> None:
        """Serve until nothing runs and nobody needs it; `on_ready` is called once it can be talked to."""
        self._loop = asyncio.get_running_loop()
        self._start_forkserver()
        with self._listening() as listener:
            server = await asyncio.start_unix_server(self._serve_client, sock=listener, limit=_LONGEST_REQUEST)
            on_ready()
            recording = asyncio.create_task(self._recorder.run())
            beating = asyncio.create_task(self._beat())
            tailing = asyncio.create_task(self._tail())
            tidying = asyncio.create_task(self._shelf.run())
            limiting = asyncio.create_task(self._memory.run())
            tasks = {recording, beating, tailing, tidying, limiting}
            try:
                while not self._is_useless():
                    done, _ = await asyncio.wait(tasks, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        task.result()  # none of them ends but by an error, which then ends the agent
            finally:
                for task in tasks:
                    task.cancel()
                server.close()
                await self._recorder.finish()
                self._forkserver.close()

    def _is_useless(self) -> bool:
        if self._jobs or (self._shelf.busy and not self._recorder.busy):
            self._idle_since = self._clock.monotonic()
            return False
        idle_s = self._clock.monotonic() - self._idle_since
        if self._recorder.busy:
            return not self._controllers and not self._recorder.unsaved and idle_s > _UNDELIVERED_EXIT_S
        return self._leaving or (not self._controllers and idle_s > _IDLE_EXIT_S)

    @contextmanager
    def _listening(self) -> Iterator[socket.socket]:
        self._socket_path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(self._socket_path))
            listener.listen(64)
            try:
                yield listener
            finally:
                self._socket_path.unlink(missing_ok=True)

    async def _beat(self) -> None:
        while True:
            beat = Heartbeat(
                sweep_id=self._sweep_id, host=self._host, pid=os.getpid(), at=self._clock.now(), jobs=len(self._jobs)
            )
            with suppress(StoreError):  # the store has said in the log that it is away
                await asyncio.to_thread(self._store.beat, beat)
            await asyncio.sleep(HEARTBEAT_EVERY_S)

    # --------------------------------------------------------------------------------------------- controllers

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_controller = False
        try:
            while line := await reader.readline():
                request = _decode_request(line)
                if not is_controller and not isinstance(request, msg.Report | msg.KeepCheckpoint):
                    is_controller = True
                    self._controllers += 1
                writer.write(msg.encode_line(self._answer(request)))
                await writer.drain()
        except (ConnectionError, msgspec.MsgspecError, ValueError):
            logger.exception("a client's connection ended in an error")
        finally:
            self._controllers -= is_controller
            self._idle_since = self._clock.monotonic()
            writer.close()

    def _answer(self, request: msg.Request) -> msg.Reply:
        if isinstance(request, msg.Dispatch):
            self._leaving = False
            for definition in request.jobs:
                self._take(definition)
        elif isinstance(request, msg.AskStanding):
            return msg.Reply(known=[job_id for job_id in request.job_ids if self._knows(job_id)])
        elif isinstance(request, msg.AskHeld):
            return msg.Reply(known=list(self._jobs))
        elif isinstance(request, msg.Cancel):
            for job_id in request.job_ids:
                if job_id in self._jobs:
                    self._terminate(self._jobs[job_id], Verdict(request.outcome, request.reason))
        elif isinstance(request, msg.Report):
            return self._take_report(request)
        elif isinstance(request, msg.KeepCheckpoint):
            return self._keep_checkpoint(request)
        else:
            self._leaving = True
        return msg.Reply()

    def _knows(self, job_id: str) -> bool:
        return job_id in self._jobs or job_id in self._ended

    def _take_report(self, request: msg.Report) -> msg.Reply:
        job = self._jobs.get(request.job_id)
        if job is None:
            return msg.Reply(error=f"job {request.job_id} is not running")
        if request.error is not None:
            self._terminate(job, failures.of_report(request.error))
        else:
            self._record(job, ev.MetricsReported(metrics=request.metrics))
        return msg.Reply()

    def _keep_checkpoint(self, request: msg.KeepCheckpoint) -> msg.Reply:
        job = self._jobs.get(request.job_id)
        if job is None:
            return msg.Reply(error=f"job {request.job_id} is not running")
        self._read_tail(job)  # what it printed before is what the checkpoint's score is taken from
        self._shelf.saved(job.job_id, request.saved)
        return msg.Reply()

    # ---------------------------------------------------------------------------------------------------- jobs

    def _take(self, definition: JobDefinition) -> None:
        if self._knows(definition.job_id):
            return
        name = f"{definition.type}-{definition.attempt}.log"
        job = Job(definition, self._run_directory(definition) / name)
        self._jobs[job.job_id] = job
        self._shelf.take(definition, self._run_directory(definition))
        self._waiting.append(job)
        self._start_waiting()

    def _run_directory(self, definition: JobDefinition) -> Path:
        return Path(self._config.directory) / "runs" / definition.run_id

    def _target(self, definition: JobDefinition) -> Target:
        target = self._config.target if definition.type is JobType.TRAIN else self._config.evaluate
        assert target is not None
        return target

    def _start_waiting(self) -> None:
        """Start the jobs that wait, as far as the GPUs go."""
        while self._waiting and len(self._free_gpus) >= self._config.resources.gpus:
            job = self._waiting.popleft()
            job.gpus = tuple(self._free_gpus.popleft() for _ in range(self._config.resources.gpus))
            try:
                self._start(job)
            except Exception as error:  # noqa: BLE001 (a job that cannot be started has to end)
                self._cannot_start(job, error)

    def _cannot_start(self, job: Job, error: Exception) -> None:
        """End a job that never was, or it would be waited for for ever."""
        logger.exception("job %s cannot be started", job.job_id)
        job.verdict = failures.of_start(error)
        self._end(job, None)

    def _start(self, job: Job) -> None:
        target = self._target(job.definition)
        if isinstance(target, CommandTarget) and job.definition.checkpoints:
            preparing = asyncio.create_task(self._resume_command(job, target))
            self._preparing.add(preparing)
            preparing.add_done_callback(self._preparing.discard)
        elif isinstance(target, CommandTarget):
            self._start_command(job, target)
        elif self._config.isolation == "reuse" and self._idle_workers:
            worker = self._idle_workers.pop()
            worker.job = job
            self._assign(worker, job, target)
            self._on_started(worker)
        else:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            worker = self._spawn(job, link=ours, theirs=theirs, reuse=self._config.isolation == "reuse")
            self._assign(worker, job, target)

    async def _resume_command(self, job: Job, target: CommandTarget) -> None:
        """Start a command once it is known which checkpoint it can go on from."""
        try:
            await self._shelf.resume(job.job_id, job.log)
            if self._awaits_start(job):
                self._start_command(job, target)
        except Exception as error:  # noqa: BLE001 (as in _start_waiting)
            if self._awaits_start(job):
                self._cannot_start(job, error)

    def _awaits_start(self, job: Job) -> bool:
        """Whether a job without a process is still to get one; if it was stopped meanwhile, it ends here."""
        if self._jobs.get(job.job_id) is not job:
            return False  # it was lost with the fork server
        if job.verdict is not None:
            self._end(job, None)
        return job.verdict is None

    def _start_command(self, job: Job, target: CommandTarget) -> None:
        definition = job.definition
        values = {"run_id": definition.run_id, "run_directory": str(self._run_directory(definition))}
        if (checkpoint := self._shelf.of(job.job_id).resumed_path) is not None:
            values[CHECKPOINT_PLACEHOLDER] = str(checkpoint)
        argv = arguments_for(target.argv, definition.config, values, self._config.search_space.parameters)
        directory = Path(self._config.working_directory)
        job.tail = MetricsTail(target.metrics, job.log, directory, {**definition.config, **values})
        self._spawn(job, argv=argv)

    def _spawn(
        self,
        job: Job,
        *,
        argv: list[str] | None = None,
        link: socket.socket | None = None,
        theirs: socket.socket | None = None,
        reuse: bool = False,
    ) -> Worker:
        self._spawned += 1
        worker = Worker(f"w{self._spawned}", job, link)
        self._workers[worker.key] = worker
        request = msg.Spawn(
            key=worker.key,
            log=str(job.log),
            cwd=self._config.working_directory,
            env=self._environment(job),
            argv=argv,
            reuse=reuse,
        )
        self._forkserver.send(request, link=theirs)
        if theirs is not None:
            theirs.close()
        return worker

    def _environment(self, job: Job) -> dict[str, str]:
        definition = job.definition
        environment = {
            msg.SOCKET_VARIABLE: str(self._socket_path),
            msg.JOB_VARIABLE: definition.job_id,
            msg.RUN_VARIABLE: definition.run_id,
            msg.RUN_DIRECTORY_VARIABLE: str(self._run_directory(definition)),
            **self._shelf.of(definition.job_id).environment,
        }
        if self._config.resources.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(job.gpus)
        return environment

    def _assign(self, worker: Worker, job: Job, target: Target) -> None:
        definition = job.definition
        assignment = msg.Assignment(
            context=RunContext(
                sweep_id=definition.sweep_id,
                run_id=definition.run_id,
                job_id=definition.job_id,
                type=definition.type,
                directory=str(self._run_directory(definition)),
                checkpoints=definition.checkpoints,
            ),
            target=target,
            config=definition.config,
            log=str(job.log),
            env=self._environment(job),
        )
        worker.assign(assignment)

    def _on_started(self, worker: Worker) -> None:
        job = worker.job
        assert job is not None
        assert worker.pid is not None
        job.begin(self._clock.monotonic())
        self._memory.watch(worker)
        gpus = tuple(int(gpu) for gpu in job.gpus if gpu.isdecimal())
        self._record(job, ev.JobStarted(host=self._host, pid=worker.pid, log=str(job.log), gpus=gpus))
        if self._config.job_timeout_s is not None:
            limit_s = self._config.job_timeout_s
            reason = f"ran longer than job_timeout_s = {limit_s:g}"
            verdict = Verdict(Outcome.TIMED_OUT, reason, FailureKind.TIMED_OUT)
            job.timers.append(self._loop.call_later(limit_s, self._terminate, job, verdict))
        if job.verdict is not None:
            self._signal(job, signal.SIGTERM)

    def _terminate(self, job: Job, verdict: Verdict) -> None:
        """End a job's processes: politely, then not."""
        if job.verdict is not None or job.finished is not None:
            return
        job.verdict = verdict
        if job in self._waiting:
            self._waiting.remove(job)
            self._end(job, None)
            return
        self._signal(job, signal.SIGTERM)
        job.timers.append(self._loop.call_later(self._config.grace_s, self._signal, job, signal.SIGKILL))

    def _signal(self, job: Job, number: signal.Signals) -> None:
        for worker in self._workers.values():
            if worker.job is job:
                self._forkserver.send(msg.Signal(key=worker.key, signal=number))

    def _on_job_message(self, worker: Worker) -> None:
        assert worker.link is not None
        if not worker.receive(lambda line: self._handle_job_message(worker, line)):
            self._loop.remove_reader(worker.link)

    def _handle_job_message(self, worker: Worker, line: bytes) -> None:
        job = worker.job
        if job is None:
            return
        message = _decode_job_message(line)
        if isinstance(message, msg.Measured):
            self._record(job, ev.MetricsReported(metrics=message.metrics))
            return
        if isinstance(message, ev.CheckpointSaved):
            self._shelf.saved(job.job_id, message)
            return
        if isinstance(message, Damaged):
            self._shelf.damaged(job.job_id, message)
            return
        job.finished = message
        if self._config.isolation == "reuse" and job.verdict is None:
            worker.job = None
            self._idle_workers.append(worker)
            self._end(job, None)

    def _end(self, job: Job, exited: msg.Exited | None) -> None:
        self._record(job, job.end(exited, self._clock.monotonic()))
        self._shelf.end(job.job_id)
        del self._jobs[job.job_id]
        self._ended.append(job.job_id)
        self._free_gpus.extend(job.gpus)
        self._start_waiting()

    def _record(self, job: Job, body: ev.Body) -> None:
        self._recorder.add(body, run_id=job.definition.run_id, job_id=job.job_id)
        if isinstance(body, ev.MetricsReported):
            self._shelf.measured(job.job_id, body.metrics)

    def _on_refused(self, event: ev.Event) -> None:
        """The log has moved on without this job (it was given up as lost, say): nobody wants its results."""
        if isinstance(event.body, ev.CheckpointDeleted):
            return  # it went another way
        self._shelf.refused(event.job_id or "")
        job = self._jobs.get(event.job_id or "")
        if job is not None:
            self._terminate(job, Verdict(Outcome.CANCELLED, "the sweep gave this job up"))

    async def _tail(self) -> None:
        while True:
            await asyncio.sleep(_TAIL_EVERY_S)
            for job in list(self._jobs.values()):
                if job.began is not None:
                    self._read_tail(job)

    def _read_tail(self, job: Job, *, final: bool = False) -> None:
        if job.tail is None:
            return
        try:
            for metrics in job.tail.read(final=final):
                self._record(job, ev.MetricsReported(metrics=metrics))
        except MetricError as error:
            verdict = failures.of_exception(error)
            if final and job.verdict is None:
                job.verdict = verdict
            self._terminate(job, verdict)

    # --------------------------------------------------------------------------------------------- fork server

    def _start_forkserver(self) -> None:
        self._forkserver = ForkServerProcess(self._config, self._loop, self._on_fork_reply, self._on_forkserver_death)

    def _on_fork_reply(self, reply: msg.ForkReply) -> None:
        worker = self._workers[reply.key]
        if isinstance(reply, msg.Spawned):
            worker.pid = reply.pid
            self._on_started(worker)
            if worker.link is not None:
                # Only now: a fast job may report before the fork server has said that it exists.
                self._loop.add_reader(worker.link, self._on_job_message, worker)
        elif isinstance(reply, msg.Exited):
            self._on_exited(worker, reply)
        else:
            assert worker.job is not None
            worker.job.verdict = worker.job.verdict or reply.verdict
            if isinstance(reply, msg.SpawnFailed):
                self._on_exited(worker, None)

    def _on_exited(self, worker: Worker, exited: msg.Exited | None) -> None:
        if worker.link is not None:
            worker.receive(lambda line: self._handle_job_message(worker, line))
            self._close_link(worker)
        del self._workers[worker.key]
        if worker in self._idle_workers:
            self._idle_workers.remove(worker)
        if worker.job is not None:
            self._read_tail(worker.job, final=True)
            self._end(worker.job, exited)

    def _close_link(self, worker: Worker) -> None:
        if worker.link is not None:
            self._loop.remove_reader(worker.link)
            worker.link.close()

    def _on_forkserver_death(self, code: int) -> None:
        """All its jobs died with it. Forget them, so that the controller learns that they are lost, and start anew."""
        logger.error("the fork server ended with code %s and %d jobs", code, len(self._jobs))
        self._restarts += 1
        if self._restarts > _MOST_RESTARTS:
            raise SystemExit(f"the fork server died {self._restarts} times, last with code {code}")
        for worker in self._workers.values():
            self._close_link(worker)
        for job in self._jobs.values():
            job.forget()
        self._jobs.clear()
        self._workers.clear()
        self._idle_workers.clear()
        self._waiting.clear()
        self._free_gpus = deque(visible_gpus() if self._config.resources.gpus else [])
        self._start_forkserver()
