"""Where events are kept. `open_store` finds the implementation for a URL."""

from __future__ import annotations

import os
from pathlib import Path

from metta.sweep.errors import ConfigError
from metta.sweep.protocols import Reader, Store

DEFAULT_STORE = "sqlite:///sweeps.db"
#: Environment variable with the URL of the store to use.
STORE_VARIABLE = "METTA_SWEEP_STORE"


def store_url(given: str | None = None) -> str:
    """The store to use: the one given, else that of METTA_SWEEP_STORE, else `sweeps.db` in the working folder."""
    return given or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE


def open_store(url: str, *, create: bool = False) -> Store:
    """The store at `url`: `sqlite:///relative.db`, `sqlite:////absolute.db`, or just the path of a file.

    Args:
        url: Where the store is. `?synchronous=normal` after an SQLite URL trades the last moments before a power cut
            for speed; a crash of any process loses nothing either way.
        create: Make the store where there is none; otherwise that is an error, so that reading never leaves files
            behind.

    Raises:
        ConfigError: the URL's scheme is not known.
        StoreError: the store is missing, damaged, or cannot be read.
    """
    from metta.sweep.stores.sql import SqlStore

    return SqlStore(_checked(url), create=create)


def open_reader(url: str) -> Reader:
    """The store at `url` to look at only, in a fraction of the time that `open_store` takes; raises the same errors."""
    from metta.sweep.stores.reader import SqliteReader

    return SqliteReader(_checked(url))


def _checked(url: str) -> str | Path:
    if "://" not in url:
        return Path(url)
    scheme = url.split("://", 1)[0]
    if scheme != "sqlite":
        raise ConfigError(f"store: scheme {scheme!r} of {url!r} is not known; use sqlite:///FILE")
    return url
