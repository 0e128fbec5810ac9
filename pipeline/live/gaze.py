"""How cameras are looked at: one frame after another, each once, with the policy's state running on along the stream.

Frames of several cameras go through each network together. What was seen of a frame is kept for as long as a window
can ask for it; a window's label is made from what was kept, by a classifier that begins anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from operators.media.view import crop_patches
from operators.networks.classify import GRUClassifier, join_features
from operators.networks.compiled import CudaGraphs
from operators.networks.focus import Focuser
from operators.records import CameraFrame, Observation, PatchBatch, SourceFacts
from pipeline.families.clip import generator_of
from pipeline.families.parts import GazeParts
from policies.base import PolicyState, corners, join

_LEAST_TOGETHER = 10
"""On a CPU a step of fewer rows than this is slower together than one by one: for more than one row the matrix product
packs all weights first. 16 steps of the published classifier, one Zen 4 core: 14 ms a row alone, 80 ms for 2, 100 for
8, 136 for 16."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seen:
    """The part of a frame that is kept for the windows that show it."""

    feature: torch.Tensor
    """[C+D]: glance and focus together; zeros for the focus of a frame that was skipped."""
    box_yxyx: tuple[float, float, float, float] | None
    """In [0,1] of the view; None for a skipped frame."""
    frame_index: int
    time_unix_s: float
    received_unix_s: float
    view_yxhw: tuple[float, float, float, float]


@dataclass(slots=True, eq=False)
class Stream:
    """The state that runs along one camera's stream."""

    name: str
    segment_start_s: float = float("nan")
    policy_state: PolicyState | None = None
    generator: torch.Generator = field(default_factory=torch.Generator)


class LiveGaze:
    """The networks and rules that all cameras share."""

    def __init__(self, parts: GazeParts, *, focuser: Focuser, seed: int = 0) -> None:
        if parts.policy.reads != "glance":
            raise ValueError(f"a policy that reads the {parts.policy.reads} cannot run along a stream")
        self._parts = parts
        self._glancer = parts.glancer
        self._policy = parts.policy
        self._focuser = focuser
        self._classifier: GRUClassifier = parts.classifier
        self._patch_px = parts.patch_px
        self._view_px = parts.view_px
        self._seed = seed

    @torch.inference_mode()
    def warm_up(self, *, num_cameras: int, window_frames: Sequence[int]) -> None:
        """Does everything once on grey frames in the sizes that will come: first passes take many times as long, and
        cameras do not wait. Leaves no trace.
        """
        grey = _grey_frame(self._view_px)
        streams = [Stream(name=f"warm-up {i}") for i in range(num_cameras)]
        seen: list[Seen] = []
        # What a GPU records it records when a size comes again: that is over too when cameras are opened.
        times = CudaGraphs.RECORDED_AT if self._glancer.device.type == "cuda" else 1
        for count in (size for size in warm_up_sizes(num_cameras) for _ in range(times)):
            seen = self.look(streams[:count], [grey] * count)
            # A policy need not ask for a patch of a grey frame.
            self._focus(grey.pixels[None], np.zeros(count, np.int64), np.zeros((count, 2), np.int64))
        for count in sorted(set(window_frames)):
            self.classify([seen[:1] * count])

    def _focus(self, views: np.ndarray, rows: np.ndarray, places: np.ndarray) -> torch.Tensor:
        """[n,D] of the patches at `places` [n,2] of these rows of views [F,S,S,3]."""
        patches = PatchBatch(pixels=crop_patches(views, rows, places, patch_px=self._patch_px))
        return torch.from_numpy(np.array(self._focuser(patches).feature, np.float32))

    @torch.inference_mode()
    def look(self, streams: Sequence[Stream], frames: Sequence[CameraFrame]) -> list[Seen]:
        """Looks at one frame each of different cameras. State starts at zero where a camera's segment is new."""
        for stream, frame in zip(streams, frames, strict=True):
            if frame.segment_start_s != stream.segment_start_s:
                stream.segment_start_s = frame.segment_start_s
                stream.policy_state = None
                stream.generator = generator_of(self._seed, f"{stream.name}@{frame.segment_start_s:.6f}")
        pixels = np.stack([frame.pixels for frame in frames])
        glance = self._glancer(pixels)
        states = [s.policy_state or self._policy.initial_state(1) for s in streams]
        actions, state = self._policy.act(
            Observation(feature_map=glance.feature_map),
            join(states),
            generators=[stream.generator for stream in streams],
        )
        for i, stream in enumerate(streams):
            stream.policy_state = state.row(i)
        is_focused = actions.focus.cpu().numpy()
        places = corners(actions.offsets, view_px=self._view_px, patch_px=self._patch_px).cpu().numpy()
        local = glance.feature.new_zeros((len(frames), self._focuser.num_features))
        rows = np.flatnonzero(is_focused)
        if len(rows):
            local[torch.from_numpy(rows).to(local.device)] = self._focus(pixels, rows, places[rows]).to(local)
        joined = join_features(glance.feature, local, self._focuser.num_features)
        side = self._view_px
        return [
            Seen(
                feature=joined[i],
                box_yxyx=None
                if not is_focused[i]
                else (
                    places[i, 0] / side,
                    places[i, 1] / side,
                    (places[i, 0] + self._patch_px) / side,
                    (places[i, 1] + self._patch_px) / side,
                ),
                frame_index=frame.frame_index,
                time_unix_s=frame.time_unix_s,
                received_unix_s=frame.received_unix_s,
                view_yxhw=frame.view_yxhw,
            )
            for i, frame in enumerate(frames)
        ]

    @torch.inference_mode()
    def classify(self, windows: Sequence[Sequence[Seen]]) -> list[torch.Tensor]:
        """[n,K] of each window's n frames. Windows of one length share a pass where that is faster."""
        logits: list[torch.Tensor] = [torch.empty(0)] * len(windows)
        by_length: dict[int, list[int]] = {}
        for i, seen in enumerate(windows):
            by_length.setdefault(len(seen), []).append(i)
        is_cpu = next(self._classifier.parameters()).device.type == "cpu"
        for together in by_length.values():
            size = 1 if is_cpu and len(together) < _LEAST_TOGETHER else len(together)
            for start in range(0, len(together), size):
                members = together[start : start + size]
                inputs = torch.stack([torch.stack([s.feature for s in windows[i]]) for i in members])
                found = self._classifier(inputs)[0].float().cpu()
                for row, i in enumerate(members):
                    logits[i] = found[row]
        return logits

    def gmacs(self, window: Sequence[Seen], num_fresh: int) -> tuple[float, float]:
        """(spent, with every full view focused) for a window of which the last num_fresh frames are in none before."""
        fresh = window[len(window) - num_fresh :]
        focused = sum(seen.box_yxyx is not None for seen in fresh)
        spent = self._parts.cost.gmacs(
            glanced=num_fresh,
            focused=focused,
            classified=len(window),
            decided=num_fresh if self._parts.decides else 0,
            skips_decided=num_fresh if self._parts.has_skip else 0,
        )
        return spent, self._parts.cost.gmacs_full(glanced=num_fresh, focused=num_fresh, classified=len(window))


def warm_up_sizes(num_cameras: int) -> list[int]:
    """How many frames may come at once: each number up to 8, powers of two beyond, and all cameras."""
    powers = (1 << k for k in range(4, num_cameras.bit_length()))
    return sorted({*range(1, min(num_cameras, 8) + 1), *powers, num_cameras})


def _grey_frame(side_px: int) -> CameraFrame:
    return CameraFrame(
        pixels=np.full((side_px, side_px, 3), 128, np.uint8),
        time_unix_s=0.0,
        received_unix_s=0.0,
        frame_index=0,
        segment_start_s=0.0,
        tick=0,
        view_yxhw=(0.0, 0.0, 1.0, 1.0),
        facts=SourceFacts(width=side_px, height=side_px),
    )
