"""Curves of what was seen again and again, with a bounded number of points, however long it goes on."""

from __future__ import annotations

from typing import NamedTuple

#: A curve has between half as many points and so many, once it has been looked at that often.
MOST_POINTS = 60


class Moment(NamedTuple):
    """What was seen in a stretch of time: of some as it was on average, of memory the most."""

    cpus: float
    memory: int
    #: Bytes a second.
    disk: float
    gpu: float | None


class Timeline:
    """Looks at equal distances; two neighbours become one where there would be too many."""

    def __init__(self) -> None:
        #: How many looks a point stands for.
        self.looks_a_point = 1
        self._points: list[Moment] = []
        self._next: list[Moment] = []

    def add(self, moment: Moment) -> None:
        """Take down one look."""
        self._next.append(moment)
        if len(self._next) < self.looks_a_point:
            return
        self._points.append(_merged(self._next))
        self._next = []
        if len(self._points) > MOST_POINTS:
            pairs = [self._points[start : start + 2] for start in range(0, len(self._points), 2)]
            self.looks_a_point *= 2
            *whole, last = pairs
            self._points = [_merged(pair) for pair in whole]
            # A point without a neighbour: half of the next one.
            self._next = [last[0]] * (self.looks_a_point // 2) if len(last) == 1 else []
            if len(last) == 2:
                self._points.append(_merged(last))

    @property
    def points(self) -> list[Moment]:
        """In order, the last one perhaps of fewer looks than the others."""
        return [*self._points, _merged(self._next)] if self._next else list(self._points)


def _merged(moments: list[Moment]) -> Moment:
    gpus = [moment.gpu for moment in moments if moment.gpu is not None]
    return Moment(
        cpus=sum(moment.cpus for moment in moments) / len(moments),
        memory=max(moment.memory for moment in moments),
        disk=sum(moment.disk for moment in moments) / len(moments),
        gpu=sum(gpus) / len(gpus) if gpus else None,
    )
