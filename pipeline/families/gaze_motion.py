"""How AdaFocus-TSM looks: the glances of a whole clip are seen together, one place is chosen for all of it, and the
focus network sees that place in other frames. Both networks shift channels along time, so a clip's rows stay together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from operators.networks.classify import AverageClassifier
from operators.networks.cost import CostModel
from operators.networks.glance import Glancer
from operators.records import Observation, PatchFeatures
from pipeline.families.gaze_frames import TruthAt, runs_of
from pipeline.run.stream_worker import OpenClip
from policies.base import Policy, corners


class MotionGaze:
    """The Gaze of AdaFocus-TSM. A clip's memory is its glance logits [T,K]; everything goes in one round."""

    def __init__(
        self,
        *,
        glancer: Glancer,
        policy: Policy,
        classifier: AverageClassifier,
        cost: CostModel,
        num_focused: int,
        patch_px: int,
        view_px: int,
        decides: bool = True,
        truth_at: TruthAt | None = None,
    ) -> None:
        """`num_focused`: frames that the focus network's shift takes for a clip. `decides`: the policy is learned."""
        self._glancer = glancer
        self._policy = policy
        self._classifier = classifier
        self._cost = cost
        self._num_focused = num_focused
        self.patch_px = patch_px
        self._view_px = view_px
        self._decides = decides
        self._truth_at = truth_at

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
        places = corners(actions.offsets, view_px=self._view_px, patch_px=self.patch_px).tolist()
        is_focused = actions.focus.tolist()
        for i, clip in enumerate(clips):
            clip.num_frames = num_glanced + self._num_focused
            clip.memory = logits[i]
            if not is_focused[i]:
                self._settle(clip, self._classifier(logits[i : i + 1], None)[0], num_focused=0)
                continue
            for step, row in enumerate(_sample(clip.window.focus_rows, self._num_focused).tolist()):
                clip.focus(step=step, row=row, corner=(places[i][0], places[i][1]), patch_px=self.patch_px)

    @torch.inference_mode()
    def step(self, clips: Sequence[OpenClip], features: Sequence[PatchFeatures]) -> None:
        local = torch.from_numpy(np.stack([seen.feature for seen in features], dtype=np.float32))
        logits = self._classifier(torch.stack([clip.memory for clip in clips]), local.to(self._glancer.device))
        for i, clip in enumerate(clips):
            self._settle(clip, logits[i], num_focused=self._num_focused)

    def _truth(self, clips: Sequence[OpenClip]) -> torch.Tensor | None:
        """[B,2]: one box serves all frames, so it is put in the middle of where the evidence is in them."""
        if self._truth_at is None:
            return None
        truth = [
            torch.tensor([self._truth_at(clip.frames, int(row)) for row in clip.window.focus_rows]) for clip in clips
        ]
        return torch.stack([places.nanmean(0) for places in truth]).to(self._glancer.device, torch.float32)

    def _settle(self, clip: OpenClip, logits: torch.Tensor, *, num_focused: int) -> None:
        is_full = self.patch_px == self._view_px
        clip.step_logits.append(logits)
        clip.gmacs = self._cost.gmacs(
            glanced=self._glancer.num_segments,
            focused=0 if is_full else num_focused,
            focused_full=num_focused if is_full else 0,
            classified=1,
            decided=1 if self._decides else 0,
        )
        clip.step_gmacs = [clip.gmacs]
        clip.gmacs_full = self._cost.gmacs_full(
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
