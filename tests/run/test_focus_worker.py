"""The focus worker: rows of many payloads, one pass."""

from __future__ import annotations

import numpy as np

from operators.records import PatchBatch
from pipeline.run.focus_worker import FocusWorker
from pipeline.steering.messages import Slice


def test_patches_of_several_payloads_share_a_pass_in_the_order_asked_for() -> None:
    def patches(first: int) -> PatchBatch:
        pixels = np.arange(first, first + 3, dtype=np.uint8).reshape(3, 1, 1, 1).repeat(3, 3)
        return PatchBatch(pixels=pixels)

    seen: list[PatchBatch] = []
    focus = FocusWorker(focuser=lambda batch: seen.append(batch), round_up=lambda n: 8)
    reply, _ = focus.focus((Slice(1, 0, 2), Slice(0, 2, 3)), (patches(0), patches(10)))
    assert seen[0].pixels[:, 0, 0, 0].tolist() == [10, 11, 2]
    assert (reply.work.num_items, reply.work.num_padded) == (3, 5)


def test_shifts_of_patches_between_pixels_go_with_them() -> None:
    def patches(first: int) -> PatchBatch:
        shifts = np.arange(first, first + 6, dtype=np.float32).reshape(3, 2) / 64
        return PatchBatch(pixels=np.zeros((3, 9, 9, 3), np.uint8), shifts=shifts)

    seen: list[PatchBatch] = []
    focus = FocusWorker(focuser=lambda batch: seen.append(batch))
    focus.focus((Slice(1, 0, 2), Slice(0, 2, 3)), (patches(0), patches(10)))
    assert seen[0].shifts is not None
    assert (seen[0].shifts * 64).tolist() == [[10, 11], [12, 13], [4, 5]]
