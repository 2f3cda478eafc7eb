"""What becomes of a store whose file is damaged: nothing may be read from it that is not as it was written.

A sweep of completed runs, and a few that failed or have not ended, is written, and its file damaged: cut short, each
page in turn overwritten with noise, single bits flipped; then the write-ahead log that a crash leaves beside it, with
the log's index, the file `-shm`, and copied without. Of each damaged copy everything is read that the commands read,
and it is opened as a controller does. What differs from the original without an error is SILENT, and the script fails.
Where it is as it was before the last commit, that commit is called lost: without the index nobody can tell it from one
that a power cut tore.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from rich.console import Console
from rich.progress import track

from _measure import Report, parse_arguments, scratch_folder
from _sweeps import SWEEP, life_of, write_sweep
from metta.sweep.errors import StoreError, SweepError
from metta.sweep.model import events as ev
from metta.sweep.model import ids
from metta.sweep.model.events import Event
from metta.sweep.model.run import JobStatus, RunInfo
from metta.sweep.model.state import EMPTY, fold
from metta.sweep.protocols import Reader
from metta.sweep.stores import open_reader, open_store
from metta.sweep.stores.recovery import recover

#: Runs that failed, and runs in the middle of their jobs, beside those that are completed.
_FAILED, _UNENDED = 5, 5
#: What differs is shown for so many copies.
_SHOWN = 10

#: What was done, the files by what their names end with, and the pages that were hit.
Damage: TypeAlias = tuple[str, dict[str, bytes], frozenset[int]]
_LOG, _INDEX = "-wal", "-shm"
_LAST_LOST = "with the last commit lost"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200, help="completed runs (%(default)s)")
    parser.add_argument("--flips", type=int, default=150, help="copies with one bit flipped (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and the flips (%(default)s)")
    options = parse_arguments(parser)
    flips = options.flips // 10 if options.quick else options.flips
    choose = random.Random(options.seed)
    with scratch_folder(options.folder) as folder:
        original = Original.write(folder / "original.db", options.runs)
        crashed = Original.write(folder / "crashed.db", options.runs, has_crashed=True)
        report = Report(f"Damage to a store of {len(original.runs)} runs, {len(original.content):,} bytes")
        groups = {
            "cut to 90 %, 50 %, nothing": [original.cut(share) for share in (0.9, 0.5, 0.0)],
            "a page overwritten with noise": list(original.overwritten(choose, 10 if options.quick else 1)),
            "a bit flipped": list(original.flipped(choose, flips)),
        }
        outcomes = {name: _outcomes(name, original, copies, folder) for name, copies in groups.items()}
        flipped_in_log = list(crashed.flipped_in_log(choose, flips // 3))
        groups = {
            "the log of a crashed store cut to 90 %, 50 %, 10 %": [crashed.cut_log(share) for share in (0.9, 0.5, 0.1)],
            "a bit of the log of a crashed store flipped": flipped_in_log,
            "the same bit, and no index": [_without_index(damage) for damage in flipped_in_log],
        }
        outcomes |= {name: _outcomes(name, crashed, copies, folder) for name, copies in groups.items()}
        theirs = _optuna(folder, options.runs, flips, options.seed)
    for name, outcome in outcomes.items():
        _report(report, name, outcome, theirs if name == "a bit flipped" else None)
    report.finish(options.json, options.folder)
    console = Console(highlight=False, stderr=True)
    problems = [problem for outcome in outcomes.values() for problem in outcome.problems]
    for problem in problems[:_SHOWN]:
        console.print(problem, style="red")
    if len(problems) > _SHOWN:
        console.print(f"and {len(problems) - _SHOWN} others", style="red")
    sys.exit(1 if problems else 0)


# --------------------------------------------------------------------------------------------------------- the original


def _runs(report_: Reader, **filters: Any) -> list[RunInfo]:
    return report_.fetch_runs(SWEEP, **filters)


#: All that the commands read, each on its own: what one of them gets wrong another does not make good.
_READINGS: dict[str, Callable[[Reader], Any]] = {
    "all sweeps": lambda reader: reader.fetch_sweeps(),
    "the sweep": lambda reader: reader.fetch_sweeps(SWEEP),
    "all runs": lambda reader: reader.fetch_runs(),
    "the sweep's runs": _runs,
    **{
        f"runs that are {status}": lambda reader, status=status: _runs(reader, statuses=[status])  # type: ignore[misc]
        for status in JobStatus
    },
    "runs by prefix": lambda reader: [_runs(reader, id_prefix=prefix) for prefix in ids.ALPHABET],
    "runs by id": lambda reader: [_runs(reader, run_ids=[ids.run_id(SWEEP, index)]) for index in range(0, 200, 10)],
    "best runs": lambda reader: _runs(reader, best_first=True),
    "best three runs": lambda reader: _runs(reader, best_first=True, limit=3),
    "the log": lambda reader: list(reader.read(SWEEP)),
    "the log's second half": lambda reader: list(reader.read(SWEEP, 1000)),
    "the log of a run": lambda reader: list(reader.read(SWEEP, run_id=ids.run_id(SWEEP, 100))),
    "the state": lambda reader: fold(EMPTY, reader.read(SWEEP)),
}


@dataclass(frozen=True)
class Original:
    """The store before any damage, what is read from it, and where its rows are."""

    #: The file, its write-ahead log and the index of that, by what their names end with.
    files: dict[str, bytes]
    page_size: int
    read: dict[str, Any]
    #: The same before the last commit.
    read_before: dict[str, Any]
    runs: dict[str, RunInfo]
    #: For each run, and for the sweep, the pages of each of its rows; all copies of it count. Those in the write-ahead
    #: log have negative numbers.
    rows: dict[str, list[frozenset[int]]]
    #: What each page belongs to.
    owners: dict[int, str]

    @classmethod
    def write(cls, path: Path, runs: int, *, has_crashed: bool = False) -> Original:
        """Write it, with so many completed runs, and read it; a crash leaves commits in the write-ahead log."""
        with closing(open_store(str(path), create=True)) as store:
            write_sweep(store, path.parent, runs, ended=False)
            for index in range(runs, runs + _FAILED + _UNENDED):
                read_before = {name: reading(store) for name, reading in _READINGS.items()}
                store.append(_failing(index) if index < runs + _FAILED else life_of(index)[: 2 + index % 6])
            if not has_crashed:
                store.close()
            files = {file.name.removeprefix(path.name): file.read_bytes() for file in path.parent.glob(f"{path.name}*")}
        content, log = files[""], files.get(_LOG, b"")
        with closing(open_reader(str(path))) as reader:
            read = {name: reading(reader) for name, reading in _READINGS.items()}
            runs_ = {run.run_id: run for run in reader.fetch_runs()}
        with closing(sqlite3.connect(path)) as connection:
            [(page_size,)] = connection.execute("PRAGMA page_size")
            owners = dict(connection.execute("SELECT pageno, name || ' ' || pagetype FROM dbstat"))
            rows: dict[str, list[frozenset[int]]] = {}
            for table in ("events", "runs"):
                for run_id, hash_ in connection.execute(f"SELECT run_id, hash FROM {table}"):
                    pages = {position // page_size + 1 for position in _positions(content, hash_)}
                    pages |= {-_frame(position, page_size) for position in _positions(log, hash_)}
                    rows.setdefault(run_id or SWEEP, []).append(frozenset(pages))
        return cls(files, page_size, read, read_before, runs_, rows, owners)

    @property
    def content(self) -> bytes:
        """Of the file itself."""
        return self.files[""]

    def cut(self, share: float) -> Damage:
        """The file's beginning alone."""
        size = int(share * len(self.content))
        hit = range(size // self.page_size, len(self.content) // self.page_size)
        return f"cut to {share:.0%}", {"": self.content[:size]}, frozenset(page + 1 for page in hit)

    def overwritten(self, choose: random.Random, step: int) -> Iterator[Damage]:
        """Each page in turn as noise."""
        for start in range(0, len(self.content), self.page_size * step):
            noise = choose.randbytes(self.page_size)
            page = start // self.page_size + 1
            content = self.content[:start] + noise + self.content[start + self.page_size :]
            yield f"page {page} ({self.owners.get(page, 'free')}) overwritten", {"": content}, frozenset([page])

    def flipped(self, choose: random.Random, count: int) -> Iterator[Damage]:
        """One bit each."""
        for _ in range(count):
            position, bit = choose.randrange(len(self.content)), choose.randrange(8)
            page, offset = position // self.page_size + 1, position % self.page_size
            name = f"bit {bit} of byte {offset} of page {page} ({self.owners.get(page, 'free')}) flipped"
            yield name, {"": _flip(self.content, position, bit)}, frozenset([page])

    def cut_log(self, share: float) -> Damage:
        """The write-ahead log's beginning alone."""
        log = self.files[_LOG]
        size = int(share * len(log))
        hit = range(_frame(size, self.page_size), _frame(len(log), self.page_size))
        return f"log cut to {share:.0%}", self.files | {_LOG: log[:size]}, frozenset(-frame for frame in hit)

    def flipped_in_log(self, choose: random.Random, count: int) -> Iterator[Damage]:
        """One bit each of the write-ahead log."""
        log = self.files[_LOG]
        for _ in range(count):
            position, bit = choose.randrange(len(log)), choose.randrange(8)
            frame = _frame(position, self.page_size)
            name = f"bit {bit} of byte {position} of the write-ahead log (frame {frame}) flipped"
            yield name, self.files | {_LOG: _flip(log, position, bit)}, frozenset([-frame])

    def intact(self, hit: frozenset[int]) -> set[str]:
        """Runs that have all their rows, the sweep's first event included, on pages that were not hit."""
        if not self._is_intact(self.rows[SWEEP], hit):
            return set()
        return {run_id for run_id in self.runs if self._is_intact(self.rows[run_id], hit)}

    @staticmethod
    def _is_intact(rows: Sequence[frozenset[int]], hit: frozenset[int]) -> bool:
        return all(pages - hit for pages in rows)


def _without_index(damage: Damage) -> Damage:
    name, files, hit = damage
    return f"{name}, without its index", {end: content for end, content in files.items() if end != _INDEX}, hit


def _failing(index: int) -> list[Event]:
    *life, last = life_of(index)
    return [*life, msgspec.structs.replace(last, body=ev.RunFailed(reason="the metric was not reported"))]


def _positions(content: bytes, word: bytes) -> Iterator[int]:
    position = content.find(word)
    while position >= 0:
        yield position
        position = content.find(word, position + 1)


def _frame(position: int, page_size: int) -> int:
    """Which frame of a write-ahead log, from 1, has this byte; 0 for the log's header."""
    return (position - 32) // (page_size + 24) + 1 if position >= 32 else 0


def _flip(content: bytes, position: int, bit: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1 << bit]) + content[position + 1 :]


# ---------------------------------------------------------------------------------------------------- what became of it


@dataclass
class Outcomes:
    """What became of the damaged copies of one kind."""

    copies: int
    #: Of the copies: refused when opened to read, wrong rows refused when read, all as it was, all as it was before the
    #: last commit, something SILENT.
    counts: Counter[str] = field(default_factory=Counter)
    #: Copies that a controller does not open.
    refused_by_writer: int = 0
    #: Shares of the runs that are as they were after `recover`.
    recovered: list[float] = field(default_factory=list)
    #: Runs whose pages were all intact, and those of them that `recover` did not bring back.
    intact: int = 0
    missed: int = 0
    #: Runs that `recover` says are as they were, and are not.
    wrong: int = 0
    problems: list[str] = field(default_factory=list)


def _outcomes(title: str, original: Original, copies: Sequence[Damage], folder: Path) -> Outcomes:
    outcomes = Outcomes(copies=len(copies))
    for number, (name, files, hit) in enumerate(track(copies, title, console=Console(stderr=True), transient=True)):
        place = folder / "damaged"
        place.mkdir()
        path = place / f"{number}.db"
        for end, content in files.items():
            path.with_name(f"{path.name}{end}").write_bytes(content)
        _recover(outcomes, original, name, path, hit)
        outcomes.counts[_read(outcomes, original, name, path)] += 1
        _open_for_writing(outcomes, name, path)
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
    return outcomes


def _read(outcomes: Outcomes, original: Original, name: str, path: Path) -> str:
    try:
        reader = open_reader(str(path))
    except Exception as error:  # noqa: BLE001 (any error at all is found, and named if it is not ours)
        _check_error(outcomes, name, error)
        return "refused when opened"
    with closing(reader):
        verdicts = {}
        for what, reading in _READINGS.items():
            try:
                verdicts[what] = _verdict(original, what, reading(reader))
            except Exception as error:  # noqa: BLE001 (any error at all is found, and named if it is not ours)
                _check_error(outcomes, name, error)
                verdicts[what] = "refused when read"
    silent = [what for what, verdict in verdicts.items() if verdict == "SILENT"]
    if silent:
        others = f" and {len(silent) - 3} others" if len(silent) > 3 else ""
        outcomes.problems.append(f"SILENT: {name}: wrong without an error: {', '.join(silent[:3])}{others}")
    return max(verdicts.values(), key=["harmless", _LAST_LOST, "refused when read", "SILENT"].index)


def _verdict(original: Original, what: str, read: Any) -> str:
    if read == original.read[what]:
        return "harmless"
    return _LAST_LOST if _LOG in original.files and read == original.read_before[what] else "SILENT"


def _check_error(outcomes: Outcomes, name: str, error: Exception) -> None:
    if not isinstance(error, SweepError):
        outcomes.problems.append(f"not said properly: {name}: {error!r}")


def _open_for_writing(outcomes: Outcomes, name: str, path: Path) -> None:
    try:
        open_store(str(path)).close()
    except Exception as error:  # noqa: BLE001 (any error at all is found, and named if it is not ours)
        _check_error(outcomes, name, error)
        outcomes.refused_by_writer += 1


def _recover(outcomes: Outcomes, original: Original, name: str, path: Path, hit: frozenset[int]) -> None:
    intact = original.intact(hit)
    outcomes.intact += len(intact)
    target = path.with_name("recovered.db")
    back: dict[str, RunInfo] = {}
    said: set[str] = set()
    try:
        [sweep] = recover(path, target).sweeps
    except StoreError as error:
        if intact:
            outcomes.problems.append(f"not recovered: {name}: {error}")
    else:
        said = {*sweep.complete, *sweep.rebuilt}
        with closing(open_reader(str(target))) as reader:
            back = {run.run_id: run for run in reader.fetch_runs()}
    as_before = {run_id for run_id, run in back.items() if original.runs.get(run_id) == run}
    outcomes.recovered.append(len(as_before) / len(original.runs))
    outcomes.missed += len(intact - as_before)
    outcomes.wrong += len(said - as_before)
    if intact - as_before:
        outcomes.problems.append(f"not recovered: {name}: {', '.join(sorted(intact - as_before))}")
    if said - as_before:
        outcomes.problems.append(f"recovered wrongly: {name}: {', '.join(sorted(said - as_before))}")


def _report(report: Report, name: str, outcomes: Outcomes, theirs: Counter[str] | None) -> None:
    silent = outcomes.counts.pop("SILENT", 0)
    peer = {} if theirs is None else {"peer": "Optuna:", "peer_value": float(theirs["SILENT"])}
    counted = ", ".join(f"{count} {verdict}" for verdict, count in sorted(outcomes.counts.items()))
    if theirs is not None:
        counted += f"; Optuna: {theirs['refused']} refused, {theirs['harmless']} harmless"
    report.add(f"{name}: SILENT of {outcomes.copies} copies", silent, "", at_most=0, note=counted, **peer)
    writer = f"a controller does not open {outcomes.refused_by_writer} of them"
    least = f"{min(outcomes.recovered):.1%} where least; {writer}"
    share = 100 * sum(outcomes.recovered) / len(outcomes.recovered)
    report.add("  runs as they were after recover, on average", share, "%", note=least)
    note = f"{outcomes.intact:,} runs in all copies had all their rows on pages that were not hit"
    report.add("  intact runs that recover did not bring back", outcomes.missed, "", at_most=0, note=note)
    report.add("  runs recovered wrongly", outcomes.wrong, "", at_most=0)


# ---------------------------------------------------------------------------------------------------------------- peer


def _optuna(folder: Path, trials: int, flips: int, seed: int) -> Counter[str]:
    """As many trials in Optuna's SQLite storage, as many flipped bits: what loading the study gives."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    path = folder / "optuna.db"
    study = optuna.create_study(storage=f"sqlite:///{path}", study_name=SWEEP)
    space = {f"p{number}": optuna.distributions.FloatDistribution(0.0, 1.0) for number in range(6)}
    choose = random.Random(seed)
    study.add_trials(
        optuna.trial.create_trial(
            params={name: choose.random() for name in space},
            distributions=space,
            value=choose.random(),
            intermediate_values={step: choose.random() for step in range(4)},
        )
        for _ in range(trials)
    )
    study._storage.remove_session()
    content, before = path.read_bytes(), _optuna_trials(path)
    counts: Counter[str] = Counter()
    for number in track(range(flips), "Optuna", console=Console(stderr=True), transient=True):
        copy = folder / f"optuna-{number}.db"
        copy.write_bytes(_flip(content, choose.randrange(len(content)), choose.randrange(8)))
        try:
            counts["harmless" if _optuna_trials(copy) == before else "SILENT"] += 1
        except Exception:  # noqa: BLE001 (whatever Optuna makes of it, it does not stay silent)
            counts["refused"] += 1
        copy.unlink()
    return counts


def _optuna_trials(path: Path) -> list[Any]:
    import optuna

    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    try:
        return optuna.load_study(storage=storage, study_name=SWEEP).get_trials(deepcopy=False)
    finally:
        storage.remove_session()
        storage.engine.dispose()


if __name__ == "__main__":
    main()
