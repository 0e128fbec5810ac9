"""How many pictures of a file have to be decoded for its sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from operators.media.container import Decoder
from operators.media.frame_plan import decode_plan, keyframe_plan
from operators.media.indexing import read_table
from operators.media.opening import ReadLimits
from operators.media.sampling import sample_indices
from pipeline.bench.readers import NUM_FRAMES, viewer


class _Counted:
    """A codec context that counts the pictures that come out of it."""

    def __init__(self, context: Any) -> None:
        object.__setattr__(self, "_context", context)
        object.__setattr__(self, "num_frames", 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._context, name, value)

    def decode(self, packet: Any) -> Any:
        frames = self._context.decode(packet)
        object.__setattr__(self, "num_frames", self.num_frames + len(frames))
        return frames


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What of a file has to be decoded for its sample."""

    num_frames: int
    """The number of frames in the file."""
    num_groups: int
    """The number of groups of pictures that are decoded, each in part."""
    num_decoded: int
    """The number of pictures that the decoder made."""


def planned(path: str, *, seek: str = "exact") -> Planned:
    """Decodes what the reader would decode, and counts."""
    decoder = Decoder(path, ReadLimits(), viewer(), num_threads=1)
    try:
        steps = read_table(decoder)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                table = end.value[0]
                break
        wanted = np.unique(sample_indices(table.num_frames, NUM_FRAMES))
        groups = decode_plan(table, wanted) if seek == "exact" else keyframe_plan(table, wanted)[1]
        counted: Any = _Counted(decoder.context)
        decoder.context = counted
        for group in groups:
            for _ in decoder.decode_group(table, group, is_strict=False):
                pass
        return Planned(num_frames=table.num_frames, num_groups=len(groups), num_decoded=counted.num_frames)
    finally:
        decoder.close()
