"""Whatever the members of a fallback do, and whenever its process dies: no job is started twice, and all are placed."""

from __future__ import annotations

import tempfile
from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dispatchers.jobs import job
from metta.sweep.dispatchers.fallback import FallbackDispatcher
from metta.sweep.errors import DispatchError
from metta.sweep.model.run import JobDefinition
from metta.sweep.protocols import Standing
from metta.sweep.testing import ManualClock
from metta.sweep.testing.fake_dispatcher import FakeCompute, FakeDispatcher

NAMES = ("slurm", "cloud", "local")
Computes = st.integers(0, len(NAMES) - 1)


class ProcessDied(BaseException):
    """SIGKILL."""


class Fallback(RuleBasedStateMachine):
    """A controller that offers its open jobs again and again, and computes that do as they like."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.clock = ManualClock()
        self.computes = [FakeCompute() for _ in NAMES]
        #: Jobs that were granted and have not ended, and those that this process knows to be placed.
        self.open: dict[str, JobDefinition] = {}
        self.placed: dict[str, str] = {}
        self.granted = 0
        self.lost: dict[str, int] = {}
        self.start_process()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.place_what_silence_does_not_hold_back()
            self.place_everything()
            self.folder.cleanup()

    # --------------------------------------------------------------------------------------------------- the controller

    @rule(count=st.integers(1, 4))
    def grant(self, count: int) -> None:
        for _ in range(count):
            new = job(self.granted)
            self.open[new.job_id] = new
            self.granted += 1

    @rule()
    def dispatch(self) -> None:
        waiting = [each for job_id, each in self.open.items() if job_id not in self.placed]
        with suppress(DispatchError):
            for job_id, placement in self.fallback.dispatch(waiting).items():
                assert self.compute_of(placement.dispatcher).knows(job_id)
                self.placed[job_id] = placement.dispatcher

    @rule()
    def start_process(self) -> None:
        """A controller that knows nothing but the log, which does not say where jobs went."""
        self.placed = {}
        members = [FakeDispatcher(name, compute) for name, compute in zip(NAMES, self.computes, strict=True)]
        self.fallback = FallbackDispatcher(members, self.clock, self.folder.name)

    @rule(which=Computes, after=st.integers(1, 3))
    def dispatch_and_die(self, which: int, after: int) -> None:
        self.interrupt(which, after, ProcessDied(), silent=False)
        with suppress(ProcessDied):
            self.dispatch()
        self.computes[which].on_taken = None
        self.start_process()

    @rule()
    def ask(self) -> None:
        for job_id, standing in self.fallback.standing(sorted(self.open)).items():
            is_known = any(compute.knows(job_id) for compute in self.computes)
            assert standing is not Standing.LOST or not is_known
            assert standing is not Standing.KNOWN or is_known

    @rule(seconds=st.floats(0, 1000))
    def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)

    # ----------------------------------------------------------------------------------------------------- the computes

    @rule(which=Computes, is_silent=st.booleans())
    def fall_silent_or_speak(self, which: int, is_silent: bool) -> None:
        self.computes[which].is_silent = is_silent

    @rule(which=Computes, refusal=st.sampled_from([None, "invalid account"]))
    def refuse_or_accept(self, which: int, refusal: str | None) -> None:
        self.computes[which].refusal = refusal

    @rule(which=Computes, capacity=st.none() | st.integers(0, 3), room=st.none() | st.integers(0, 3))
    def change_room(self, which: int, capacity: int | None, room: int | None) -> None:
        self.computes[which].capacity = capacity
        self.computes[which].room = room

    @rule(which=Computes, after=st.integers(1, 3), silent=st.booleans())
    def break_next_dispatch(self, which: int, after: int, silent: bool) -> None:
        self.interrupt(which, after, DispatchError("broken pipe"), silent=silent)

    def interrupt(self, which: int, after: int, error: BaseException, *, silent: bool) -> None:
        compute = self.computes[which]
        left = [after]

        def on_taken(_job: JobDefinition) -> None:
            left[0] -= 1
            if left[0] == 0:
                compute.on_taken = None
                compute.is_silent = compute.is_silent or silent
                raise error

        compute.on_taken = on_taken

    @precondition(lambda self: any(compute.running for compute in self.computes))
    @rule(data=st.data(), is_lost=st.booleans())
    def end_a_job(self, data: st.DataObject, is_lost: bool) -> None:
        compute, job_id = data.draw(
            st.sampled_from([(compute, job_id) for compute in self.computes for job_id in sorted(compute.running)])
        )
        if is_lost:
            # The log may not know that it ran at all; then it is offered again.
            compute.lose(job_id)
            self.lost[job_id] = self.lost.get(job_id, 0) + 1
            self.placed.pop(job_id, None)
        else:
            compute.finish(job_id)
            self.open.pop(job_id, None)

    # --------------------------------------------------------------------------------------------------- what must hold

    def compute_of(self, name: str) -> FakeCompute:
        return self.computes[NAMES.index(name)]

    @invariant()
    def no_job_is_started_twice(self) -> None:
        for number in range(getattr(self, "granted", 0)):
            job_id = job(number).job_id
            starts = sum(compute.starts.get(job_id, 0) for compute in self.computes)
            assert starts <= 1 + self.lost.get(job_id, 0)
            assert sum(job_id in compute.running for compute in self.computes) <= 1

    def heal(self, compute: FakeCompute) -> None:
        compute.is_silent = False
        compute.refusal = compute.capacity = compute.room = compute.on_taken = None

    def place_what_silence_does_not_hold_back(self) -> None:
        """One healthy member is enough for jobs that no silent one was ever offered."""
        *others, healthy = self.computes
        self.heal(healthy)
        for _ in range(3):
            self.clock.advance(1000)
            self.dispatch()
        doubtful = set().union(*(compute.offered for compute in others if compute.is_silent))
        assert self.open.keys() - doubtful <= self.placed.keys()

    def place_everything(self) -> None:
        for compute in self.computes:
            self.heal(compute)
        for _ in range(3):
            self.clock.advance(1000)
            self.dispatch()
        assert self.open.keys() == self.open.keys() & self.placed.keys()


TestFallbackAtRandom = Fallback.TestCase
TestFallbackAtRandom.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
