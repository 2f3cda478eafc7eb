"""A store that may be away: what it cannot take waits in a spool on this machine's disk, in order, until it can.

The store is the truth and the spool only the way to it: an event leaves the spool when the store has it. A crash
between the two hands it over again, which is harmless, because the store knows events by their ids.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, takewhile
from pathlib import Path
from typing import BinaryIO

import msgspec

from metta.sweep.errors import InvalidTransition, StoreAwayError, StoreError
from metta.sweep.model.events import Event
from metta.sweep.protocols import Heartbeat, Store

logger = logging.getLogger(__name__)

#: Events handed to the store, or written to the disk, at a time.
_LARGEST_BATCH = 500

_encode = msgspec.json.Encoder().encode
_decode: Callable[[bytes], Event] = msgspec.json.Decoder(Event).decode


class SpooledStore:
    """The writing end of a store: takes events at once, and brings them to the store when it can be reached.

    `append` queues, `deliver` brings a batch to the store, `save` makes durable what still waits. They may be called
    from any thread: in particular `save` while a `deliver` hangs in a store that does not answer.

    Args:
        reach: Opens the store. Called again after it was away, since its connections may be beyond use.
        path: The file of the spool. What a predecessor left in it is delivered first.

    Raises:
        StoreError: the spool cannot be opened, or another process has it.
    """

    def __init__(self, reach: Callable[[], Store], path: Path) -> None:
        self._reach = reach
        self._spool = Spool(path)
        self._path = path
        self._store: Store | None = None
        self._store_lock = threading.Lock()
        self._batch_size = _LARGEST_BATCH
        # A store is away for minutes and tried every few seconds: only changes are worth a line in the log.
        self._is_away = False
        self._is_full = False

    @property
    def pending(self) -> bool:
        """Whether there are events that the store does not have."""
        return bool(self._spool)

    @property
    def unsaved(self) -> int:
        """How many events would be lost if this process ended now."""
        return self._spool.unsaved

    def append(self, events: Sequence[Event]) -> None:
        """Queue events of the one sweep that this spool is for."""
        self._spool.put(events)

    def deliver(self) -> list[Event]:
        """Bring the oldest events to the store, one batch at most.

        Returns:
            Events that the state of the sweep does not allow; they are dropped.

        Raises:
            StoreError: the store did not take them; nothing is lost, try again later.
        """
        with self._reached() as store:
            batch = self._spool.peek(self._batch_size)
            try:
                store.append(batch)
            except InvalidTransition as error:
                if len(batch) > 1:
                    # One of them does not fit, and the others must not suffer for it: halving finds it.
                    self._batch_size = len(batch) // 2
                    return []
                logger.warning("the store refused %s: %s", batch[0].type, error)
                self._spool.drop(batch)
                return batch
            self._spool.drop(batch)
            self._batch_size = min(2 * self._batch_size, _LARGEST_BATCH)
            return []

    def save(self) -> None:
        """Write what waits in memory to the disk; where that is full, it stays in memory until the next attempt."""
        try:
            self._spool.save()
        except OSError as error:
            if not self._is_full:
                logger.warning(
                    "spool %s cannot be written: %s; %d events wait in memory alone, free some space to have them safe",
                    self._path,
                    error,
                    self.unsaved,
                )
            self._is_full = True
        else:
            if self._is_full:
                logger.warning("spool %s can be written again; no event is in memory alone", self._path)
            self._is_full = False

    def connect(self) -> None:
        """Reach the store now, if it can be reached: that takes a moment, which the first event need not wait for."""
        with suppress(StoreError), self._reached():
            pass

    def beat(self, heartbeat: Heartbeat) -> None:
        """See `Store.beat`. Never queued: an old sign of life tells nothing."""
        with self._reached() as store:
            store.beat(heartbeat)

    def close(self) -> None:
        """Let go of the store and of the spool; what is in memory alone is lost."""
        with self._store_lock:
            self._leave_store()
        self._spool.close()

    @contextmanager
    def _reached(self) -> Iterator[Store]:
        with self._store_lock:
            try:
                if self._store is None:
                    self._store = self._reach()
                yield self._store
            except StoreError as error:
                if not self._is_away:
                    logger.warning("the store is away, events wait in %s: %s", self._path, error)
                self._is_away = True
                self._leave_store()
                raise
            if self._is_away:
                logger.warning("the store is back")
            self._is_away = False

    def _leave_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            with suppress(StoreError):  # a connection that is broken need not be closed
                store.close()


class Spool:
    """A queue of events: the older ones on the disk, where they outlive this process, the newer ones in memory.

    On the disk an event is a line: a checksum, a space, JSON. The file is emptied when all of it is dropped.

    Args:
        path: The file; locked as long as the spool is open.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        #: Held while events move, never while somebody waits for the store.
        self._lock = threading.Lock()
        self._memory: list[Event] = []
        #: Events read from the file and not yet dropped, and up to where it was read.
        self._ahead: deque[Event] = deque()
        self._read_to = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise StoreError(f"spool {path}: cannot be opened ({error}); make its folder writable") from error
        try:
            self._lock_file()
            self._end = self._find_end()
        except BaseException:
            os.close(self._file)
            raise

    def __bool__(self) -> bool:
        return bool(self._memory) or bool(self._ahead) or self._read_to < self._end

    @property
    def unsaved(self) -> int:
        """How many events are in memory alone."""
        return len(self._memory)

    def put(self, events: Sequence[Event]) -> None:
        """Queue events in memory."""
        self._memory.extend(events)

    def save(self) -> None:
        """Move all events in memory to the disk.

        Raises:
            OSError: the disk is full, say; those that are not on it stay in memory.
        """
        with self._lock:
            while page := self._memory[:_LARGEST_BATCH]:
                self._write(b"".join(map(_record, page)))
                del self._memory[: len(page)]

    def peek(self, count: int) -> list[Event]:
        """The oldest events, up to `count`, left where they are."""
        with self._lock:
            self._read_ahead(count)
            oldest = list(islice(self._ahead, count))
            return oldest + self._memory[: count - len(oldest)]

    def drop(self, events: Sequence[Event]) -> None:
        """Remove these events, which `peek` gave; they may have moved from memory to the disk since."""
        done = {event.id for event in events}
        with self._lock:
            self._read_ahead(len(events))
            while self._ahead and self._ahead[0].id in done:
                self._ahead.popleft()
            self._empty_when_read()
            del self._memory[: sum(1 for _ in takewhile(lambda event: event.id in done, self._memory))]

    def close(self) -> None:
        """Let another process have the file."""
        with self._lock:
            os.close(self._file)

    # ----------------------------------------------------------------------------------------------------- file

    def _lock_file(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StoreError(
                f"spool {self._path}: another process is at work with it; end that one first (`fuser {self._path}`)"
            ) from error

    def _find_end(self) -> int:
        """Where the last whole record ends; what is behind was cut short by the end of its writer, and cut off here."""
        with self._reading() as file:
            end = sum(len(line) for line in file if line.endswith(b"\n"))
        torn = os.fstat(self._file).st_size - end
        if torn:
            logger.warning(
                "spool %s: its writer died at the last record, of which %d bytes are there", self._path, torn
            )
            os.ftruncate(self._file, end)
        return end

    def _write(self, records: bytes) -> None:
        try:
            if not self._end:
                self._sync_folder()
            written = 0
            while written < len(records):
                written += os.pwrite(self._file, records[written:], self._end + written)
            os.fsync(self._file)
        except OSError:
            with suppress(OSError):  # or else the next attempt writes over it
                os.ftruncate(self._file, self._end)
            raise
        self._end += len(records)

    def _sync_folder(self) -> None:
        """Make the file's name outlive a power cut as well."""
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _read_ahead(self, count: int) -> None:
        if len(self._ahead) >= count or self._read_to == self._end:
            return
        try:
            with self._reading() as file:
                while len(self._ahead) < count and self._read_to < self._end:
                    line = file.readline()
                    self._take(line)
                    # Somebody else may have cut the file short: there is no more to be had from it then.
                    self._read_to += len(line) or self._end - self._read_to
        except OSError as error:
            raise StoreAwayError(f"spool {self._path}: cannot be read: {error}") from error
        self._empty_when_read()

    def _reading(self) -> BinaryIO:
        """The file from where it was read to; its name may be gone already, if the user removes the sweep's folder."""
        file = os.fdopen(os.dup(self._file), "rb")
        file.seek(self._read_to)
        return file

    def _take(self, line: bytes) -> None:
        checksum, _, body = line.rstrip(b"\n").partition(b" ")
        try:
            if checksum != _checksum(body):
                raise ValueError(f"its checksum is {_checksum(body)!r}")
            self._ahead.append(_decode(body))
        except (ValueError, msgspec.MsgspecError) as error:
            logger.error(
                "spool %s: the record at byte %d is damaged, its event is lost (%s): %r",
                self._path,
                self._read_to,
                error,
                line,
            )

    def _empty_when_read(self) -> None:
        if self._end and self._read_to == self._end and not self._ahead:
            with suppress(OSError):  # events that stay in the file are known to the store; it empties the next time
                os.ftruncate(self._file, 0)
                self._end = self._read_to = 0


def _record(event: Event) -> bytes:
    body = _encode(event)
    return b"%b %b\n" % (_checksum(body), body)


def _checksum(body: bytes) -> bytes:
    return b"%08x" % zlib.crc32(body)
