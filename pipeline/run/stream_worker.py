"""The stream worker: it holds clips that are open, and moves them from frames to patches to labels.

How a family of models looks is in its Gaze; what is the same for all families is here. A clip opens with its frames,
steps each time the features of its patches arrive, and closes with its label.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from operators.media.view import crop_between_pixels, crop_patches, place_in_frame
from operators.records import (
    ClipLabel,
    FrameBatch,
    PatchBatch,
    PatchFeatures,
    PatchPlace,
    StepKind,
)
from pipeline.families.clip import Gaze, LabelForm, OpenClip, generator_of
from pipeline.steering.messages import Advance, CallCost, OpenRequest, Reply, StepRequest


class StreamWorker:
    """Opens, steps and closes clips. One process holds a clip from its frames to its label."""

    def __init__(
        self,
        *,
        gaze: Gaze,
        form: LabelForm,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._gaze = gaze
        self._form = form
        self._seed = seed
        self._clock = clock
        self._unix_clock = unix_clock
        self._clips: dict[str, OpenClip] = {}

    def open(
        self, requests: tuple[OpenRequest, ...], payloads: tuple[list[FrameBatch], ...]
    ) -> tuple[Reply, PatchBatch | None]:
        begun_s = self._clock()
        clips = []
        for request in requests:
            frames = payloads[request.frames.payload][request.frames.start]
            wanted = set(request.clip_ids)
            for window in frames.windows:
                if window.clip_id in wanted:
                    generator = generator_of(self._seed, window.clip_id)
                    clips.append(OpenClip(frames=frames, window=window, generator=generator))
        self._gaze.open(clips)
        self._clips.update({clip.window.clip_id: clip for clip in clips})
        return self._reply(clips, begun_s)

    def step(
        self, requests: tuple[StepRequest, ...], payloads: tuple[PatchFeatures, ...]
    ) -> tuple[Reply, PatchBatch | None]:
        begun_s = self._clock()
        clips = [self._clips[request.clip_id] for request in requests]
        self._gaze.step(clips, [_gathered(request, payloads) for request in requests])
        return self._reply(clips, begun_s)

    def close(self, requests: tuple[str, ...], payloads: tuple[Any, ...] = ()) -> tuple[Reply, None]:
        for clip_id in requests:
            self._clips.pop(clip_id, None)
        return Reply(rows=()), None

    def _reply(self, clips: list[OpenClip], begun_s: float) -> tuple[Reply, PatchBatch | None]:
        rows = []
        cut: list[PatchBatch] = []
        num_patches = 0
        answers = iter(self._answers([clip for clip in clips if clip.is_finished]))
        for clip in clips:
            clip_id = clip.window.clip_id
            if clip.is_finished:
                del self._clips[clip_id]
                rows.append(Advance(clip_id=clip_id, label=self._label(clip, next(answers))))
                continue
            start = num_patches
            cut.append(_cut(clip, self._gaze.patch_px))
            num_patches += len(clip.corners)
            clip.corners, clip.rows = [], []
            rows.append(Advance(clip_id=clip_id, start=start, stop=num_patches))
        patches = _joined(cut) if cut else None
        work = CallCost(busy_s=self._clock() - begun_s, num_items=len(clips))
        return Reply(rows=tuple(rows), work=work), patches

    def _answers(self, clips: Sequence[OpenClip]) -> Sequence[torch.Tensor]:
        """The logits of each clip's steps, of the last alone where that is enough, as float32 [n,K] on the CPU.

        They are copied all at once, because the host waits for a GPU with every copy.
        """
        if not clips:
            return ()
        wanted = [clip.step_logits if self._form.step_logits else clip.step_logits[-1:] for clip in clips]
        together = torch.stack([logits for steps in wanted for logits in steps]).float().cpu()
        return together.split([len(steps) for steps in wanted])

    def _label(self, clip: OpenClip, answers: torch.Tensor) -> ClipLabel:
        frames, window, facts, source = clip.frames, clip.window, clip.frames.facts, clip.frames.source
        return ClipLabel(
            video_id=source.video_id,
            clip_id=window.clip_id,
            source_uri=source.shown_uri,
            start_s=window.start_s,
            end_s=window.end_s,
            truth=source.truth,
            **self._form.answer(answers),
            frames_total=clip.num_frames,
            # Many looks at one image are still one frame.
            frames_focused=min(sum(d.kind is StepKind.FOCUS for d in clip.decisions), clip.num_frames),
            frames_skipped=sum(d.kind is StepKind.SKIP for d in clip.decisions),
            stopped_at=len(clip.step_logits),
            patches=tuple(_places(clip)),
            gmacs=clip.gmacs,
            gmacs_full=clip.gmacs_full,
            step_gmacs=tuple(clip.step_gmacs) if self._form.step_logits else None,
            decode_s=frames.decode_s / max(1, len(frames.windows)),
            latency_s=max(0.0, self._unix_clock() - frames.opened_unix_s),
            width=facts.width,
            height=facts.height,
            rotation=facts.rotation,
            num_corrupt=facts.num_corrupt,
            coverage=window.coverage,
        )


def _cut(clip: OpenClip, patch_px: int) -> PatchBatch:
    """The patches that a clip waits for."""
    rows, corners = np.array(clip.rows), np.array(clip.corners)
    if np.issubdtype(corners.dtype, np.integer):
        return PatchBatch(pixels=crop_patches(clip.frames.pixels, rows, corners, patch_px=patch_px))
    pixels, shifts = crop_between_pixels(clip.frames.pixels, rows, corners, patch_px=patch_px)
    return PatchBatch(pixels=pixels, shifts=shifts)


def _joined(batches: Sequence[PatchBatch]) -> PatchBatch:
    """The patches of several clips, one clip behind the other; no copy of those of one."""
    if len(batches) == 1:
        return batches[0]
    shifts = [batch.shifts for batch in batches if batch.shifts is not None]
    return PatchBatch(
        pixels=np.concatenate([batch.pixels for batch in batches]), shifts=np.concatenate(shifts) if shifts else None
    )


def _places(clip: OpenClip) -> list[PatchPlace]:
    places = []
    for decision in clip.decisions:
        if decision.box_yxyx is None or decision.row is None:
            continue
        row = decision.row
        y, x, h, w = place_in_frame(decision.box_yxyx, clip.frames.view_yxhw)
        places.append(
            PatchPlace(
                frame=int(clip.frames.frame_index[row]), pts_s=float(clip.frames.pts_s[row]), y=y, x=x, h=h, w=w
            )
        )
    return places


def _gathered(request: StepRequest, payloads: tuple[PatchFeatures, ...]) -> PatchFeatures:
    parts = [payloads[s.payload].feature[s.start : s.stop] for s in request.features]
    maps = [payloads[s.payload].feature_map for s in request.features]
    feature_map = None
    if all(m is not None for m in maps):
        pairs = zip(request.features, maps, strict=True)
        feature_map = np.concatenate([m[s.start : s.stop] for s, m in pairs if m is not None])
    return PatchFeatures(feature=parts[0] if len(parts) == 1 else np.concatenate(parts), feature_map=feature_map)
