"""Copies of an SQLite store, made beside a controller at work."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from metta.sweep.errors import StoreError
from metta.sweep.model.sweep import SweepConfig
from metta.sweep.protocols import Clock
from metta.sweep.stores import sqlite_path

logger = logging.getLogger(__name__)

#: How often it is looked whether a copy is due.
_LOOK_EVERY_S = 30.0


class AutomaticBackups:
    """Makes a copy of the store when the newest one is older than `backup_hours`, in a thread of its own.

    Args:
        store_url: Of the store; one that is no file is left to its server.
        clock: The time.
    """

    def __init__(self, store_url: str, clock: Clock) -> None:
        self._path = sqlite_path(store_url)
        self._clock = clock
        self._look_at = clock.monotonic()
        self._copying: threading.Thread | None = None

    def tend(self, config: SweepConfig) -> None:
        """Start a copy if one is due and none is under way; returns at once."""
        if self._path is None or config.backup_hours is None or self._clock.monotonic() < self._look_at:
            return
        if self._copying is not None and self._copying.is_alive():
            return
        self._look_at = self._clock.monotonic() + _LOOK_EVERY_S
        from metta.sweep.stores.backup import backups

        folder = folder_of_backups(config)
        newest = max((path.stat().st_mtime for path in backups(self._path, folder)), default=None)
        now = self._clock.now()
        if newest is None or not 0 <= now - newest < config.backup_hours * 3600:
            arguments = (self._path, folder, config.backups, now)
            # Nobody waits for it: a copy that is cut off leaves nothing under the name of one.
            self._copying = threading.Thread(target=_copy, args=arguments, name="backup", daemon=True)
            self._copying.start()


def folder_of_backups(config: SweepConfig) -> Path:
    """Where the automatic copies are: beside the folders of the store's sweeps."""
    return Path(config.directory).parent / "backups"


def _copy(path: Path, folder: Path, keep: int, now: float) -> None:
    from metta.sweep.stores.backup import automatic_backup

    try:
        automatic_backup(path, folder, keep, now)
    except (StoreError, OSError) as error:
        logger.warning("the automatic backup failed, the next one is tried later: %s", error)
