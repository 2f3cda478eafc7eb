"""`metta sweep backup`: a copy of the store while sweeps go on."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from metta.sweep.cli.options import JsonOption, StoreOption
from metta.sweep.errors import ConfigError
from metta.sweep.stores import display_url, sqlite_path, store_url


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: metta sweep backup /mnt/safe/sweeps.db")(backup)


def backup(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILE", help="Where to; nothing may be there. Default: beside the store, with the time."
        ),
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the store as it is at this moment, and check the copy; nobody who writes to the store has to wait."""
    from metta.sweep.cli.shapes import print_json
    from metta.sweep.stores.backup import backup as copy_store

    source = sqlite_path(store_url(store))
    if source is None:
        raise ConfigError(
            f"store {display_url(store_url(store))}: is kept by a server, which makes its backups itself; "
            "use: pg_dump --format=custom --file=FILE DATABASE"
        )
    target = (beside(source, time.time()) if file is None else file).absolute()
    if target.resolve() in parts_of(source):
        raise ConfigError(f"{target}: is where SQLite keeps a part of the store {source}; name another file")
    copy_store(source, target, ProgressLine())
    if as_json:
        print_json({"store": str(source), "backup": str(target), "size_bytes": target.stat().st_size})
        return
    sys.stdout.write(f"{target}\n")
    sys.stderr.write(f"a checked copy of {source}; look into it with --store {target}\n")


def beside(store: Path, now: float) -> Path:
    """The default target. Not named like the automatic backups, so that these do not count it as one of theirs."""
    return store.with_name(f"{store.stem}.backup-{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}.db")


def parts_of(store: Path) -> set[Path]:
    """The files that SQLite makes beside a store, and takes for its own wherever they come from."""
    path = store.resolve()
    return {path.with_name(f"{path.name}{suffix}") for suffix in ("-wal", "-shm", "-journal")}


class ProgressLine:
    """Says on standard error what is being done: a line for each part of it, with percents on a terminal."""

    def __init__(self) -> None:
        self._shown = ""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Told what is being done, how much of it is done, and how much there is."""
        is_terminal = sys.stderr.isatty()
        percent = 100 * done // total if total else 100
        text = f"{what} {percent} %" if is_terminal else what
        if text == self._shown:
            return
        self._shown = text
        ending = "\n" if not is_terminal or percent == 100 else ""
        sys.stderr.write(f"\r{text}{ending}" if is_terminal else f"{text}{ending}")
        sys.stderr.flush()
