"""How AdaFocusV2 looks: at one frame after another as AdaFocus does, but in an order that is not that of time, and at
places that lie between pixels. Its classifier has a linear layer of its own for every step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from operators.networks.classify import MaxClassifier
from pipeline.families.adafocus.gaze import FrameGaze
from pipeline.families.clip import OpenClip
from policies.base import real_corners

FED_ORDER = (7, 0, 15, 3, 11, 1, 5, 9, 13, 2, 4, 6, 8, 10, 12, 14)
"""Which of the sampled frames is seen at each step, as published: the middle and the ends first, then between them, so
that a clip that stops early has seen all of its video."""


class SpreadGaze(FrameGaze):
    """The Gaze of AdaFocusV2 on frames in the published order."""

    def _rows_of_steps(self, glance_rows: np.ndarray) -> np.ndarray:
        # A still image has one row.
        return glance_rows[[place for place in FED_ORDER if place < len(glance_rows)]]

    def _corners(self, offsets: torch.Tensor) -> list:
        view_px = self._parts.view_px
        if self.patch_px == view_px:
            # The whole view has no pixels beyond it that could be mixed in.
            return super()._corners(offsets)
        return real_corners(offsets, view_px=view_px, patch_px=self.patch_px).tolist()

    def _classified_with(self, clip: OpenClip) -> tuple[int, ...]:
        return clip.memory.next_step, clip.memory.round_end

    def _logits(
        self, clips: Sequence[OpenClip], inputs: torch.Tensor, state: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        classifier = self._parts.classifier
        assert isinstance(classifier, MaxClassifier)
        return classifier(inputs, state, first_step=clips[0].memory.next_step)
