"""The outermost headers of a video file say whether it is a container, and how long it should be."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FileShape:
    """The facts in a container's outermost headers."""

    is_media: bool
    """It begins as a container of moving pictures does."""
    is_fragmented: bool = False
    """MP4 in pieces, whose index does not list all of it."""
    promised_bytes: int = 0
    """The length of the whole file by its headers; 0 where they do not give it."""


def file_shape(path: str) -> FileShape:
    """The shape of a file. Reads only headers: those of the outermost boxes, 1000 at most."""
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        head = file.read(64)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"pnot"):
            return _boxes(file, size)
        if head.startswith(b"\x1a\x45\xdf\xa3"):
            return FileShape(is_media=True, promised_bytes=_matroska_bytes(head))
        if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
            (length,) = struct.unpack_from("<I", head, 4)
            # Longer files go on in further RIFFs, and some writers leave 0 or the greatest number here.
            return FileShape(is_media=True, promised_bytes=length + 8 if 0 < length < 0x7FFF0000 else 0)
    signatures = (
        b"FLV\x01",
        b"OggS",
        b"0&\xb2u\x8ef\xcf\x11",
        b"\0\0\x01\xba",
        b"\0\0\x01\xb3",
        b"DKIF",
        b"GIF8",
    )
    transport = head[:1] == b"G" or head[4:5] == b"G"
    return FileShape(is_media=head.startswith(signatures) or (transport and not head.isascii()))


def _boxes(file, size: int) -> FileShape:
    at, is_fragmented, promised = 0, False, 0
    for _ in range(1000):
        file.seek(at)
        header = file.read(16)
        if len(header) < 8:
            break
        (length,) = struct.unpack_from(">I", header)
        if length == 1 and len(header) == 16:
            (length,) = struct.unpack_from(">Q", header, 8)
        elif length == 0:
            length = size - at
        if length < 8:
            break
        if header[4:8] == b"moof":
            is_fragmented = True
        at += length
        promised = max(promised, at)
        if at >= size or is_fragmented:
            break
    return FileShape(is_media=True, is_fragmented=is_fragmented, promised_bytes=0 if is_fragmented else promised)


def _vint(data: bytes, at: int) -> tuple[int, int] | None:
    """(value, bytes read) of an EBML length; value -1 where it says "unknown"."""
    if at >= len(data) or data[at] == 0:
        return None
    count = 9 - data[at].bit_length()
    if at + count > len(data):
        return None
    value = int.from_bytes(data[at : at + count], "big") & ((1 << (7 * count)) - 1)
    return (-1 if value == (1 << (7 * count)) - 1 else value), count


def _matroska_bytes(head: bytes) -> int:
    header = _vint(head, 4)
    if header is None:
        return 0
    at = 4 + header[1] + header[0]
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return 0
    segment = _vint(head, at + 4)
    if segment is None or segment[0] < 0:
        return 0
    return at + 4 + segment[1] + segment[0]
