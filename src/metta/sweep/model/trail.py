"""Which runs have changed what they teach, in order: what lets a reader of states keep up in time with the changes."""

from __future__ import annotations

from collections.abc import Hashable
from weakref import ref


class Trail:
    """A persistent list of run ids, read from its latest entry backwards.

    Each state of a sweep holds the trail up to it. A later state's trail contains an earlier one's as the very same
    object, so whoever keeps the trail it saw last can tell exactly what is new, and whether the state in hand is a
    successor of that one at all: states folded from other events, as in a replay, share no objects.

    The same entry after the same entry is the same object, as long as somebody holds it. So what a controller has
    thought through, and then written and read again, is no news to those that have followed its thoughts.
    """

    __slots__ = ("__weakref__", "_later", "_lesson", "earlier", "length", "run_id")

    def __init__(self, run_id: str, earlier: Trail | None, lesson: int = 0) -> None:
        self.run_id = run_id
        self.earlier = earlier
        self.length: int = 1 if earlier is None else earlier.length + 1
        self._lesson = lesson
        self._later: ref[Trail] | None = None

    @classmethod
    def after(cls, earlier: Trail | None, run_id: str, lesson: Hashable) -> Trail:
        """The entry for a run that teaches this from now on."""
        known = None if earlier is None or earlier._later is None else earlier._later()
        number = hash(lesson)
        if known is not None and known.run_id == run_id and known._lesson == number:
            return known
        entry = cls(run_id, earlier, number)
        if earlier is not None:
            earlier._later = ref(entry)
        return entry

    def since(self, seen: Trail | None) -> list[str] | None:
        """Ids entered after `seen`, each once, in the order of their last entry; None where `seen` is no part of this.

        `seen` is None for a reader that has seen nothing.
        """
        until = 0 if seen is None else seen.length
        latest_first: list[str] = []
        entry: Trail | None = self
        while entry is not None and entry.length > until:
            latest_first.append(entry.run_id)
            entry = entry.earlier
        return list(dict.fromkeys(latest_first))[::-1] if entry is seen else None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Trail):
            return NotImplemented
        if self.length != other.length:
            return False
        mine: Trail | None = self
        theirs: Trail | None = other
        # A loop, because a trail is as long as its sweep; and where two meet, they are the same from there on.
        while mine is not theirs:
            if mine is None or theirs is None or mine.run_id != theirs.run_id:
                return False
            mine, theirs = mine.earlier, theirs.earlier
        return True

    __hash__ = None  # type: ignore[assignment]  # equal trails may be different objects

    def __repr__(self) -> str:
        return f"Trail(length={self.length}, run_id={self.run_id!r})"
