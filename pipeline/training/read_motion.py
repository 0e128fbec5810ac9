"""What AdaFocus-TSM takes of a video: two samples of different length, for the glance and for the focus, from one
decode. Imports no torch: it runs in workers that start fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from operators.media.sampling import SamplingRule
from operators.media.view import Viewer
from operators.records import Source
from pipeline.training.frame_cache import ClipFrames, choose_candidates
from pipeline.training.read_clips import last_step, only_batch

if TYPE_CHECKING:
    from operators.media.decode import ReadLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class MotionReader:
    """Reads one video: steps 0 .. `num_glance`-1 are the glance's frames, the `num_focus` after them the focus's."""

    num_glance: int
    num_focus: int
    candidates: int
    viewer: Viewer
    pad: str = "first"
    limits: ReadLimits | None = None
    clock: Callable[[], float] = time.time

    def __call__(self, source: Source) -> ClipFrames:
        return last_step(self.steps(source))

    def steps(self, source: Source) -> Iterator[ClipFrames | None]:
        # Stages can be trained where there is no decoder, from frames that are there already.
        from operators.media.decode import FileReader

        sampling = SamplingRule(num_frames=self.num_glance, num_focus_frames=self.num_focus, pad=self.pad)
        if self.candidates > 1:
            # Every frame of a short video, and of a long one enough that the nearest may stand in for any. Padding
            # is done below: `first` would leave a short video's other frames out.
            dense = self.num_glance * self.num_focus
            sampling = SamplingRule(num_frames=self.num_focus, num_focus_frames=dense, pad="last")
        with FileReader(
            source=source, sampling=sampling, viewer=self.viewer, clock=self.clock, limits=self.limits
        ) as reader:
            batch = yield from only_batch(reader.read(), source)
        frame_index = np.asarray(batch.frame_index, np.int64)
        num_frames = max(batch.facts.num_frames, int(frame_index[-1]) + 1)
        rows = [
            choose_candidates(frame_index, num_frames, num_steps=steps, candidates=self.candidates, pad=self.pad)
            for steps in (self.num_glance, self.num_focus)
        ]
        yield ClipFrames(
            pixels=batch.pixels,
            frame_index=frame_index,
            num_frames=num_frames,
            view_yxhw=batch.view_yxhw,
            rows=np.concatenate(rows),
        )
