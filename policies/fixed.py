"""Policies and skip rules that do not learn: baselines for tests, benchmarks and comparisons."""

from __future__ import annotations

from typing import Literal

import torch

from operators.records import Observation
from policies.base import Actions, Generators, PolicyState, Reads, uniform


class _Fixed:
    """The part that the fixed policies share: they have no state and read no map."""

    reads: Reads = "glance"
    scope: Literal["step", "clip"] = "step"

    def initial_state(self, num_clips: int) -> PolicyState:
        return PolicyState(num_clips=num_clips, tensors={})

    def encode(self, feature_map: torch.Tensor) -> torch.Tensor:
        # The maps are not read: one empty row for each keeps the number of rows and the device.
        return feature_map.new_empty((feature_map.shape[0], 0))


class Center(_Fixed):
    """Looks at the middle of every frame."""

    def act(
        self,
        observation: Observation,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
        code: torch.Tensor | None = None,
    ) -> tuple[Actions, PolicyState]:
        return _focus_at(observation.feature_map.new_full((state.num_clips, 2), 0.5)), state


class Random(_Fixed):
    """Looks at a place that is drawn uniformly for every frame, whether it is asked to be greedy or not."""

    def act(
        self,
        observation: Observation,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
        code: torch.Tensor | None = None,
    ) -> tuple[Actions, PolicyState]:
        return _focus_at(uniform((state.num_clips, 2), generators, observation.feature_map.device)), state


class Full(_Fixed):
    """Looks at every frame as a whole: the patch is as large as the view, so its offset is zero."""

    def act(
        self,
        observation: Observation,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
        code: torch.Tensor | None = None,
    ) -> tuple[Actions, PolicyState]:
        return _focus_at(observation.feature_map.new_zeros((state.num_clips, 2))), state


class GlanceOnly(_Fixed):
    """Looks at no patch at all."""

    def act(
        self,
        observation: Observation,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
        code: torch.Tensor | None = None,
    ) -> tuple[Actions, PolicyState]:
        offsets = observation.feature_map.new_full((state.num_clips, 2), 0.5)
        return Actions(
            offsets=offsets.float(), focus=torch.zeros(len(offsets), dtype=torch.bool, device=offsets.device)
        ), state


class Oracle(_Fixed):
    """Looks where the truth is: at the nearest cell of the grid of `num_actions`, or at the exact place for None.

    `patch_share` is the patch's side in units of the view's. Where the truth is unknown (NaN) it looks at the middle.
    """

    def __init__(self, *, patch_share: float, num_actions: int | None = 49) -> None:
        if not 0 < patch_share <= 1:
            raise ValueError(f"patch_share is {patch_share}, not in (0,1]")
        self.patch_share = patch_share
        self.cells = None if num_actions is None else round(num_actions**0.5)

    def act(
        self,
        observation: Observation,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
        code: torch.Tensor | None = None,
    ) -> tuple[Actions, PolicyState]:
        if observation.truth_yx is None:
            raise ValueError("the oracle needs observation.truth_yx")
        free = max(1 - self.patch_share, 1e-6)
        offsets = ((observation.truth_yx.float() - self.patch_share / 2) / free).clamp(0, 1)
        if self.cells is not None:
            offsets = torch.round(offsets * (self.cells - 1)) / (self.cells - 1)
        return _focus_at(torch.nan_to_num(offsets, nan=0.5)), state


def _focus_at(offsets: torch.Tensor) -> Actions:
    return Actions(offsets=offsets.float(), focus=torch.ones(len(offsets), dtype=torch.bool, device=offsets.device))


class SkipRandom:
    """Focuses each step with probability `share`."""

    reads: Reads = "glance"

    def __init__(self, *, share: float) -> None:
        self.share = _checked(share)

    def initial_state(self, num_clips: int) -> PolicyState:
        return PolicyState(num_clips=num_clips, tensors={})

    def decide(
        self,
        observation: Observation,
        context: torch.Tensor | None,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, PolicyState]:
        device = observation.feature_map.device
        return uniform((state.num_clips,), generators, device) < self.share, None, state


class SkipUniform:
    """Focuses evenly spaced steps, `share` of them; half a gap comes before the first.

    It counts the clip's own steps, so that clips at different steps can share a batch.
    """

    reads: Reads = "glance"

    def __init__(self, *, share: float) -> None:
        self.share = _checked(share)

    def initial_state(self, num_clips: int) -> PolicyState:
        return PolicyState(num_clips=num_clips, tensors={"step": torch.zeros(num_clips, dtype=torch.int64)})

    def decide(
        self,
        observation: Observation,
        context: torch.Tensor | None,
        state: PolicyState,
        *,
        greedy: bool = True,
        generators: Generators = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, PolicyState]:
        step = state.tensors["step"]
        # The small term keeps e.g. 10 * 0.1 from landing just below one and moving a focus by a step.
        before = torch.floor(step.double() * self.share + 0.5 + 1e-9)
        after = torch.floor((step + 1).double() * self.share + 0.5 + 1e-9)
        focus = (after > before).to(observation.feature_map.device)
        return focus, None, PolicyState(num_clips=state.num_clips, tensors={"step": step + 1})


def _checked(share: float) -> float:
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}, not in [0,1]")
    return share
