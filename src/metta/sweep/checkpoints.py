"""Checkpoints on disk: what a job saved of its progress, in the `checkpoints` folder of its run.

It is a file or folder that is written once and never changed: an object is pickled (`step-5-3f9a2c1d.pickle`), a file
or folder of the user's is copied and keeps its name (`step-5-3f9a2c1d-model.pt`). The token makes the name new each
time, so that saving a step again cannot leave half of each.

Until it is whole and synced it is called `.unfinished-...`: whatever has a checkpoint's name is one. It counts when the
log lists it.
"""

from __future__ import annotations

import errno
import hashlib
import operator
import os
import pickle
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from metta.sweep.errors import CheckpointError
from metta.sweep.model.events import CheckpointSaved
from metta.sweep.model.run import Checkpoint, Damaged

#: In the folder of each run that has checkpoints.
FOLDER = "checkpoints"
_UNFINISHED = ".unfinished-"
_DAMAGED = ".damaged"
#: As far as integers go in what processes write to each other.
_LARGEST_STEP = 2**63 - 1
#: Of the name of the user's file: a name has 255 bytes at most.
_LONGEST_NAME = 40
_CHUNK_BYTES = 1 << 20
#: What pickling raises for what it cannot do.
_UNPICKLABLE = (pickle.PicklingError, AttributeError, TypeError, RecursionError)


# ---------------------------------------------------------------------------------------------------------- saving


def save(run_directory: Path, path_or_obj: Any, step: Any) -> CheckpointSaved:
    """Save a file, a folder or an object; when this returns, the checkpoint outlives a power cut.

    Raises:
        CheckpointError: there is no such file, or no pickling such an object, or the step is no step.
        OSError: it cannot be written: the disk is full, say. Nothing of it is left.
    """
    step = _checked_step(step)
    if not isinstance(path_or_obj, str | os.PathLike):
        return _kept(run_directory, step, ".pickle", partial(_pickle, path_or_obj))
    source = _checked_source(path_or_obj, run_directory)
    return _kept(run_directory, step, f"-{_presentable(source.name)}", partial(_copy, source))


def copy(run_directory: Path, source: Path, checkpoint: Checkpoint) -> CheckpointSaved:
    """Give a run a copy of another's checkpoint; when this returns, it outlives a power cut.

    Args:
        run_directory: Of the run that is to have it.
        source: Of the run that has it.
        checkpoint: Which.

    Raises:
        CheckpointError: it is no longer what was saved. Nothing of the copy is left.
        OSError: it cannot be read or written just now, or is missing.
    """
    path = source / checkpoint.path
    # What follows the token tells what it is, and how it is loaded.
    end = re.sub(r"^step-\d+-[0-9a-f]+", "", path.name)

    def write(target: Path) -> tuple[str, int]:
        sha256, size_bytes = _copy(path, target)
        if sha256 != checkpoint.sha256:
            raise CheckpointError(_is_another(path, checkpoint.sha256, sha256))
        return sha256, size_bytes

    return _kept(run_directory, checkpoint.step, end, write)


def _kept(run_directory: Path, step: int, end: str, write: Callable[[Path], tuple[str, int]]) -> CheckpointSaved:
    """Keep what `write` puts under the name it is given; all of it or nothing."""
    folder = _made_folder(run_directory)
    name = f"step-{step}-{os.urandom(4).hex()}{end}"
    unfinished = folder / f"{_UNFINISHED}{name}"
    try:
        sha256, size_bytes = write(unfinished)
        unfinished.rename(folder / name)
    except BaseException:
        with suppress(OSError):  # what went wrong first is what matters
            discard(unfinished)
        raise
    _sync(folder)
    return CheckpointSaved(step=step, path=f"{FOLDER}/{name}", sha256=sha256, size_bytes=size_bytes)


def _checked_step(step: Any) -> int:
    try:
        number = operator.index(step)
    except TypeError:
        number = -1
    if isinstance(step, bool) or not 0 <= number <= _LARGEST_STEP:
        # Python refuses to write out integers of thousands of digits.
        shown = f"{step!r:.80}" if abs(number) <= _LARGEST_STEP else "beyond 63 bits"
        raise CheckpointError(
            f"step must be an integer from 0 on, such as the number of the epoch; got {type(step).__name__}: {shown}"
        )
    return number


def _checked_source(path: str | os.PathLike[str], run_directory: Path) -> Path:
    source = Path(os.path.abspath(path))
    if not source.exists():
        hint = "; to save text itself, put it into a dict" if isinstance(path, str) else ""
        raise CheckpointError(f"there is no file or folder {str(path)!r} to save as a checkpoint{hint}")
    if not source.is_dir() and not source.is_file():
        raise CheckpointError(f"{str(path)!r} is neither a file nor a folder, so it cannot be saved as a checkpoint")
    if (run_directory / FOLDER).resolve().is_relative_to(source.resolve()):
        raise CheckpointError(
            f"{str(path)!r} holds the run's checkpoints, so it cannot become one of them; "
            "save a folder of its own, such as run_directory() / 'model'"
        )
    return source


def _presentable(name: str) -> str:
    """The end of a name, where its type is; a name that is no text could not be written to the log."""
    return name[-_LONGEST_NAME:].encode(errors="replace").decode()


def _made_folder(run_directory: Path) -> Path:
    folder = run_directory / FOLDER
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync(run_directory)
    return folder


def _sync(folder: Path) -> None:
    """Make the names in a folder outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _HashingFile:
    """A new file that knows its hash and length."""

    def __init__(self, path: Path) -> None:
        self._stream = path.open("wb")
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: Any) -> None:
        """Write bytes, or what shows its bytes."""
        self._hash.update(data)
        self._size += memoryview(data).nbytes
        self._stream.write(data)

    def finish(self) -> tuple[str, int]:
        """Hash and length, once all is on the disk."""
        self._stream.flush()
        os.fsync(self._stream.fileno())
        return self._hash.hexdigest(), self._size

    def __enter__(self) -> _HashingFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()


def _pickle(value: Any, target: Path) -> tuple[str, int]:
    try:
        return _dump(pickle.Pickler, value, target)
    except _UNPICKLABLE:
        # Slower, but it carries functions and classes by value that only this process knows by name.
        import cloudpickle

        try:
            return _dump(cloudpickle.Pickler, value, target)
        except _UNPICKLABLE as error:
            raise CheckpointError(
                f"{type(value).__name__} cannot be pickled: {error}; "
                "save it to a file with its own library, and give save_checkpoint the path"
            ) from error


def _dump(pickler: Any, value: Any, target: Path) -> tuple[str, int]:
    with _HashingFile(target) as file:
        pickler(file, protocol=5).dump(value)
        return file.finish()


def _copy(source: Path, target: Path) -> tuple[str, int]:
    return _copy_folder(source, target) if source.is_dir() else _copy_file(source, target)


def _copy_file(source: Path, target: Path) -> tuple[str, int]:
    with source.open("rb") as stream, _HashingFile(target) as file:
        while chunk := stream.read(_CHUNK_BYTES):
            file.write(chunk)
        return file.finish()


def _copy_folder(source: Path, target: Path) -> tuple[str, int]:
    parts: dict[str, tuple[str, int]] = {}
    for folder, files in _walk(source):
        (target / folder).mkdir()
        for name in files:
            path = folder / name
            if not (source / path).is_file():
                raise CheckpointError(f"{str(source / path)!r} is neither a file nor a folder, so it cannot be saved")
            parts[path.as_posix()] = _copy_file(source / path, target / path)
        _sync(target / folder)
    return _folder_digest(parts)


def _walk(top: Path) -> Iterable[tuple[Path, list[str]]]:
    """All folders from this one on, relative to it, with the names of their files. Links to files pass for files."""

    def fail(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(top, onerror=fail):
        for name in folders:
            if (link := Path(folder) / name).is_symlink():
                raise CheckpointError(
                    f"{str(link)!r} is a link to a folder; a checkpoint has to hold the folder itself"
                )
        yield Path(folder).relative_to(top), files


# -------------------------------------------------------------------------------------------------------- checking


def digest(path: Path) -> tuple[str, int]:
    r"""SHA-256 and size of a checkpoint.

    That of a folder is the hash of what `sha256sum` prints for its files in the order of their names:
    `find . -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum`.
    """
    if not path.is_dir():
        return _file_digest(path)
    files = [folder / name for folder, names in _walk(path) for name in names]
    return _folder_digest({file.as_posix(): _file_digest(path / file) for file in files})


def _file_digest(path: Path) -> tuple[str, int]:
    if not stat.S_ISREG(path.stat().st_mode):
        raise CheckpointError(f"{path.name} is neither a file nor a folder")  # and a pipe would be waited for for ever
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest(), os.fstat(stream.fileno()).st_size


def _folder_digest(parts: Mapping[str, tuple[str, int]]) -> tuple[str, int]:
    lines = {os.fsencode(name): sha256.encode() for name, (sha256, _) in parts.items()}
    text = b"".join(b"%b  %b\n" % (lines[name], name) for name in sorted(lines))
    return hashlib.sha256(text).hexdigest(), sum(size_bytes for _, size_bytes in parts.values())


def newest_sound(
    run_directory: Path, checkpoints: Iterable[Checkpoint]
) -> tuple[Checkpoint | None, tuple[Damaged, ...]]:
    """The newest checkpoint that still is what was saved, and those that were found not to be; they are set aside."""
    damaged: list[Damaged] = []
    for checkpoint in sorted(checkpoints, key=lambda each: each.step, reverse=True):
        reason = _problem(run_directory / checkpoint.path, checkpoint.sha256)
        if reason is None:
            return checkpoint, tuple(damaged)
        kept = _set_aside(run_directory / checkpoint.path)
        damaged.append(Damaged(step=checkpoint.step, path=checkpoint.path, reason=reason + kept))
    return None, tuple(damaged)


def _problem(path: Path, sha256: str) -> str | None:
    try:
        found, _ = digest(path)
    except (FileNotFoundError, NotADirectoryError):
        return f"missing: there is no {path.name}"
    except CheckpointError as error:
        return f"damaged: {error}"
    except OSError as error:
        # A failing disk is no reason to give up: an older checkpoint may be readable. Nor is a link to itself. Anything
        # else may pass.
        if error.errno not in (errno.EIO, errno.ELOOP):
            raise
        return f"damaged: {error}"
    if found == sha256:
        return None
    return _is_another(path, sha256, found)


def _is_another(path: Path, sha256: str, found: str) -> str:
    return f"damaged: {path.name} was saved with SHA-256 {sha256:.12}..., now it has {found:.12}..."


def _set_aside(path: Path) -> str:
    try:
        path.rename(path.with_name(f"{path.name}{_DAMAGED}"))
    except OSError:
        return ""  # it is missing, or has to stay where it is; nobody will use it
    return f", kept as {path.name}{_DAMAGED}"


def warning_of(damaged: Damaged, instead: Checkpoint | None) -> str:
    """A line for the job's log."""
    then = "starting without one" if instead is None else f"going on from step {instead.step}"
    return f"metta sweep: warning: the checkpoint of step {damaged.step} is {damaged.reason}; {then}\n"


# --------------------------------------------------------------------------------------------- loading and removing


def load(run_directory: Path, checkpoint: Checkpoint) -> Any:
    """The object that was saved; of a file or folder its path.

    Raises:
        CheckpointError: the object cannot be made again.
    """
    path = run_directory / checkpoint.path
    if not is_pickled(checkpoint.path):
        return path
    try:
        with path.open("rb") as stream:
            return pickle.load(stream)  # noqa: S301 (its hash is the one in the log: the job saved it itself)
    except (*_UNPICKLABLE, ImportError, EOFError) as error:
        raise CheckpointError(
            f"the object in {path} cannot be loaded: {type(error).__name__}: {error}; "
            "the classes that it is made of have to be there as they were when it was saved"
        ) from error


def is_pickled(path: str) -> bool:
    """Whether a checkpoint of this name is an object that was pickled, rather than the user's own file or folder."""
    return re.fullmatch(r"step-\d+-[0-9a-f]+\.pickle", Path(path).name) is not None


def discard(path: Path) -> None:
    """Remove a checkpoint, if it is there."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def discard_unfinished(run_directory: Path) -> None:
    """Remove what jobs of the run that are no more did not get to finish."""
    folder = run_directory / FOLDER
    # Most runs have none, and are asked at each end of a job.
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name.startswith(_UNFINISHED):
                discard(path)
