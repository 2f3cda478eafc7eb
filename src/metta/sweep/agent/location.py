"""Where a sweep's agent on this machine is found."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from pathlib import Path

import msgspec


class AgentAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Content of the address file, which the agent keeps locked as long as it lives."""

    pid: int
    socket: str


def address_file(directory: str) -> Path:
    """The file in a sweep's folder that names its agent."""
    return Path(directory) / "agent.json"


def spool_file(directory: str) -> Path:
    """Where the agent keeps what the store has not taken yet; the lock on the address file keeps two from one spool."""
    return address_file(directory).with_suffix(".spool")


def has_spooled(directory: str) -> bool:
    """Whether an agent that died left events that the store does not have: its jobs' results, it may be.

    The next agent delivers them before it answers.
    """
    try:
        return spool_file(directory).stat().st_size > 0
    except FileNotFoundError:
        return False


def read_address(directory: str) -> AgentAddress | None:
    """The agent that was there last, dead or alive; None when there never was one."""
    try:
        return msgspec.json.decode(address_file(directory).read_bytes(), type=AgentAddress)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def is_served(directory: str) -> bool:
    """Whether an agent lives that works for the sweep on this machine, be it that nobody can reach it just now."""
    try:
        with address_file(directory).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def new_socket_path(store_url: str, sweep_id: str) -> Path:
    """A socket of this process; in the temporary folder, because a socket's path must be short (108 bytes)."""
    folder = Path(tempfile.gettempdir()) / f"metta-sweep-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / f"{_digest(store_url, sweep_id)}-{os.getpid()}.sock"


def belongs_to(socket_path: str, store_url: str, sweep_id: str) -> bool:
    """Whether a socket is, or was, that of an agent of this sweep."""
    return Path(socket_path).name.startswith(f"{_digest(store_url, sweep_id)}-")


def _digest(store_url: str, sweep_id: str) -> str:
    return hashlib.sha256(f"{store_url} {sweep_id}".encode()).hexdigest()[:12]
