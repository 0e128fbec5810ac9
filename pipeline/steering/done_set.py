"""Which clips are done: 16 bytes each, so that a list of millions does not fill the driver."""

from __future__ import annotations

import numpy as np

_NUM_BUCKETS = 256
_BUFFER = 8192
"""New keys wait in a Python set until there are so many: about a megabyte, and a merge for every 8,192 clips."""


class DoneSet:
    """A set of clip_ids. Keys are kept sorted in buckets by their first byte, so that a merge copies one bucket and
    not all of them: growing never needs twice the memory."""

    def __init__(self, keys: np.ndarray | None = None, *, failed: np.ndarray | None = None) -> None:
        """keys: uint64 [N,2], the two halves of each clip_id, in any order. failed: those among them that failed."""
        self._failed = None if failed is None or not len(failed) else DoneSet(failed)
        self._failed_met = None if self._failed is None else DoneSet()
        self._buckets = [np.empty((0, 2), np.uint64) for _ in range(_NUM_BUCKETS)]
        self._new: set[bytes] = set()
        if keys is not None:
            self.extend(keys)

    def __len__(self) -> int:
        return sum(map(len, self._buckets)) + len(self._new)

    @property
    def nbytes(self) -> int:
        """Bytes of the keys, less the bounded number that waits to be merged."""
        return sum(bucket.nbytes for bucket in self._buckets)

    def meet(self, clip_id: str) -> bool:
        """Whether a clip that was given to a run is in the set. If it is there as a failure that is counted, once."""
        if clip_id not in self:
            return False
        if self._failed is not None and self._failed_met is not None and clip_id in self._failed:
            self._failed_met.add(clip_id)
        return True

    @property
    def num_failed_met(self) -> int:
        return 0 if self._failed_met is None else len(self._failed_met)

    def __contains__(self, clip_id: str) -> bool:
        key = bytes.fromhex(clip_id)
        return key in self._new or self._is_merged(key)

    def add(self, clip_id: str) -> bool:
        """True when the clip was not in the set yet."""
        key = bytes.fromhex(clip_id)
        if len(key) != 16:
            raise ValueError(f"{clip_id!r} is not 32 hex digits")
        if key in self._new or self._is_merged(key):
            return False
        self._new.add(key)
        if len(self._new) >= _BUFFER:
            self.extend(np.empty((0, 2), np.uint64))
        return True

    def extend(self, keys: np.ndarray) -> None:
        """Adds uint64 [N,2]; those that are there already change nothing."""
        waiting = np.frombuffer(b"".join(self._new), ">u8").astype(np.uint64).reshape(-1, 2)
        self._new.clear()
        keys = np.concatenate((keys, waiting))
        owner = keys[:, 0] >> np.uint64(56)
        order = np.argsort(owner, kind="stable")
        ends = np.cumsum(np.bincount(owner.astype(np.int64), minlength=_NUM_BUCKETS))
        for number, rows in enumerate(np.split(order, ends[:-1])):
            if len(rows):
                merged = np.concatenate((self._buckets[number], keys[rows]))
                merged = merged[np.lexsort((merged[:, 1], merged[:, 0]))]
                is_first = np.ones(len(merged), bool)
                is_first[1:] = (merged[1:] != merged[:-1]).any(axis=1)
                self._buckets[number] = merged[is_first]

    def _is_merged(self, key: bytes) -> bool:
        bucket = self._buckets[key[0]]
        high, low = np.frombuffer(key, ">u8").astype(np.uint64)
        # Keys are hashes: more than one with the same first half is possible, and never happens.
        start = int(np.searchsorted(bucket[:, 0], high))
        while start < len(bucket) and bucket[start, 0] == high:
            if bucket[start, 1] == low:
                return True
            start += 1
        return False
