"""The focus worker: it gathers the patches of a call and gives the features that the heavy network makes of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from operators.records import PatchBatch
from pipeline.steering.messages import CallCost, Reply, Slice


def gather_rows(requests: tuple[Slice, ...], arrays: list[np.ndarray]) -> np.ndarray:
    """The rows asked for of several arrays, as one array; no copy where they are one run of one array."""
    parts = [arrays[r.payload][r.start : r.stop] for r in requests]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


class FocusWorker:
    """Puts patches of any clips through the heavy network in one pass."""

    def __init__(
        self,
        *,
        focuser: Callable[[PatchBatch], Any],
        round_up: Callable[[int], int] = int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._focuser = focuser
        self._round_up = round_up
        self._clock = clock
        self._idle_since_s: float | None = None

    def focus(self, requests: tuple[Slice, ...], payloads: tuple[PatchBatch, ...]) -> tuple[Reply, Any]:
        begun_s = self._clock()
        waited_s = 0.0 if self._idle_since_s is None else begun_s - self._idle_since_s
        shifts = [p.shifts for p in payloads if p.shifts is not None]
        patches = PatchBatch(
            pixels=gather_rows(requests, [p.pixels for p in payloads]),
            shifts=gather_rows(requests, shifts) if shifts else None,
        )
        features = self._focuser(patches)
        num_rows = len(patches.pixels)
        self._idle_since_s = self._clock()
        work = CallCost(
            busy_s=self._idle_since_s - begun_s,
            wait_s=waited_s,
            num_items=num_rows,
            num_padded=self._round_up(num_rows) - num_rows,
        )
        return Reply(rows=(), work=work), features
