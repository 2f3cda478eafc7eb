"""The spool: whatever the store, the disk and kill -9 do, every event arrives once and in order."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from metta.sweep.errors import StoreAwayError, StoreError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event, new_event
from metta.sweep.model.run import JobType
from metta.sweep.protocols import Heartbeat, Store
from metta.sweep.stores import open_store
from metta.sweep.stores.spooled import SpooledStore
from metta.sweep.testing import sweep_created
from metta.sweep.testing.sweeps import START, SWEEP

RUN = ids.run_id(SWEEP, 0)
JOB = ids.job_id(RUN, JobType.TRAIN, 1)


def event(body: ev.Body, job_id: str | None = JOB) -> Event:
    return new_event(body, sweep_id=SWEEP, at=START, actor="agent", run_id=RUN, job_id=job_id)


_numbers = count()


def reports(number: int) -> list[Event]:
    return [event(ev.MetricsReported(metrics={"reward": float(next(_numbers))})) for _ in range(number)]


def unfit() -> Event:
    """An event that the state of the sweep does not allow."""
    return event(ev.MetricsReported(metrics={"reward": 0.0}), job_id="no-such-job")


class Outage:
    """A store that is there or not, as the test wants it."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/sweeps.db?synchronous=normal"
        self.store: Store = open_store(self.url, create=True)
        self.store.append(
            [
                sweep_created(),
                event(ev.RunCreated(index=0, config={"lr": 0.01}), job_id=None),
                event(ev.JobGranted(job_type=JobType.TRAIN, attempt=1)),
                event(ev.JobStarted(host="node", pid=1, log="log")),
            ]
        )
        self.first = len(list(self.store.read(SWEEP)))
        self.away = False
        #: What is sent arrives, but its sender does not get to know.
        self.loses_answers = False
        self.opened = 0

    def reach(self) -> Store:
        self.check()
        self.opened += 1
        return _SometimesAway(self)  # type: ignore[return-value]

    def check(self) -> None:
        if self.away:
            raise StoreAwayError("the server is down")

    def ids(self) -> list[str]:
        """Of what the agent sent, as it stands in the log."""
        return [event.id for event in self.store.read(SWEEP, after=self.first)]


class _SometimesAway:
    """The writing half of a store, while there is no outage."""

    def __init__(self, outage: Outage) -> None:
        self._outage = outage
        self._open = True

    def append(self, events: Sequence[Event]) -> list[Event]:
        assert self._open
        self._outage.check()
        stored = self._outage.store.append(events)
        if self._outage.loses_answers:
            raise StoreAwayError("the connection broke")
        return stored

    def beat(self, heartbeat: Heartbeat) -> None:
        assert self._open
        self._outage.check()
        self._outage.store.beat(heartbeat)

    def close(self) -> None:
        self._open = False


@pytest.fixture
def outage(tmp_path: Path) -> Iterator[Outage]:
    made = Outage(tmp_path)
    yield made
    made.store.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.spool"


def ids_of(events: Sequence[Event]) -> list[str]:
    return [event.id for event in events]


def deliver_all(store: SpooledStore) -> list[Event]:
    refused = []
    while store.pending:
        refused += store.deliver()
    return refused


def never_reached() -> Store:
    raise StoreAwayError("the server is down")


def spool(path: Path, events: Sequence[Event]) -> None:
    """Leave a spool behind."""
    with closing(SpooledStore(never_reached, path)) as store:
        store.append(events)
        store.save()


# -------------------------------------------------------------------------------------------------------- interleavings


class Interleavings(RuleBasedStateMachine):
    """An agent, its store and their accidents in any order."""

    @initialize()
    def begin(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "agent.spool"
        self.outage = Outage(Path(self.folder.name))
        self.spooled = SpooledStore(self.outage.reach, self.path)
        self.fit: list[str] = []
        self.unfit: list[str] = []
        self.refused: list[str] = []
        #: Added since the last crash, oldest first: what is unsaved is at the end of it.
        self.added: list[str] = []

    @rule(number=st.integers(1, 30), has_unfit=st.booleans())
    def append(self, number: int, has_unfit: bool) -> None:
        events = reports(number)
        self.fit += ids_of(events)
        if has_unfit:
            events.insert(random.Random(number).randrange(number + 1), unfit())
            self.unfit += [event.id for event in events if event.id not in self.fit[-number:]]
        self.added += ids_of(events)
        self.spooled.append(events)

    @rule()
    def save(self) -> None:
        self.spooled.save()
        assert self.spooled.unsaved == 0

    @rule(times=st.integers(1, 5))
    def deliver(self, times: int) -> None:
        for _ in range(times):
            try:
                self.refused += ids_of(self.spooled.deliver())
            except StoreAwayError:
                assert self.outage.away or self.outage.loses_answers

    @rule(away=st.booleans(), loses_answers=st.booleans())
    def change(self, away: bool, loses_answers: bool) -> None:
        self.outage.away = away
        self.outage.loses_answers = loses_answers

    @rule()
    def crash(self) -> None:
        unsaved = self.added[len(self.added) - self.spooled.unsaved :]
        lost = set(unsaved) - set(self.outage.ids())
        self.fit = [id_ for id_ in self.fit if id_ not in lost]
        self.unfit = [id_ for id_ in self.unfit if id_ not in lost]
        self.added = []
        self.spooled.close()
        self.spooled = SpooledStore(self.outage.reach, self.path)

    @invariant()
    def the_log_is_the_beginning_of_what_was_added(self) -> None:
        if hasattr(self, "outage"):
            arrived = self.outage.ids()
            assert arrived == self.fit[: len(arrived)]

    def teardown(self) -> None:
        if not hasattr(self, "outage"):
            return
        self.outage.away = self.outage.loses_answers = False
        self.refused += ids_of(deliver_all(self.spooled))
        assert self.outage.ids() == self.fit
        assert set(self.unfit) <= set(self.refused)
        assert not set(self.fit) & set(self.refused)
        assert self.path.stat().st_size == 0
        self.spooled.close()
        self.outage.store.close()
        self.folder.cleanup()


Interleavings.TestCase.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
TestInterleavings = pytest.mark.slow(Interleavings.TestCase)


# -------------------------------------------------------------------------------------------------------- a store away


def test_while_the_store_is_there_nothing_touches_the_disk(outage: Outage, path: Path) -> None:
    with closing(SpooledStore(outage.reach, path)) as store:
        sent = reports(3)
        store.append(sent)
        before = path.stat()
        assert store.deliver() == []
        assert not store.pending
        assert outage.ids() == ids_of(sent)
        assert path.stat().st_mtime_ns == before.st_mtime_ns
        assert outage.opened == 1


def test_a_store_that_was_away_is_opened_anew_and_gets_everything_in_order(outage: Outage, path: Path) -> None:
    with closing(SpooledStore(outage.reach, path)) as store:
        sent = reports(2)
        store.append(sent)
        store.deliver()
        outage.away = True
        for _ in range(3):
            later = reports(400)
            sent += later
            store.append(later)
            with pytest.raises(StoreAwayError):
                store.deliver()
            store.save()
        outage.away = False
        last = reports(1)
        store.append(last)
        deliver_all(store)
        assert outage.ids() == ids_of([*sent, *last])
        assert outage.opened == 2
        assert path.stat().st_size == 0


def test_events_are_safe_while_the_store_does_not_answer(outage: Outage, path: Path) -> None:
    answer = threading.Event()
    asked = threading.Event()
    taken: list[str] = []

    class Silent:
        def append(self, events: Sequence[Event]) -> list[Event]:
            taken.extend(ids_of(events))
            asked.set()
            assert answer.wait(60)
            return outage.store.append(events)

        def close(self) -> None:
            pass

    with closing(SpooledStore(Silent, path)) as store:  # type: ignore[arg-type]
        sent = reports(2)
        store.append(sent)
        delivering = threading.Thread(target=store.deliver)
        delivering.start()
        assert asked.wait(60)
        later = reports(1)
        store.append(later)
        store.save()
        assert store.unsaved == 0
        assert len(path.read_bytes().splitlines()) == 3
        answer.set()
        delivering.join()
        assert outage.ids() == ids_of(sent)
        deliver_all(store)
    assert outage.ids() == ids_of([*sent, *later])
    assert taken == outage.ids()  # and nothing was handed over twice, though it went to the disk in the meantime


def test_only_the_events_that_do_not_fit_are_refused(outage: Outage, path: Path) -> None:
    with closing(SpooledStore(outage.reach, path)) as store:
        events = reports(1200)
        strangers = [unfit() for _ in range(3)]
        for place, stranger in zip((0, 601, 1202), strangers, strict=True):
            events.insert(place, stranger)
        store.append(events)
        assert deliver_all(store) == strangers
        assert outage.ids() == [event.id for event in events if event not in strangers]


def test_an_outage_is_two_lines_in_the_log_however_often_the_store_is_tried(
    outage: Outage, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    beat = Heartbeat(sweep_id=SWEEP, host="node", pid=1, at=START, jobs=0)
    with closing(SpooledStore(outage.reach, path)) as store:
        store.beat(beat)
        store.append(reports(1))
        outage.away = True
        for attempt in (store.deliver, lambda: store.beat(beat)) * 3:
            with pytest.raises(StoreAwayError):
                attempt()
        outage.away = False
        deliver_all(store)
        store.beat(beat)
    assert [record.getMessage() for record in caplog.records] == [
        f"the store is away, events wait in {path}: the server is down",
        "the store is back",
    ]


def test_a_spool_has_one_owner_at_a_time(outage: Outage, path: Path) -> None:
    with closing(SpooledStore(outage.reach, path)), pytest.raises(StoreError, match=r"agent\.spool.*another process"):
        SpooledStore(outage.reach, path)
    SpooledStore(outage.reach, path).close()


def test_a_spool_that_cannot_be_opened_says_so(outage: Outage, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"agent\.spool.*cannot be opened"):
        SpooledStore(outage.reach, tmp_path / "file" / "agent.spool")


def test_a_spool_whose_folder_was_removed_is_delivered_all_the_same(outage: Outage, path: Path) -> None:
    with closing(SpooledStore(outage.reach, path)) as store:
        sent = reports(2)
        store.append(sent)
        store.save()
        path.unlink()
        deliver_all(store)
    assert outage.ids() == ids_of(sent)


# ------------------------------------------------------------------------------------------------------------- kill -9

#: Spools for ever. A line says which events are safe.
SPOOLER = """
    import sys
    from pathlib import Path
    from itertools import count
    from metta.sweep.errors import StoreAwayError
    from metta.sweep.model import events as ev
    from metta.sweep.model.events import new_event
    from metta.sweep.stores.spooled import SpooledStore

    path, sweep_id, run_id, job_id = sys.argv[1:]

    def away():
        raise StoreAwayError("the server is down")

    store = SpooledStore(away, Path(path))
    for number in count():
        bodies = [ev.MetricsReported(metrics={"reward": float(number)})] * (number % 40 + 1)
        events = [
            new_event(body, sweep_id=sweep_id, at=0.0, actor="agent", run_id=run_id, job_id=job_id) for body in bodies
        ]
        store.append(events)
        store.save()
        print(*(event.id for event in events), flush=True)
"""

#: Delivers what it finds. A line says that a batch was handed over.
DELIVERER = """
    import sys
    from pathlib import Path
    from metta.sweep.stores import open_store
    from metta.sweep.stores.spooled import SpooledStore

    store = SpooledStore(lambda: open_store(sys.argv[2]), Path(sys.argv[1]))
    while store.pending:
        store.deliver()
        print("delivered", flush=True)
"""


@contextmanager
def python(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_was_spooled_survives_kill_9(outage: Outage, path: Path) -> None:
    promised: list[str] = []
    for lines in random.Random(7).sample(range(1, 120), 3):
        with python(SPOOLER, path, SWEEP, RUN, JOB) as process:
            assert process.stdout is not None
            output = "".join(process.stdout.readline() for _ in range(lines))
            process.kill()
            output += process.stdout.read()
            promised += output[: output.rfind("\n") + 1].split()
    with closing(SpooledStore(outage.reach, path)) as store:
        assert deliver_all(store) == []
    arrived = outage.ids()
    assert len(arrived) == len(set(arrived))
    kept = set(promised)
    assert [id_ for id_ in arrived if id_ in kept] == promised
    # What was on the disk but not yet promised when a process died: a batch of up to 40 each time.
    assert len(arrived) - len(promised) <= 3 * 40


def test_a_delivery_that_is_killed_is_finished_by_the_next(outage: Outage, path: Path) -> None:
    sent = reports(6000)
    spool(path, sent)
    url = outage.url.replace("normal", "full")
    for batches in (1, 4):
        with python(DELIVERER, path, url) as process:
            assert process.stdout is not None
            for _ in range(batches):
                assert process.stdout.readline()
    assert path.stat().st_size > 0
    with closing(SpooledStore(outage.reach, path)) as store:
        assert deliver_all(store) == []
    assert outage.ids() == ids_of(sent)
    assert path.stat().st_size == 0


# ---------------------------------------------------------------------------------------------------- what a crash left


def test_a_record_that_was_cut_short_is_dropped_and_those_before_it_are_not(
    outage: Outage, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent = reports(3)
    spool(path, sent)
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for length in range(len(whole) - last + 1, len(whole)):
        path.write_bytes(whole[:length])
        with closing(SpooledStore(outage.reach, path)) as store:
            more = reports(1)
            store.append(more)
            store.save()
            deliver_all(store)
        assert outage.ids()[-1:] == ids_of(more)
        assert "its writer died at the last record" in caplog.messages[-1]
    assert outage.ids()[:2] == ids_of(sent[:2])
    assert sent[2].id not in outage.ids()
    assert len(caplog.messages) == last - 1


@pytest.mark.parametrize("flip", [0x01, 0x80])
def test_a_damaged_record_is_reported_and_the_others_arrive(
    outage: Outage, path: Path, caplog: pytest.LogCaptureFixture, flip: int
) -> None:
    length = len(_spooled_bytes(path, reports(1)))
    for place in range(0, length, 7):
        sent = reports(3)
        content = bytearray(_spooled_bytes(path, sent))
        content[length + place] ^= flip
        path.write_bytes(content)
        caplog.clear()
        before = len(outage.ids())
        with closing(SpooledStore(outage.reach, path)) as store:
            deliver_all(store)
        assert outage.ids()[before:] == [sent[0].id, sent[2].id]
        [message] = caplog.messages
        assert f"the record at byte {length} is damaged" in message
        assert path.stat().st_size == 0


def _spooled_bytes(path: Path, events: Sequence[Event]) -> bytes:
    path.unlink(missing_ok=True)
    spool(path, events)
    return path.read_bytes()


def test_no_byte_can_be_lost_from_the_spool_in_silence(
    outage: Outage, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    choose = random.Random(11)
    for _ in range(150):
        sent = reports(4)
        content = bytearray(_spooled_bytes(path, sent))
        place = choose.randrange(len(content))
        was, content[place] = content[place], choose.randrange(256)
        path.write_bytes(content)
        caplog.clear()
        before = len(outage.ids())
        with closing(SpooledStore(outage.reach, path)) as store:
            deliver_all(store)
        arrived = outage.ids()[before:]
        assert arrived == [event.id for event in sent if event.id in set(arrived)]
        assert len(arrived) >= len(sent) - 2  # a line's end may be what is damaged
        assert (arrived == ids_of(sent)) == (was == content[place]) == (not caplog.messages)


def test_a_spool_that_is_damaged_and_cut_short_while_it_is_used_goes_on_with_the_rest(
    outage: Outage, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outage.away = True
    with closing(SpooledStore(outage.reach, path)) as store:
        sent = reports(2)
        store.append(sent)
        store.save()
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.truncate(size - 1)
            file.seek(0)
            file.write(b"?")
        more = reports(1)
        store.append(more)
        outage.away = False
        deliver_all(store)
    assert outage.ids() == ids_of([sent[1], *more])
    told = [message for message in caplog.messages if "is damaged" in message]
    assert [f"record at byte {place} " in message for place, message in zip((0, size - 1), told, strict=True)] == [
        True
    ] * 2


# ------------------------------------------------------------------------------------------------------------ full disk


@dataclass(frozen=True)
class SmallDisk:
    """A disk that can be filled up and freed."""

    folder: Path
    fill: Callable[[], None]
    free: Callable[[], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A file system of one megabyte; where none may be mounted, a limit on the size of files, which cuts writes too."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        yield from _limited(folder)
        return
    ballast = folder / "ballast"

    def fill() -> None:
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                # A page is left, which the first records fill: that a write is cut short is the case to be tested.
                file.truncate(file.tell() - 4096)

    try:
        yield SmallDisk(folder, fill, ballast.unlink)
    finally:
        # Lazily: a test that failed may have left files open.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _limited(folder: Path) -> Iterator[SmallDisk]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    yield SmallDisk(folder, lambda: limit(1000), lambda: limit(soft))
    limit(soft)


def test_a_full_disk_keeps_events_in_memory_until_there_is_room(
    outage: Outage, disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    outage.away = True
    path = disk.folder / "agent.spool"
    with closing(SpooledStore(outage.reach, path)) as store:
        sent = reports(2)
        store.append(sent)
        store.save()
        whole = path.stat().st_size
        disk.fill()
        for _ in range(3):
            more = reports(50)
            sent += more
            store.append(more)
            store.save()
            assert store.unsaved
            assert path.stat().st_size == whole  # nothing of what did not fit is left
        disk.free()
        store.save()
        assert store.unsaved == 0
    with closing(SpooledStore(outage.reach, path)) as store:
        outage.away = False
        deliver_all(store)
    assert outage.ids() == ids_of(sent)
    told = [message for message in caplog.messages if str(path) in message]
    assert ["cannot be written" in message for message in told] == [True, False]
    assert "50 events wait in memory alone" in told[0]


def test_a_disk_that_is_full_for_store_and_spool_loses_nothing(disk: SmallDisk) -> None:
    outage = Outage(disk.folder)
    with (
        closing(outage.store),
        closing(SpooledStore(lambda: open_store(outage.url), disk.folder / "agent.spool")) as it,
    ):
        sent = reports(300)
        disk.fill()
        it.append(sent)
        for _ in range(2):
            with pytest.raises(StoreError):
                it.deliver()
            it.save()
        assert it.unsaved
        disk.free()
        deliver_all(it)
        assert outage.ids() == ids_of(sent)
