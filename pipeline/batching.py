"""Patches of many clips in one forward pass: which rows go together, and when. Pure: takes now_s.

A batch goes when it is full, when its oldest patch has waited enough, or because a focus worker would idle.
Order is by age, so no clip starves.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True, eq=False)
class PatchRows:
    """Rows start..stop of a payload of patches, all of one clip and one round."""

    clip: Any
    """Whose they are; the batcher never looks inside."""
    handle: Any
    start: int
    stop: int
    since_s: float
    is_suspect: bool = False

    def __len__(self) -> int:
        return self.stop - self.start

    def cut(self, num_rows: int) -> PatchRows:
        """Keeps the first num_rows and returns the others."""
        rest = dataclasses.replace(self, start=self.start + num_rows)
        self.stop = rest.start
        return rest


def round_to_shape(num_rows: int, shapes: Sequence[int]) -> int:
    """The smallest of the allowed batch sizes that holds num_rows; num_rows itself where there is no list."""
    for shape in shapes:
        if shape >= num_rows:
            return shape
    return num_rows


class Batcher:
    """Holds the patches that wait. Rows come out in the order of their age, each exactly once."""

    def __init__(self, *, max_rows: int, max_wait_s: float, shapes: Sequence[int] = ()) -> None:
        if max_rows < 1:
            raise ValueError(f"max_rows={max_rows}: a batch holds at least one patch")
        self._max_rows = max_rows
        self._max_wait_s = max_wait_s
        self._shapes = tuple(sorted(s for s in shapes if s <= max_rows))
        self._waiting: deque[PatchRows] = deque()
        self._suspects: deque[PatchRows] = deque()
        self.num_rows = 0
        """Patches that wait, suspects not counted."""

    def __len__(self) -> int:
        return self.num_rows + sum(len(rows) for rows in self._suspects)

    def add(self, rows: PatchRows) -> None:
        if len(rows) == 0:
            raise ValueError("no patches to batch")
        if rows.is_suspect:
            self._suspects.append(rows)
        else:
            self._waiting.append(rows)
            self.num_rows += len(rows)

    def put_back(self, batch: Sequence[PatchRows]) -> None:
        """Rows of a batch that never came back go to the front again, oldest first."""
        for rows in reversed(batch):
            if rows.is_suspect:
                self._suspects.appendleft(rows)
            else:
                self._waiting.appendleft(rows)
                self.num_rows += len(rows)

    def drop(self, is_gone: Callable[[Any], bool]) -> None:
        """Forgets the rows of clips that ended or start again."""
        self._waiting = deque(rows for rows in self._waiting if not is_gone(rows.clip))
        self._suspects = deque(rows for rows in self._suspects if not is_gone(rows.clip))
        self.num_rows = sum(len(rows) for rows in self._waiting)

    def has_suspect(self) -> bool:
        return bool(self._suspects)

    def take_suspect(self) -> list[PatchRows]:
        """The rows of one suspect clip, alone."""
        first = self._suspects.popleft()
        if len(first) > self._max_rows:
            self._suspects.appendleft(first.cut(self._max_rows))
        return [first]

    def take(self, now_s: float, *, worker_idles: bool) -> list[PatchRows]:
        """The next batch, or nothing if it is better to wait."""
        if not self._waiting:
            return []
        is_old = now_s - self._waiting[0].since_s >= self._max_wait_s
        if self.num_rows >= self._max_rows:
            return self._take_rows(self._max_rows)
        if not (is_old or worker_idles):
            return []
        return self._take_rows(self.num_rows if is_old else self._largest_full_shape())

    def _largest_full_shape(self) -> int:
        """A whole shape rather than a padded one: what is left goes with the next patches that arrive."""
        full = [shape for shape in self._shapes if shape <= self.num_rows]
        return full[-1] if full else self.num_rows

    def _take_rows(self, num_rows: int) -> list[PatchRows]:
        batch: list[PatchRows] = []
        while num_rows > 0:
            rows = self._waiting.popleft()
            if len(rows) > num_rows:
                self._waiting.appendleft(rows.cut(num_rows))
            batch.append(rows)
            self.num_rows -= len(rows)
            num_rows -= len(rows)
        return batch
