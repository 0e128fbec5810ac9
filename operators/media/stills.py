"""Still images, and folders of numbered images that are one video, are read as RGB pixels.

Images go through OpenCV, whose libjpeg gives the very pixels that Pillow gives: the published frames are JPEG files
read with Pillow, and FFmpeg's own JPEG decoder differs by up to three levels. Imported at the first image, as the
other sources do without it.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from operators.errors import ErrorCode, SourceError
from operators.media.image_headers import exif_orientation, image_kind, image_size, is_whole_image
from operators.media.view import Orientation

IMAGE_ENDINGS = frozenset((".jpg", ".jpeg", ".png"))
FOLDER_FPS = 25.0
"""Numbered images have no times; the published lists count them at the usual rate of a video."""
_HEAD_BYTES = 64 << 10
_BYTES_PER_PIXEL = 8
"""Four channels of 16 bits: no compressed picture is longer."""
_EXTRA_BYTES = 64 << 20
"""The room for what is not the picture: color profiles, previews, some seconds of video behind a phone's picture."""

_ORIENTATIONS = {
    # EXIF's number: (rotation clockwise, mirrored first)
    1: (0, False),
    2: (0, True),
    3: (180, False),
    4: (180, True),
    5: (270, True),
    6: (90, False),
    7: (90, True),
    8: (270, False),
}


def natural_key(name: str) -> tuple[tuple[int, str], ...]:
    """A key of sorting that puts img_2 before img_10."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name))


def frame_paths(folder: str | Path) -> list[Path]:
    """The images of a folder in the order of their numbers. Raises SourceError where there are none."""
    path = Path(folder)
    try:
        names = [entry.name for entry in os.scandir(path) if entry.is_file()]
    except FileNotFoundError as exc:
        raise SourceError(f"{path} does not exist", ErrorCode.MISSING) from exc
    except OSError as exc:
        raise SourceError(f"{path} cannot be listed: {exc.strerror}", ErrorCode.MISSING) from exc
    images = [
        name
        for name in names
        if os.path.splitext(name)[1].lower() in IMAGE_ENDINGS
        and any(character.isdecimal() for character in name)
        and not name.startswith(".")
    ]
    if not images:
        raise SourceError(f"{path} holds no numbered images (image_00001.jpg, ...)", ErrorCode.NO_FRAMES)
    return [path / name for name in sorted(images, key=natural_key)]


def read_image(path: str | Path, *, max_pixels: int) -> tuple[np.ndarray, Orientation]:
    """(uint8 RGB [H,W,3] as stored, how it is to be shown). Raises SourceError."""
    try:
        with open(path, "rb") as file:
            data = _read_judged(file, path, max_pixels)
    except FileNotFoundError as exc:
        raise SourceError(f"{path} does not exist", ErrorCode.MISSING) from exc
    except OSError as exc:
        raise SourceError(f"{path} cannot be read: {exc.strerror}", ErrorCode.MISSING) from exc
    if not is_whole_image(data):
        raise SourceError(f"{path} breaks off before its end", ErrorCode.CORRUPT)
    import cv2

    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as exc:
        raise SourceError(f"{path} cannot be decoded: {exc.err}", ErrorCode.CORRUPT) from exc
    if pixels is None:
        raise SourceError(f"{path} cannot be decoded", ErrorCode.CORRUPT)
    rotation, is_mirrored = _ORIENTATIONS[exif_orientation(data)]
    return np.asarray(pixels, np.uint8), Orientation(rotation=rotation, is_mirrored=is_mirrored)


def _read_judged(file: BinaryIO, path: str | Path, max_pixels: int) -> bytes:
    """Reads the whole file, but only after its head has said that it is an image within the limits."""
    head = file.read(_HEAD_BYTES)
    if not head:
        raise SourceError(f"{path} is empty", ErrorCode.EMPTY)
    if image_kind(head) is None:
        raise SourceError(f"{path} is neither a JPEG nor a PNG image", ErrorCode.NOT_MEDIA)
    size = image_size(head)
    if size is None:
        # Color profiles and previews may stand before the size.
        head += file.read(_EXTRA_BYTES)
        size = image_size(head)
    if size is None:
        raise SourceError(f"{path} breaks off in its header", ErrorCode.CORRUPT)
    num_pixels = size[0] * size[1]
    if num_pixels > max_pixels:
        raise SourceError(f"{path} is {size[0]}x{size[1]}, more than {max_pixels} pixels", ErrorCode.TOO_LARGE)
    max_bytes = num_pixels * _BYTES_PER_PIXEL + _EXTRA_BYTES
    num_bytes = os.fstat(file.fileno()).st_size
    if num_bytes > max_bytes:
        raise SourceError(
            f"{path} has {num_bytes} bytes, more than the {max_bytes} that an image of {size[0]}x{size[1]} may have",
            ErrorCode.TOO_LARGE,
        )
    return head + file.read(max(0, max_bytes - len(head)))
