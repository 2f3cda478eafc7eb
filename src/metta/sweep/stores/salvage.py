"""What can still be read of a damaged SQLite store, without SQLite.

SQLite follows links from page to page, so one page that is wrong hides, or makes up, others. Here nothing is followed:
a row is kept as a record, which begins with the types and lengths of its columns, and those of our tables look like
nothing else. They are looked for at every byte of the file, and a row counts only if its hash is right. Pages that are
free, misplaced or torn give back what they hold, and garbage cannot get in.

Libraries that read the format (dissect.database, sqlite-dissect) walk the tree as SQLite does, and stop where it does.
The format is that of https://sqlite.org/fileformat2.html; its chapters are named below.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
from sqlalchemy import Column, Float, Integer, LargeBinary, String, Table

from metta.sweep.errors import DamagedStoreError, StoreError
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.stores.hashes import event_hash, run_hash, sweep_hash
from metta.sweep.stores.rows import to_event, to_run, to_sweep
from metta.sweep.stores.schema import EVENTS, RUNS, SWEEPS
from metta.sweep.stores.wal import FRAME_HEADER, WAL_HEADER

#: Told what is being done, how much of it is done, and how much there is.
Progress: TypeAlias = Callable[[str, int, int], None]

_Value: TypeAlias = int | float | str | bytes | None


class Salvaged(msgspec.Struct, frozen=True, kw_only=True):
    """The rows that came back, the newest version of each."""

    #: By sweep and sequence number.
    events: dict[str, dict[int, Event]]
    sweeps: dict[str, SweepMetadata]
    #: By sweep and run.
    runs: dict[str, dict[str, RunInfo]]
    #: Whether the rows were checked by their hashes; stores of schema 1 have none.
    is_verified: bool

    @property
    def sweep_ids(self) -> list[str]:
        """All sweeps of which anything came back."""
        return sorted(self.events.keys() | self.sweeps.keys() | self.runs.keys())


def salvage(path: Path, on_progress: Progress | None = None) -> Salvaged:
    """All rows of the store in the file, and in the write-ahead log beside it, that are as they were written.

    Raises:
        StoreError: the file cannot be read, or is no store.
    """
    try:
        data = path.read_bytes()
        log = path.with_name(f"{path.name}-wal")
        image = _Image(data, log.read_bytes() if log.exists() else b"")
    except OSError as error:
        raise StoreError(
            f"store {path}: cannot be read ({error}); copy the file to a healthy disk first, with ddrescue if need be"
        ) from error
    for is_verified in (True, False):
        salvaged = _collected(image, is_verified, on_progress)
        if salvaged.sweep_ids:
            return salvaged
    raise StoreError(
        f"store {path}: none of its {len(data):,} bytes belongs to a row of a sweep; name another file, "
        "or restore a backup"
    )


def _collected(image: _Image, is_verified: bool, on_progress: Progress | None) -> Salvaged:
    events: dict[str, dict[int, Event]] = {}
    sweeps: dict[str, SweepMetadata] = {}
    runs: dict[str, dict[str, RunInfo]] = {}
    for event in image.rows(_EVENT_ROWS, is_verified, on_progress):
        # An event never changes. Two of one number: the later is left from a commit that a power cut undid.
        events.setdefault(event.sweep_id, {}).setdefault(event.seq, event)
    for sweep in image.rows(_SWEEP_ROWS, is_verified, on_progress):
        if sweep.sweep_id not in sweeps or sweep.seq >= sweeps[sweep.sweep_id].seq:
            sweeps[sweep.sweep_id] = sweep
    for run in image.rows(_RUN_ROWS, is_verified, on_progress):
        versions = runs.setdefault(run.sweep_id, {})
        if run.run_id not in versions or _age_of(run) >= _age_of(versions[run.run_id]):
            versions[run.run_id] = run
    return Salvaged(events=events, sweeps=sweeps, runs=runs, is_verified=is_verified)


def progress_of(run: RunInfo) -> tuple[float, ...]:
    """Only ever grows with what happens to a run, so that the newer of two versions can be told, if not always."""
    times = [max(job.granted_at, job.started_at or 0.0, job.ended_at or 0.0) for job in run.jobs]
    has_ended = bool(run.jobs) and not run.jobs[-1].state.open
    return (len(run.jobs), has_ended, run.reports, len(run.failure_reasons), max(times, default=0.0))


def _age_of(run: RunInfo) -> tuple[float, ...]:
    saved = max((checkpoint.at for checkpoint in run.checkpoints), default=0.0)
    return (*progress_of(run), _ORDER.get(run.status, 2), saved)


#: Which status mostly comes later, where progress does not tell: a run that had ended may wait anew.
_ORDER = {
    JobStatus.RETRYING: 0,
    JobStatus.FAILED: 1,
    JobStatus.STOPPED: 1,
    JobStatus.CANCELLED: 1,
    JobStatus.COMPLETED: 3,
    JobStatus.ROLLED_BACK: 4,
}


# --------------------------------------------------------------------------------------------------- rows of tables


class _Rows(NamedTuple):
    """How the rows of one of our tables look."""

    table: Table
    #: Finds the beginnings of records, by whether they end with a hash.
    patterns: dict[bool, re.Pattern[bytes]]
    hash: Callable[..., bytes]
    #: What the row stands for, given its hash as well.
    decode: Callable[..., Any]

    #: Positions of real numbers: SQLite keeps those without a fraction as integers.
    reals: frozenset[int]


def _lengthy(first: int) -> bytes:
    """Types that carry a length: every other number from `first` on, in one to four bytes, seven bits in each."""
    in_one, last = (re.escape(bytes(range(start, 0x80, 2))) for start in (first, first % 2))
    return rb"(?:[%b]|[\x81-\xff][\x80-\xff]{0,2}[%b])" % (in_one, last)


#: How records name the types of columns; greater numbers are blobs (even) and texts (odd).
_REAL, _FIRST_BLOB, _FIRST_TEXT = 7, 12, 13
_SERIAL_TYPES = {
    Integer: rb"[\x01-\x06\x08\x09]",
    Float: rb"[\x01-\x09]",
    String: _lengthy(_FIRST_TEXT),
    LargeBinary: _lengthy(_FIRST_BLOB),
}
_HASH = rb"\x1c"
_MOST_BYTES_OF_A_TYPE = 4


def _rows(table: Table, hash_of: Callable[..., bytes], decode: Callable[..., Any]) -> _Rows:
    columns = [column for column in table.columns if column.name != "hash"]
    types = [_serial_type(column) for column in columns]
    patterns = {True: _header([*types, _HASH]), False: _header(types)}
    reals = frozenset(position for position, column in enumerate(columns) if isinstance(column.type, Float))
    return _Rows(table=table, patterns=patterns, hash=hash_of, decode=decode, reals=reals)


def _serial_type(column: Column[Any]) -> bytes:
    serial_type = next(known for kind, known in _SERIAL_TYPES.items() if isinstance(column.type, kind))
    return rb"(?:%b|\x00)" % serial_type if column.nullable else serial_type


def _header(types: list[bytes]) -> re.Pattern[bytes]:
    """A record's beginning ("Record Format"): its own length, then the type of each column."""
    least, most = 1 + len(types), 1 + _MOST_BYTES_OF_A_TYPE * len(types)
    return re.compile(rb"[\x%02x-\x%02x]%b" % (least, most, b"".join(types)), re.DOTALL)


_EVENT_ROWS = _rows(EVENTS, event_hash, to_event)
_SWEEP_ROWS = _rows(SWEEPS, sweep_hash, to_sweep)
_RUN_ROWS = _rows(RUNS, run_hash, to_run)


# ----------------------------------------------------------------------------------------------------- bytes of files

_PAGE_SIZES = tuple(1 << bits for bits in range(9, 17))
#: Matches between two reports of progress.
_REPORT_EVERY = 1_000


class _Layout(NamedTuple):
    """How a file is cut into pages."""

    page_size: int
    #: Bytes of a page that SQLite uses; some builds reserve the last ones.
    usable: int


class _Image:
    """A database file and its write-ahead log, as they were found.

    What the file says of itself is the first guess, no more: what is cut over several pages is put together in every
    way that is possible, until a hash fits.
    """

    def __init__(self, data: bytes, log: bytes) -> None:
        said = int.from_bytes(data[16:18], "big")
        sizes = sorted(_PAGE_SIZES, key=lambda size: size != (65536 if said == 1 else said))
        reserved = sorted({0, *data[20:21]}, reverse=True)
        self._layouts = [_Layout(size, size - spare) for size, spare in product(sizes, reserved)]
        self._data = data
        frames, end = max((_frames(log, size) for size in sizes), key=lambda found: len(found[0]))
        self._log = log[:end]
        self._frames = frames

    def rows(self, rows: _Rows, is_verified: bool, on_progress: Progress | None) -> Iterator[Any]:
        """What the table's rows stand for: all versions, those of the write-ahead log last."""
        pattern = rows.patterns[is_verified]
        total, done = len(self._data) + len(self._log), 0
        for content in (self._data, self._log):
            position, matches = 0, 0
            # Not finditer: a chance match must not hide the record that begins inside it.
            while match := pattern.search(content, position):
                position = match.start() + 1
                if content[match.start()] == match.end() - match.start():
                    yield from self._row(rows, content, match, is_verified)
                matches += 1
                if on_progress is not None and not matches % _REPORT_EVERY:
                    on_progress(f"reading {rows.table.name}", done + position, total)
            done += len(content)
        if on_progress is not None:
            on_progress(f"reading {rows.table.name}", total, total)

    def _row(self, rows: _Rows, content: bytes, match: re.Match[bytes], is_verified: bool) -> Iterator[Any]:
        header = match.group()
        types = list(_varints(header[1:]))
        size = len(header) + sum(map(_size, types))
        if size > len(self._data) + len(self._log):
            return
        # Tables without row ids are kept as indexes are, in smaller pieces ("B-tree Cell Format").
        is_index = rows.table.dialect_options["sqlite"]["with_rowid"] is False
        for payload in self._payloads(content, match.start(), size, is_index):
            try:
                values = _values(types, payload[len(header) :], rows.reals)
                # What has no hash is given one, and so is only as good as it can be read.
                yield rows.decode(*values) if is_verified else rows.decode(*values, rows.hash(*values))
            except (DamagedStoreError, UnicodeDecodeError):
                continue
            except StoreError:
                if is_verified:
                    raise  # as it was written, and yet it cannot be read
            else:
                return

    def _payloads(self, content: bytes, start: int, size: int, is_index: bool) -> Iterator[bytes]:
        """All that the record may be: in one piece, or its beginning and what follows on overflow pages."""
        seen: set[bytes] = set()
        for layout in self._layouts:
            local = _local_size(size, layout.usable, is_index)
            for with_log in (True, False) if local < size else (False,):
                payload = content[start : start + local]
                if local < size:
                    link = content[start + local : start + local + 4]
                    payload += self._overflow(link, size - local, layout, with_log)
                if len(payload) == size and payload not in seen:
                    seen.add(payload)
                    yield payload

    def _overflow(self, link: bytes, size: int, layout: _Layout, with_log: bool) -> bytes:
        """The content of a chain of overflow pages, as far as it goes ("Cell Payload Overflow Pages")."""
        pieces = []
        while size > 0:
            page = self._page(int.from_bytes(link, "big"), layout, with_log)
            link, piece = page[:4], page[4 : layout.usable][:size]
            if not piece:
                break
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def _page(self, number: int, layout: _Layout, with_log: bool) -> bytes:
        if with_log and (start := self._frames.get(number)) is not None:
            return self._log[start : start + layout.page_size]
        start = (number - 1) * layout.page_size
        return self._data[start : start + layout.page_size] if number else b""


def _frames(log: bytes, page_size: int) -> tuple[dict[int, int], int]:
    """Where the write-ahead log has the last version of each page, and where its last commit ends ("WAL Format").

    What comes after the last commit was never acknowledged, and frames with another salt are left from an earlier turn.
    """
    starts = range(WAL_HEADER, len(log) - FRAME_HEADER - page_size + 1, FRAME_HEADER + page_size)
    headers = [(start + FRAME_HEADER, log[start : start + FRAME_HEADER]) for start in starts]
    salts = {header[8:16] for _, header in headers}
    salt = log[16:24] if log[16:24] in salts else log[WAL_HEADER + 8 : WAL_HEADER + 16]
    current = [(start, header) for start, header in headers if header[8:16] == salt]
    commits = [start for start, header in current if any(header[4:8])]
    if not commits:
        return {}, 0
    committed = {int.from_bytes(header[:4], "big"): start for start, header in current if start <= commits[-1]}
    return committed, commits[-1] + page_size


def _local_size(size: int, usable: int, is_index: bool) -> int:
    """How many bytes of a record are kept in its cell."""
    most = (usable - 12) * 64 // 255 - 23 if is_index else usable - 35
    if size <= most:
        return size
    least = (usable - 12) * 32 // 255 - 23
    wanted = least + (size - least) % (usable - 4)
    return wanted if wanted <= most else least


def _varints(header: bytes) -> Iterator[int]:
    value = 0
    for byte in header:
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            yield value
            value = 0


#: Bytes of numbers, by their types.
_NUMBER_SIZES = (0, 1, 2, 3, 4, 6, 8, 8, 0, 0, 0, 0)


def _size(serial_type: int) -> int:
    return _NUMBER_SIZES[serial_type] if serial_type < _FIRST_BLOB else (serial_type - _FIRST_BLOB) // 2


def _values(types: list[int], body: bytes, reals: frozenset[int]) -> list[_Value]:
    values = []
    start = 0
    for position, serial_type in enumerate(types):
        end = start + _size(serial_type)
        value = _value(serial_type, body[start:end])
        values.append(float(value) if isinstance(value, int) and position in reals else value)
        start = end
    return values


def _value(serial_type: int, piece: bytes) -> _Value:
    if serial_type >= _FIRST_BLOB:
        return piece.decode() if serial_type % 2 else piece
    if serial_type == 0:
        return None
    if serial_type == _REAL:
        return float(struct.unpack(">d", piece)[0])
    return serial_type - 8 if serial_type in {8, 9} else int.from_bytes(piece, "big", signed=True)
