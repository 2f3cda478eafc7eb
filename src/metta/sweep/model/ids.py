"""Identifiers: five readable characters for sweeps and runs, UUIDv7 for events."""

from __future__ import annotations

import hashlib
import os
import secrets

#: Crockford's base 32: no i, l, o or u, so ids read and type without mistakes.
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
ID_LENGTH = 5
ID_COUNT = len(ALPHABET) ** ID_LENGTH


def _spell(number: int) -> str:
    digits = []
    for _ in range(ID_LENGTH):
        number, digit = divmod(number, len(ALPHABET))
        digits.append(ALPHABET[digit])
    return "".join(digits)


def new_sweep_id() -> str:
    """A random sweep id."""
    return _spell(secrets.randbelow(ID_COUNT))


def run_id(sweep_id: str, index: int) -> str:
    """The id of a sweep's `index`-th run.

    An affine permutation of the index that differs from sweep to sweep: ids never collide inside a sweep, need no
    look-up, come out the same on a replay, and neighbours differ in their first characters, so short prefixes are
    unique.
    """
    if not 0 <= index < ID_COUNT:
        raise ValueError(f"run index must be in [0, {ID_COUNT}), got {index}")
    digest = hashlib.sha256(sweep_id.encode()).digest()
    multiplier = int.from_bytes(digest[:8], "big") | 1  # odd, hence invertible modulo a power of two
    offset = int.from_bytes(digest[8:16], "big")
    return _spell((index * multiplier + offset) % ID_COUNT)


def job_id(run: str, job_type: str, attempt: int) -> str:
    """The id of one attempt at a run's job, such as `46g3f.train.1`."""
    return f"{run}.{job_type}.{attempt}"


def new_event_id(at: float) -> str:
    """A UUIDv7 (RFC 9562, section 5.7) for an event at `at` seconds since the epoch.

    Time-ordered, so the store's index on it grows at its end.
    """
    milliseconds = int(at * 1000) & ((1 << 48) - 1)
    chance = int.from_bytes(os.urandom(10), "big")
    value = milliseconds << 80 | 0x7 << 76 | (chance >> 68) << 64 | 0b10 << 62 | chance & ((1 << 62) - 1)
    # Spelled here, not by `uuid.UUID`: every event needs one.
    digits = f"{value:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
