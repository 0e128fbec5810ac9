"""The contact sheet of a synthetic archive: frames of a few videos, and what the networks see of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from operators.durable import write_durably
from operators.errors import SinkError
from operators.media.view import Viewer
from pipeline.synthetic.scene import VIEW_PX, Box, VideoPlan

SHEET_ROWS = 8
SHEET_FRAMES = 6
_PATCH_PX = 32
"""Side of the glance and of a patch on the contact sheet."""
_TILE_PX = 144
_CAPTION_PX = 18


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PaintedVideo:
    """What is known of one video when its file is written."""

    plan: VideoPlan
    boxes: list[Box | None]
    num_bytes: int
    samples: list[np.ndarray] = field(default_factory=list)
    """A few frames for the contact sheet, [H,W,3]."""
    sample_frames: list[int] = field(default_factory=list)


def _tile(image: np.ndarray, caption: str, *, is_pixelated: bool = False) -> np.ndarray:
    """uint8 [_TILE_PX + _CAPTION_PX, _TILE_PX, 3]: the image, fitted, over a line of text."""
    tile = np.full((_TILE_PX + _CAPTION_PX, _TILE_PX, 3), 255, np.uint8)
    scale = _TILE_PX / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    how = cv2.INTER_NEAREST if is_pixelated else cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    top, left = (_TILE_PX - height) // 2, (_TILE_PX - width) // 2
    tile[top : top + height, left : left + width] = cv2.resize(image, (width, height), interpolation=how)
    at = (4, _TILE_PX + _CAPTION_PX - 6)
    cv2.putText(tile, caption, at, cv2.FONT_HERSHEY_SIMPLEX, 0.38, (20, 20, 20), 1, cv2.LINE_AA)
    return tile


def sheet_row(made: PaintedVideo, label: str) -> np.ndarray:
    """Frames of one video with the evidence outlined, then what the networks see of one: glance and patch."""
    tiles: list[np.ndarray] = []
    chosen: tuple[np.ndarray, Box] | None = None
    for index, frame in zip(made.sample_frames, made.samples, strict=True):
        box = made.boxes[index]
        caption = f"{made.plan.name}" if not tiles else f"{index / made.plan.fps:.2f} s"
        shown = frame.copy()
        if box is not None:
            chosen = chosen or (frame, box)
            (y, x, h, w), (height, width) = box, frame.shape[:2]
            start = round(x * width) - 3, round(y * height) - 3
            stop = round((x + w) * width) + 2, round((y + h) * height) + 2
            cv2.rectangle(shown, start, stop, (255, 255, 255), max(1, round(min(height, width) / 96)))
            caption += "  visible"
        tiles.append(_tile(shown, caption))
    frame, box = chosen or (made.samples[0], None)
    viewer, small = Viewer(resize_px=VIEW_PX, crop_px=VIEW_PX), Viewer(resize_px=_PATCH_PX, crop_px=_PATCH_PX)
    view = viewer(frame)
    tiles.append(_tile(small(view), f"glance {_PATCH_PX} px", is_pixelated=True))
    if box is None:
        tiles.append(_tile(np.full((_PATCH_PX, _PATCH_PX, 3), 255, np.uint8), f"{label} (not visible)"))
    else:
        shown_at = viewer.box(*frame.shape[:2])
        y, x = (
            round(((box[i] + box[i + 2] / 2 - shown_at[i]) / shown_at[i + 2]) * VIEW_PX - _PATCH_PX / 2) for i in (0, 1)
        )
        y, x = (min(max(0, v), VIEW_PX - _PATCH_PX) for v in (y, x))
        tiles.append(_tile(view[y : y + _PATCH_PX, x : x + _PATCH_PX], f"patch: {label}", is_pixelated=True))
    framed = [np.pad(tile, ((2, 2), (3, 3), (0, 0)), constant_values=255) for tile in tiles]
    return np.concatenate(framed, axis=1)


def write_sheet(path: Path, rows: Sequence[np.ndarray]) -> None:
    rgb = np.concatenate(rows)
    done, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    if not done:
        raise SinkError(f"cannot encode the contact sheet {path}")
    write_durably(path, data.tobytes())
