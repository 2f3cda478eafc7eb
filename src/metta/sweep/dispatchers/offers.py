"""Which dispatchers a job may have been given to, kept across crashes in a file beside the sweep's other files."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from metta.sweep.errors import DispatchError


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file: the job was about to be given to the dispatcher."""

    job_id: str
    to: str


_decode = msgspec.json.Decoder(Offer).decode


class Offers:
    """Written before a job is given away, so that no crash leaves a job somewhere that nobody thinks of.

    That a dispatcher turned a job down is remembered in memory alone. A later process that finds the offer asks again,
    which is safe; and the file does not grow while jobs wait for room.

    Args:
        directory: The sweep's folder.
    """

    def __init__(self, directory: str) -> None:
        self._path = Path(directory) / "offers.jsonl"
        self._read_up_to = 0
        self._recorded: dict[str, tuple[str, ...]] = {}
        self._declined: set[tuple[str, str]] = set()

    def holders(self, job_id: str) -> tuple[str, ...] | None:
        """Those who may have the job; None when it was never offered to anybody."""
        recorded = self._recorded.get(job_id)
        return None if recorded is None else tuple(to for to in recorded if (job_id, to) not in self._declined)

    def record(self, job_ids: Iterable[str], to: str) -> None:
        """Write down that the jobs may be there from now on; on disk when this returns.

        Raises:
            DispatchError: it cannot be written, so the jobs must not be given away.
        """
        job_ids = list(job_ids)
        self._declined -= {(job_id, to) for job_id in job_ids}
        new = [Offer(job_id=job_id, to=to) for job_id in job_ids if to not in self._recorded.get(job_id, ())]
        if not new:
            return
        lines = b"".join(msgspec.json.encode(offer) + b"\n" for offer in new)
        try:
            # A line that a crash or a full disk cut short must not swallow the next one.
            self._append(b"\n" + lines)
        except OSError as error:
            raise DispatchError(
                f"jobs are not offered to {to}, because that cannot be written down in {self._path}: {error.strerror}"
            ) from error
        self.refresh()

    def decline(self, job_ids: Iterable[str], to: str) -> None:
        """It is certain that the jobs are not there."""
        self._declined |= {(job_id, to) for job_id in job_ids}

    def refresh(self) -> None:
        """Read what was written since, by earlier processes or by this one.

        Raises:
            DispatchError: the file is there and cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                file.seek(self._read_up_to)
                added = file.read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DispatchError(f"{self._path} cannot be read: {error.strerror}") from error
        whole = added.rfind(b"\n") + 1
        self._read_up_to += whole
        for line in added[:whole].splitlines():
            try:
                offer = _decode(line)
            except msgspec.MsgspecError:
                continue  # it was cut short, so its offer was never made
            known = self._recorded.get(offer.job_id, ())
            if offer.to not in known:
                self._recorded[offer.job_id] = (*known, offer.to)

    def _append(self, lines: bytes) -> None:
        is_new = not self._path.exists()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
