"""Commands that carry sweeps elsewhere and back: export, import."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from metta.sweep.cli.options import JsonOption, StoreOption, SweepArgument
from metta.sweep.errors import ConfigError, MissingExtraError
from metta.sweep.model.events import Event
from metta.sweep.model.sweep import SweepMetadata
from metta.sweep.protocols import Reader, Store
from metta.sweep.stores import open_reader, open_store, store_url


class Format(StrEnum):
    """What a sweep is exported as."""

    YAML = "yaml"
    JSON = "json"
    CSV = "csv"
    PARQUET = "parquet"
    OPTUNA = "optuna"


#: Formats that no terminal shows: files are named like the sweep.
_SUFFIXES = {Format.PARQUET: ".parquet", Format.OPTUNA: ".optuna.db"}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("export", epilog="Example: metta sweep export 46g3f --format json -o sweep.json")(export_sweep)
    app.command("import", epilog="Example: metta sweep import sweep.json")(import_sweep)


def export_sweep(
    sweep: SweepArgument = None,
    kind: Annotated[
        Format,
        typer.Option(
            "--format",
            help="yaml: the configuration. json: everything, with its history. csv, parquet: a row a run. "
            "optuna: an SQLite file of Optuna's.",
        ),
    ] = Format.YAML,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Where to; nothing may be there. Default: standard output."
        ),
    ] = None,
    store: StoreOption = None,
) -> None:
    """Write a sweep to a file that other tools, or another store, can read."""
    from metta.sweep.cli.addresses import find_sweep

    opened = open_reader(store_url(store))
    found = find_sweep(opened, sweep)
    if output is None and kind in _SUFFIXES:
        output = Path(f"{found.sweep_id}{_SUFFIXES[kind]}")
    if output is not None and output.exists():
        raise ConfigError(f"--output: {output} exists; name another file, or remove it first")
    try:
        _export(opened, found, kind, output)
    except OSError as error:
        if output is None:
            raise
        raise ConfigError(f"--output: {output} cannot be written: {error.strerror}; name another file") from error
    if output is not None:
        sys.stderr.write(f"wrote {output}\n")


def _export(store: Reader, sweep: SweepMetadata, kind: Format, output: Path | None) -> None:
    if kind is Format.JSON:
        from metta.sweep.exchange.complete import to_lines

        lines = to_lines(sweep.sweep_id, store.read(sweep.sweep_id))
        if output is None:
            for line in lines:
                sys.stdout.buffer.write(line)
        else:
            with output.open("xb") as file:
                file.writelines(lines)
        return
    if kind is Format.YAML:
        from metta.sweep.exchange.sweep_file import to_yaml

        _put(to_yaml(sweep.sweep_id, sweep.config), output)
        return
    runs = store.fetch_runs(sweep.sweep_id)
    if kind is Format.CSV:
        from metta.sweep.exchange.table import to_csv

        _put(to_csv(runs), output)
    elif kind is Format.PARQUET:
        from metta.sweep.exchange.table import to_parquet

        assert output is not None
        to_parquet(runs, output)
    else:
        _check_optuna("export")
        from metta.sweep.exchange.optuna_export import to_optuna

        assert output is not None
        to_optuna(sweep, runs, output)


def _put(text: str, output: Path | None) -> None:
    if output is None:
        sys.stdout.write(text)
        return
    with output.open("x", encoding="utf-8", newline="") as file:
        file.write(text)


def _check_optuna(command: str) -> None:
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            f'{command}: studies need Optuna; install it with: pip install "metta-sweep[optuna]"'
        ) from error


def import_sweep(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="sweep.yaml, an export in JSON, or Optuna's SQLite file or journal.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the sweep. Default: that in the file.")] = None,
    study: Annotated[str | None, typer.Option(help="Which study of Optuna, where there are several.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a sweep into the store and print its id; nothing is run.

    Of a configuration it is a new sweep, of an export the same one with its history, of a study one that has ended.
    """
    from metta.sweep.config_file import SUFFIXES

    if not file.is_file():
        raise ConfigError(f"{file}: there is no such file")
    suffix = file.suffix.lower()
    if study is not None and suffix in {*SUFFIXES, ".json"}:
        raise ConfigError(f"--study: {file} is no study of Optuna; leave it out")
    if suffix in SUFFIXES:
        sweep_id, note = _import_config(file, name, store)
    elif suffix == ".json":
        sweep_id, note = _import_log(_complete(file), name, store)
    else:
        sweep_id, note = _import_study(file, name, study, store)
    if as_json:
        from metta.sweep.cli.shapes import print_json

        print_json({"sweep_id": sweep_id})
        return
    sys.stdout.write(f"{sweep_id}\n")
    sys.stderr.write(f"{note}\n")


def _import_config(file: Path, name: str | None, store: str | None) -> tuple[str, str]:
    from metta.sweep.cli.target import load_definition
    from metta.sweep.launch import check, launch

    definition = load_definition(str(file), {} if name is None else {"name": name})
    check(definition)
    launched = launch(open_store(store_url(store), create=True), definition)
    state = "is there already" if launched.resumed else "is ready"
    sweep_id = launched.sweep.sweep_id
    return sweep_id, f"{launched.sweep.config.name} {state}; run it with: metta sweep run --resume {sweep_id}"


def _complete(file: Path) -> list[Event]:
    from metta.sweep.exchange.complete import from_file

    return from_file(file)


def _import_log(events: list[Event], name: str | None, store: str | None) -> tuple[str, str]:
    from metta.sweep.exchange.complete import write

    opened = open_store(store_url(store), create=True)
    is_new = write(opened, events, name=name)
    return events[0].sweep_id, _imported(opened, events[0].sweep_id, is_new=is_new)


def _imported(store: Store, sweep_id: str, *, is_new: bool) -> str:
    [sweep] = store.fetch_sweeps(sweep_id)
    what = f"{sweep.config.name}, {sweep.run_count} runs, {sweep.seq} events"
    return f"{what}; see: metta sweep analyze {sweep_id}" if is_new else f"{what}: was there before"


def _import_study(file: Path, name: str | None, study: str | None, store: str | None) -> tuple[str, str]:
    _check_optuna("import")
    from metta.sweep.exchange.optuna_import import open_study, to_events
    from metta.sweep.launch import files_directory
    from metta.sweep.model.ids import new_sweep_id

    sweep_id = new_sweep_id()
    directory = files_directory(store_url(store)) / sweep_id
    events = to_events(open_study(file, study), sweep_id, name=name, directory=directory)
    return _import_log(events, None, store)
