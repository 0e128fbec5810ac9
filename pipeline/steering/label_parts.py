"""Labels on their way to the table: they gather until a part is full or old and is handed over. Pure."""

from __future__ import annotations

import itertools
from collections import deque

from operators.records import ClipLabel
from pipeline.steering.messages import WriteRequest


class LabelParts:
    """Holds every label that is in no part yet, and every part that waits to be sent (again).

    A part keeps its number: the table recognises one that is sent twice.
    """

    def __init__(self, *, rows_per_part: int, part_age_s: float) -> None:
        self._rows_per_part = rows_per_part
        self._part_age_s = part_age_s
        self._labels: list[ClipLabel] = []
        self._since_s = 0.0
        """When the oldest of the labels was made."""
        self._unsent: deque[WriteRequest] = deque()
        self._sequence = itertools.count()

    def __bool__(self) -> bool:
        """Whether anything waits to be sent."""
        return bool(self._labels or self._unsent)

    @property
    def is_far_behind(self) -> bool:
        """Whether so many labels wait that no further sources are to be read."""
        return len(self._labels) >= 2 * self._rows_per_part

    def add(self, label: ClipLabel, now_s: float) -> None:
        if not self._labels:
            self._since_s = now_s
        self._labels.append(label)

    def next(self, now_s: float, *, is_last: bool) -> WriteRequest | None:
        """The part to send now, if one was put back, is full or is old; `is_last`: no further label will come."""
        if self._unsent:
            return self._unsent.popleft()
        is_full = len(self._labels) >= self._rows_per_part
        is_old = now_s - self._since_s >= self._part_age_s
        if not self._labels or not (is_full or is_old or is_last):
            return None
        part = self._labels[: self._rows_per_part]
        del self._labels[: len(part)]
        self._since_s = now_s
        return self._numbered(part)

    def put_back(self, part: WriteRequest) -> None:
        """Keeps a part whose writing did not end well: it is sent again before any other."""
        self._unsent.appendleft(part)

    def all_waiting(self) -> list[WriteRequest]:
        """All labels that wait, in parts; those that were in none get a number of their own."""
        return [*self._unsent, *([self._numbered(self._labels)] if self._labels else [])]

    def _numbered(self, labels: list[ClipLabel]) -> WriteRequest:
        return WriteRequest(sequence=next(self._sequence), labels=tuple(labels))
