"""How GFNet looks: at one image again and again. A glance of the whole at low resolution, then patches one after
another, each where the look before says; the classifier hears every look, and any of them may make it sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from operators.networks.classify import CascadedClassifier, GRUClassifier
from operators.records import Observation, PatchFeatures
from pipeline.families.clip import OpenClip, grouped, runs_of
from pipeline.families.parts import GazeParts
from policies.base import PolicyState, corners, join
from policies.stopping import Never, StopRule


@dataclass(slots=True, eq=False)
class _Memory:
    """The state of an image between looks."""

    policy_state: PolicyState
    classifier_state: torch.Tensor
    """[1,H], or [1,looks*D] for a cascade"""
    stop_state: torch.Tensor
    """[1]"""


class ImageGaze:
    """The Gaze of GFNet on clips of one frame."""

    def __init__(self, parts: GazeParts, *, num_looks: int) -> None:
        """`num_looks`: looks at most, the glance included; without a stop rule all of them, always."""
        self.patch_px = parts.patch_px
        self._parts = parts
        self._glancer = parts.glancer
        self._policy = parts.policy
        self._classifier: GRUClassifier | CascadedClassifier = parts.classifier
        self._stop: StopRule = Never() if parts.stop is None else parts.stop
        self._num_looks = num_looks

    @torch.inference_mode()
    def open(self, clips: Sequence[OpenClip]) -> None:
        for clip in clips:
            if len(clip.window.glance_rows) != 1:
                raise ValueError(f"a clip of {len(clip.window.glance_rows)} frames is no image")
            clip.num_frames = 1
            clip.memory = _Memory(
                policy_state=self._policy.initial_state(1),
                classifier_state=self._classifier.initial_state(1),
                stop_state=self._stop.initial_state(1),
            )
        glance = self._glancer(runs_of((clip.frames.pixels, _row(clip)) for clip in clips))
        self._hear(clips, glance.feature, glance.feature_map, answer=glance.logits)

    @torch.inference_mode()
    def step(self, clips: Sequence[OpenClip], features: Sequence[PatchFeatures]) -> None:
        pairs = list(zip(clips, features, strict=True))
        for _, group in grouped(pairs, lambda pair: len(pair[0].step_logits)):
            feature = self._tensor([seen.feature for _, seen in group])
            maps = [seen.feature_map for _, seen in group if seen.feature_map is not None]
            # Only a learned policy reads the map, and only for it the focus network hands it over.
            feature_map = self._tensor(maps) if len(maps) == len(group) else feature[..., None, None]
            self._hear([clip for clip, _ in group], feature, feature_map)

    def _tensor(self, rows: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.concatenate(rows, dtype=np.float32)).to(self._glancer.device)

    def _hear(
        self,
        clips: Sequence[OpenClip],
        feature: torch.Tensor,
        feature_map: torch.Tensor,
        *,
        answer: torch.Tensor | None = None,
    ) -> None:
        """A look of clips that have had equally many: feature [B,D] and map [B,C,h,w]. `answer`: logits [B,K] in place
        of the classifier's, which remembers the look all the same."""
        state = torch.cat([clip.memory.classifier_state for clip in clips])
        state, logits = self._classifier.step(state, feature)
        logits = logits if answer is None else answer
        stops, stop_state = self._stop.stop(logits, torch.cat([clip.memory.stop_state for clip in clips]))
        is_stopped = stops.tolist()
        going_on = []
        for i, clip in enumerate(clips):
            clip.memory.classifier_state, clip.memory.stop_state = state[i : i + 1], stop_state[i : i + 1]
            clip.step_logits.append(logits[i])
            clip.is_finished = is_stopped[i] or len(clip.step_logits) >= self._num_looks
            if clip.is_finished:
                self._settle(clip)
            else:
                going_on.append(i)
        if going_on:
            self._look_on([clips[i] for i in going_on], feature_map[going_on])

    def _look_on(self, clips: Sequence[OpenClip], feature_map: torch.Tensor) -> None:
        """Asks for the next patch of each; without one a clip ends with what it has."""
        look = len(clips[0].step_logits)
        truth = self._parts.truths([(clip.frames, _row(clip)) for clip in clips])
        actions, state = self._policy.act(
            Observation(feature_map=feature_map, step=look - 1, truth_yx=truth),
            join([clip.memory.policy_state for clip in clips]),
            generators=[clip.generator for clip in clips],
        )
        places = corners(actions.offsets, view_px=self._parts.view_px, patch_px=self.patch_px).tolist()
        for i, clip in enumerate(clips):
            clip.memory.policy_state = state.row(i)
            clip.focus(step=look, row=_row(clip), corner=(places[i][0], places[i][1]), patch_px=self.patch_px)

    def _settle(self, clip: OpenClip) -> None:
        clip.step_gmacs = [
            self._parts.cost.gmacs(
                glanced=1,
                focused=looks - 1,
                classified=looks,
                decided=looks - 1 if self._parts.decides else 0,
            )
            for looks in range(1, len(clip.step_logits) + 1)
        ]
        clip.gmacs = clip.step_gmacs[-1]
        # The whole view once: looking at it again would show nothing new.
        clip.gmacs_full = self._parts.cost.gmacs_full(glanced=1, focused=1, classified=2)
        clip.memory = None


def _row(clip: OpenClip) -> int:
    return int(clip.window.glance_rows[0])
