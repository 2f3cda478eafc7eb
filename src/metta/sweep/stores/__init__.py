"""Where events are kept. `open_store` finds the implementation for a URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from metta.sweep.errors import ConfigError
from metta.sweep.protocols import Reader, Store

if TYPE_CHECKING:
    from metta.sweep.stores.reader import Database

DEFAULT_STORE = "sqlite:///sweeps.db"
#: Environment variable with the URL of the store to use.
STORE_VARIABLE = "METTA_SWEEP_STORE"


def store_url(given: str | None = None) -> str:
    """The store to use: the one given, else that of METTA_SWEEP_STORE, else `sweeps.db` in the working folder."""
    return given or os.environ.get(STORE_VARIABLE) or DEFAULT_STORE


def open_store(url: str, *, create: bool = False) -> Store:
    """The store at `url`.

    Args:
        url: Where the store is: `sqlite:///relative.db`, `sqlite:////absolute.db`, just the path of a file, or
            `postgresql://user@host:port/database`. See docs/stores.md for the options after it.
        create: Make the store where there is none; otherwise that is an error, so that reading never leaves anything
            behind.

    Raises:
        ConfigError: the URL's scheme is not known, or the URL cannot be read.
        MissingExtraError: the URL is of a PostgreSQL server, and psycopg is not installed.
        StoreAwayError: the store cannot be reached just now.
        DamagedStoreError: it is not as it was written.
        StoreError: the store is missing, or cannot be read.
    """
    from metta.sweep.stores.sql import SqlStore

    return SqlStore(_database(url), create=create)


def open_reader(url: str) -> Reader:
    """The store at `url` to look at only, in a fraction of the time that `open_store` takes; raises the same errors."""
    from metta.sweep.stores.reader import SqlReader

    return SqlReader(_database(url))


_LOOSELY = re.IGNORECASE | re.DOTALL
#: What no file is called but by mistake: a URL of a server without its slashes, or a connection string of libpq.
_NO_FILE = re.compile(r"postgres|.*password\s*=", _LOOSELY)


def display_url(url: str) -> str:
    """The URL as it may be shown to anybody: with `***` in place of a password.

    What comes before the last `@` counts as user and password, so that one whose special characters were not encoded
    does not show either.
    """
    shown = re.sub(r"^([\w+.-]+://[^:@/?]*):.*@", r"\1:***@", url, flags=re.DOTALL)
    shown = re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", shown, flags=re.IGNORECASE)
    return shown if "://" in url else re.sub(r"(password\s*=|^postgres).*", r"\1***", shown, flags=_LOOSELY)


def sqlite_path(url: str) -> Path | None:
    """The file of an SQLite store; None for a store that is no file."""
    scheme, separator, rest = _split(url)
    if not separator:
        return Path(url).absolute()
    if scheme != "sqlite":
        return None
    return Path(unquote(rest.partition("?")[0].removeprefix("/"))).absolute()


def _split(url: str) -> tuple[str, str, str]:
    """The scheme, `://` and the rest; the path and nothing else where it is one."""
    scheme, separator, rest = url.partition("://")
    if not separator and _NO_FILE.match(url):
        # It may hold a password anywhere, so none of it is shown.
        raise ConfigError(
            "store: what was given looks like the address of a PostgreSQL server but is no URL; "
            "use postgresql://USER@HOST/DATABASE, or sqlite:///FILE for a file of such a name"
        )
    return scheme, separator, rest


def _database(url: str) -> Database:
    scheme, separator, _ = _split(url)
    if separator and scheme in {"postgresql", "postgres"}:
        from metta.sweep.stores.postgresql import PostgresqlDatabase

        return PostgresqlDatabase(url)
    if separator and scheme != "sqlite":
        raise ConfigError(
            f"store: scheme {scheme!r} of {display_url(url)!r} is not known; "
            "use sqlite:///FILE or postgresql://USER@HOST/DATABASE"
        )
    from metta.sweep.stores.sqlite import SqliteDatabase

    return SqliteDatabase(url if separator else Path(url))
