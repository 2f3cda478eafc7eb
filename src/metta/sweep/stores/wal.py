"""Damage to the write-ahead log of an SQLite store, which SQLite itself passes over in silence.

A commit is appended to the log as frames, one a page, each with a checksum that continues the one before. Whoever opens
the store after a crash takes the log up to the last commit before the first wrong checksum, because that may be what
was being written just then. Where the log is damaged, all that was committed behind it is gone: what is left fits
together, and the first connection that closes deletes the log. Two things prove that there was more:

- A frame continues a commit that cannot be reached. A commit is on the disk before the next one is begun.
- The index of the log, the file `-shm`, goes further. It is told of a commit when that is on the disk. SQLite makes it
  anew without a look at it, so all this has to happen before SQLite sees the files.

Neither is so with a commit that a power cut tore, which is therefore not taken for damage. With `synchronous=normal`
both may be, so that such stores must not be checked.

The format is that of https://sqlite.org/walformat.html and, of the log, https://sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import fcntl
import struct
import sys
from pathlib import Path
from typing import BinaryIO, NamedTuple

from metta.sweep.errors import DamagedStoreError
from metta.sweep.stores.rows import RESCUE

#: Bytes before the first frame, and before the page in each frame.
WAL_HEADER, FRAME_HEADER = 32, 24
#: The index begins with its header, twice. The last bytes of each are a checksum of those before.
_INDEX_HEADER, _INDEX_CHECKED = 48, 40
#: Bytes of the store's file, not of what is in it, that every process locks which has it open: first, and how many.
_IN_USE = (0x40000002, 510)
#: One behind those that SQLite locks, for those who are checking a log.
_CHECKING = (0x40000400, 1)


def check_log(path: Path) -> None:
    """Raise a DamagedStoreError when commits in the store's log are out of SQLite's reach.

    Nothing is done while another process has the store open: it has come through here. This process must not have it
    open, for closing a file that SQLite has open too takes away its locks.
    """
    log = path.with_name(f"{path.name}-wal")
    if _size(log) <= WAL_HEADER:
        return
    try:
        file = path.open("r+b", buffering=0)
    except OSError:
        return  # who may not write cannot make the loss permanent either
    with file:
        # Whoever was just closing the store has deleted the log by now.
        if not _is_alone(file) or _size(log) <= WAL_HEADER:
            return
        if _is_cut_off(log.read_bytes(), _page_size(file), _index(path)):
            raise DamagedStoreError(
                f"store {path}: {log.name} is damaged, and what was committed behind the damage would be lost; leave "
                "this file and those beside it as they are (if it was in use with ?synchronous=normal when the power "
                f"failed, that is no damage: add it to --store, and go on); {RESCUE}"
            )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _is_alone(file: BinaryIO) -> bool:
    """Whether no other process has the store open; then others wait for the file to be closed before they open it."""
    first, size = _CHECKING
    fcntl.lockf(file, fcntl.LOCK_EX, size, first)
    first, size = _IN_USE
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, size, first)
    except OSError:
        return False
    return True


def _page_size(file: BinaryIO) -> int:
    file.seek(16)
    size = int.from_bytes(file.read(2), "big")
    return 65536 if size == 1 else size


class _Index(NamedTuple):
    """What the index says of the log."""

    #: How many there are up to the last commit.
    frames: int
    #: In each frame. When the log begins anew they are others, so that frames from before count no more.
    salts: bytes


def _index(path: Path) -> _Index | None:
    """None where there is none, or none that is whole."""
    try:
        content = path.with_name(f"{path.name}-shm").read_bytes()
    except FileNotFoundError:
        return None
    header, again = content[:_INDEX_HEADER], content[_INDEX_HEADER : 2 * _INDEX_HEADER]
    if header != again or struct.pack("=II", *_checksum(header[:_INDEX_CHECKED])) != header[_INDEX_CHECKED:]:
        return None
    return _Index(frames=int.from_bytes(header[16:20], sys.byteorder), salts=header[32:40])


def _is_cut_off(log: bytes, page_size: int, index: _Index | None) -> bool:
    """Whether the log has had commits that cannot be reached from its beginning."""
    is_reached = _follows(bytes(8), log[:24], log[24:WAL_HEADER])
    salts = log[16:24] if is_reached else log[WAL_HEADER + 8 : WAL_HEADER + 16]
    size = FRAME_HEADER + page_size
    checksum = log[24:WAL_HEADER]
    is_lost_commit, reached = False, 0
    for number, start in enumerate(range(WAL_HEADER, len(log) - size + 1, size), 1):
        header = log[start : start + FRAME_HEADER]
        is_current, is_commit = header[8:16] == salts, any(header[4:8])
        page = log[start + FRAME_HEADER : start + size]
        follows = is_current and (is_reached or is_lost_commit) and _follows(checksum, header[:8] + page, header[16:])
        if is_lost_commit and follows:
            return True
        is_reached = is_reached and follows
        if is_reached and is_commit:
            reached = number
        is_lost_commit = is_current and is_commit and not is_reached
        checksum = header[16:]
    return index is not None and index.salts == salts and index.frames > reached


def _follows(checksum: bytes, content: bytes, following: bytes) -> bool:
    return struct.pack(">II", *_checksum(content, *struct.unpack(">II", checksum))) == following


def _checksum(content: bytes, first: int = 0, second: int = 0) -> tuple[int, int]:
    """SQLite's, of numbers in this machine's byte order: a log from another kind of machine counts as undamaged."""
    for even, odd in struct.iter_unpack("=II", content):
        first = first + even + second & 0xFFFFFFFF
        second = second + odd + first & 0xFFFFFFFF
    return first, second
