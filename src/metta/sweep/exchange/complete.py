"""A sweep with its whole history in one JSON file.

The file holds the events of the log as they are, a line each, so a sweep that is imported is the sweep that was
exported: the same ids, the same times, the same state, whatever is folded from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from metta.sweep.errors import ConfigError, InvalidTransition
from metta.sweep.model.events import Event, SweepCreated
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.protocols import Store

FORMAT = "metta.sweep"
VERSION = 1
#: Events written in one commit.
_BATCH = 1_000


class _Document(msgspec.Struct, frozen=True, kw_only=True):
    format: Literal["metta.sweep"]
    version: int
    sweep_id: str
    events: list[Event]


def to_lines(sweep_id: str, events: Iterable[Event]) -> Iterator[bytes]:
    """The file's lines; holds one event in memory at a time."""
    encode = msgspec.json.Encoder().encode
    yield f'{{"format":"{FORMAT}","version":{VERSION},"sweep_id":"{sweep_id}","events":[\n'.encode()
    separator = b""
    for event in events:
        yield separator + encode(event)
        separator = b",\n"
    yield b"\n]}\n"


def from_file(path: Path) -> list[Event]:
    """The log that the file holds.

    Raises:
        ConfigError: it cannot be read, is no complete export, is of a later version, or its events make no sense.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        document = msgspec.json.decode(content, type=_Document)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path}: is no complete export of a sweep: {error}; make one with: metta sweep export SWEEP --format json"
        ) from error
    if document.version > VERSION:
        raise ConfigError(
            f"{path}: is of version {document.version}; this metta-sweep reads up to {VERSION}, so update it"
        )
    events = document.events
    if not events or not isinstance(events[0].body, SweepCreated):
        raise ConfigError(f"{path}: its history does not begin with the creation of a sweep; export the sweep again")
    try:
        fold(EMPTY, events)
    except InvalidTransition as error:
        raise ConfigError(f"{path}: its history makes no sense: {error}; export the sweep again") from error
    return events


def write(store: Store, events: list[Event], *, name: str | None = None) -> bool:
    """Bring a log into a store; False where all of it was there before.

    An import that was cut off goes on where it was.

    Args:
        store: Where to.
        events: The log.
        name: Of the sweep, instead of the one that it had.

    Raises:
        ConfigError: the store has this sweep with another history.
        NameTakenError: it has another sweep of this name.
    """
    created = events[0].body
    assert isinstance(created, SweepCreated)
    sweep_id = events[0].sweep_id
    if name is not None:
        body = replace(created, config=replace(created.config, name=name))
        events = [replace(events[0], body=body), *events[1:]]
    known = [event.id for event in store.read(sweep_id)] if store.fetch_sweeps(sweep_id) else []
    if known[: len(events)] != [event.id for event in events[: len(known)]]:
        raise ConfigError(
            f"sweep {sweep_id}: the store has a sweep of this id with another history; "
            "import into another store with --store sqlite:///FILE"
        )
    rest = events[len(known) :]
    for start in range(0, len(rest), _BATCH):
        store.append(rest[start : start + _BATCH])
    return bool(rest)
