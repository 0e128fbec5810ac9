"""How AdaFocus-TSM looks: the glances of a whole clip are seen together, one place is chosen for all of it, and the
focus network sees that place in other frames. Both networks shift channels along time, so a clip's rows stay together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from operators.networks.classify import AverageClassifier
from operators.records import Observation, PatchFeatures
from pipeline.families.clip import OpenClip, runs_of
from pipeline.families.parts import GazeParts
from policies.base import corners


class MotionGaze:
    """The Gaze of AdaFocus-TSM. A clip's memory is its glance logits [T,K]; everything goes in one round."""

    def __init__(self, parts: GazeParts, *, num_focused: int) -> None:
        """`num_focused`: frames that the focus network's shift takes for a clip."""
        self.patch_px = parts.patch_px
        self._parts = parts
        self._glancer = parts.glancer
        self._policy = parts.policy
        self._classifier: AverageClassifier = parts.classifier
        self._num_focused = num_focused

    @torch.inference_mode()
    def open(self, clips: Sequence[OpenClip]) -> None:
        num_glanced = self._glancer.num_segments
        # A frame's map depends on its neighbours in the clip, so windows that share frames cannot share glances.
        rows = [_sample(clip.window.glance_rows, num_glanced) for clip in clips]
        views = [(clip.frames.pixels, row) for clip, own in zip(clips, rows, strict=True) for row in own.tolist()]
        glance = self._glancer(runs_of(views))
        logits = glance.logits.unflatten(0, (-1, num_glanced))
        # Frame-major along channels, as published.
        maps = glance.feature_map.unflatten(0, (-1, num_glanced)).flatten(1, 2)
        actions, _ = self._policy.act(
            Observation(feature_map=maps, truth_yx=self._truth(clips)),
            self._policy.initial_state(len(clips)),
            generators=[clip.generator for clip in clips],
        )
        places = corners(actions.offsets, view_px=self._parts.view_px, patch_px=self.patch_px).tolist()
        is_focused = actions.focus.tolist()
        for i, clip in enumerate(clips):
            clip.num_frames = num_glanced + self._num_focused
            clip.memory = logits[i]
            if not is_focused[i]:
                self._settle(clip, self._classifier(logits[i : i + 1], None)[0], num_focused=0)
                continue
            for step, row in enumerate(_sample(clip.window.candidate_rows, self._num_focused).tolist()):
                clip.focus(step=step, row=row, corner=(places[i][0], places[i][1]), patch_px=self.patch_px)

    @torch.inference_mode()
    def step(self, clips: Sequence[OpenClip], features: Sequence[PatchFeatures]) -> None:
        local = torch.from_numpy(np.stack([seen.feature for seen in features], dtype=np.float32))
        logits = self._classifier(torch.stack([clip.memory for clip in clips]), local.to(self._glancer.device))
        for i, clip in enumerate(clips):
            self._settle(clip, logits[i], num_focused=self._num_focused)

    def _truth(self, clips: Sequence[OpenClip]) -> torch.Tensor | None:
        """[B,2]: one box serves all frames, so it is put in the middle of where the evidence is in them."""
        if self._parts.truth_at is None:
            return None
        truth = [self._parts.truths([(c.frames, int(row)) for row in c.window.candidate_rows]) for c in clips]
        return torch.stack([places.nanmean(0) for places in truth if places is not None])

    def _settle(self, clip: OpenClip, logits: torch.Tensor, *, num_focused: int) -> None:
        clip.step_logits.append(logits)
        clip.gmacs = self._parts.cost.gmacs(
            glanced=self._glancer.num_segments,
            focused=num_focused,
            classified=1,
            decided=1 if self._parts.decides else 0,
        )
        clip.step_gmacs = [clip.gmacs]
        clip.gmacs_full = self._parts.cost.gmacs_full(
            glanced=self._glancer.num_segments, focused=self._num_focused, classified=1
        )
        clip.is_finished = True
        clip.memory = None


def _sample(rows: np.ndarray, num_wanted: int) -> np.ndarray:
    """int64 [num_wanted]: the rows themselves, or a still image's only one for each."""
    if len(rows) == 1:
        return np.repeat(rows, num_wanted)
    if len(rows) != num_wanted:
        raise ValueError(f"a clip shows {len(rows)} frames, but the networks take {num_wanted}")
    return rows
