"""The frames that are wanted of a source, and how they make its clips. Pure: numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingRule:
    """The rule by which frames of a source make its clips."""

    kind: str = "whole"
    """whole: one clip, frames spread over everything. window: a clip every stride_s, each window_s long."""
    num_frames: int = 16
    num_focus_frames: int | None = None
    """Frames to focus on, chosen by the same rule apart from the glanced ones; None: the glanced ones."""
    seek: str = "exact"
    """exact: the frames that the rule names. keyframe: the keyframes nearest to them, which is far cheaper."""
    pad: str = "last"
    """The frames of a sample that is longer than its video. last: all, and the last one again and again. first: the
    first one only."""
    window_s: float = 10.0
    stride_s: float = 10.0

    def __post_init__(self) -> None:
        if self.kind not in ("whole", "window"):
            raise ValueError(f"kind must be whole or window, not {self.kind!r}")
        if self.seek not in ("exact", "keyframe"):
            raise ValueError(f"seek must be exact or keyframe, not {self.seek!r}")
        if self.pad not in ("last", "first"):
            raise ValueError(f"pad must be last or first, not {self.pad!r}")
        if self.num_frames < 1 or (self.num_focus_frames is not None and self.num_focus_frames < 1):
            raise ValueError(f"a sample has frames, not {self.num_frames} and {self.num_focus_frames}")
        if self.kind == "window" and not (self.window_s > 0 and self.stride_s > 0):
            raise ValueError(f"windows need positive seconds, not {self.window_s} every {self.stride_s}")


def sample_indices(num_frames_in_source: int, num_steps: int, pad: str = "last") -> np.ndarray:
    """int64 [num_steps]: the frames that the published validation rule takes out of `num_frames_in_source`."""
    n, steps = num_frames_in_source, num_steps
    if n < 1 or steps < 1:
        raise ValueError(f"cannot take {steps} frames out of {n}")
    if n > steps:
        # The published expression, in its order of operations: 300 frames and 16 steps give 9, 28, 46, ...
        return np.array([int(n / steps / 2 + n / steps * i) for i in range(steps)], np.int64)
    if pad == "first":
        # AdaFocus-TSM takes its frames by the rule only where there are more than it wants.
        return np.zeros(steps, np.int64)
    return np.minimum(np.arange(steps, dtype=np.int64), n - 1)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WindowPlan:
    """A clip that has not been read yet: its time, and the frame numbers that its steps show."""

    start_s: float
    end_s: float
    glance: np.ndarray
    """int64 [T]"""
    focus: np.ndarray
    """int64 [T']; the same array as `glance` where they do not differ"""

    @property
    def frames(self) -> np.ndarray:
        """int64: the distinct frame numbers, ascending."""
        return np.union1d(self.glance, self.focus)

    def showing(self, instead: dict[int, int]) -> WindowPlan:
        """The same clip with other frames in the place of its own."""
        glance = np.array([instead[frame] for frame in self.glance.tolist()], np.int64)
        focus = glance
        if self.focus is not self.glance:
            focus = np.array([instead[frame] for frame in self.focus.tolist()], np.int64)
        return replace(self, glance=glance, focus=focus)


def whole_plan(num_frames: int, duration_s: float, sampling: SamplingRule) -> WindowPlan:
    """The one clip of a source of `num_frames` frames."""
    glance = sample_indices(num_frames, sampling.num_frames, sampling.pad)
    focus = glance
    if sampling.num_focus_frames is not None:
        focus = sample_indices(num_frames, sampling.num_focus_frames, sampling.pad)
    return WindowPlan(start_s=0.0, end_s=duration_s, glance=glance, focus=focus)


def window_plans(
    times: np.ndarray, duration_s: float, sampling: SamplingRule, first_window: int = 0
) -> Iterator[WindowPlan]:
    """The clips of a source whose frames are shown at `times`, float64 seconds, never falling."""
    beyond = max(0.0, duration_s - sampling.window_s) / sampling.stride_s
    # An error of rounding must not make a window of no length.
    count = 1 + math.ceil(beyond - 1e-9)
    for k in range(first_window, count):
        start_s = k * sampling.stride_s
        end_s = min(start_s + sampling.window_s, duration_s)
        begin, end = np.searchsorted(times, [start_s - 1e-9, end_s - 1e-9])
        if k == 0:
            begin = 0
        if end <= begin:
            # Nothing begins in here: the frame that is still on the screen is what there is to see.
            begin = max(int(begin) - 1, 0)
            end = begin + 1
        inner = whole_plan(int(end - begin), 0.0, sampling)
        glance = inner.glance + begin
        focus = glance if inner.focus is inner.glance else inner.focus + begin
        yield WindowPlan(start_s=start_s, end_s=end_s, glance=glance, focus=focus)
