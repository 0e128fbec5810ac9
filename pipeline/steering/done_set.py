"""The set of clips that are done: 16 bytes and a bit each, so that a list of millions does not fill the driver."""

from __future__ import annotations

import numpy as np

_NUM_BUCKETS = 256
_BUFFER = 8192
"""New keys wait in a Python set until there are so many: about a megabyte, and a merge for every 8,192 clips."""


class DoneSet:
    """A set of clip_ids. Keys are kept sorted in buckets by their first byte, so that a merge copies one bucket and
    not all of them: growing never needs twice the memory. A bit beside each key says whether this run was given the
    clip: it was added here, or met."""

    def __init__(self, keys: np.ndarray | None = None, *, failed: np.ndarray | None = None) -> None:
        """keys: uint64 [N,2], the two halves of each clip_id, in any order. failed: those among them that failed."""
        self._failed = None if failed is None or not len(failed) else DoneSet(failed)
        self._failed_met = None if self._failed is None else DoneSet()
        self._buckets = [np.empty((0, 2), np.uint64) for _ in range(_NUM_BUCKETS)]
        self._given = [np.empty(0, np.uint8) for _ in range(_NUM_BUCKETS)]
        """For each bucket, one bit for every key, eight in a byte: whether this run was given that clip."""
        self._new: set[bytes] = set()
        if keys is not None:
            self.extend(keys)

    def __len__(self) -> int:
        return sum(map(len, self._buckets)) + len(self._new)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and their bits, less the bounded number that waits to be merged."""
        return sum(bucket.nbytes + bits.nbytes for bucket, bits in zip(self._buckets, self._given, strict=True))

    def meet(self, clip_id: str) -> bool:
        """Whether a clip that was given to a run is in the set. If it is there as a failure that is counted, once."""
        if clip_id not in self:
            return False
        self._mark(bytes.fromhex(clip_id))
        if self._failed is not None and self._failed_met is not None and clip_id in self._failed:
            self._failed_met.add(clip_id)
        return True

    def is_given(self, clip_id: str) -> bool:
        """Whether a clip is in the set because it was added here, or has been met since."""
        key = bytes.fromhex(clip_id)
        row = self._row(key)
        return key in self._new or (row is not None and bool(self._given[key[0]][row >> 3] & 1 << (row & 7)))

    @property
    def num_failed_met(self) -> int:
        return 0 if self._failed_met is None else len(self._failed_met)

    def __contains__(self, clip_id: str) -> bool:
        key = bytes.fromhex(clip_id)
        return key in self._new or self._row(key) is not None

    def add(self, clip_id: str) -> bool:
        """Adds a clip; true when it was not in the set yet."""
        key = bytes.fromhex(clip_id)
        if len(key) != 16:
            raise ValueError(f"{clip_id!r} is not 32 hex digits")
        if key in self._new or self._row(key) is not None:
            self._mark(key)
            return False
        self._new.add(key)
        if len(self._new) >= _BUFFER:
            self.extend(np.empty((0, 2), np.uint64))
        return True

    def extend(self, keys: np.ndarray) -> None:
        """Adds uint64 [N,2] that another run labelled; those that are there already change nothing."""
        waiting = np.frombuffer(b"".join(self._new), ">u8").astype(np.uint64).reshape(-1, 2)
        self._new.clear()
        is_given = np.concatenate((np.zeros(len(keys), bool), np.ones(len(waiting), bool)))
        keys = np.concatenate((keys, waiting))
        owner = keys[:, 0] >> np.uint64(56)
        by_owner = np.argsort(owner, kind="stable")
        ends = np.cumsum(np.bincount(owner.astype(np.int64), minlength=_NUM_BUCKETS))
        for number, rows in enumerate(np.split(by_owner, ends[:-1])):
            if len(rows):
                bits = np.unpackbits(self._given[number], count=len(self._buckets[number]), bitorder="little")
                given = np.concatenate((bits.astype(bool), is_given[rows]))
                merged = np.concatenate((self._buckets[number], keys[rows]))
                # Of equal keys the given one is first.
                order = np.lexsort((~given, merged[:, 1], merged[:, 0]))
                merged, given = merged[order], given[order]
                is_first = np.ones(len(merged), bool)
                is_first[1:] = (merged[1:] != merged[:-1]).any(axis=1)
                self._buckets[number] = merged[is_first]
                self._given[number] = np.packbits(given[is_first], bitorder="little")

    def _mark(self, key: bytes) -> None:
        """Marks a key as given to this run. Keys that wait to be merged count as given without a mark."""
        row = self._row(key)
        if row is not None:
            self._given[key[0]][row >> 3] |= np.uint8(1 << (row & 7))

    def _row(self, key: bytes) -> int | None:
        """The row of a key in its bucket; None where it is not there."""
        bucket = self._buckets[key[0]]
        high, low = np.frombuffer(key, ">u8").astype(np.uint64)
        # Keys are hashes: more than one with the same first half is possible, and never happens.
        start = int(np.searchsorted(bucket[:, 0], high))
        while start < len(bucket) and bucket[start, 0] == high:
            if bucket[start, 1] == low:
                return start
            start += 1
        return None
