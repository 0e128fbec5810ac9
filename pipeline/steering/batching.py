"""Batches of patches: which rows of which clips go together in one forward pass, and when. Pure: `now_s` is passed in.

A batch goes when it is full, when its oldest patch has waited enough, or because a focus worker would idle.
Order is by age: every batch begins with the oldest patch there is, so no clip starves.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SHAPES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Batch sizes of the focus network: a short list, so that kernels made for a shape are used again."""
FULL_ENOUGH = 0.9
"""A batch that fills so much of the shape it is padded to goes whole; below it the next smaller shape is cut off it,
because another pass later costs less than the padding now."""


@dataclass(slots=True, eq=False)
class PatchRows:
    """The rows start..stop of a payload of patches, all of one clip and one round."""

    clip: Any
    """The clip that they belong to; the batcher never looks inside."""
    handle: Any
    start: int
    stop: int
    since_s: float
    is_suspect: bool = False
    number: int = -1
    """The place of these rows in the order of age, given by the batcher."""

    def __len__(self) -> int:
        return self.stop - self.start


def round_to_shape(num_rows: int, shapes: Sequence[int]) -> int:
    """The smallest of the allowed batch sizes that holds num_rows; num_rows itself where there is no list."""
    for shape in shapes:
        if shape >= num_rows:
            return shape
    return num_rows


class Batcher:
    """Holds the patches that wait. Rows come out in the order of their age, each exactly once."""

    def __init__(
        self, *, max_rows: int, max_wait_s: float, shapes: Sequence[int] = (), rows_per_item: int = 1
    ) -> None:
        """`shapes`: the sizes to which a pass is padded; none where any size is as good.

        `rows_per_item`: so many rows of a clip belong together and are never split between passes.
        """
        if max_rows < rows_per_item or rows_per_item < 1:
            raise ValueError(f"max_rows={max_rows}: a batch holds at least one item of {rows_per_item} patches")
        self._rows_per_item = rows_per_item
        self._shapes = sorted(s for s in shapes if s <= max_rows and s % rows_per_item == 0)
        if shapes and not self._shapes:
            raise ValueError(f"no shape of {tuple(shapes)} holds items of {rows_per_item} within max_rows={max_rows}")
        # A batch beyond the largest shape would be padded to one that is not allowed.
        self._max_rows = self._shapes[-1] if self._shapes else max_rows // rows_per_item * rows_per_item
        self._max_wait_s = max_wait_s
        self._waiting: list[tuple[int, int, PatchRows]] = []
        self._suspects: list[tuple[int, int, PatchRows]] = []
        self._numbers = itertools.count()
        self.num_rows = 0
        """How many patches wait, those of suspects not counted."""
        self.num_suspect_rows = 0
        self.num_taken = 0
        self.waited_s = 0.0
        """The sum of the times that the num_taken patches which went have waited."""

    def __len__(self) -> int:
        return self.num_rows + self.num_suspect_rows

    def add(self, rows: PatchRows) -> None:
        if len(rows) == 0 or len(rows) % self._rows_per_item:
            raise ValueError(f"{len(rows)} patches are not items of {self._rows_per_item}")
        rows.number = next(self._numbers)
        self._push(rows)

    def put_back(self, batch: Sequence[PatchRows]) -> None:
        """Takes rows back that no network has seen: they are as old as they were."""
        for rows in batch:
            self._push(rows)

    def drop(self, rows: PatchRows) -> None:
        """Forgets rows that wait, whose clip ended or starts again; those that were taken are not touched."""
        self._count(rows, -len(rows))
        rows.start, rows.handle = rows.stop, None

    @property
    def is_suspect_next(self) -> bool:
        """Whether a suspect is older than whatever else waits."""
        suspect, other = self._head(self._suspects), self._head(self._waiting)
        return suspect is not None and (other is None or suspect.number < other.number)

    def take_suspect(self, now_s: float) -> list[PatchRows]:
        """Takes rows of one suspect clip, alone."""
        rows = self._head(self._suspects)
        return [] if rows is None else self._take_rows(self._suspects, min(len(rows), self._max_rows), now_s)

    def take(self, now_s: float, *, num_idle: int, num_ahead: int = 0) -> list[PatchRows]:
        """The next batch, or nothing if it is better to wait.

        `num_idle`: workers that have nothing to do. `num_ahead`: where there is none, the rows of the batch that this
        one would queue behind; if it is no smaller than that, it need not wait until the worker stands still.
        """
        oldest = self._head(self._waiting)
        if oldest is None:
            return []
        is_old = now_s - oldest.since_s >= self._max_wait_s
        is_large = self.num_rows >= min(self._max_rows, num_ahead or self._max_rows)
        if not (num_idle or is_old or is_large):
            return []
        return self._take_rows(self._waiting, self._batch_size(num_idle), now_s)

    def _batch_size(self, num_idle: int) -> int:
        # Idle workers share what there is: one that took it all would leave the others idle.
        num_items = -(-self.num_rows // self._rows_per_item)
        num_rows = -(-num_items // max(1, num_idle)) * self._rows_per_item
        num_rows = min(num_rows, self._max_rows)
        if not self._shapes or num_rows >= FULL_ENOUGH * round_to_shape(num_rows, self._shapes):
            return num_rows
        place = bisect.bisect_right(self._shapes, num_rows)
        return self._shapes[place - 1] if place else num_rows

    def _push(self, rows: PatchRows) -> None:
        entry = (rows.number, next(self._numbers), rows)
        heapq.heappush(self._suspects if rows.is_suspect else self._waiting, entry)
        self._count(rows, len(rows))

    def _count(self, rows: PatchRows, num_rows: int) -> None:
        if rows.is_suspect:
            self.num_suspect_rows += num_rows
        else:
            self.num_rows += num_rows

    def _head(self, waiting: list[tuple[int, int, PatchRows]]) -> PatchRows | None:
        while waiting and len(waiting[0][2]) == 0:
            heapq.heappop(waiting)
        return waiting[0][2] if waiting else None

    def _take_rows(self, waiting: list[tuple[int, int, PatchRows]], num_rows: int, now_s: float) -> list[PatchRows]:
        batch: list[PatchRows] = []
        while num_rows > 0 and (rows := self._head(waiting)) is not None:
            num = min(len(rows), num_rows)
            stop = rows.start + num
            # What stays behind keeps its identity, so that it can still be dropped.
            batch.append(
                PatchRows(rows.clip, rows.handle, rows.start, stop, rows.since_s, rows.is_suspect, rows.number)
            )
            rows.start = stop
            if len(rows) == 0:
                heapq.heappop(waiting)
            self._count(rows, -num)
            self.num_taken += num
            self.waited_s += num * (now_s - rows.since_s)
            num_rows -= num
        return batch
