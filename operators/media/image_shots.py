"""Still images and folders of numbered images give shots, as the frames of a video do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from operators.errors import ErrorCode, SourceError
from operators.media.cut import Shot
from operators.media.stills import read_image
from operators.media.view import Orientation, Viewer


class FolderShots:
    """The images of one folder as the frames of a video; it counts those that cannot be read."""

    def __init__(self, paths: Sequence[Path], *, viewer: Viewer, max_pixels: int) -> None:
        self._paths = paths
        self._viewer = viewer
        self._max_pixels = max_pixels
        self.num_corrupt = 0

    def shots(self, wanted: Sequence[int]) -> Iterator[Shot | None]:
        """Shots of the wanted frames, ascending, and None as a sign of life.

        An image that cannot be read is replaced by the nearest one before it that can, if no other frame shows that.
        """
        known = -1
        for frame in wanted:
            for shown in range(frame, known, -1):
                try:
                    pixels, orientation = read_image(self._paths[shown], max_pixels=self._max_pixels)
                except SourceError as exc:
                    if exc.code == ErrorCode.TOO_LARGE:
                        raise
                    self.num_corrupt += 1
                    yield None
                    continue
                known = shown
                yield image_shot(pixels, orientation, viewer=self._viewer, wanted=frame, shown=shown)
                break
            yield None


def image_shot(
    pixels: np.ndarray, orientation: Orientation, *, viewer: Viewer, wanted: int = 0, shown: int = 0
) -> Shot:
    """The shot of an image, uint8 RGB [H,W,3]. It has no time of its own."""
    return Shot(
        wanted=wanted,
        shown=shown,
        pixels=viewer(pixels, orientation),
        pts=None,
        size=(pixels.shape[0], pixels.shape[1]),
        orientation=orientation,
    )
