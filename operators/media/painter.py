"""Decoded frames of files and cameras become views, shown as their orientation says."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, cast

import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from operators.media.view import UPRIGHT, Orientation, Viewer


def orientation_of(frame: VideoFrame, pixel_aspect: Fraction | None) -> Orientation:
    """The way in which a decoded frame is to be shown."""
    rotation, is_mirrored = 0, False
    try:
        matrix = None
        # Not frame.side_data: the frame would keep it, and it the frame, so that full-size frames pile up by the
        # hundred until the garbage collector finds them.
        for data in cast(Iterable[Any], SideDataContainer(frame)):  # type: ignore[call-arg]
            if data.type.name == "DISPLAYMATRIX":
                matrix = bytes(data)
    except ValueError:
        # PyAV does not know every kind of side data, and one that it does not know hides all others.
        rotation = round(-frame.rotation / 90) % 4 * 90
    else:
        if matrix is not None:
            a, b, _, c, d = struct.unpack_from("<5i", matrix)
            is_mirrored = a * d - b * c < 0
            if is_mirrored:
                a, b = -a, -b
            rotation = round(math.degrees(math.atan2(b, a)) / 90) % 4 * 90
    if not rotation and not is_mirrored and (pixel_aspect is None or pixel_aspect == 1):
        return UPRIGHT
    return Orientation(rotation=rotation, is_mirrored=is_mirrored, pixel_aspect=pixel_aspect or Fraction(1))


class Painter:
    """Makes views of decoded frames, through full-size RGB. Each thread has one, as it keeps a converter."""

    def __init__(self, *, viewer: Viewer) -> None:
        self._viewer = viewer
        self._reformatter = VideoReformatter()

    def __call__(self, frame: VideoFrame, orientation: Orientation) -> np.ndarray:
        """The view of a frame, uint8 RGB. Colour as tagged; untagged means BT.601, limited range."""
        # One thread: the default takes every core of the machine for a third of a millisecond's work.
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1)
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        pixels = rows[: rgb.height, : rgb.width * 3].reshape(rgb.height, rgb.width, 3)
        return self._viewer(pixels, orientation)
