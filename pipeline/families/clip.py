"""A clip between its frames and its label, what a family's gaze does with it, and the form of the label."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from operators.errors import ErrorCode
from operators.records import Decision, FrameBatch, PatchFeatures, StepKind, Window

NOT_FINITE = (
    "the networks gave scores that are not finite numbers: look for NaN in the checkpoint, or, where the precision "
    "is not enough for its numbers, label with --set compute.precision=fp32"
)


@dataclass(slots=True, eq=False)
class OpenClip:
    """A clip between its frames and its label. Tensors live on the device of the networks."""

    frames: FrameBatch
    window: Window
    generator: torch.Generator
    memory: Any = None
    """The state that the clip's family keeps of it."""
    num_frames: int = 0
    """Frames sampled, a repeated one each time; a gaze counts them when it opens the clip."""
    decisions: list[Decision] = field(default_factory=list)
    step_logits: list[torch.Tensor] = field(default_factory=list)
    """[K] of every classified step"""
    corners: list[tuple[float, float]] = field(default_factory=list)
    """The corners of the patches that the clip waits for, (row, column): all whole pixels, as integers, or all
    real-valued."""
    rows: list[int] = field(default_factory=list)
    """The rows of its FrameBatch that those patches are cut from."""
    is_finished: bool = False
    gmacs: float = 0.0
    gmacs_full: float = 0.0
    step_gmacs: list[float] = field(default_factory=list)
    """GMACs spent up to each classified step."""

    def focus(self, *, step: int, row: int, corner: tuple[float, float], patch_px: int) -> None:
        """Asks for a patch."""
        side = self.frames.pixels.shape[1]
        y, x = corner
        box = (y / side, x / side, (y + patch_px) / side, (x + patch_px) / side)
        self.decisions.append(Decision(step=step, kind=StepKind.FOCUS, box_yxyx=box, row=row))
        self.rows.append(row)
        self.corners.append(corner)

    def skip(self, step: int) -> None:
        self.decisions.append(Decision(step=step, kind=StepKind.SKIP))


class Gaze(Protocol):
    """The way in which one family of models looks at clips."""

    patch_px: int

    def open(self, clips: Sequence[OpenClip]) -> None:
        """Glances, and goes on until each clip waits for patches or is finished."""

    def step(self, clips: Sequence[OpenClip], features: Sequence[PatchFeatures]) -> None:
        """Takes the features of the patches asked for, and goes on as `open` does."""


def generator_of(seed: int, clip_id: str) -> torch.Generator:
    """The random numbers of one clip: the same whatever it is batched with."""
    digest = hashlib.sha256(f"{seed}/{clip_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def finite(logits: torch.Tensor) -> bool:
    """Whether every logit is a number; one that is NaN or infinite makes no label."""
    return bool(torch.isfinite(logits).all())


@dataclass(frozen=True, kw_only=True)
class LabelForm:
    """The columns of a row that an answer fills, and how."""

    class_names: Sequence[str]
    topk: int = 5
    logits: bool = False
    step_logits: bool = False

    def answer(self, logits: torch.Tensor) -> dict[str, Any]:
        """The columns of a ClipLabel that say what was seen: by the logits of classified steps, float32 [n,K] on the
        CPU, of which the last one counts. Logits that are not finite are no answer but an error."""
        if not finite(logits):
            return {"error_code": ErrorCode.NOT_FINITE, "error": NOT_FINITE}
        last = logits[-1]
        best = torch.topk(torch.softmax(last, dim=0), min(self.topk, len(last)))
        topk = tuple(
            (self.class_names[i], i, score)
            for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        return {
            "label": topk[0][0],
            "label_id": topk[0][1],
            "score": topk[0][2],
            "topk": topk,
            "logits": last.numpy() if self.logits else None,
            "step_logits": logits.numpy() if self.step_logits else None,
        }


def runs_of(views: Iterable[tuple[np.ndarray, int]]) -> list[np.ndarray]:
    """Rows of arrays, each where it lies; neighbours of one array stay together."""
    runs: list[tuple[np.ndarray, int, int]] = []
    for pixels, row in views:
        if runs and runs[-1][0] is pixels and runs[-1][2] == row:
            runs[-1] = (pixels, runs[-1][1], row + 1)
        else:
            runs.append((pixels, row, row + 1))
    return [pixels[start:stop] for pixels, start, stop in runs]


def grouped(items: Sequence, key: Callable) -> list[tuple]:
    """(key, items) of those with equal keys, in order of the keys."""
    ordered = sorted(items, key=key)
    return [(value, list(group)) for value, group in itertools.groupby(ordered, key=key)]
