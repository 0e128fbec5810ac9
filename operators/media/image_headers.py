"""The bytes of a JPEG or PNG image say its size, its orientation and whether its end is there, before it is decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_IMAGES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n\x1a\n": "png"}


def image_kind(head: bytes) -> str | None:
    """jpeg or png by the first bytes of a file; None for everything else."""
    return next((kind for magic, kind in _IMAGES.items() if head.startswith(magic)), None)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, stop) of the segments before the picture's own bytes; the last is the start of scan."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        yield marker, at + 4, at + 2 + length
        if marker == 0xDA:
            return
        at += 2 + length


def image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) as coded, from the header alone; None where there is none."""
    if image_kind(data) == "png":
        if len(data) < 24:
            return None
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    for marker, start, stop in _jpeg_segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and stop <= len(data) and stop - start >= 5:
            height, width = struct.unpack_from(">HH", data, start + 1)
            return width, height
    return None


def is_whole_image(data: bytes) -> bool:
    """Whether the image's end is there: decoders paint what is missing grey and say nothing."""
    if image_kind(data) == "png":
        return b"IEND" in data[-64:]
    scan = [stop for marker, _, stop in _jpeg_segments(data) if marker == 0xDA]
    # Behind the start of scan: a thumbnail in the header has an end of its own.
    return bool(scan) and data.rfind(b"\xff\xd9") >= scan[0]


def exif_orientation(data: bytes) -> int:
    """1 to 8 as EXIF counts; 1, upright, where nothing is said."""
    if image_kind(data) == "png":
        at = 8
        while at + 8 <= len(data):
            (length,) = struct.unpack_from(">I", data, at)
            if data[at + 4 : at + 8] == b"eXIf":
                return _tiff_orientation(data[at + 8 : at + 8 + length])
            at += 12 + length
        return 1
    for marker, start, stop in _jpeg_segments(data):
        if marker == 0xE1 and data[start : start + 6] == b"Exif\0\0":
            return _tiff_orientation(data[start + 6 : stop])
    return 1


def _tiff_orientation(tiff: bytes) -> int:
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 1
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    if directory + 2 > len(tiff):
        return 1
    (entries,) = struct.unpack_from(order + "H", tiff, directory)
    for i in range(entries):
        at = directory + 2 + 12 * i
        if at + 12 > len(tiff):
            break
        tag, kind = struct.unpack_from(order + "HH", tiff, at)
        if tag == 0x0112 and kind == 3:
            (value,) = struct.unpack_from(order + "H", tiff, at + 8)
            return value if 1 <= value <= 8 else 1
    return 1
