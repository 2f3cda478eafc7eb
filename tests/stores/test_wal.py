"""Damage to the write-ahead log that a crash leaves behind: told before SQLite makes the loss of commits permanent."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from metta.sweep.errors import DamagedStoreError
from metta.sweep.stores import open_reader, open_store, sqlite, wal
from metta.sweep.stores.backup import backup
from metta.sweep.stores.recovery import recover
from metta.sweep.testing import run_events, sweep_created
from metta.sweep.testing.stores import contents
from metta.sweep.testing.sweeps import SWEEP
from stores.writing import appender, go

PAGE = 4096
FRAME = wal.FRAME_HEADER + PAGE
CUT_OFF = r"-wal is damaged, and what was committed behind .* metta sweep doctor --recover FILE"
RUNS = 5


@dataclass(frozen=True)
class Crashed:
    """The files of a store whose processes were all killed at one moment."""

    path: Path
    file: bytes
    log: bytes
    index: bytes | None

    @classmethod
    def of(cls, path: Path) -> Crashed:
        """Of a store that is open in this process; elsewhere, for the locks on its own files must be left alone."""
        file, log, index = (path.with_name(f"{path.name}{end}").read_bytes() for end in ("", "-wal", "-shm"))
        (path.parent / "crashed").mkdir(exist_ok=True)
        return cls(path.parent / "crashed" / path.name, file, log, index)

    @property
    def frames(self) -> int:
        """How many the log has."""
        return (len(self.log) - wal.WAL_HEADER) // FRAME

    @property
    def commits(self) -> list[int]:
        """The numbers of the frames, from 0, that end a commit."""
        starts = range(wal.WAL_HEADER, len(self.log), FRAME)
        return [number for number, start in enumerate(starts) if any(self.log[start + 4 : start + 8])]

    def flipped(self, *positions: int) -> Crashed:
        """With one bit of each of these bytes of the log changed."""
        log = bytearray(self.log)
        for position in positions:
            log[position] ^= 0x10
        return replace(self, log=bytes(log))

    def write(self) -> str:
        """Lay the files out; their path."""
        for end, content in (("", self.file), ("-wal", self.log), ("-shm", self.index)):
            part = self.path.with_name(f"{self.path.name}{end}")
            part.unlink(missing_ok=True)
            if content is not None:
                part.write_bytes(content)
        return str(self.path)

    def is_as_written(self) -> bool:
        """Whether nobody has touched the files."""
        return self.path.read_bytes() == self.file and self.path.with_name(f"{self.path.name}-wal").read_bytes() == (
            self.log
        )

    def read(self) -> object:
        """What is found when the store is opened after the crash."""
        with closing(open_reader(self.write())) as reader:
            return contents(reader)


@dataclass(frozen=True)
class Written:
    """A crashed store, what is in it, and the same one commit earlier."""

    crashed: Crashed
    contents: object
    before: Crashed
    contents_before: object


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Six commits, all in the log."""
    path = tmp_path_factory.mktemp("wal") / "sweeps.db"
    with closing(open_store(str(path), create=True)) as store:
        store.append([sweep_created()])
        for index in range(RUNS - 1):
            store.append(run_events(index, score=float(index)))
        before, contents_before = Crashed.of(path), contents(store)
        store.append(run_events(RUNS - 1, score=0.5))
        return Written(Crashed.of(path), contents(store), before, contents_before)


def in_frame(number: int, byte: int) -> int:
    """The place of a byte of a frame, which begins with its header."""
    return wal.WAL_HEADER + number * FRAME + byte


#: A byte of a frame's page number, commit size, salts, checksum, and of its page.
MARKS = {"page number": 3, "salts": 9, "checksum": 18, "page": 24 + 2000}

# --------------------------------------------------------------------------------------------------------- what is told


def test_an_undamaged_log_is_read_whole(written: Written) -> None:
    assert len(written.crashed.commits) == RUNS + 1
    assert written.crashed.read() == written.contents
    assert replace(written.crashed, index=None).read() == written.contents


def test_damage_anywhere_is_told_and_nothing_is_touched_however_often_one_looks(written: Written) -> None:
    crashed = written.crashed
    for position in range(0, len(crashed.log), 1499):
        damaged = crashed.flipped(position)
        path = damaged.write()
        for look in (open_reader, open_store, open_reader):
            with pytest.raises(DamagedStoreError, match=CUT_OFF):
                look(path)
        assert damaged.is_as_written()


def test_without_the_index_damage_is_told_unless_it_is_in_the_last_commit(written: Written) -> None:
    crashed = replace(written.crashed, index=None)
    [*_, last_but_one, _] = crashed.commits
    for position in range(0, len(crashed.log), 1499):
        damaged = crashed.flipped(position)
        if position < in_frame(last_but_one, 0):
            with pytest.raises(DamagedStoreError, match=CUT_OFF):
                damaged.read()
            assert damaged.is_as_written()
        elif position >= in_frame(last_but_one + 1, 0):
            assert damaged.read() == written.contents_before, position


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("has_index", [True, False])
def test_each_part_of_a_frame_matters(written: Written, mark: str, has_index: bool) -> None:
    crashed = written.crashed if has_index else replace(written.crashed, index=None)
    for number in (0, crashed.commits[1], crashed.commits[1] + 1):
        with pytest.raises(DamagedStoreError, match=CUT_OFF):
            crashed.flipped(in_frame(number, MARKS[mark])).read()


@pytest.mark.parametrize("share", [0.95, 0.5, 0.1])
def test_a_log_that_lost_its_end_is_told_by_its_index(written: Written, share: float) -> None:
    crashed = written.crashed
    cut = replace(crashed, log=crashed.log[: int(share * len(crashed.log))])
    for _ in range(2):
        with pytest.raises(DamagedStoreError, match=CUT_OFF):
            cut.read()


@pytest.mark.parametrize("index", [b"", bytes(32768), b"\xff" * 32768, None])
def test_a_useless_index_is_not_needed_and_does_no_harm(written: Written, index: bytes | None) -> None:
    crashed = replace(written.crashed, index=index)
    assert crashed.read() == written.contents
    with pytest.raises(DamagedStoreError, match=CUT_OFF):
        crashed.flipped(in_frame(1, 1000)).read()


def test_two_damaged_places_are_told_as_well(written: Written) -> None:
    crashed = replace(written.crashed, index=None)
    with pytest.raises(DamagedStoreError, match=CUT_OFF):
        crashed.flipped(in_frame(0, 1000), in_frame(crashed.commits[2], 18)).read()


def test_all_comes_back_by_a_recovery(written: Written, tmp_path: Path) -> None:
    damaged = written.crashed.flipped(in_frame(written.crashed.commits[1], 18))
    path = Path(damaged.write())
    assert all(sweep.is_whole for sweep in recover(path, tmp_path / "recovered.db").sweeps)
    with closing(open_reader(str(tmp_path / "recovered.db"))) as reader:
        assert contents(reader) == written.contents
    assert damaged.is_as_written()


def test_a_damaged_log_is_not_backed_up(written: Written, tmp_path: Path) -> None:
    damaged = written.crashed.flipped(in_frame(2, 1000))
    with pytest.raises(DamagedStoreError, match=CUT_OFF):
        backup(Path(damaged.write()), tmp_path / "copy.db")
    assert damaged.is_as_written()


# ---------------------------------------------------------------------------------------------------- what is no damage


def torn(crashed: Crashed, first: int, choose: random.Random) -> Crashed:
    """As after a power cut: of the frames from this one on some parts are there, and others not."""
    log = bytearray(crashed.log)
    for start in range(in_frame(first, 0), len(log), 512):
        if choose.random() < 0.5:
            log[start : start + 512] = bytes(len(log[start : start + 512]))
    return replace(crashed, log=bytes(log))


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("has_index", [True, False])
def test_a_commit_torn_by_a_power_cut_is_no_damage(written: Written, seed: int, has_index: bool) -> None:
    first = written.crashed.commits[-2] + 1
    index = written.before.index if has_index else None
    crashed = torn(replace(written.crashed, index=index), first, random.Random(seed))
    assert crashed.read() == written.contents_before


@pytest.mark.parametrize("length", [0, 10, wal.WAL_HEADER, wal.WAL_HEADER + 100])
def test_a_log_without_a_frame_is_no_damage(written: Written, length: int) -> None:
    crashed = replace(written.crashed, log=written.crashed.log[:length], index=None)
    with closing(open_reader(crashed.write())) as reader:
        assert reader.fetch_sweeps() == []


def test_with_synchronous_normal_nothing_is_taken_for_damage(written: Written) -> None:
    damaged = written.crashed.flipped(in_frame(written.crashed.commits[2] + 1, 1000))
    with closing(open_store(f"sqlite:///{damaged.write()}?synchronous=normal")) as store:
        assert len(store.fetch_runs(SWEEP)) == 2
        store.append(run_events(2))


def test_what_is_left_in_the_log_from_before_it_began_anew_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "sweeps.db"
    with closing(open_store(str(path), create=True)) as store:
        store.append([sweep_created(), *(event for index in range(400) for event in run_events(index))])
        store._database._reader.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        emptied, emptied_contents = Crashed.of(path), contents(store)
        store.append(run_events(400))
        store.append(run_events(401))
        crashed, all_contents = Crashed.of(path), contents(store)
    assert emptied.read() == emptied_contents
    assert crashed.frames > 2 * len(crashed.commits)
    used = next(n for n in range(crashed.frames) if crashed.log[in_frame(n, 8) :][:8] != crashed.log[16:24])
    for number in (used, used + 1, crashed.frames - 1):
        assert crashed.flipped(in_frame(number, 1000)).read() == all_contents
    with pytest.raises(DamagedStoreError, match=CUT_OFF):
        crashed.flipped(in_frame(0, 1000)).read()


def test_who_may_not_write_is_not_kept_from_looking(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = written.crashed.flipped(in_frame(0, 1000)).write()
    monkeypatch.setattr(Path, "open", refuse)
    open_reader(path).close()


# --------------------------------------------------------------------------------------------------------- while in use


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The stores that are looked at, and, since that takes their processes' locks away, must not be open here."""
    seen: list[Path] = []
    look: Callable[[Path], None] = sqlite.check_log
    monkeypatch.setattr(sqlite, "check_log", lambda path: (seen.append(path), look(path)))
    return seen


def test_a_store_is_looked_at_only_while_this_process_does_not_have_it_open(tmp_path: Path, looks: list[Path]) -> None:
    path = tmp_path / "sweeps.db"
    link = tmp_path / "link.db"
    with closing(open_store(str(path), create=True)) as store:
        assert looks == [path]
        link.symlink_to(path)
        for name in (path, link):
            open_reader(str(name)).close()
        store.append([sweep_created()])
        assert looks == [path]
        store.close()
        store.close()
    open_reader(str(path)).close()
    assert looks == [path, path]


def test_a_store_that_could_not_be_opened_is_looked_at_again(written: Written, looks: list[Path]) -> None:
    path = written.crashed.flipped(in_frame(0, 1000)).write()
    for look in (open_reader, open_store) * 2:
        with pytest.raises(DamagedStoreError):
            look(path)
    assert len(looks) == 4
    Path(f"{path}-wal").write_bytes(written.crashed.log)
    with closing(open_reader(path)) as reader:
        assert contents(reader) == written.contents
    assert len(looks) == 5


def test_a_log_that_another_process_is_writing_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sweeps.db"
    with closing(open_store(str(path), create=True)) as store:
        store.append([sweep_created()])
    monkeypatch.setattr(wal, "_is_cut_off", lambda *_: pytest.fail("looked at the log of a store in use"))
    with appender(str(path), "runs") as process:
        go(process)
        assert process.stdout is not None
        for _ in range(20):
            process.stdout.readline()
            with closing(open_reader(str(path))) as reader:
                assert reader.fetch_sweeps()


def test_of_several_processes_that_open_a_damaged_store_at_one_time_none_gets_past(written: Written) -> None:
    damaged = written.crashed.flipped(in_frame(written.crashed.commits[-1], 1000))
    path = damaged.write()
    with appender(path, "runs") as one, appender(path, "runs") as other, appender(path, "runs") as third:
        go(one, other, third)
        assert [process.wait() for process in (one, other, third)] == [1, 1, 1]
    assert damaged.is_as_written()


@pytest.fixture
def number_of_checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    verdicts: list[bool] = []
    look = wal._is_cut_off

    def note(*arguments: object) -> bool:
        verdicts.append(look(*arguments))  # type: ignore[arg-type]
        return verdicts[-1]

    monkeypatch.setattr(wal, "_is_cut_off", note)
    yield verdicts
    assert verdicts


def test_killed_writers_leave_no_damage(tmp_path: Path, number_of_checks: list[bool]) -> None:
    path = tmp_path / "sweeps.db"
    with closing(open_store(str(path), create=True)) as store:
        store.append([sweep_created()])
    for lines in (1, 2, 5):
        with appender(str(path), "runs") as process:
            go(process)
            assert process.stdout is not None
            for _ in range(lines):
                process.stdout.readline()
        open_reader(str(path)).close()
    assert len(number_of_checks) >= 3
    assert not any(number_of_checks)


def test_the_checksum_is_that_of_sqlite(written: Written) -> None:
    log = written.crashed.log
    assert struct.pack(">II", *wal._checksum(log[:24])) == log[24:32]
